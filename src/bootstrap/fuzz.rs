//! Damaged, replayed and made-up bytes to everything here that reads bytes of strangers or peers, through the state machines
//! that the sockets use.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use maypole_transport::conformance::fuzz::{FuzzRandom, rounds};

use super::accept::Gate;
use super::address::MOST_ADDRESSES;
use super::hello::{self, Answer, CHALLENGE_BYTES, HELLO_BYTES, Hello, PROOF_BYTES, Role, WELCOME};
use super::id::{UNIQUE_ID_BYTES, UniqueId};
use super::secret::Secret;
use super::stream::{Broken, Framed, READ_BYTES};
use super::wire::{self, Frame, HEADER_BYTES, MOST_SMALL};

/// Most bytes of items that a frame may carry here.
const MOST: usize = 10_000;

#[test]
fn fuzz_bootstrap() {
    let mut door = Door::new();
    let count = rounds(|random| match random.below(4) {
        0 => frames(random),
        1 => ids(random),
        2 => items(random),
        _ => door.visit(random),
    });
    println!(
        "{count} rounds, {} honest ranks and {} others at the gate",
        door.passed, door.refused
    );
}

/// A connection within this process, under the name of the kind that is used: ports would run out.
fn connection() -> (TcpStream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    near.set_nonblocking(true).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    (TcpStream::from(OwnedFd::from(near)), far)
}

/// Frames in fragments, of which one may be damaged: all before it come whole, what comes of it is no larger than allowed.
fn frames(random: &mut FuzzRandom) {
    let (near, mut far) = connection();
    let mut framed = Framed::new(near, MOST);
    let known = wire::tests::frames();
    let mut sent = Vec::new();
    let mut stream = Vec::new();
    for _ in 0..random.below(5) {
        let frame = known[random.below(known.len())].clone();
        frame.encode(&mut stream);
        sent.push(frame);
    }
    let mut last = Vec::new();
    known[random.below(known.len())].encode(&mut last);
    let mut other = Vec::new();
    Frame::Up { sequence: 7, items: random.bytes(300) }.encode(&mut other);
    stream.extend(random.damaged(&last, &other));

    let mut got = Vec::new();
    let mut broken = None;
    for piece in random.fragments(&stream) {
        far.write_all(piece).expect("room in the socket");
        framed.fill();
        while broken.is_none() {
            match framed.next() {
                Ok(Some(frame)) => got.push(frame),
                Ok(None) => break,
                Err(error) => broken = Some(error),
            }
        }
        if broken.is_some() {
            break;
        }
        // A vector grows by doubling.
        assert!(framed.held() <= 2 * (HEADER_BYTES + MOST.max(MOST_SMALL) + READ_BYTES));
    }
    assert_ne!(broken, Some(Broken::Ended));
    assert_eq!(got[..sent.len()], sent, "a frame before the damage is lost");
    for frame in &got {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert!(bytes.len() <= HEADER_BYTES + MOST.max(MOST_SMALL));
    }
}

fn ids(random: &mut FuzzRandom) {
    let valid = super::id::tests::fixed_at(7).to_bytes();
    let mut bytes = random.damaged(&valid, &[4; 80]);
    bytes.resize(UNIQUE_ID_BYTES, 0);
    let mut bytes: [u8; UNIQUE_ID_BYTES] = bytes.try_into().expect("as long as an id");
    assert_eq!(UniqueId::from_bytes(bytes).is_ok(), bytes == valid);
    // What is behind the checksum is looked at too.
    let sum = super::id::tests::checksum_of(&bytes);
    bytes[UNIQUE_ID_BYTES - sum.len()..].copy_from_slice(&sum);
    if let Ok(id) = UniqueId::from_bytes(bytes) {
        let addresses = id.contents().expect("it was just read").reach.addresses;
        assert!((1..=MOST_ADDRESSES).contains(&addresses.len()));
    }
    let place = random.damaged(&valid[41..79], &[6; 30]);
    if let Some(id) = UniqueId::at_rejoin_listener(&place, [1; 32]) {
        assert!(
            id.contents().is_ok_and(|c| c.reach.addresses.len() <= MOST_ADDRESSES) || place[8] == 0
        );
    }
}

fn items(random: &mut FuzzRandom) {
    let mut body = Vec::new();
    for rank in 0..random.below(6) as u32 {
        let len = random.below(100);
        wire::put_item(&mut body, rank, &random.bytes(len));
    }
    let body = random.damaged(&body, &[0xff; 20]);
    let read: Vec<_> = wire::items(&body).collect();
    let bytes: usize = read.iter().flatten().map(|(_, item)| item.len() + wire::ITEM_HEADER).sum();
    // Nothing comes after what is malformed, and what was read is there.
    let broken = read.iter().filter(|item| item.is_none()).count();
    assert!(broken == 0 && bytes == body.len() || broken == 1 && bytes < body.len());
    assert!(broken == 0 || read.last() == Some(&None));
}

/// A gate, and what an honest rank once said at it.
struct Door {
    gate: Gate,
    secret: Secret,
    recorded: Vec<u8>,
    /// Connections that were left open in the middle of a handshake.
    lingering: Vec<UnixStream>,
    passed: usize,
    refused: usize,
}

/// Whom the gate belongs to.
const ME: u32 = 1;

impl Door {
    fn new() -> Self {
        let secret = Secret::new([8; 32]);
        Self {
            gate: Gate::new(vec![], secret.clone(), Role::Tree, ME),
            secret,
            recorded: vec![],
            lingering: vec![],
            passed: 0,
            refused: 0,
        }
    }

    /// One handshake of a dialer that is honest, damaged on the way, in possession of another secret, or a parrot.
    fn visit(&mut self, random: &mut FuzzRandom) {
        let (near, mut far) = connection();
        let mut passed = vec![];
        self.gate.greet(near, SocketAddr::from(([127, 0, 0, 1], 1)), &mut passed);
        let from = 2 + random.below(5) as u32;
        let nonce = random.bytes(32).try_into().expect("32 bytes");
        let hello = Hello { role: Role::Tree, from, to: ME, nranks: 7, nonce }.encode();

        let kind = random.below(5);
        let mut sent = match kind {
            0 | 1 => hello.to_vec(),
            2 | 3 => random.damaged(&hello, &self.recorded),
            _ => self.recorded.clone(),
        };
        self.say(&mut far, &sent, random, &mut passed);
        let mut answer = vec![0; 2 * CHALLENGE_BYTES];
        let got = far.read(&mut answer).unwrap_or(0);
        answer.truncate(got);
        // Whom nobody could have told apart from a rank yet gets a challenge; who was refused, nothing.
        assert!(got == 0 || got == CHALLENGE_BYTES, "a stranger was told {got} bytes");
        let mut honest = [&hello[..], &[0; PROOF_BYTES]].concat();
        if let Some(challenge) = answer.first_chunk() {
            let secret = if kind == 1 { &Secret::new([9; 32]) } else { &self.secret };
            let proof = match hello::answer(secret, &hello, challenge) {
                Answer::Proof(proof) => {
                    honest = [&hello[..], &proof].concat();
                    proof.to_vec()
                }
                Answer::WrongId => secret.prove("dialer", &[&hello, challenge]).to_vec(),
                Answer::NotOurs => panic!("the gate does not speak our protocol"),
            };
            self.check_dialer(&hello, challenge, random);
            let more = match kind {
                0 | 1 => proof,
                _ => random.damaged(&proof, &self.recorded),
            };
            self.say(&mut far, &more, random, &mut passed);
            sent.extend(more);
        }
        // The secret alone opens the gate: the very words of an honest rank to this very challenge.
        let welcome = kind != 1 && got != 0 && sent.starts_with(&honest);
        assert!(welcome || kind != 0, "an honest rank was refused");
        let expected = Hello::decode(&hello).into_iter().filter(|_| welcome).collect::<Vec<_>>();
        assert_eq!(passed.iter().map(|p| p.0).collect::<Vec<_>>(), expected);
        let mut last = [0; 2];
        let told = far.read(&mut last).unwrap_or(0);
        assert_eq!(&last[..told], if welcome { &[WELCOME][..] } else { &[] });
        if welcome {
            self.recorded = honest;
            self.passed += 1;
        } else {
            self.refused += 1;
            if self.lingering.len() < 50 && random.below(4) == 0 {
                self.lingering.push(far);
            } else if random.below(100) == 0 {
                self.lingering.clear();
            }
        }
        self.drive(&mut passed);
        assert!(self.gate.pending() <= 51, "strangers pile up");
    }

    /// A dialer proves itself to the very answer of the listener alone.
    fn check_dialer(
        &self,
        hello: &[u8; HELLO_BYTES],
        challenge: &[u8; CHALLENGE_BYTES],
        random: &mut FuzzRandom,
    ) {
        let mut damaged = random.damaged(challenge, hello);
        damaged.resize(CHALLENGE_BYTES, 0);
        let damaged: &[u8; CHALLENGE_BYTES] = damaged.first_chunk().expect("as long as one");
        let answer = hello::answer(&self.secret, hello, damaged);
        let genuine = hello::answer(&self.secret, hello, challenge);
        // The hello that the challenge answers may have been damaged on the way.
        let convinced = matches!(genuine, Answer::Proof(_)) && damaged == challenge;
        assert_eq!(matches!(answer, Answer::Proof(_)), convinced);
    }

    fn say(
        &mut self,
        far: &mut UnixStream,
        bytes: &[u8],
        random: &mut FuzzRandom,
        passed: &mut Vec<(Hello, TcpStream)>,
    ) {
        for piece in random.fragments(bytes) {
            // Whoever was refused cannot write any more.
            if far.write_all(piece).is_err() {
                return;
            }
            self.drive(passed);
        }
    }

    fn drive(&mut self, passed: &mut Vec<(Hello, TcpStream)>) {
        let mut fds = Vec::new();
        self.gate.poll_fds(&mut fds);
        // All are looked at; reading what is not there does no harm.
        fds.iter_mut().for_each(|fd| fd.revents = libc::POLLIN);
        passed.extend(self.gate.advance(&fds).0);
    }
}
