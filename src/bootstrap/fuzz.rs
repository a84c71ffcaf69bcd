//! Fuzzing: everything in the bootstrap that reads bytes of strangers or peers gets damaged,
//! replayed and random bytes, through the state machines that the sockets use.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use maypole_transport::conformance::fuzz::{FuzzRandom, rounds};

use super::accept::HandshakeAcceptor;
use super::frame::{self, ControlFrame, HEADER_BYTES, MOST_SMALL_BYTES};
use super::frame_stream::{FrameStream, READ_BYTES, StreamEnd};
use super::handshake::{
    self, CHALLENGE_BYTES, ChallengeAnswer, ConnectionKind, HELLO_BYTES, Hello, PROOF_BYTES,
    WELCOME,
};
use super::id::{UNIQUE_ID_BYTES, UniqueId};
use super::items::{ITEM_HEADER, put_item};
use super::listener_address::MOST_ADDRESSES;
use super::secret::Secret;

/// Most bytes of items that a frame may carry here.
const MOST: usize = 10_000;

#[test]
fn fuzz_bootstrap() {
    let mut listener = FuzzedListener::new();
    let count = rounds(|random| match random.below(4) {
        0 => frames(random),
        1 => ids(random),
        2 => items(random),
        _ => listener.connect(random),
    });
    println!(
        "{count} rounds, {} honest ranks and {} others connected",
        listener.passed, listener.refused
    );
}

/// A connection within this process, as the type that the library uses. With TCP, ports would run
/// out.
fn connection() -> (TcpStream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    near.set_nonblocking(true).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    (TcpStream::from(OwnedFd::from(near)), far)
}

/// Frames in fragments, of which the last may be damaged: all frames before it arrive unchanged,
/// and what is read of the last is not larger than allowed.
fn frames(random: &mut FuzzRandom) {
    let (near, mut far) = connection();
    let mut connection = FrameStream::new(near, MOST);
    let known = frame::tests::frames();
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
    ControlFrame::Up { sequence: 7, items: random.bytes(300) }.encode(&mut other);
    stream.extend(random.damaged(&last, &other));

    let mut got = Vec::new();
    let mut broken = None;
    for piece in random.fragments(&stream) {
        far.write_all(piece).expect("room in the socket");
        connection.fill();
        while broken.is_none() {
            match connection.next() {
                Ok(Some(frame)) => got.push(frame),
                Ok(None) => break,
                Err(error) => broken = Some(error),
            }
        }
        if broken.is_some() {
            break;
        }
        // A vector grows by doubling.
        assert!(
            connection.buffered() <= 2 * (HEADER_BYTES + MOST.max(MOST_SMALL_BYTES) + READ_BYTES)
        );
    }
    assert_ne!(broken, Some(StreamEnd::Closed));
    assert_eq!(got[..sent.len()], sent, "a frame before the damage is lost");
    for frame in &got {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert!(bytes.len() <= HEADER_BYTES + MOST.max(MOST_SMALL_BYTES));
    }
}

fn ids(random: &mut FuzzRandom) {
    let valid = super::id::tests::fixed_at(7).to_bytes();
    let mut bytes = random.damaged(&valid, &[4; 80]);
    bytes.resize(UNIQUE_ID_BYTES, 0);
    let mut bytes: [u8; UNIQUE_ID_BYTES] = bytes.try_into().expect("as long as an id");
    assert_eq!(UniqueId::from_bytes(bytes).is_ok(), bytes == valid);
    // With a valid checksum, the contents are read too.
    let sum = super::id::tests::checksum_of(&bytes);
    bytes[UNIQUE_ID_BYTES - sum.len()..].copy_from_slice(&sum);
    if let Ok(id) = UniqueId::from_bytes(bytes) {
        let addresses = id.contents().expect("it was just read").root.addresses;
        assert!((1..=MOST_ADDRESSES).contains(&addresses.len()));
    }
    let address = random.damaged(&valid[41..79], &[6; 30]);
    if let Some(id) = UniqueId::at_rejoin_listener(&address, [1; 32]) {
        assert!(
            id.contents().is_ok_and(|c| c.root.addresses.len() <= MOST_ADDRESSES)
                || address[8] == 0
        );
    }
}

fn items(random: &mut FuzzRandom) {
    let mut body = Vec::new();
    for rank in 0..random.below(6) as u32 {
        let len = random.below(100);
        put_item(&mut body, rank, &random.bytes(len));
    }
    let body = random.damaged(&body, &[0xff; 20]);
    let read: Vec<_> = super::items::items(&body).collect();
    let bytes: usize = read.iter().flatten().map(|(_, item)| item.len() + ITEM_HEADER).sum();
    // No item is returned after a malformed one, and all items before it are.
    let broken = read.iter().filter(|item| item.is_none()).count();
    assert!(broken == 0 && bytes == body.len() || broken == 1 && bytes < body.len());
    assert!(broken == 0 || read.last() == Some(&None));
}

/// A listener, and what an honest rank once sent to it.
struct FuzzedListener {
    acceptor: HandshakeAcceptor,
    secret: Secret,
    recorded: Vec<u8>,
    /// Connections that were left open in the middle of a handshake.
    unfinished: Vec<UnixStream>,
    passed: usize,
    refused: usize,
}

/// The rank to which the listener belongs.
const LISTENING_RANK: u32 = 1;

impl FuzzedListener {
    fn new() -> Self {
        let secret = Secret::new([8; 32]);
        Self {
            acceptor: HandshakeAcceptor::new(
                vec![],
                secret.clone(),
                ConnectionKind::Tree,
                LISTENING_RANK,
            ),
            secret,
            recorded: vec![],
            unfinished: vec![],
            passed: 0,
            refused: 0,
        }
    }

    /// One handshake of a dialer that is honest, is damaged on the way, has another secret, or
    /// repeats what was recorded.
    fn connect(&mut self, random: &mut FuzzRandom) {
        let (near, mut far) = connection();
        let mut passed = vec![];
        self.acceptor.begin(near, SocketAddr::from(([127, 0, 0, 1], 1)), &mut passed);
        let from = 2 + random.below(5) as u32;
        let nonce = random.bytes(32).try_into().expect("32 bytes");
        let hello =
            Hello { kind: ConnectionKind::Tree, from, to: LISTENING_RANK, nranks: 7, nonce }
                .encode();

        let kind = random.below(5);
        let mut sent = match kind {
            0 | 1 => hello.to_vec(),
            2 | 3 => random.damaged(&hello, &self.recorded),
            _ => self.recorded.clone(),
        };
        self.send(&mut far, &sent, random, &mut passed);
        let mut answer = vec![0; 2 * CHALLENGE_BYTES];
        let got = far.read(&mut answer).unwrap_or(0);
        answer.truncate(got);
        // A dialer that may still be a rank gets a challenge; one that was refused gets no bytes.
        assert!(got == 0 || got == CHALLENGE_BYTES, "a stranger got {got} bytes");
        let mut honest = [&hello[..], &[0; PROOF_BYTES]].concat();
        if let Some(challenge) = answer.first_chunk() {
            let secret = if kind == 1 { &Secret::new([9; 32]) } else { &self.secret };
            let proof = match handshake::answer_challenge(secret, &hello, challenge) {
                ChallengeAnswer::Proof(proof) => {
                    honest = [&hello[..], &proof].concat();
                    proof.to_vec()
                }
                ChallengeAnswer::WrongId => {
                    secret.prove("dialer", &[&hello[..], challenge]).to_vec()
                }
                ChallengeAnswer::NotMaypole => panic!("the listener does not speak the protocol"),
            };
            self.check_dialer(&hello, challenge, random);
            let more = match kind {
                0 | 1 => proof,
                _ => random.damaged(&proof, &self.recorded),
            };
            self.send(&mut far, &more, random, &mut passed);
            sent.extend(more);
        }
        // Only the exact bytes of an honest rank, for this very challenge, are accepted.
        let accepted = kind != 1 && got != 0 && sent.starts_with(&honest);
        assert!(accepted || kind != 0, "an honest rank was refused");
        let expected = Hello::decode(&hello).into_iter().filter(|_| accepted).collect::<Vec<_>>();
        assert_eq!(passed.iter().map(|p| p.0).collect::<Vec<_>>(), expected);
        let mut last = [0; 2];
        let got_last = far.read(&mut last).unwrap_or(0);
        assert_eq!(&last[..got_last], if accepted { &[WELCOME][..] } else { &[] });
        if accepted {
            self.recorded = honest;
            self.passed += 1;
        } else {
            self.refused += 1;
            if self.unfinished.len() < 50 && random.below(4) == 0 {
                self.unfinished.push(far);
            } else if random.below(100) == 0 {
                self.unfinished.clear();
            }
        }
        self.drive(&mut passed);
        assert!(self.acceptor.pending() <= 51, "handshakes of strangers accumulate");
    }

    /// A dialer accepts only the exact challenge of the listener.
    fn check_dialer(
        &self,
        hello: &[u8; HELLO_BYTES],
        challenge: &[u8; CHALLENGE_BYTES],
        random: &mut FuzzRandom,
    ) {
        let mut damaged = random.damaged(challenge, hello);
        damaged.resize(CHALLENGE_BYTES, 0);
        let damaged: &[u8; CHALLENGE_BYTES] = damaged.first_chunk().expect("as long as one");
        let answer = handshake::answer_challenge(&self.secret, hello, damaged);
        let genuine = handshake::answer_challenge(&self.secret, hello, challenge);
        // The hello to which the challenge is an answer may have been damaged on the way.
        let accepted = matches!(genuine, ChallengeAnswer::Proof(_)) && damaged == challenge;
        assert_eq!(matches!(answer, ChallengeAnswer::Proof(_)), accepted);
    }

    fn send(
        &mut self,
        far: &mut UnixStream,
        bytes: &[u8],
        random: &mut FuzzRandom,
        passed: &mut Vec<(Hello, TcpStream)>,
    ) {
        for piece in random.fragments(bytes) {
            // A dialer that was refused cannot write any more.
            if far.write_all(piece).is_err() {
                return;
            }
            self.drive(passed);
        }
    }

    fn drive(&mut self, passed: &mut Vec<(Hello, TcpStream)>) {
        let mut fds = Vec::new();
        self.acceptor.poll_fds(&mut fds);
        // All connections are read; reading one without bytes does no harm.
        fds.iter_mut().for_each(|fd| fd.revents = libc::POLLIN);
        passed.extend(self.acceptor.advance(&fds).0);
    }
}
