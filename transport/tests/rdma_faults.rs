//! What becomes of links over RDMA when something fails. The library for tests raises the faults.
//!
//! Each test runs in a process of its own, because the devices of that library belong to a process.
//! Rank 0 has the device fake0 and rank 1 the device fake1. No result depends on time: the timers
//! of the devices run faster, and a wait that does not end is a hang.

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;
use std::time::Instant;

use maypole_transport::LinkError;
use maypole_transport::conformance::{HANG_TIMEOUT, Watchdog};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::link::{Incoming, Outgoing};
use maypole_transport::tcp::TcpConfig;
use maypole_transport::verbs::{AdapterFilter, VerbsConfig};

/// Names the test that a child process runs.
const CHILD: &str = "MAYPOLE_RDMA_FAULT";
/// Messages in each direction and channel.
const MESSAGES: u64 = 40;
/// The message before which the fault is raised.
const FAULT_AT: u64 = 15;
const LAYOUT: InboxLayout = InboxLayout { nranks: 3, channels: 2, slot_bytes: 2048, depth: 4 };

/// The library for tests, if it was built.
fn library() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap();
    let folders = program.ancestors().skip(1).take(2);
    let mut files = folders.map(|folder| folder.join("libmaypole_fake_verbs.so"));
    files.find(|file| file.exists())
}

/// Runs `body` in a process of its own. `name` is that of the calling test.
fn isolated(name: &'static str, body: impl FnOnce()) {
    if std::env::var(CHILD).as_deref() == Ok(name) {
        let _watchdog = Watchdog::new(name);
        return body();
    }
    if library().is_none() {
        eprintln!("skipped: libmaypole_fake_verbs.so was not built");
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(CHILD, name);
    let child = child.env("MAYPOLE_FAKE_VERBS_SETUP", "device fake0; device fake1; hurry 200");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
}

/// Changes what the devices do.
fn control(commands: &str) {
    let path = CString::new(library().unwrap().into_os_string().into_encoded_bytes()).unwrap();
    let commands = CString::new(commands).unwrap();
    // SAFETY: the paths and names end with zeros, and the function has this type.
    let status = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        let function = libc::dlsym(library, c"maypole_fake_verbs_control".as_ptr());
        assert!(!function.is_null());
        let function: extern "C" fn(*const c_char) -> c_int = std::mem::transmute(function);
        function(commands.as_ptr())
    };
    assert_eq!(status, 0, "{commands:?}");
}

fn endpoint(rank: u32) -> Endpoint {
    let tcp = TcpConfig { addresses: vec![std::net::Ipv4Addr::LOCALHOST.into()], streams: 1 };
    let device = format!("=fake{}", rank % 2);
    let verbs = VerbsConfig {
        library: library(),
        adapters: AdapterFilter::parse(&device).unwrap(),
        timeout: 14,
        retries: 2,
        ..Default::default()
    };
    let links = EnabledLinks { local: false, shm: false, verbs: Some(verbs), tcp: Some(tcp) };
    let config = EndpointConfig { rank, nranks: 3, secret: [5; 32].into(), layout: LAYOUT };
    Endpoint::with_links(config, &links).unwrap()
}

/// Connects both to each other.
fn connect(a: &Endpoint, b: &Endpoint) -> [Result<(), LinkError>; 2] {
    let deadline = Instant::now() + HANG_TIMEOUT;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| a.connect(b.rank(), &b.address(), deadline));
        let second = b.connect(a.rank(), &a.address(), deadline);
        [first.join().unwrap(), second]
    })
}

fn wait<T>(
    endpoint: &Endpoint,
    mut look: impl FnMut() -> Result<Option<T>, LinkError>,
) -> Result<T, LinkError> {
    let mut found = None;
    let ended = endpoint.doorbell().wait(20, 0, Some(HANG_TIMEOUT), || {
        found = look().transpose();
        found.is_some()
    });
    assert!(ended, "a wait did not end");
    found.unwrap()
}

/// The message of this number from this rank. Lengths vary from nothing to a whole slot.
fn content(rank: u32, number: u64) -> Vec<u8> {
    let len = (number * 977 % (LAYOUT.slot_bytes as u64 + 1)) as usize;
    (0..len).map(|at| (at as u64 * 31 + number * 7 + u64::from(rank)) as u8).collect()
}

/// Sends as many messages as there are credits, then receives as many, and so on. `before` is
/// called with the number of each message before it is sent.
fn exchange(
    (endpoint, peer): (&Endpoint, u32),
    (mut out, mut inc): (Outgoing, Incoming),
    before: &(dyn Fn(u64) + Sync),
) -> Result<(), LinkError> {
    let (mut sent, mut received) = (0, 0);
    while received < MESSAGES {
        for _ in 0..LAYOUT.depth {
            sent += 1;
            before(sent);
            let slot = wait(endpoint, || out.slots.reserve())?;
            let data = content(endpoint.rank(), sent);
            // SAFETY: the slot is reserved and has room.
            unsafe { slot.data.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
            assert_eq!(out.slots.send(data.len(), sent as u32), sent);
        }
        for _ in 0..LAYOUT.depth {
            received += 1;
            let message = wait(endpoint, || inc.slots.receive())?;
            // SAFETY: the message is not released.
            let data = unsafe { std::slice::from_raw_parts(message.data, message.len) };
            assert!(data == content(peer, received), "message {received} is damaged");
            assert_eq!((message.sequence, message.tag), (received, received as u32));
            inc.slots.release();
        }
    }
    wait(endpoint, || Ok((out.slots.released() == MESSAGES).then_some(())))
}

/// Both ranks exchange messages over two channels, and rank 0 runs these commands in between.
fn exchange_during(a: &Endpoint, b: &Endpoint, commands: &str) -> Vec<Result<(), LinkError>> {
    let (together, done) = (Barrier::new(4), Barrier::new(4));
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for channel in 0..2 {
            for (endpoint, peer) in [(a, b.rank()), (b, a.rank())] {
                let links = endpoint.open(peer, channel).unwrap();
                let raises = channel == 0 && endpoint.rank() == 0;
                let (together, done) = (&together, &done);
                threads.push(scope.spawn(move || {
                    // All are in the middle when the fault is raised.
                    let before = |number| {
                        if number == FAULT_AT {
                            together.wait();
                            if raises {
                                control(commands);
                            }
                            together.wait();
                        }
                    };
                    let result = exchange((endpoint, peer), links, &before);
                    // Nobody closes a link that the other still uses.
                    done.wait();
                    result
                }));
            }
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What both ranks say when these commands are run in the middle of an exchange.
fn fault(commands: &str) -> Vec<Result<(), LinkError>> {
    let (a, b) = (endpoint(0), endpoint(1));
    assert_eq!(connect(&a, &b), [Ok(()), Ok(())]);
    exchange_during(&a, &b, commands)
}

/// Every thread has an error that names both ends of the path and what to do.
fn assert_explained(results: &[Result<(), LinkError>], cause: &str) {
    let texts: Vec<String> = results.iter().map(|result| result.unwrap_err().to_string()).collect();
    for text in &texts {
        for part in ["fake0:1", "fake1:1", "10.77.0.1", "10.77.1.1", "NCCL_IB"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
    assert!(texts.iter().any(|text| text.contains(cause)), "{cause} is missing in: {texts:?}");
}

#[test]
fn a_queue_pair_error_is_explained_on_both_ranks() {
    isolated("a_queue_pair_error_is_explained_on_both_ranks", || {
        assert_explained(&fault("qp-error fake0"), "ended by the device");
    });
}

#[test]
fn a_port_that_goes_down_is_explained_on_both_ranks() {
    isolated("a_port_that_goes_down_is_explained_on_both_ranks", || {
        assert_explained(&fault("port fake1/1 down"), "no answer");
    });
}

#[test]
fn a_removed_device_is_explained_on_both_ranks() {
    isolated("a_removed_device_is_explained_on_both_ranks", || {
        assert_explained(&fault("remove fake1"), "fake1:1");
    });
}

#[test]
fn a_pulled_cable_is_explained_on_both_ranks() {
    isolated("a_pulled_cable_is_explained_on_both_ranks", || {
        assert_explained(&fault("drop fake0/1 on"), "no answer");
    });
}

#[test]
fn a_completion_with_error_is_explained_on_both_ranks() {
    isolated("a_completion_with_error_is_explained_on_both_ranks", || {
        assert_explained(&fault("fail 11"), "status 11");
    });
}

#[test]
fn an_address_that_moves_is_explained_on_both_ranks() {
    isolated("an_address_that_moves_is_explained_on_both_ranks", || {
        assert_explained(&fault("gids fake0/1 reverse"), "no answer");
    });
}

#[test]
fn losses_and_receivers_that_are_not_ready_lose_no_message() {
    isolated("losses_and_receivers_that_are_not_ready_lose_no_message", || {
        // Ten attempts in a row would have to be lost for an error.
        let results = fault("loss fake0/1 20000; not-ready 300");
        assert_eq!(results, vec![Ok(()); 4]);
    });
}

#[test]
fn a_table_that_is_filled_in_another_order_serves_the_next_connection() {
    isolated("a_table_that_is_filled_in_another_order_serves_the_next_connection", || {
        let ends: Vec<_> = (0..3).map(endpoint).collect();
        assert_eq!(connect(&ends[0], &ends[1]), [Ok(()), Ok(())]);
        control("gids fake0/1 reverse");
        assert_eq!(connect(&ends[1], &ends[2]), [Ok(()), Ok(())]);
        // The index at which the address was found before has another address now.
        control("gids fake1/1 reverse; gids fake0/1 clear");
        control("gid fake0/1 7 10.77.0.1 v2; gid fake0/1 3 fe80::9 v2");
        assert_eq!(connect(&ends[0], &ends[2]), [Ok(()), Ok(())]);
        let refused = exchange_during(&ends[1], &ends[2], "loss fake0/1 0");
        assert_explained(&refused, "no answer");
    });
}

#[test]
fn a_trial_that_does_not_pass_names_the_path_on_both_ranks() {
    isolated("a_trial_that_does_not_pass_names_the_path_on_both_ranks", || {
        let (a, b) = (endpoint(0), endpoint(1));
        control("drop fake1/1 on");
        let results = connect(&a, &b);
        assert_explained(&results, "does not pass, while TCP does");
    });
}

fn assert_registration_is_explained(command: &str) {
    let (a, b) = (endpoint(0), endpoint(1));
    assert_eq!(connect(&a, &b), [Ok(()), Ok(())]);
    control(command);
    for result in exchange_during(&a, &b, "loss fake0/1 0") {
        let text = result.unwrap_err().to_string();
        assert!(text.contains("ulimit -l"), "{text}");
    }
}

#[test]
fn registrations_that_are_refused_are_explained_on_both_ranks() {
    isolated("registrations_that_are_refused_are_explained_on_both_ranks", || {
        assert_registration_is_explained("refuse 12 1000");
    });
}

#[test]
fn too_little_locked_memory_is_explained_on_both_ranks() {
    isolated("too_little_locked_memory_is_explained_on_both_ranks", || {
        // Enough for the trials, too little for one channel.
        assert_registration_is_explained("memlock 10000");
    });
}

#[test]
fn a_device_that_cannot_register_anything_is_not_used() {
    isolated("a_device_that_cannot_register_anything_is_not_used", || {
        control("refuse 12 1");
        assert_eq!(endpoint(0).rdma_port(), None);
        let (a, b) = (endpoint(0), endpoint(1));
        assert_eq!(connect(&a, &b), [Ok(()), Ok(())]);
    });
}
