//! Damaged, replayed and invented hello messages to a listener, and damaged answers to a dialer.
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

const CHALLENGE: usize = 32;
const HELLO: usize = 72;
const PROOF: usize = 32;

/// The form and length of all abstract names.
const PREFIX: &[u8] = b"maypole-";
const NAME: usize = 40;

struct Interceptor {
    low: Endpoint,
    high: Endpoint,
    /// The socket that `low` takes for that of `high`.
    listener: UnixListener,
    address: Vec<u8>,
    /// The last hello message of an honest rank.
    recorded: Vec<u8>,
}

impl Interceptor {
    fn new() -> Self {
        let layout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 2 };
        let rank = |rank| {
            let config = EndpointConfig { rank, nranks: 2, secret: [5; 32], layout };
            Endpoint::new_without_local(config).unwrap()
        };
        let (low, high) = (rank(0), rank(1));
        let name = format!("maypole-fuzz-{:027}", std::process::id());
        let place = SocketAddr::from_abstract_name(&name).unwrap();
        let mut address = high.address();
        let at = name_in(&address);
        address[at..at + NAME].copy_from_slice(name.as_bytes());
        let listener = UnixListener::bind_addr(&place).unwrap();
        Self { low, high, listener, address, recorded: vec![0; HELLO] }
    }

    /// A new connection to `high`, and the challenge that it gets.
    fn connect_to_high(&self) -> (UnixStream, [u8; CHALLENGE]) {
        let address = self.high.address();
        let at = name_in(&address);
        let place = SocketAddr::from_abstract_name(&address[at..at + NAME]).unwrap();
        let mut stream = UnixStream::connect_addr(&place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut challenge = [0; CHALLENGE];
        stream.read_exact(&mut challenge).unwrap();
        (stream, challenge)
    }

    /// The hello message of the honest `low` to this challenge. `reply` makes the answer to it.
    fn honest_hello(
        &self,
        challenge: &[u8],
        reply: impl FnOnce(&[u8; HELLO]) -> Vec<u8>,
    ) -> [u8; HELLO] {
        thread::scope(|scope| {
            let deadline = Instant::now() + Duration::from_secs(20);
            let dialing = scope.spawn(move || self.low.connect(1, &self.address, deadline));
            let (mut stream, _) = self.listener.accept().unwrap();
            stream.write_all(challenge).unwrap();
            let mut hello = [0; HELLO];
            // A challenge that was cut short gets no answer.
            if challenge.len() < CHALLENGE {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            } else {
                stream.read_exact(&mut hello).unwrap();
                // The dialer may close before it has read everything.
                let _ = stream.write_all(&reply(&hello));
            }
            drop(stream);
            assert!(dialing.join().unwrap().is_err(), "the dialer accepted the interceptor");
            hello
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

#[test]
fn fuzz_hello_messages() {
    let mut interceptor = Interceptor::new();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let (mut accepted, mut refused) = (0, 0);
    rounds(|random| {
        let (stream, challenge) = interceptor.connect_to_high();
        match random.below(8) {
            // A hello message that is damaged, or sometimes not.
            0 => {
                let hello = interceptor.honest_hello(&challenge, |_| vec![]);
                let sent = if random.below(2) == 0 {
                    hello.to_vec()
                } else {
                    random.damaged(&hello, &interceptor.recorded)
                };
                let answer = send(stream, &sent, random);
                if sent.starts_with(&hello) {
                    // If bytes that are no inbox follow, the reset may discard the answer.
                    let discarded = sent.len() > HELLO && answer.is_empty();
                    assert!(answer.len() == PROOF || discarded, "an honest rank was refused");
                    accepted += 1;
                } else {
                    assert!(answer.is_empty(), "a damaged hello message was accepted");
                    refused += 1;
                }
                interceptor.recorded = hello.to_vec();
            }
            // Answers to the dialer: the honest proof, damaged or not, but without the inbox; or
            // noise.
            1 => {
                let sent = random.damaged(&challenge, &[0; CHALLENGE]);
                interceptor.honest_hello(&sent, |hello| {
                    let answer = send(stream, hello, random);
                    let honest = sent.starts_with(&challenge);
                    assert_eq!(answer.len(), if honest { PROOF } else { 0 });
                    let noise = random.bytes(PROOF);
                    random.damaged(&answer, &noise)
                });
            }
            // A replayed hello message, which was for another challenge.
            2 => {
                assert!(
                    send(stream, &interceptor.recorded, random).is_empty(),
                    "a replay was accepted"
                );
                refused += 1;
            }
            _ => {
                let sent = random.damaged(&interceptor.recorded, &challenge);
                assert!(
                    send(stream, &sent, random).is_empty(),
                    "an invented hello message was accepted"
                );
                refused += 1;
            }
        }
        assert!(descriptors() < before + 100, "connections are not closed");
    });
    assert!(refused > 0);
    println!("{accepted} honest hellos, {refused} others");
    // Honest ranks can still connect.
    let soon = Instant::now() + Duration::from_secs(20);
    interceptor.low.connect(1, &interceptor.high.address(), soon).unwrap();
    interceptor.high.connect(0, &interceptor.low.address(), soon).unwrap();
}
