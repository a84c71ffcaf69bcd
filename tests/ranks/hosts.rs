//! Tests of two hosts: network namespaces connected by a virtual cable, with ranks in each. They
//! need root and the `ip` command, and print that where they are skipped.
//!
//! The test binary starts itself: rank 0 makes the unique id and prints it, and the others read it.

use maypole_transport::sync::{AtomicU32, Ordering};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::mixed_memory::{Memory, join, make_calls, reference, simulated_gpu};
use crate::ranks::signal;
use maypole::{Communicator, RedOp, UniqueId};

/// The test that a rank process runs.
const ENTRY: &str = "hosts::rank";

const RANKS: u32 = 4;
/// Elements per block of the calls on devices.
const COUNTS: &[usize] = &[3, 20_001];

/// What is particular about the ranks of a job.
enum Setting {
    Plain,
    OnDevices,
    /// They see this folder as `/proc`.
    WithProc(PathBuf),
    /// One of them has a child that inherits its sockets, and is killed.
    Orphan(Orphan),
    /// They make calls until one fails.
    Forever,
}

#[derive(Clone, Copy)]
struct Orphan {
    nranks: u32,
    /// Ranks from this one on are on the second host.
    second_host: u32,
    victim: u32,
    /// How the child is made: by `fork`, or by the system call of which the C library learns
    /// nothing.
    by: &'static str,
}

impl Setting {
    fn nranks(&self) -> u32 {
        if let Self::Orphan(orphan) = self { orphan.nranks } else { RANKS }
    }

    /// Whether a rank is on the second host.
    fn is_on_second(&self, rank: u32) -> bool {
        match self {
            Self::Orphan(orphan) => rank >= orphan.second_host,
            _ => rank % 2 == 1,
        }
    }
}

/// The namespaces of a test and the ends of their cable. They are removed when the test ends.
struct Hosts([String; 2], [String; 2]);

impl Hosts {
    /// Makes the namespaces, or returns why that is not possible.
    fn new() -> Result<Self, String> {
        // SAFETY: the call has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Err("network namespaces need root".to_owned());
        }
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
        let names = [format!("maypole-a-{id}"), format!("maypole-b-{id}")];
        let hosts = Self(names, [format!("mpa{id}"), format!("mpb{id}")]);
        let ([a, b], cable) = (&hosts.0, &hosts.1);
        for command in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {} netns {a} type veth peer name {} netns {b}", cable[0], cable[1]),
            format!("-n {a} address add 10.77.0.1/24 dev {}", cable[0]),
            format!("-n {b} address add 10.77.0.2/24 dev {}", cable[1]),
            format!("-n {a} link set {} up", cable[0]),
            format!("-n {b} link set {} up", cable[1]),
            format!("-n {a} link set lo up"),
            format!("-n {b} link set lo up"),
        ] {
            let output = Command::new("ip").args(command.split(' ')).output();
            match output {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    return Err(format!("ip {command}: {why}"));
                }
                Err(error) => return Err(format!("ip: {error}")),
            }
        }
        Ok(hosts)
    }

    /// Pulls the cable, or puts it back. The address of its end stays.
    fn connect(&self, state: &str) {
        let arguments = ["-n", &self.0[0], "link", "set", &self.1[0], state];
        let status = Command::new("ip").args(arguments).status().expect("the ip command");
        assert!(status.success(), "ip {arguments:?}");
    }

    /// Starts rank `rank`, on host memory or a device of the simulated GPU, or where a folder takes
    /// the place of `/proc`.
    fn start(&self, rank: u32, setting: &Setting) -> Child {
        let at = usize::from(setting.is_on_second(rank));
        let (host, cable) = (&self.0[at], &self.1[at]);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host]);
        match setting {
            Setting::Plain => {}
            Setting::OnDevices => {
                command.env("LD_LIBRARY_PATH", simulated_gpu()).env("MAYPOLE_TEST_DEVICE", "0");
            }
            Setting::Orphan(Orphan { victim, by, .. }) => {
                let scene = if rank == *victim { by } else { "forever" };
                command.env("MAYPOLE_TEST_HOST_SCENE", scene);
            }
            Setting::Forever => {
                command.env("MAYPOLE_TEST_HOST_SCENE", "forever");
            }
            Setting::WithProc(proc) => {
                let script = "mount --bind \"$0\" /proc && exec \"$@\"";
                command.args(["unshare", "--mount", "sh", "-c", script]).arg(proc);
            }
        }
        command
            .arg(std::env::current_exe().expect("the test binary"))
            .args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"])
            .env("MAYPOLE_TEST_RANK", rank.to_string())
            .env("MAYPOLE_TEST_NRANKS", setting.nranks().to_string())
            .env("NCCL_SOCKET_IFNAME", format!("={cable}"))
            .env("MAYPOLE_INIT_TIMEOUT", "30")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a rank process")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

/// The processes of a job. Those that still run when the test ends are killed.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other test, as a rank"]
fn rank() {
    let Ok(rank) = std::env::var("MAYPOLE_TEST_RANK") else { return };
    let rank: u32 = rank.parse().expect("a rank");
    let id = if rank == 0 {
        let id = UniqueId::create().expect("a unique id");
        let hex: String = id.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        println!("say:{hex}");
        id
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).expect("a line");
        let byte = |i: usize| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).expect("hex");
        UniqueId::from_bytes(std::array::from_fn(byte)).expect("an id")
    };
    if let Ok(device) = std::env::var("MAYPOLE_TEST_DEVICE") {
        let device = Some(device.parse().expect("a device"));
        let mut comm = join(&id, RANKS, rank, device);
        let outcome = make_calls(&mut comm, &Memory::open(device), COUNTS).expect("all calls");
        return println!("say:{outcome:x?}");
    }
    let nranks = std::env::var("MAYPOLE_TEST_NRANKS").expect("a number");
    let nranks: u32 = nranks.parse().expect("a number");
    let mut comm = Communicator::new(&id, rank, nranks).unwrap_or_else(|e| panic!("init: {e}"));
    if let Ok(scene) = std::env::var("MAYPOLE_TEST_HOST_SCENE") {
        return orphan(&mut comm, &scene);
    }
    for count in [1, 1000, 300_001] {
        let send: Vec<i32> = (0..count).map(|i| i + rank as i32).collect();
        let mut recv = vec![0; send.len()];
        comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("{e}"));
        assert!(recv.iter().zip(0..).all(|(sum, i)| *sum == 4 * i + 6));
    }
    println!("say:done");
}

/// Makes calls until one fails, and prints the error; or has a child, and waits to be killed.
fn orphan(comm: &mut Communicator, scene: &str) {
    let mut sum = |count: usize| {
        let (send, mut recv) = (vec![1_i32; count], vec![0; count]);
        comm.all_reduce(&send, &mut recv, RedOp::Sum)
    };
    sum(1).unwrap_or_else(|e| panic!("{e}"));
    sum(100_000).unwrap_or_else(|e| panic!("{e}"));
    if scene == "forever" {
        println!("say:started");
        let error = loop {
            if let Err(error) = sum(100_000) {
                break error;
            }
        };
        return println!("say:{error}");
    }
    // SAFETY: the child calls only functions that are allowed in a child of a process with many
    // threads. The alarm ends it if the test does not.
    let child = unsafe {
        match scene {
            "fork" => libc::fork(),
            _ => libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t,
        }
    };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::alarm(50);
            loop {
                libc::pause();
            }
        }
    }
    println!("say:{child}");
    loop {
        std::thread::park();
    }
}

fn hear(from: &mut impl BufRead) -> String {
    for line in from.lines() {
        if let Some((_, said)) = line.expect("text").split_once("say:") {
            return said.to_owned();
        }
    }
    String::new()
}

/// The texts of the ranks of a job. None where namespaces are not possible.
fn on_two_hosts(setting: &Setting) -> Option<Vec<String>> {
    let (_hosts, mut children, mut voices) = start_on_two_hosts(setting)?;
    // Every wait of the ranks ends: at the timeout of init, or by the death of a rank that gives
    // up.
    let said = voices.iter_mut().map(hear).collect();
    for child in &mut children.0 {
        assert!(child.wait().expect("a child").success());
    }
    Some(said)
}

/// Starts the ranks of a job. None where namespaces are not possible.
fn start_on_two_hosts(
    setting: &Setting,
) -> Option<(Hosts, Processes, Vec<BufReader<ChildStdout>>)> {
    let hosts = match Hosts::new() {
        Ok(hosts) => hosts,
        Err(why) => {
            println!("SKIPPED: {why}");
            return None;
        }
    };
    let mut children: Vec<Child> =
        (0..setting.nranks()).map(|rank| hosts.start(rank, setting)).collect();
    let mut voices: Vec<_> = children
        .iter_mut()
        .map(|child| BufReader::new(child.stdout.take().expect("a pipe")))
        .collect();
    let id = hear(&mut voices[0]);
    for child in &mut children[1..] {
        let stdin = child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{id}").expect("the rank reads its id");
    }
    Some((hosts, Processes(children), voices))
}

/// Kills a rank whose child lives on. All others must learn that while the child lives.
fn killed(orphan: Orphan) {
    let started = start_on_two_hosts(&Setting::Orphan(orphan));
    let Some((_hosts, mut children, mut voices)) = started else { return };
    let victim = orphan.victim as usize;
    let child: u32 = hear(&mut voices[victim]).parse().expect("the number of a process");
    // SAFETY: the call takes numbers, and returns a descriptor that nothing else owns.
    let child_ends = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, child, 0);
        assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    let others = || (0..orphan.nranks as usize).filter(|rank| *rank != victim);
    others().for_each(|rank| assert_eq!(hear(&mut voices[rank]), "started"));
    children.0[victim].kill().expect("a kill");
    for rank in others() {
        let said = hear(&mut voices[rank]);
        assert!(said.contains(&format!("process of rank {victim} died")), "{rank}: {said}");
    }
    let mut entry = libc::pollfd { fd: child_ends.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `entry` is one pollfd, writable. The descriptor is readable from the end on, also if
    // nobody has waited for the process.
    let has_ended = unsafe { libc::poll(&raw mut entry, 1, 0) } > 0;
    assert!(!has_ended, "the death was seen only when the child had ended");
    signal(child, libc::SIGKILL);
}

#[test]
fn a_child_of_the_only_rank_on_a_host_does_not_hide_its_death() {
    killed(Orphan { nranks: 2, second_host: 1, victim: 1, by: "fork" });
}

/// Ranks 0 to 2 are on one host, and 3 to 6 on another; rank 3 has no neighbour on its host.
#[test]
fn ranks_of_its_host_tell_of_a_death_that_a_child_hides() {
    killed(Orphan { nranks: 7, second_host: 3, victim: 3, by: "clone" });
}

#[test]
fn ranks_on_two_hosts_sum_over_tcp() {
    let said = on_two_hosts(&Setting::Plain);
    assert!(said.is_none_or(|said| said.iter().all(|word| word == "done")), "a rank failed");
}

/// As machines that were resumed from one snapshot: all that the kernel says of itself and of the
/// namespace is the same.
#[test]
fn two_hosts_that_look_alike_use_tcp_between_them() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["sys/kernel/random/boot_id", "sys/kernel/hostname", "self/ns/net", "self/ns/pid"] {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, "the same").expect("a file");
    }
    let said = on_two_hosts(&Setting::WithProc(folder.path().to_owned()));
    assert!(said.is_none_or(|said| said.iter().all(|word| word == "done")), "a rank failed");
}

/// Two ranks on each host: those of one host access each other's device memory, those of different
/// hosts use the proxy.
#[test]
fn devices_on_two_hosts_have_the_bits_of_host_memory() {
    let Some(said) = on_two_hosts(&Setting::OnDevices) else { return };
    let expected = reference(RANKS, COUNTS);
    for (rank, (said, expected)) in said.iter().zip(expected).enumerate() {
        assert_eq!(*said, format!("{expected:x?}"), "rank {rank}");
    }
}

/// Half of the ranks are stopped for longer than a host may be silent, and the cable is pulled for
/// a moment: neither ends the job. Then the other host vanishes for good.
#[test]
#[ignore = "takes two minutes"]
fn a_host_that_vanishes_is_named_and_a_stopped_rank_is_not_taken_for_one() {
    let started = start_on_two_hosts(&Setting::Forever);
    let Some((hosts, mut children, mut voices)) = started else { return };
    voices.iter_mut().for_each(|voice| assert_eq!(hear(voice), "started"));
    let others: Vec<u32> = [1, 3].map(|rank: usize| children.0[rank].id()).to_vec();
    let wait = |seconds| std::thread::sleep(std::time::Duration::from_secs(seconds));
    others.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
    wait(45);
    others.iter().for_each(|pid| signal(*pid, libc::SIGCONT));
    hosts.connect("down");
    wait(5);
    hosts.connect("up");
    wait(5);
    for child in &mut children.0 {
        assert!(child.try_wait().expect("a child").is_none(), "a rank has ended too early");
    }
    hosts.connect("down");
    let told = std::time::Instant::now();
    for (rank, voice) in voices.iter_mut().enumerate() {
        let said = hear(voice);
        let named = (0..RANKS as usize).filter(|other| other % 2 != rank % 2);
        let names_one = named.clone().any(|other| said.contains(&format!("rank {other}")));
        println!("rank {rank} after {:.0} s: {said}", told.elapsed().as_secs_f64());
        assert!(names_one, "rank {rank} names none of {:?}: {said}", named.collect::<Vec<_>>());
    }
}
