//! Damaged, replayed and invented first messages and confirmations to a listener, and damaged
//! answers to a dialer.
//!
//! The test sits between two honest ranks: it records what they send, changes it and cuts it into
//! pieces.

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use maypole_transport::conformance::fuzz::{FuzzRandom, rounds};
use maypole_transport::endpoint::{Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::noise::{
    ANSWER_BYTES, CONFIRMATION_BYTES, FIRST_BYTES, REFUSAL_BYTES, Refusal, refusal_in,
};

/// The form and length of all abstract names.
const PREFIX: &[u8] = b"maypole-";
const NAME: usize = 40;

struct Interceptor {
    low: Endpoint,
    high: Endpoint,
    /// The socket that `low` takes for that of `high`.
    listener: UnixListener,
    address: Vec<u8>,
    /// The last first message of an honest rank.
    first: Vec<u8>,
    /// The last confirmation of an honest rank.
    confirmation: Vec<u8>,
}

/// What an honest dialer sent, and the error with which it ended.
struct HonestDialer {
    first: Vec<u8>,
    confirmation: Vec<u8>,
    error: String,
}

impl Interceptor {
    fn new() -> Self {
        let layout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 2 };
        let rank = |rank| {
            let config = EndpointConfig { rank, nranks: 2, secret: [5; 32].into(), layout };
            Endpoint::new_without_local(config).unwrap()
        };
        let (low, high) = (rank(0), rank(1));
        let name = format!("maypole-fuzz-{:027}", std::process::id());
        let place = SocketAddr::from_abstract_name(&name).unwrap();
        let mut address = high.address();
        let at = name_in(&address);
        address[at..at + NAME].copy_from_slice(name.as_bytes());
        let listener = UnixListener::bind_addr(&place).unwrap();
        Self { low, high, listener, address, first: vec![0; FIRST_BYTES], confirmation: vec![] }
    }

    /// A new connection to `high`.
    fn connect_to_high(&self) -> UnixStream {
        let address = self.high.address();
        let at = name_in(&address);
        let place = SocketAddr::from_abstract_name(&address[at..at + NAME]).unwrap();
        let stream = UnixStream::connect_addr(&place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Lets the honest `low` dial. `reply` makes the answer to its first message.
    fn dial(&self, reply: impl FnOnce(&[u8]) -> Vec<u8>) -> HonestDialer {
        thread::scope(|scope| {
            let deadline = Instant::now() + Duration::from_secs(20);
            let dialing = scope.spawn(move || self.low.connect(1, &self.address, deadline));
            let (mut stream, _) = self.listener.accept().unwrap();
            let mut first = vec![0; FIRST_BYTES];
            stream.read_exact(&mut first).unwrap();
            // The dialer may close before it has read everything.
            let _ = stream.write_all(&reply(&first));
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut confirmation = Vec::new();
            let _ = stream.read_to_end(&mut confirmation);
            let error = dialing.join().unwrap().expect_err("the dialer accepted the interceptor");
            HonestDialer { first, confirmation, error: error.to_string() }
        })
    }
}

fn name_in(address: &[u8]) -> usize {
    let at = address.windows(PREFIX.len()).position(|window| window == PREFIX);
    at.expect("an address holds the name of a socket")
}

/// Sends `bytes` and returns the answer.
fn send(mut stream: UnixStream, bytes: &[u8], random: &mut FuzzRandom) -> Vec<u8> {
    for piece in random.fragments(bytes) {
        // A connection that was refused cannot be written to any more.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // The end may be a reset, if not everything was read.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

/// A stranger gets nothing, or a refusal.
fn assert_refused(answer: &[u8]) {
    if let Some(head) = answer.first_chunk::<REFUSAL_BYTES>() {
        assert_eq!(answer.len(), REFUSAL_BYTES, "a stranger was answered");
        let refusal = refusal_in(head);
        assert!(matches!(refusal, Some(Refusal::UnknownKey | Refusal::OtherVersion)));
    } else {
        assert!(answer.is_empty(), "a stranger was answered");
    }
}

#[test]
fn fuzz_the_handshake() {
    let mut interceptor = Interceptor::new();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let (mut accepted, mut refused, mut confirmed) = (0, 0, 0);
    rounds(|random| {
        let stream = interceptor.connect_to_high();
        match random.below(8) {
            // A first message that is damaged, or sometimes not.
            0 => {
                let first = interceptor.dial(|_| vec![]).first;
                let sent = if random.below(2) == 0 {
                    first.clone()
                } else {
                    random.damaged(&first, &interceptor.first)
                };
                let answer = send(stream, &sent, random);
                // A part of an earlier message may be a whole valid one.
                if sent.starts_with(&first) || sent.starts_with(&interceptor.first) {
                    // If more bytes follow, the reset may discard the answer.
                    let discarded = sent.len() > FIRST_BYTES && answer.is_empty();
                    assert!(answer.len() == ANSWER_BYTES || discarded, "an honest rank is refused");
                    accepted += 1;
                } else {
                    assert_refused(&answer);
                    refused += 1;
                }
                interceptor.first = first;
            }
            // Between two honest ranks: the answer to the dialer is damaged or not, but comes
            // without the inbox; and so is its confirmation.
            1 => {
                let mut honest = false;
                let mut at_high = stream;
                let dialer = interceptor.dial(|first| {
                    at_high.write_all(first).unwrap();
                    let mut answer = vec![0; ANSWER_BYTES];
                    at_high.read_exact(&mut answer).unwrap();
                    let noise = random.bytes(ANSWER_BYTES);
                    let sent = random.damaged(&answer, &noise);
                    honest = sent.starts_with(&answer);
                    sent
                });
                assert_eq!(dialer.error.contains("it sent no inbox"), honest, "{}", dialer.error);
                assert_eq!(dialer.confirmation.len(), if honest { CONFIRMATION_BYTES } else { 0 });
                let sent = random.damaged(&dialer.confirmation, &interceptor.confirmation);
                // The dialer says that it could not use the inbox, so nothing is confirmed to it.
                assert!(send(at_high, &sent, random).is_empty(), "a rank was accepted");
                confirmed += usize::from(honest);
                (interceptor.first, interceptor.confirmation) = (dialer.first, dialer.confirmation);
            }
            // A whole handshake is replayed. The first message is answered, and no more.
            2 => {
                let recorded = [&interceptor.first[..], &interceptor.confirmation].concat();
                let answer = send(stream, &recorded, random);
                assert!(answer.len() <= ANSWER_BYTES, "a replay was accepted");
                refused += 1;
            }
            _ => {
                let sent = random.damaged(&interceptor.first, &interceptor.confirmation);
                let answer = send(stream, &sent, random);
                if !sent.starts_with(&interceptor.first) {
                    assert_refused(&answer);
                }
                refused += 1;
            }
        }
        assert!(descriptors() < before + 100, "connections are not closed");
    });
    assert!(refused > 0);
    println!("{accepted} honest first messages, {confirmed} confirmations, {refused} others");
    // Honest ranks can still connect.
    let soon = Instant::now() + Duration::from_secs(20);
    interceptor.low.connect(1, &interceptor.high.address(), soon).unwrap();
    interceptor.high.connect(0, &interceptor.low.address(), soon).unwrap();
}
