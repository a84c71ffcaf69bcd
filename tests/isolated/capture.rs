//! A recording of everything that a job sends over the network: no byte of an id or a secret is in
//! it, and nothing that the control plane says can be read.
//!
//! The job runs in a network namespace of its own, whose loopback interface is recorded. Where
//! namespaces are not possible the test says so and does nothing.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole::{Communicator, Options, RedOp, UniqueId};
use maypole_transport::sync::{AtomicBool, Ordering};

use crate::ranks::{Job, OVER_TCP};

/// The test that a rank process runs.
const ENTRY: &str = "capture::rank";
/// The test that runs in the namespace.
const STAGE: &str = "capture::stage";
/// Set for it.
const STAGE_VARIABLE: &str = "MAYPOLE_TEST_STAGE";
/// The variable with the path of a file in which rank 0 leaves the id of the grown communicator.
const GROWN_ID: &str = "MAYPOLE_TEST_GROWN_ID";

/// Ranks of the first communicator; one more joins it.
const NRANKS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(30);
/// What the ranks add up, so that the recording shows that it records.
const DATA: u32 = 0x1a2b_3c4d;
/// The bytes of a unique id that are its secret.
const SECRET: std::ops::Range<usize> = 9..41;
/// So many bytes in a row do not occur by chance.
const TELLING: usize = 6;

/// Not a test: the code of a rank process. One communicator is made of the others in each way.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some(invitation) = crate::ranks::invitation() else { return };
    let (rank, grown_id) = (invitation.rank, std::env::var_os(GROWN_ID).expect("a path"));
    if rank == NRANKS {
        let until = Instant::now() + PATIENCE;
        let bytes = loop {
            if let Ok(bytes) = std::fs::read(&grown_id) {
                break bytes;
            }
            assert!(Instant::now() < until, "there is no id");
            std::thread::sleep(Duration::from_millis(5));
        };
        let id = UniqueId::from_bytes(bytes.try_into().expect("an id")).expect("an id");
        let comm = Communicator::new(&id, rank, NRANKS + 1).unwrap_or_else(|e| panic!("{e}"));
        return in_the_grown(comm);
    }
    let mut comm =
        Communicator::new(&invitation.id, rank, NRANKS).unwrap_or_else(|e| panic!("{e}"));
    check_sum(&mut comm);
    let mut part = comm.split((rank != 1).then_some(7), 0).expect("a split");
    part.iter_mut().for_each(check_sum);
    comm.barrier().unwrap_or_else(|e| panic!("{e}"));
    if let Some(mut part) = part {
        // Its end is told to the other rank.
        part.abort_handle().abort();
        part.barrier().expect_err("it was aborted");
    }
    let id = (rank == 0).then(|| UniqueId::create().expect("an id"));
    if let Some(id) = id {
        let digits: String = id.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        println!("say:{digits}");
        let partial = std::path::Path::new(&grown_id).with_extension("partial");
        std::fs::write(&partial, id.to_bytes()).expect("a file");
        std::fs::rename(&partial, &grown_id).expect("a file");
    }
    let options = Options::default();
    let grown = comm.grow_with(id.as_ref(), NRANKS + 1, &options).unwrap_or_else(|e| panic!("{e}"));
    in_the_grown(grown);
}

/// A window, and a shrink without rank 1.
fn in_the_grown(mut comm: Communicator) {
    check_sum(&mut comm);
    let (rank, n) = (comm.rank(), comm.nranks());
    let part = vec![0_u64; 100].leak();
    // SAFETY: the memory is never freed, and nothing else uses it.
    let window = unsafe { comm.register_window(part.as_mut_ptr().cast(), 800) };
    let window = window.unwrap_or_else(|e| panic!("{e}"));
    let data = [u64::from(DATA); 100];
    // SAFETY: the memory is borrowed for the call.
    unsafe { comm.put(data.as_ptr().cast(), 800, (rank + 1) % n, window, 0) }.expect("a put");
    comm.wait_signals(&[((rank + n - 1) % n, 1)]).unwrap_or_else(|e| panic!("{e}"));
    comm.barrier().unwrap_or_else(|e| panic!("{e}"));
    if rank != 1 {
        check_sum(&mut comm.shrink(&[1]).expect("the others"));
    }
    println!("say:done");
}

fn check_sum(comm: &mut Communicator) {
    let mut sum = [0; 300];
    comm.all_reduce(&[DATA; 300], &mut sum, RedOp::Sum).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(sum, [DATA.wrapping_mul(comm.nranks()); 300]);
}

#[test]
fn a_recording_of_a_job_shows_no_secret_and_no_control_message() {
    let _alone = crate::alone();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", STAGE, "--ignored", "--nocapture", "--test-threads=1"])
        .env(STAGE_VARIABLE, "1")
        .stdout(Stdio::piped());
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            let own_user = if libc::geteuid() == 0 { 0 } else { libc::CLONE_NEWUSER };
            match libc::unshare(libc::CLONE_NEWNET | own_user) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut stage = match command.spawn() {
        Ok(stage) => stage,
        Err(error) => return println!("SKIPPED: no network namespace can be made: {error}"),
    };
    let mut said = String::new();
    stage.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(stage.wait().expect("a child").success(), "{said}");
    let found = said.lines().find(|line| line.contains("packets") || line.contains("SKIPPED"));
    println!("{}", found.expect("what was recorded"));
}

/// Not a test: runs the job in the namespace and looks at what was recorded.
#[test]
#[ignore = "run by the other test, in a network namespace"]
fn stage() {
    if std::env::var_os(STAGE_VARIABLE).is_none() {
        return;
    }
    let recording = match start_loopback().and_then(|()| Recording::start()) {
        Ok(recording) => recording,
        Err(error) => return println!("SKIPPED: the network cannot be recorded: {error}"),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let grown = folder.path().join("id");
    let environment = [&OVER_TCP[..], &[(GROWN_ID, grown.to_str().expect("text"))]].concat();
    let id = UniqueId::create().expect("an id");
    let mut job = Job::start_with(ENTRY, id, NRANKS + 1, "all", &environment);
    let digits = job.hear(0);
    job.all_say("done");
    (0..=NRANKS as usize).for_each(|rank| job.ends_well(rank));
    let packets = recording.stop();

    let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("digits");
    let grown: [u8; 128] = std::array::from_fn(byte);
    let contains = |needle: &[u8]| {
        packets.iter().filter(|packet| packet.windows(needle.len()).any(|it| it == needle)).count()
    };
    // The recording is of the whole job: every connection, and the data.
    let handshakes = contains(b"MAYPOLE\x02");
    assert!(handshakes > 20, "only {handshakes} handshakes were recorded");
    assert!(contains(&DATA.to_le_bytes().repeat(10)) > 0, "no data was recorded");
    for secret in [&id.to_bytes()[SECRET], &grown[SECRET]] {
        for part in secret.windows(TELLING) {
            assert_eq!(contains(part), 0, "a part of a secret was sent");
        }
    }
    // What ranks tell the root and each other: the form of an id, settings, names of the host.
    let read = |path| std::fs::read_to_string(path).expect("a file of /proc").trim().to_owned();
    let settings = concat!("default ", env!("CARGO_PKG_VERSION")).to_owned();
    let names = ["/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname"].map(read);
    let readable = ["MAYPOLE\x01", "NCCL_ALGO", "MAYPOLE_"].map(str::to_owned).into_iter();
    for text in readable.chain([settings]).chain(names).filter(|text| text.len() >= TELLING) {
        assert_eq!(contains(text.as_bytes()), 0, "{text} can be read in what was sent");
    }
    println!("{} packets, {handshakes} handshakes, and nothing to read", packets.len());
}

/// Starts the loopback interface of a new namespace.
fn start_loopback() -> std::io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, and `request` is of the type that the call reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A thread that keeps all packets of all interfaces.
struct Recording {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Recording {
    fn start() -> std::io::Result<Self> {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: the call takes numbers only.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let set = |name, value: &[u8]| {
            // SAFETY: the descriptor is open, and the value is readable for its length.
            unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    name,
                    value.as_ptr().cast(),
                    value.len() as libc::socklen_t,
                )
            };
        };
        // Room for bursts, and a time after which the thread looks whether it is over.
        set(libc::SO_RCVBUFFORCE, &(64_i32 << 20).to_ne_bytes());
        set(libc::SO_RCVTIMEO, &[0_i64.to_ne_bytes(), 100_000_i64.to_ne_bytes()].concat());
        let over = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let mut packets = Vec::new();
                let mut buffer = vec![0_u8; 1 << 17];
                loop {
                    // SAFETY: the buffer is writable for its length.
                    let got = unsafe {
                        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
                    };
                    match usize::try_from(got) {
                        Ok(len) => packets.push(buffer[..len].to_vec()),
                        Err(_) if over.load(Ordering::Relaxed) => return packets,
                        Err(_) => {}
                    }
                }
            }
        });
        Ok(Self { over, thread })
    }

    /// All packets, when no more come.
    fn stop(self) -> Vec<Vec<u8>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it records")
    }
}
