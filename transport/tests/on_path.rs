//! Someone on the path between two ranks: a proxy that changes, repeats and injects bytes on a TCP
//! stream. What it does has no effect, or ends in an error that names the connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use maypole_transport::LinkError;
use maypole_transport::conformance::{HANG_TIMEOUT, Watchdog};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig, MessagesUnderWay};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::noise::{ANSWER_BYTES, CONFIRMATION_BYTES, FIRST_BYTES, Key};
use maypole_transport::tcp::TcpConfig;

/// The direction of bytes that pass the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    FromDialer,
    FromListener,
}

/// Some bytes that pass the proxy: the number of their connection, their direction and the position
/// of the first of them.
struct Passing<'a> {
    connection: usize,
    direction: Direction,
    at: usize,
    bytes: &'a mut Vec<u8>,
}

type Attack = Arc<dyn Fn(Passing<'_>) + Send + Sync>;

const LAYOUT: InboxLayout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 2 };

/// Both ranks of a communicator, which accept connections.
fn ranks() -> (Endpoint, Endpoint) {
    let tcp = TcpConfig { addresses: vec![Ipv4Addr::LOCALHOST.into()], streams: 1 };
    let links = EnabledLinks { local: false, shm: false, verbs: None, tcp: Some(tcp) };
    let key = Key::random().unwrap();
    let [low, high] = [0, 1].map(|rank| {
        let config = EndpointConfig { rank, nranks: 2, secret: key.clone(), layout: LAYOUT };
        Endpoint::with_links(config, &links).unwrap()
    });
    let addresses = [low.address(), high.address()];
    low.survey(&addresses).unwrap();
    high.survey(&addresses).unwrap();
    (low, high)
}

/// The address of an endpoint ends with its port.
fn port(endpoint: &Endpoint) -> SocketAddr {
    let address = endpoint.address();
    let port = u16::from_le_bytes([address[address.len() - 2], address[address.len() - 1]]);
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The address of an endpoint, with the port of a proxy in front of it.
fn behind_proxy(endpoint: &Endpoint, attack: Attack) -> Vec<u8> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (to, own) = (port(endpoint), listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for (connection, client) in listener.incoming().enumerate() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else { return };
            let twins = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let attacks = (attack.clone(), attack.clone());
            std::thread::spawn(move || {
                pump(client, server, connection, Direction::FromDialer, &attacks.0);
            });
            std::thread::spawn(move || {
                pump(twins.1, twins.0, connection, Direction::FromListener, &attacks.1);
            });
        }
    });
    let mut address = endpoint.address();
    let end = address.len() - 2;
    address[end..].copy_from_slice(&own.to_le_bytes());
    address
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    connection: usize,
    direction: Direction,
    attack: &Attack,
) {
    let (mut at, mut buffer) = (0, [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        attack(Passing { connection, direction, at, bytes: &mut bytes });
        at += count;
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn soon() -> Instant {
    Instant::now() + HANG_TIMEOUT
}

/// Connects both ranks, rank 0 to this address of rank 1.
fn connect(low: &Endpoint, high: &Endpoint, address: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(|| low.connect(1, address, soon()).unwrap());
        high.connect(0, &low.address(), soon()).unwrap();
    });
}

/// Changes one bit of one direction, in the connections for which `when` is true.
fn flip(direction: Direction, byte: usize, when: fn(usize) -> bool) -> Attack {
    Arc::new(move |passing| {
        let here = passing.at..passing.at + passing.bytes.len();
        if passing.direction == direction && when(passing.connection) && here.contains(&byte) {
            passing.bytes[byte - here.start] ^= 0x10;
        }
    })
}

#[test]
fn a_handshake_that_is_changed_once_is_made_again() {
    let _watchdog = Watchdog::new("a changed handshake");
    for (direction, bytes) in
        [(Direction::FromDialer, FIRST_BYTES), (Direction::FromListener, ANSWER_BYTES)]
    {
        for byte in (0..bytes).step_by(9) {
            let (low, high) = ranks();
            let address = behind_proxy(&high, flip(direction, byte, |connection| connection == 0));
            connect(&low, &high, &address);
            assert_eq!((low.gone(1), high.gone(0)), (None, None));
        }
    }
}

#[test]
fn a_handshake_that_is_always_changed_ends_in_an_error_that_names_the_peer() {
    let _watchdog = Watchdog::new("changed handshakes");
    for (direction, byte) in [
        (Direction::FromDialer, 0),
        (Direction::FromDialer, 50),
        (Direction::FromListener, 3),
        (Direction::FromListener, 60),
    ] {
        let (low, high) = ranks();
        let address = behind_proxy(&high, flip(direction, byte, |_| true));
        let error = low.connect(1, &address, soon()).unwrap_err();
        assert!(matches!(error, LinkError::Refused { peer: 1, .. }), "{error}");
        // Nothing is reported of a peer that has proven nothing.
        let late = Instant::now() + Duration::from_millis(50);
        let error = high.connect(0, &low.address(), late).unwrap_err();
        assert!(matches!(error, LinkError::Timeout { peer: 0, .. }), "{error}");
    }
}

#[test]
fn a_repeated_handshake_changes_nothing() {
    let _watchdog = Watchdog::new("a repeated handshake");
    let recorded = Arc::<Mutex<Vec<u8>>>::default();
    let (low, high) = ranks();
    let record = Arc::clone(&recorded);
    let attack: Attack = Arc::new(move |passing| {
        if passing.direction == Direction::FromDialer {
            record.lock().unwrap().extend(&*passing.bytes);
        }
    });
    connect(&low, &high, &behind_proxy(&high, attack));
    let sent = recorded.lock().unwrap()[..FIRST_BYTES + CONFIRMATION_BYTES].to_vec();
    for len in [sent.len(), FIRST_BYTES, FIRST_BYTES + 20] {
        let mut replay = TcpStream::connect(port(&high)).unwrap();
        replay.write_all(&sent[..len]).unwrap();
        replay.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        replay.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
        let _ = replay.read_to_end(&mut answer);
        assert!(answer.len() <= ANSWER_BYTES, "a replay was accepted");
    }
    // The first stream is still the one in use.
    exchange(&low, &high);
    assert_eq!((low.gone(1), high.gone(0)), (None, None));
}

/// Sends a message from rank 0 to rank 1.
fn exchange(low: &Endpoint, high: &Endpoint) {
    let (mut out, _to_low) = low.open(1, 0).unwrap();
    let (_, mut inc) = high.open(0, 0).unwrap();
    out.slots.reserve().unwrap().unwrap();
    out.slots.send(0, 9);
    let mut tag = None;
    let ended = high.doorbell().wait(20, 0, Some(HANG_TIMEOUT), || {
        tag = inc.slots.receive().unwrap().map(|message| message.tag);
        tag.is_some()
    });
    assert!(ended, "the message does not come");
    assert_eq!(tag, Some(9));
}

/// A whole frame of 32 bytes, as the format of a stream has it.
fn frame(kind: u8, len: u32, sequence: u64, tag: u32) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0];
    out.extend(len.to_le_bytes());
    out.extend(sequence.to_le_bytes());
    out.extend([0; 8]);
    out.extend(tag.to_le_bytes());
    out.extend([0; 4]);
    out
}

#[test]
fn nobody_else_can_abort_a_communicator_or_say_that_a_rank_leaves() {
    let _watchdog = Watchdog::new("injected frames");
    let abort = frame(2, 0, 1, 5);
    let leave = frame(3, 0, 0, 0);
    let sealed = [frame(4, 48, 0, 0), vec![0x5a; 48]].concat();
    for injected in [abort, leave, sealed] {
        let (low, high) = ranks();
        let bytes = injected.clone();
        let attack: Attack = Arc::new(move |passing| {
            let whole = FIRST_BYTES + CONFIRMATION_BYTES;
            if passing.direction == Direction::FromDialer
                && passing.connection == 0
                && passing.at + passing.bytes.len() == whole
            {
                passing.bytes.extend(&bytes);
            }
        });
        connect(&low, &high, &behind_proxy(&high, attack));
        let (_, mut inc) = high.open(0, 0).unwrap();
        let mut result = Ok(None);
        let ended = high.doorbell().wait(20, 0, Some(HANG_TIMEOUT), || {
            result = inc.slots.receive().map(|message| message.map(|it| it.tag));
            result.is_err()
        });
        assert!(ended, "nothing is noticed of {injected:?}");
        let error = result.unwrap_err();
        assert!(matches!(error, LinkError::Corrupt { peer: 0, .. }), "{error}");
        assert_eq!(high.aborted(), None, "a stranger aborted the communicator");
    }
}

#[test]
fn an_abort_that_is_changed_on_its_way_is_noticed() {
    let _watchdog = Watchdog::new("a changed abort");
    // The first byte of what is sealed.
    let byte = FIRST_BYTES + CONFIRMATION_BYTES + 32;
    let (low, high) = ranks();
    let attack = flip(Direction::FromDialer, byte, |connection| connection == 0);
    connect(&low, &high, &behind_proxy(&high, attack));
    let (_, mut inc) = high.open(0, 0).unwrap();
    low.abort(7);
    let mut result = Ok(None);
    let ended = high.doorbell().wait(20, 0, Some(HANG_TIMEOUT), || {
        result = inc.slots.receive().map(|message| message.map(|it| it.tag));
        result.is_err()
    });
    assert!(ended, "nothing is noticed");
    // The stream is made again, and then the abort arrives.
    let error = result.unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::Corrupt { peer: 0, .. } | LinkError::Aborted { by: 0, reason: 7 }
        ),
        "{error}"
    );
}

/// A gate that holds back all bytes of one direction while it is closed.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.changed.wait_while(closed, |closed| *closed).unwrap());
    }
}

#[test]
fn a_flush_waits_for_what_the_network_holds_back_and_says_what_is_missing() {
    let _watchdog = Watchdog::new("a flush");
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let attack: Attack = Arc::new(move |passing| {
        if passing.direction == Direction::FromDialer {
            held.pass();
        }
    });
    let (low, high) = ranks();
    let address = behind_proxy(&high, attack);
    connect(&low, &high, &address);
    let (mut out, _from_high) = low.open(1, 0).unwrap();
    let (_to_low, mut inc) = high.open(0, 0).unwrap();
    assert_eq!(low.flush(HANG_TIMEOUT), []);
    gate.set(true);
    for tag in 0..2 {
        let slot = out.slots.reserve().unwrap().unwrap();
        // SAFETY: the slot is reserved and has room.
        unsafe { slot.data.write_bytes(9, 4096) };
        out.slots.send(4096, tag);
    }
    let held = MessagesUnderWay { peer: 1, messages: 2, bytes: 8192 };
    assert_eq!(low.flush(Duration::ZERO), [held]);
    gate.set(false);
    // The peer is not in a call: its thread takes the messages.
    assert_eq!(low.flush(HANG_TIMEOUT), []);
    drop((out, low));
    for tag in 0..2 {
        let message = inc.slots.receive().unwrap().expect("it has arrived");
        assert_eq!((message.len, message.tag), (4096, tag));
        inc.slots.release();
    }
}

#[test]
fn a_flush_does_not_wait_for_a_peer_that_is_gone_or_after_an_abort() {
    let _watchdog = Watchdog::new("a flush without a peer");
    for aborted in [false, true] {
        let gate = Arc::new(Gate::default());
        let held = gate.clone();
        let (low, high) = ranks();
        let address = behind_proxy(&high, Arc::new(move |_| held.pass()));
        connect(&low, &high, &address);
        let (mut out, _from_high) = low.open(1, 0).unwrap();
        gate.set(aborted);
        out.slots.reserve().unwrap().unwrap();
        out.slots.send(9, 1);
        if aborted {
            low.abort(1);
        } else {
            drop(high);
        }
        assert_eq!(low.flush(HANG_TIMEOUT), []);
        gate.set(false);
    }
}
