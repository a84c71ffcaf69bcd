//! Connections of processes that do not belong to the communicator, that differ in secret or shape,
//! or that leave.
//!
//! The tests run one after the other, because they count the descriptors and threads of the
//! process.

use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use maypole_transport::LinkError;
use maypole_transport::endpoint::{Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::noise::{ANSWER_BYTES, Binding, Dialer, FIRST_BYTES, Key, Purpose};

/// Held by the running test.
static ALONE: Mutex<()> = Mutex::new(());

/// Waits for the test that runs. A failed test does not fail those after it.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const LAYOUT: InboxLayout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 2 };

fn config(rank: u32, secret: u8) -> EndpointConfig {
    EndpointConfig { rank, nranks: 2, secret: [secret; 32].into(), layout: LAYOUT }
}

fn endpoint(rank: u32, secret: u8) -> Endpoint {
    Endpoint::new_without_local(config(rank, secret)).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A connection to the endpoint's socket that has proven nothing.
fn unproven(endpoint: &Endpoint) -> UnixStream {
    let address = endpoint.address();
    let name = SocketAddr::from_abstract_name(&address[38..78]).unwrap();
    let stream = UnixStream::connect_addr(&name).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn connect_both(low: &Endpoint, high: &Endpoint) {
    low.connect(1, &high.address(), soon()).unwrap();
    high.connect(0, &low.address(), soon()).unwrap();
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// Number of threads of the library. The test harness starts and ends its own.
fn threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        // A thread that has just ended has no name.
        fs::read_to_string(task.unwrap().path().join("comm")).ok()
    });
    names.filter(|name| name.starts_with("maypole")).count()
}

fn maps() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:maypole").count()
}

#[test]
fn unproven_connections_learn_nothing_and_exclude_nobody() {
    let _alone = alone();
    let (low, high) = (endpoint(0, 1), endpoint(1, 1));
    // Many that send nothing, some that close within the first message, some that send noise.
    let silent: Vec<_> = (0..100).map(|_| unproven(&high)).collect();
    for bytes in [1, 35, 71] {
        unproven(&high).write_all(&vec![7; bytes]).unwrap();
    }
    for _ in 0..10 {
        let mut noise = unproven(&high);
        noise.write_all(&[0x5a; 200]).unwrap();
        let mut answer = Vec::new();
        // The end, or a reset, because not everything was read.
        let _ = noise.read_to_end(&mut answer);
        assert!(answer.is_empty(), "an unproven connection was answered");
        // A first message that was made up gets a refusal at most.
        let mut forged = unproven(&high);
        forged.write_all(&[b"MAYPOLE\x02", &[0x5a; FIRST_BYTES - 8][..]].concat()).unwrap();
        let _ = forged.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer == b"maypole\x01", "it was answered: {answer:?}");
    }
    connect_both(&low, &high);
    drop(silent);
}

/// The other user even knows the secret.
#[test]
fn another_user_of_the_host_is_refused() {
    let _alone = alone();
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return println!("SKIPPED: only root can become another user");
    }
    let high = endpoint(1, 1);
    let binding = Binding { purpose: Purpose::Shm, from: 0, to: 1, nranks: 2, stream: 0 };
    let first = || Dialer::new(&Key::new([1; 32]), &binding).unwrap().1;
    let answer_to = |user: u32, first: [u8; FIRST_BYTES]| {
        // SAFETY: the child makes a connection and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: the calls take numbers only.
            unsafe { libc::setresuid(user, user, user) };
            let mut stream = unproven(&high);
            let mut answer = Vec::new();
            let _ = stream.write_all(&first);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut answer);
            // SAFETY: a call without conditions.
            unsafe { libc::_exit(answer.len() as i32) };
        }
        let mut status = 0;
        // SAFETY: `status` is alive.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        libc::WEXITSTATUS(status) as usize
    };
    assert_eq!(answer_to(65534, first()), 0, "another user got an answer");
    assert_eq!(answer_to(0, first()), ANSWER_BYTES, "the same user got none");
}

#[test]
fn another_secret_is_refused_by_both_ends() {
    let _alone = alone();
    let (low, high) = (endpoint(0, 1), endpoint(1, 2));
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::Refused { peer: 1, .. }), "{error}");
    let late = high.connect(0, &low.address(), Instant::now() + Duration::from_millis(50));
    assert!(matches!(late, Err(LinkError::Timeout { peer: 0, .. })));
    assert_eq!(low.open(1, 0).err(), Some(LinkError::NotConnected { peer: 1 }));
}

#[test]
fn another_shape_is_reported_at_both_ends() {
    let _alone = alone();
    let low = endpoint(0, 1);
    let layout = InboxLayout { depth: 3, ..LAYOUT };
    let high = Endpoint::new_without_local(EndpointConfig { layout, ..config(1, 1) }).unwrap();
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::Corrupt { peer: 1, .. }), "{error}");
    let error = high.connect(0, &low.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::Refused { peer: 0, .. }), "{error}");
}

#[test]
fn a_rank_connects_to_itself_and_misuse_is_reported() {
    let _alone = alone();
    let alone = Endpoint::new(config(0, 3)).unwrap();
    let twin = Endpoint::new(config(0, 3)).unwrap_err();
    assert!(matches!(twin, LinkError::Misuse { .. }));
    alone.connect(0, &alone.address(), soon()).unwrap();
    let (mut out, mut inc) = alone.open(0, 0).unwrap();
    out.slots.reserve().unwrap().unwrap();
    out.slots.send(0, 9);
    assert_eq!(inc.slots.receive().unwrap().unwrap().tag, 9);
    assert!(matches!(alone.open(0, 0), Err(LinkError::Misuse { .. })), "opened twice");
    assert!(matches!(alone.open(0, 1), Err(LinkError::Misuse { .. })), "no such channel");
    assert!(matches!(alone.connect(2, &alone.address(), soon()), Err(LinkError::Misuse { .. })));
    assert!(matches!(alone.connect(1, b"nonsense", soon()), Err(LinkError::Misuse { .. })));
    assert!(alone.address().len() <= 128);
}

#[test]
fn an_abort_ends_a_wait_for_a_connection_and_reaches_later_connections() {
    let _alone = alone();
    let (low, high) = (endpoint(0, 1), endpoint(1, 1));
    let aborted = LinkError::Aborted { by: 1, reason: 5 };
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(high.connect(0, &low.address(), soon()), Err(aborted)));
        std::thread::sleep(Duration::from_millis(20));
        high.abort(5);
    });
    // The abort may reach this end before the connection is made, and then the call reports it.
    let connected = low.connect(1, &high.address(), soon());
    assert!(matches!(connected, Ok(()) | Err(LinkError::Aborted { by: 1, reason: 5 })));
    while low.aborted().is_none() {
        std::thread::yield_now();
    }
    assert_eq!(low.aborted(), Some(aborted));
}

#[test]
fn nothing_is_left_behind_and_links_outlive_endpoints() {
    let _alone = alone();
    let before = (entries("/proc/self/fd"), threads(), maps());
    for make in [Endpoint::new, Endpoint::new_without_local] {
        let (low, high) = (make(config(0, 4)).unwrap(), make(config(1, 4)).unwrap());
        connect_both(&low, &high);
        let (mut out, _to_low) = low.open(1, 0).unwrap();
        let (_, mut inc) = high.open(0, 0).unwrap();
        drop((low, high));
        out.slots.reserve().unwrap().unwrap();
        out.slots.send(0, 1);
        assert_eq!(inc.slots.receive().unwrap().unwrap().tag, 1);
        assert!(maps() > before.2);
    }
    assert_eq!((entries("/proc/self/fd"), threads(), maps()), before);
}

#[test]
fn memory_that_is_not_used_takes_no_pages() {
    let _alone = alone();
    let layout = InboxLayout { nranks: 1000, channels: 8, slot_bytes: 1 << 20, depth: 8 };
    let huge = EndpointConfig { nranks: 1000, layout, ..config(0, 5) };
    let endpoint = Endpoint::new(huge).unwrap();
    let rss = fs::read_to_string("/proc/self/smaps").unwrap();
    let ours = rss.split("memfd:maypole").nth(1).unwrap();
    let rss = ours.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    let kilobytes: usize = rss.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes <= 64, "{kilobytes} KiB are resident");
    drop(endpoint);
}

#[test]
fn a_forked_child_does_no_harm() {
    let _alone = alone();
    let (low, high) = (endpoint(0, 6), endpoint(1, 6));
    connect_both(&low, &high);
    let (mut out, to_low) = low.open(1, 0).unwrap();
    let (to_high, mut inc) = high.open(0, 0).unwrap();
    // SAFETY: the child only drops what it must not use, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop((out, to_low, to_high, inc, low, high));
        // SAFETY: a call without conditions.
        unsafe { libc::_exit(7) };
    }
    let mut status = 0;
    // SAFETY: `status` is alive.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 7);
    out.slots.reserve().unwrap().unwrap();
    out.slots.send(0, 1);
    assert_eq!(inc.slots.receive().unwrap().unwrap().tag, 1);
    assert_eq!((low.gone(1), high.gone(0)), (None, None));
    inc.slots.release();
}
