//! Streams of a TCP link that break, and connections that do not belong to the communicator.
//!
//! The tests run one after the other, because they look at the sockets of the process.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use maypole_transport::LinkError;
use maypole_transport::conformance::{HANG_TIMEOUT, Watchdog};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::link::{Incoming, Outgoing, PostedMemory};
use maypole_transport::noise::FIRST_BYTES;
use maypole_transport::sync::{AtomicU32, Ordering};
use maypole_transport::tcp::TcpConfig;

/// Held by the running test.
static ALONE: Mutex<()> = Mutex::new(());

const LAYOUT: InboxLayout = InboxLayout { nranks: 2, channels: 2, slot_bytes: 1 << 16, depth: 4 };
const STREAMS: u32 = 4;
/// Both ends of all streams are in this process.
const SOCKETS: usize = 2 * STREAMS as usize;

fn endpoint(rank: u32, secret: u8, layout: InboxLayout) -> Endpoint {
    let tcp = TcpConfig { addresses: vec![Ipv4Addr::LOCALHOST.into()], streams: STREAMS };
    let links = EnabledLinks { local: false, shm: false, verbs: None, tcp: Some(tcp) };
    let config = EndpointConfig { rank, nranks: 2, secret: [secret; 32].into(), layout };
    Endpoint::with_links(config, &links).unwrap()
}

fn soon() -> Instant {
    Instant::now() + HANG_TIMEOUT
}

fn connect_both(low: &Endpoint, high: &Endpoint) {
    std::thread::scope(|scope| {
        scope.spawn(|| low.connect(1, &high.address(), soon()).unwrap());
        high.connect(0, &low.address(), soon()).unwrap();
    });
}

/// Descriptors of this process that are established TCP connections.
fn established() -> Vec<i32> {
    let connected = |fd: &i32| {
        let mut state = 0_u8;
        let mut length = 1;
        // SAFETY: the call writes at most one byte, the first field of the answer, whatever `fd`
        // is.
        let result = unsafe {
            let place = (&raw mut state).cast();
            libc::getsockopt(*fd, libc::IPPROTO_TCP, libc::TCP_INFO, place, &mut length)
        };
        result == 0 && state == 1
    };
    (3..1024).filter(connected).collect()
}

/// Breaks a stream: ends one direction or both, or resets it.
fn break_stream(fd: i32, how: u64) {
    // SAFETY: the only memory is a socket address that is alive. If `fd` is not open, the call
    // fails.
    unsafe {
        match how % 4 {
            0 => libc::shutdown(fd, libc::SHUT_RD),
            1 => libc::shutdown(fd, libc::SHUT_WR),
            2 => libc::shutdown(fd, libc::SHUT_RDWR),
            _ => {
                let mut no_address: libc::sockaddr = std::mem::zeroed();
                no_address.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
                libc::connect(fd, &no_address, size_of_val(&no_address) as u32)
            }
        };
    }
}

struct TestRandom(u64);

impl TestRandom {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const LAST: u32 = u32::MAX;

/// The message of this number, which both ends know.
fn content(number: u64) -> Vec<u8> {
    let mut random = TestRandom(number + 1);
    let len = random.next() as usize % LAYOUT.slot_bytes;
    let len = if random.next().is_multiple_of(2) { len } else { len % 100 };
    let word = random.next().to_le_bytes();
    (0..len).map(|at| word[at % 8] ^ (at / 8) as u8).collect()
}

fn wait<T>(endpoint: &Endpoint, mut look: impl FnMut() -> Result<Option<T>, LinkError>) -> T {
    let mut found = None;
    let ended = endpoint.doorbell().wait(20, 0, Some(HANG_TIMEOUT), || {
        found = look().unwrap();
        found.is_some()
    });
    assert!(ended, "a wait did not end");
    found.unwrap()
}

/// Sends messages until `stop` returns true; then the last one. Every other message lends its
/// memory, which is overwritten after its release.
fn send(endpoint: &Endpoint, mut out: Outgoing, stop: impl Fn() -> bool) {
    let mut lent: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
    for number in 1.. {
        let last = stop();
        let data = content(number);
        let tag = if last { LAST } else { number as u32 };
        if number.is_multiple_of(2) {
            // SAFETY: the memory is kept in `lent` until the release.
            let sequence =
                wait(endpoint, || unsafe { out.slots.lend(data.as_ptr(), data.len(), tag) });
            assert_eq!(sequence, number);
            lent.push_back((sequence, data));
        } else {
            let slot = wait(endpoint, || out.slots.reserve());
            // SAFETY: the slot is reserved and has room.
            unsafe { slot.data.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
            assert_eq!(out.slots.send(data.len(), tag), number);
        }
        let released = out.slots.released();
        while let Some((_, data)) = lent.front_mut().filter(|first| first.0 <= released) {
            data.fill(0xee);
            lent.pop_front();
        }
        if last {
            out.slots.flush();
            wait(endpoint, || Ok((out.slots.released() == number).then_some(())));
            return;
        }
    }
}

/// Receives every message once and in order, some in posted memory. Returns the number of messages.
fn receive(endpoint: &Endpoint, mut inc: Incoming) -> u64 {
    let mut memory = vec![0; LAYOUT.slot_bytes];
    for number in 1.. {
        let expected = content(number);
        if !number.is_multiple_of(3) {
            let (data, tag) = (memory.as_mut_ptr(), number as u32);
            // SAFETY: the memory has the bytes of a slot, and is used again after the release.
            unsafe { inc.slots.post(PostedMemory { data, len: expected.len(), tag }) };
        }
        let message = wait(endpoint, || inc.slots.receive());
        // SAFETY: a message that is not released.
        let data = unsafe { std::slice::from_raw_parts(message.data, message.len) };
        assert!(data == expected, "message {number} is damaged");
        assert_eq!(message.sequence, number);
        inc.slots.release();
        if message.tag == LAST {
            return number;
        }
        assert_eq!(message.tag, number as u32);
    }
    unreachable!("an endless range ended")
}

/// Traffic in both directions on two channels while `disturb` runs.
fn traffic(disturb: impl FnOnce() + Send) {
    let (low, high) = (endpoint(0, 1, LAYOUT), endpoint(1, 1, LAYOUT));
    connect_both(&low, &high);
    assert_eq!(established().len(), SOCKETS);
    let done = AtomicU32::new(0);
    let stop = || done.load(Ordering::Relaxed) == 1;
    std::thread::scope(|scope| {
        for channel in 0..2 {
            for (endpoint, peer) in [(&low, 1), (&high, 0)] {
                let (out, inc) = endpoint.open(peer, channel).unwrap();
                scope.spawn(move || send(endpoint, out, stop));
                scope.spawn(|| assert!(receive(endpoint, inc) > 1));
            }
        }
        disturb();
        done.store(1, Ordering::Relaxed);
    });
    assert_eq!((low.gone(1), high.gone(0)), (None, None));
}

/// Waits until the lower rank has made all streams again.
fn await_all() -> Vec<i32> {
    let limit = soon();
    loop {
        let sockets = established();
        if sockets.len() == SOCKETS {
            return sockets;
        }
        assert!(Instant::now() < limit, "streams were not made again: {}", sockets.len());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn streams_that_break_at_random_lose_and_repeat_no_message() {
    let _alone = ALONE.lock().unwrap();
    let _watchdog = Watchdog::new("streams that break");
    traffic(|| {
        let mut random = TestRandom(99);
        for _ in 0..60 {
            let sockets = await_all();
            break_stream(sockets[random.next() as usize % SOCKETS], random.next() >> 8);
            std::thread::sleep(Duration::from_micros(random.next() % 8000));
        }
        await_all();
    });
}

#[test]
fn a_pair_of_which_all_streams_break_connects_again() {
    let _alone = ALONE.lock().unwrap();
    let _watchdog = Watchdog::new("all streams break");
    traffic(|| {
        for _ in 0..3 {
            for socket in await_all() {
                break_stream(socket, 3);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        await_all();
    });
}

#[test]
fn a_flush_ends_when_messages_have_come_over_streams_that_were_made_again() {
    let _alone = ALONE.lock().unwrap();
    let _watchdog = Watchdog::new("a flush over streams that break");
    let (low, high) = (endpoint(0, 7, LAYOUT), endpoint(1, 7, LAYOUT));
    connect_both(&low, &high);
    let (mut out, _from_high) = low.open(1, 0).unwrap();
    let (_to_low, inc) = high.open(0, 0).unwrap();
    for number in 1..=4 {
        let slot = out.slots.reserve().unwrap().unwrap();
        let data = content(number);
        // SAFETY: the slot is reserved and has room.
        unsafe { slot.data.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        out.slots.send(data.len(), if number == 4 { LAST } else { number as u32 });
        established().into_iter().for_each(|socket| break_stream(socket, 3));
    }
    assert_eq!(low.flush(HANG_TIMEOUT), []);
    drop((out, low));
    assert_eq!(receive(&high, inc), 4);
}

#[test]
fn what_is_being_sent_when_it_is_withdrawn_arrives_as_it_was() {
    let _alone = ALONE.lock().unwrap();
    let _watchdog = Watchdog::new("lent memory is withdrawn");
    // More than the sockets take at once.
    let layout = InboxLayout { slot_bytes: 16 << 20, depth: 2, ..LAYOUT };
    let (low, high) = (endpoint(0, 8, layout), endpoint(1, 8, layout));
    connect_both(&low, &high);
    let (mut out, _from_high) = low.open(1, 0).unwrap();
    let (_to_low, mut inc) = high.open(0, 0).unwrap();
    let mut data = vec![5_u8; layout.slot_bytes];
    for tag in 0..2 {
        // SAFETY: the memory is changed only after `withdraw`.
        let lent = unsafe { out.slots.lend(data.as_ptr(), data.len(), tag) };
        assert_eq!(lent, Ok(Some(u64::from(tag) + 1)));
    }
    out.slots.withdraw();
    data.fill(6);
    for _ in 0..2 {
        let message = wait(&high, || inc.slots.receive());
        // SAFETY: a message that is not released.
        let data = unsafe { std::slice::from_raw_parts(message.data, message.len) };
        assert!(data.len() == layout.slot_bytes && data.iter().all(|&byte| byte == 5));
        inc.slots.release();
    }
}

fn port(endpoint: &Endpoint) -> SocketAddr {
    let address = endpoint.address();
    let port = u16::from_le_bytes([address[address.len() - 2], address[address.len() - 1]]);
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[test]
fn unproven_connections_learn_nothing_and_exclude_nobody() {
    let _alone = ALONE.lock().unwrap();
    let (low, high) = (endpoint(0, 2, LAYOUT), endpoint(1, 2, LAYOUT));
    let unproven = || {
        let stream = TcpStream::connect(port(&high)).unwrap();
        stream.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
        stream
    };
    // Many that send nothing, some that stop or close within the first message.
    let mut silent: Vec<_> = (0..300).map(|_| unproven()).collect();
    for bytes in [1, 35, 71] {
        unproven().write_all(&vec![7; bytes]).unwrap();
        silent[bytes].write_all(&vec![7; bytes]).unwrap();
    }
    connect_both(&low, &high);
    // Now that the thread runs: noise gets the end, or a reset, because not everything was read.
    for _ in 0..10 {
        let mut noise = unproven();
        noise.write_all(&[0x5a; 200]).unwrap();
        let mut answer = Vec::new();
        let _ = noise.read_to_end(&mut answer);
        assert!(answer.is_empty(), "an unproven connection was answered");
        // A first message that was made up gets a refusal at most.
        let mut forged = unproven();
        forged.write_all(&[b"MAYPOLE\x02", &[0x5a; FIRST_BYTES - 8][..]].concat()).unwrap();
        let _ = forged.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer == b"maypole\x01", "it was answered: {answer:?}");
    }
    let (mut out, _to_low) = low.open(1, 0).unwrap();
    let (_, mut inc) = high.open(0, 0).unwrap();
    out.slots.reserve().unwrap().unwrap();
    out.slots.send(0, 9);
    assert_eq!(wait(&high, || inc.slots.receive()).tag, 9);
    drop(silent);
}

#[test]
fn another_secret_or_shape_is_reported() {
    let _alone = ALONE.lock().unwrap();
    let (low, high) = (endpoint(0, 3, LAYOUT), endpoint(1, 4, LAYOUT));
    std::thread::scope(|scope| {
        let late = Instant::now() + Duration::from_secs(2);
        let waits = scope.spawn(move || {
            let error = high.connect(0, &endpoint(0, 4, LAYOUT).address(), late);
            assert!(matches!(error, Err(LinkError::Timeout { peer: 0, .. })), "{error:?}");
            high
        });
        // The endpoint listens at its address before it waits.
        let high = waits.join().unwrap();
        let error = low.connect(1, &high.address(), soon()).unwrap_err();
        assert!(matches!(error, LinkError::Refused { peer: 1, .. }), "{error}");
    });
    let layout = InboxLayout { depth: 3, ..LAYOUT };
    let (low, high) = (endpoint(0, 5, LAYOUT), endpoint(1, 5, layout));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let error = low.connect(1, &high.address(), soon()).unwrap_err();
            assert!(matches!(error, LinkError::Corrupt { peer: 1, .. }), "{error}");
        });
        let error = high.connect(0, &low.address(), soon()).unwrap_err();
        assert!(matches!(error, LinkError::Corrupt { peer: 0, .. }), "{error}");
    });
}

#[test]
fn nothing_is_left_behind() {
    let _alone = ALONE.lock().unwrap();
    let entries = |directory| std::fs::read_dir(directory).unwrap().count();
    let before = (entries("/proc/self/fd"), established().len());
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        tasks.map(name).filter(|name| name.starts_with("maypole-tcp")).count()
    };
    let (low, high) = (endpoint(0, 6, LAYOUT), endpoint(1, 6, LAYOUT));
    connect_both(&low, &high);
    let (mut out, to_low) = low.open(1, 0).unwrap();
    assert_eq!(threads(), 2);
    drop((low, high));
    // Links outlive endpoints.
    out.slots.reserve().unwrap().unwrap();
    out.slots.send(0, 1);
    assert_eq!((established().len(), threads()), (0, 0));
    drop((out, to_low));
    assert_eq!((entries("/proc/self/fd"), established().len()), before);
}
