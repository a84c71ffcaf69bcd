//! Damaged, replayed and made-up hellos at an endpoint's door, and damaged answers to the one who dials.
//!
//! Everything is seen from outside: a man in the middle between two honest ranks records what they say, changes it, and cuts
//! it into pieces.

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

/// Abstract names are all of this form and length.
const PREFIX: &[u8] = b"maypole-";
const NAME: usize = 40;

struct Middle {
    low: Endpoint,
    high: Endpoint,
    /// Where `low` believes `high` to be.
    listener: UnixListener,
    address: Vec<u8>,
    /// What an honest rank once said.
    recorded: Vec<u8>,
}

impl Middle {
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

    /// A new connection to the door, and the challenge it is greeted with.
    fn knock(&self) -> (UnixStream, [u8; CHALLENGE]) {
        let address = self.high.address();
        let at = name_in(&address);
        let place = SocketAddr::from_abstract_name(&address[at..at + NAME]).unwrap();
        let mut stream = UnixStream::connect_addr(&place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut challenge = [0; CHALLENGE];
        stream.read_exact(&mut challenge).unwrap();
        (stream, challenge)
    }

    /// What the honest `low` says to this challenge. It is answered by what `reply` makes of its hello.
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
            // A challenge that was cut short is answered by nothing.
            if challenge.len() < CHALLENGE {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            } else {
                stream.read_exact(&mut hello).unwrap();
                // It may be gone before it has read all.
                let _ = stream.write_all(&reply(&hello));
            }
            drop(stream);
            assert!(dialing.join().unwrap().is_err(), "a man in the middle was taken for a rank");
            hello
        })
    }
}

fn name_in(address: &[u8]) -> usize {
    let at = address.windows(PREFIX.len()).position(|window| window == PREFIX);
    at.expect("an address holds the name of a socket")
}

/// Says all that and returns what is answered.
fn say(mut stream: UnixStream, bytes: &[u8], random: &mut FuzzRandom) -> Vec<u8> {
    for piece in random.fragments(bytes) {
        // Whoever was refused cannot write any more.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // The end may be a reset, if not all that was said was read.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

#[test]
fn fuzz_hellos() {
    let mut middle = Middle::new();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let (mut accepted, mut refused) = (0, 0);
    rounds(|random| {
        let (stream, challenge) = middle.knock();
        match random.below(8) {
            // Damaged on the way, or, now and then, not.
            0 => {
                let hello = middle.honest_hello(&challenge, |_| vec![]);
                let sent = if random.below(2) == 0 {
                    hello.to_vec()
                } else {
                    random.damaged(&hello, &middle.recorded)
                };
                let answer = say(stream, &sent, random);
                if sent.starts_with(&hello) {
                    // What follows the hello is no inbox, and the reset that it causes may swallow the answer.
                    let swallowed = sent.len() > HELLO && answer.is_empty();
                    assert!(answer.len() == PROOF || swallowed, "an honest rank was refused");
                    accepted += 1;
                } else {
                    assert!(answer.is_empty(), "a damaged hello was accepted");
                    refused += 1;
                }
                middle.recorded = hello.to_vec();
            }
            // Answers to the dialer: the honest end's proof, damaged or as it is, but without its inbox; or noise.
            1 => {
                let sent = random.damaged(&challenge, &[0; CHALLENGE]);
                middle.honest_hello(&sent, |hello| {
                    let answer = say(stream, hello, random);
                    let honest = sent.starts_with(&challenge);
                    assert_eq!(answer.len(), if honest { PROOF } else { 0 });
                    let noise = random.bytes(PROOF);
                    random.damaged(&answer, &noise)
                });
            }
            // The same words again: they were for another challenge.
            2 => {
                assert!(say(stream, &middle.recorded, random).is_empty(), "a replay was accepted");
                refused += 1;
            }
            _ => {
                let sent = random.damaged(&middle.recorded, &challenge);
                assert!(say(stream, &sent, random).is_empty(), "made-up words were accepted");
                refused += 1;
            }
        }
        assert!(descriptors() < before + 100, "connections pile up");
    });
    assert!(refused > 0);
    println!("{accepted} honest hellos, {refused} others");
    // And nobody was kept out.
    let soon = Instant::now() + Duration::from_secs(20);
    middle.low.connect(1, &middle.high.address(), soon).unwrap();
    middle.high.connect(0, &middle.low.address(), soon).unwrap();
}
