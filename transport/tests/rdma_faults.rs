//! What becomes of links over RDMA when something fails. The library for tests raises the faults.
//!
//! Each test runs in a process of its own, because the devices of that library belong to a process.
//! Rank 0 has the devices fake0 and fake2, and rank 1 has fake1 and fake3. No result depends on
//! time: the timers of the devices run faster, and a wait that does not end is a hang.

use std::ffi::{CString, c_char, c_int};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use maypole_transport::LinkError;
use maypole_transport::conformance::{HANG_TIMEOUT, Watchdog};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::link::{Incoming, Outgoing};
use maypole_transport::tcp::TcpConfig;
use maypole_transport::verbs::{AdapterFilter, RdmaReport, VerbsConfig};

/// Names the test that a child process runs.
const CHILD: &str = "MAYPOLE_RDMA_FAULT";
/// Messages in each direction and channel.
const MESSAGES: u64 = 40;
/// The message before which the fault is raised.
const FAULT_AT: u64 = 15;
const LAYOUT: InboxLayout = InboxLayout { nranks: 3, channels: 4, slot_bytes: 2048, depth: 4 };

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
        log::set_logger(&Collector).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        return body();
    }
    if library().is_none() {
        eprintln!("skipped: libmaypole_fake_verbs.so was not built");
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(CHILD, name);
    let devices = "device fake0; device fake1; device fake2; device fake3; hurry 200";
    child.env("MAYPOLE_FAKE_VERBS", format!("rdma-faults-{}-{name}", std::process::id()));
    let child = child.env("MAYPOLE_FAKE_VERBS_SETUP", devices);
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

/// A rank that uses so many of its devices.
fn endpoint(rank: u32, devices: usize) -> Endpoint {
    let tcp = TcpConfig { addresses: vec![std::net::Ipv4Addr::LOCALHOST.into()], streams: 1 };
    let names = [format!("=fake{}", rank % 2), format!("fake{}", rank % 2 + 2)];
    let verbs = VerbsConfig {
        library: library(),
        adapters: AdapterFilter::parse(&names[..devices].join(",")).unwrap(),
        timeout: 14,
        retries: 2,
        ..Default::default()
    };
    let links = EnabledLinks { local: false, shm: false, verbs: Some(verbs), tcp: Some(tcp) };
    let config = EndpointConfig { rank, nranks: 3, secret: [5; 32].into(), layout: LAYOUT };
    Endpoint::with_links(config, &links).unwrap()
}

/// Ranks 0 and 1, connected.
fn pair(devices: usize) -> [Endpoint; 2] {
    let ends = [endpoint(0, devices), endpoint(1, devices)];
    assert_eq!(connect(&ends[0], &ends[1]), [Ok(()), Ok(())]);
    ends
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

/// Both ranks exchange messages over two channels, from this one on. Rank 0 runs the first commands
/// before a message, and the others behind it.
fn exchange_during(
    [a, b]: &[Endpoint; 2],
    first_channel: u16,
    commands: [&str; 2],
) -> Vec<Result<(), LinkError>> {
    let (together, done) = (Barrier::new(4), Barrier::new(4));
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for channel in first_channel..first_channel + 2 {
            for (endpoint, peer) in [(a, b.rank()), (b, a.rank())] {
                let links = endpoint.open(peer, channel).unwrap();
                let raises = channel == first_channel && endpoint.rank() == a.rank();
                let (together, done) = (&together, &done);
                threads.push(scope.spawn(move || {
                    // All are in the middle when the fault is raised.
                    let before = |number: u64| {
                        let step = number.checked_sub(FAULT_AT).map(|step| step as usize);
                        let Some(commands) = step.and_then(|step| commands.get(step)) else {
                            return;
                        };
                        together.wait();
                        if raises {
                            control(commands);
                        }
                        together.wait();
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

/// The lines of the log that warn.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Warn {
            WARNINGS.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

const ALL_RIGHT: [Result<(), LinkError>; 4] = [Ok(()); 4];

fn report(endpoint: &Endpoint) -> RdmaReport {
    endpoint.rdma_report(1 - endpoint.rank()).unwrap()
}

/// Waits until both ranks use so many paths to each other.
fn await_paths(ends: &[Endpoint; 2], count: usize) {
    let used = |end: &Endpoint| report(end).paths.iter().filter(|path| path.active).count();
    while ends.iter().any(|end| used(end) != count) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A fault in the middle of an exchange, of which nobody notices more than a warning that says so
/// much. At that moment a message of rank 0 is under way on each of its paths.
fn survive(ends: &[Endpoint; 2], fault: &str, causes: &[&str]) {
    let held = "hold fake0/1 on; hold fake2/1 on";
    let fault = format!("{fault}; hold fake0/1 off; hold fake2/1 off");
    assert_eq!(exchange_during(ends, 0, [held, &fault]), ALL_RIGHT);
    for end in ends {
        assert!(report(end).paths[0].losses > 0);
    }
    assert!(report(&ends[0]).repeated > 0);
    let warnings = WARNINGS.lock().unwrap();
    for part in ["fake0:1", "fake1:1", "10.77.0.1", "10.77.1.1", "NCCL_IB_DISABLE"] {
        let is_there = |line: &String| line.contains("is lost") && line.contains(part);
        assert!(warnings.iter().any(is_there), "{part} is missing in: {warnings:?}");
    }
    let has_cause = warnings.iter().any(|line| causes.iter().any(|cause| line.contains(cause)));
    assert!(has_cause, "{causes:?} are missing in: {warnings:?}");
}

/// A fault of the first path, and what ends it. With one path, its messages go over TCP. With two,
/// they go over the other. The path is used again afterwards.
fn survive_and_recover(name: &'static str, fault: &str, causes: &[&str], end: Option<&str>) {
    isolated(name, || {
        for devices in [1, 2] {
            let ends = pair(devices);
            survive(&ends, fault, causes);
            let over_tcp = report(&ends[0]).over_tcp;
            assert_eq!(over_tcp > 0, devices == 1, "{over_tcp}");
            let Some(end) = end else { return };
            control(end);
            await_paths(&ends, devices);
            let before = report(&ends[0]);
            assert_eq!(exchange_during(&ends, 2, ["", ""]), ALL_RIGHT);
            let after = report(&ends[0]);
            assert!(after.paths[0].messages > before.paths[0].messages);
            assert_eq!(after.over_tcp, before.over_tcp);
        }
    });
}

#[test]
fn a_queue_pair_that_fails() {
    survive_and_recover(
        "a_queue_pair_that_fails",
        "qp-error fake0",
        &["ended by the device"],
        Some(""),
    );
}

#[test]
fn a_port_that_goes_down() {
    survive_and_recover(
        "a_port_that_goes_down",
        "port fake1/1 down",
        &["the port is down", "no answer"],
        Some("port fake1/1 up"),
    );
}

#[test]
fn a_pulled_cable() {
    survive_and_recover(
        "a_pulled_cable",
        "drop fake0/1 on",
        &["no answer"],
        Some("drop fake0/1 off"),
    );
}

#[test]
fn a_table_of_addresses_that_is_filled_in_another_order() {
    survive_and_recover(
        "a_table_of_addresses_that_is_filled_in_another_order",
        "gids fake0/1 reverse",
        &["no answer"],
        Some(""),
    );
}

#[test]
fn a_device_that_is_removed() {
    isolated("a_device_that_is_removed", || {
        let ends = pair(2);
        survive(&ends, "remove fake1", &["removed", "Input/output error", "no answer"]);
        assert_eq!(report(&ends[0]).over_tcp, 0);
    });
}

#[test]
fn the_last_device_that_is_removed() {
    isolated("the_last_device_that_is_removed", || {
        let ends = pair(1);
        survive(&ends, "remove fake1", &["removed", "Input/output error", "no answer"]);
        assert!(report(&ends[0]).over_tcp > 0);
    });
}

#[test]
fn completions_with_errors() {
    isolated("completions_with_errors", || {
        for devices in [1, 2] {
            let ends = pair(devices);
            // Each fails one work request of either rank.
            for (channel, status) in [(0, 10), (2, 11)] {
                let fail = format!("fail {status}");
                assert_eq!(exchange_during(&ends, channel, [&fail, &fail]), ALL_RIGHT);
                let cause = format!("status {status}");
                let warnings = WARNINGS.lock().unwrap();
                assert!(warnings.iter().any(|line| line.contains(&cause)), "{warnings:?}");
                drop(warnings);
                await_paths(&ends, devices);
            }
        }
    });
}

#[test]
fn all_devices_of_a_rank_that_fail_one_after_the_other() {
    isolated("all_devices_of_a_rank_that_fail_one_after_the_other", || {
        let ends = pair(2);
        let faults = ["port fake0/1 down", "drop fake3/1 on"];
        assert_eq!(exchange_during(&ends, 0, faults), ALL_RIGHT);
        control("port fake0/1 up; drop fake3/1 off");
        await_paths(&ends, 2);
        assert_eq!(exchange_during(&ends, 2, ["", ""]), ALL_RIGHT);
    });
}

#[test]
fn losses_and_receivers_that_are_not_ready() {
    isolated("losses_and_receivers_that_are_not_ready", || {
        let ends = pair(1);
        let faults = ["loss fake0/1 20000; not-ready 300", ""];
        assert_eq!(exchange_during(&ends, 0, faults), ALL_RIGHT);
    });
}

#[test]
fn messages_that_overtake_each_other() {
    isolated("messages_that_overtake_each_other", || {
        for order in ["messages", "placement"] {
            control(&format!("order {order} 7"));
            let ends = pair(2);
            assert_eq!(exchange_during(&ends, 0, ["", ""]), ALL_RIGHT);
            // The same while a path is lost.
            assert_eq!(exchange_during(&ends, 2, ["qp-error fake1", "qp-error fake2"]), ALL_RIGHT);
        }
    });
}

#[test]
fn ports_that_are_down_and_empty_entries_are_skipped() {
    isolated("ports_that_are_down_and_empty_entries_are_skipped", || {
        control("port fake0/1 down; gid fake2/1 0 none; gid fake2/1 1 none");
        assert_eq!(endpoint(0, 2).rdma_port().as_deref(), Some("fake2:1"));
        control("port fake0/1 up; gids fake0/1 clear");
        let ends = pair(2);
        assert_eq!(ends[0].rdma_port().as_deref(), Some("fake2:1"));
        assert_eq!(exchange_during(&ends, 0, ["", ""]), ALL_RIGHT);
    });
}

#[test]
fn a_path_that_is_held_gets_no_more_messages() {
    isolated("a_path_that_is_held_gets_no_more_messages", || {
        let ends = pair(2);
        assert_eq!(exchange_during(&ends, 0, ["hold fake0/1 on", "hold fake0/1 off"]), ALL_RIGHT);
        let [first, second] = [0, 1].map(|path| report(&ends[0]).paths[path].messages);
        assert!(first > 0 && second > 0 && first + second == 2 * MESSAGES, "{first} {second}");
        assert_eq!((report(&ends[0]).repeated, report(&ends[0]).over_tcp), (0, 0));
    });
}

#[test]
fn the_next_connection_finds_an_address_that_has_moved() {
    isolated("the_next_connection_finds_an_address_that_has_moved", || {
        let [a, b, c] = [0, 1, 2].map(|rank| endpoint(rank, 1));
        assert_eq!(connect(&a, &b), [Ok(()), Ok(())]);
        control("gids fake0/1 reverse");
        assert_eq!(connect(&b, &c), [Ok(()), Ok(())]);
        // The index at which the address was found before has another address now.
        control("gids fake1/1 reverse; gids fake0/1 clear");
        control("gid fake0/1 7 10.77.0.1 v2; gid fake0/1 3 fe80::9 v2");
        assert_eq!(connect(&a, &c), [Ok(()), Ok(())]);
    });
}

#[test]
fn a_trial_that_does_not_pass_names_the_path_on_both_ranks() {
    isolated("a_trial_that_does_not_pass_names_the_path_on_both_ranks", || {
        let (a, b) = (endpoint(0, 1), endpoint(1, 1));
        control("drop fake1/1 on");
        for result in connect(&a, &b) {
            let text = result.unwrap_err().to_string();
            for part in ["fake0:1", "fake1:1", "10.77.0.1", "10.77.1.1", "does not pass, while"] {
                assert!(text.contains(part), "{part} is missing in: {text}");
            }
        }
    });
}

#[test]
fn a_trial_that_does_not_pass_leaves_the_other_path() {
    isolated("a_trial_that_does_not_pass_leaves_the_other_path", || {
        let ends = [endpoint(0, 2), endpoint(1, 2)];
        control("drop fake1/1 on");
        assert_eq!(connect(&ends[0], &ends[1]), [Ok(()), Ok(())]);
        assert_eq!(exchange_during(&ends, 0, ["", ""]), ALL_RIGHT);
        assert_eq!(report(&ends[0]).paths[0].messages, 0);
        control("drop fake1/1 off");
        await_paths(&ends, 2);
    });
}

/// Links whose memory cannot be registered use TCP, and a warning says what to do.
fn survive_without_registered_memory(name: &'static str, command: &str) {
    isolated(name, || {
        let ends = pair(2);
        control(command);
        assert_eq!(exchange_during(&ends, 0, ["", ""]), ALL_RIGHT);
        assert_eq!(report(&ends[0]).over_tcp, 2 * MESSAGES);
        let warnings = WARNINGS.lock().unwrap();
        assert!(warnings.iter().any(|line| line.contains("ulimit -l")), "{warnings:?}");
    });
}

#[test]
fn registrations_that_are_refused() {
    survive_without_registered_memory("registrations_that_are_refused", "refuse 12 1000");
}

#[test]
fn too_little_locked_memory() {
    // Enough for the trials, too little for one channel.
    survive_without_registered_memory("too_little_locked_memory", "memlock 10000");
}

#[test]
fn a_device_that_cannot_register_anything_is_not_used() {
    isolated("a_device_that_cannot_register_anything_is_not_used", || {
        control("refuse 12 1");
        assert_eq!(endpoint(0, 1).rdma_port(), None);
        control("refuse 12 1");
        assert_eq!(endpoint(0, 2).rdma_port().as_deref(), Some("fake2:1"));
        assert_eq!(endpoint(0, 2).rdma_port().as_deref(), Some("fake0:1,fake2:1"));
    });
}

/// The peer of the next test: it connects and waits until it is killed.
#[test]
fn a_peer_to_be_killed() {
    if std::env::var(CHILD).as_deref() != Ok("a_peer_to_be_killed") {
        return;
    }
    let end = endpoint(1, 2);
    println!("\naddress {:?}", end.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    end.connect(0, &numbers(&line), Instant::now() + HANG_TIMEOUT).unwrap();
    let _links = end.open(0, 0).unwrap();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Reads numbers between brackets.
fn numbers(line: &str) -> Vec<u8> {
    let inside = line.trim().split(['[', ']']).nth(1).unwrap();
    inside.split(", ").map(|number| number.parse().unwrap()).collect()
}

#[test]
fn a_peer_that_is_killed_is_dead_and_not_a_path_that_is_lost() {
    isolated("a_peer_that_is_killed_is_dead_and_not_a_path_that_is_lost", || {
        let mut peer = Command::new(std::env::current_exe().unwrap());
        peer.args(["--exact", "a_peer_to_be_killed", "--nocapture"]);
        peer.env(CHILD, "a_peer_to_be_killed").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut peer = peer.spawn().unwrap();
        let end = endpoint(0, 2);
        let (mut input, output) = (peer.stdin.take().unwrap(), peer.stdout.take().unwrap());
        writeln!(input, "{:?}", end.address()).unwrap();
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let address = numbers(&lines.find(|line| line.starts_with("address")).unwrap());
        end.connect(1, &address, Instant::now() + HANG_TIMEOUT).unwrap();
        let (mut out, mut inc) = end.open(1, 0).unwrap();
        // No queue pair ever reports an error.
        control("hold fake0/1 on; hold fake2/1 on");
        wait(&end, || out.slots.reserve()).unwrap();
        out.slots.send(8, 0);
        peer.kill().unwrap();
        peer.wait().unwrap();
        let error = wait(&end, || inc.slots.receive().map(|message| message.map(|_| ())));
        assert_eq!(error, Err(LinkError::PeerDied { peer: 1 }));
    });
}
