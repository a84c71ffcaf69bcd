//! Fuzzing: everything in the bootstrap that reads bytes of strangers or peers gets damaged,
//! replayed and random bytes, through the state machines that the sockets use.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use maypole_control::frame::{self, ControlFrame, HEADER_BYTES, MOST_SMALL_BYTES};
use maypole_control::items::{self, ITEM_HEADER, put_item};
use maypole_control::listener_addresses::MOST_ADDRESSES;
use maypole_transport::conformance::fuzz::{FuzzRandom, rounds};

use maypole_transport::noise::{
    self, ANSWER_BYTES, Binding, CONFIRMATION_BYTES, Key, Listener, Purpose, REFUSAL_BYTES,
    Session, TAG_BYTES,
};

use super::accept::HandshakeAcceptor;
use super::frame_stream::{FrameStream, READ_BYTES, SecureStream, StreamEnd};
use super::id::{UNIQUE_ID_BYTES, UniqueId};
use crate::clock;

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

/// The sessions of the dialer and the listener of a handshake with this binding.
fn sessions(binding: Binding) -> (Session, Session) {
    let key = Key::new([8; 32]);
    let (dialer, first) = noise::Dialer::new(&key, &binding).expect("random numbers");
    let Ok((listener, answer)) = Listener::answer(&key, &first, &[0; 32], |_| true) else {
        panic!("the listener refuses its own key")
    };
    let (at_dialer, _, confirmation) = dialer.finish(&answer, &[0; 32]).expect("ours");
    let (at_listener, ..) = listener.finish(&confirmation).expect("ours");
    (at_dialer, at_listener)
}

/// Frames in fragments, of which the last may be damaged by the rank that sends it: all frames
/// before it arrive unchanged, and what is read of the last is not larger than allowed. Or someone
/// on the path damages the bytes: what arrives then is the beginning of what was sent.
fn frames(random: &mut FuzzRandom) {
    let (near, mut far) = connection();
    let (session, mut sender) = sessions(binding(3));
    let mut connection = FrameStream::new(SecureStream { stream: near, session }, MOST);
    let known = frame::examples();
    let mut sent = Vec::new();
    let mut stream = Vec::new();
    for _ in 0..random.below(5) {
        let frame = known[random.below(known.len())].clone();
        frame.encode(&mut stream);
        sent.push(frame);
    }
    let on_path = random.below(3) == 0;
    let mut last = Vec::new();
    known[random.below(known.len())].encode(&mut last);
    let mut other = Vec::new();
    ControlFrame::Up { sequence: 7, items: random.bytes(300) }.encode(&mut other);
    if !on_path {
        stream.extend(random.damaged(&last, &other));
    }
    let mut records = Vec::new();
    for part in stream.chunks(1 + random.below(500)) {
        sender.write_records(part, &mut records);
    }
    if on_path {
        records = random.damaged(&records, &other);
    }

    let mut got = Vec::new();
    let mut broken = None;
    for piece in random.fragments(&records) {
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
            connection.buffered()
                <= 2 * (HEADER_BYTES + MOST.max(MOST_SMALL_BYTES) + 3 * READ_BYTES)
        );
    }
    assert_ne!(broken, Some(StreamEnd::Closed));
    if on_path {
        assert!(sent.starts_with(&got), "a frame was changed on the path");
        return;
    }
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
    if let Some(id) = UniqueId::at_rejoin_listener(&address, &Key::new([1; 32])) {
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
    let read: Vec<_> = items::items(&body).collect();
    let bytes: usize = read.iter().flatten().map(|(_, item)| item.len() + ITEM_HEADER).sum();
    // No item is returned after a malformed one, and all items before it are.
    let broken = read.iter().filter(|item| item.is_none()).count();
    assert!(broken == 0 && bytes == body.len() || broken == 1 && bytes < body.len());
    assert!(broken == 0 || read.last() == Some(&None));
}

/// A listener, and what an honest rank once sent to it.
struct FuzzedListener {
    acceptor: HandshakeAcceptor,
    secret: Key,
    recorded: Vec<u8>,
    /// Connections that were left open in the middle of a handshake.
    unfinished: Vec<UnixStream>,
    passed: usize,
    refused: usize,
}

/// The rank to which the listener belongs.
const LISTENING_RANK: u32 = 1;

fn binding(from: u32) -> Binding {
    Binding { purpose: Purpose::Tree, from, to: LISTENING_RANK, nranks: 7, stream: 0 }
}

impl FuzzedListener {
    fn new() -> Self {
        let secret = Key::new([8; 32]);
        Self {
            acceptor: HandshakeAcceptor::new(vec![], secret.clone(), Purpose::Tree, LISTENING_RANK),
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
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        self.acceptor.begin(near, peer, &mut passed);
        let binding = binding(2 + random.below(5) as u32);
        let kind = random.below(5);
        let key = if kind == 1 { &Key::new([9; 32]) } else { &self.secret };
        let (dialer, first) = noise::Dialer::new(key, &binding).expect("random numbers");

        let mut sent = match kind {
            0 | 1 => first.to_vec(),
            2 | 3 => random.damaged(&first, &self.recorded),
            _ => self.recorded.clone(),
        };
        self.send(&mut far, &sent, random, &mut passed);
        let mut answer = vec![0; 2 * ANSWER_BYTES];
        let got = far.read(&mut answer).unwrap_or(0);
        answer.truncate(got);
        // A dialer that may still be a rank gets an answer; one that was refused no more than that.
        assert!([0, REFUSAL_BYTES, ANSWER_BYTES].contains(&got), "a stranger got {got} bytes");
        let mut honest = None;
        if let Some(answer) = answer.first_chunk::<ANSWER_BYTES>() {
            assert_ne!(kind, 1, "another secret was accepted");
            // The dialer accepts only the exact answer to its own first message.
            let mut read = *answer;
            if kind == 3 {
                let damaged = random.damaged(answer, &first);
                read = [0; ANSWER_BYTES];
                let len = damaged.len().min(ANSWER_BYTES);
                read[..len].copy_from_slice(&damaged[..len]);
            }
            let finished = dialer.finish(&read, &[0; 32]);
            assert_eq!(finished.is_ok(), read == *answer && sent.starts_with(&first));
            let confirmation = match finished {
                Ok((_, _, confirmation)) => {
                    honest = Some([&first[..], &confirmation].concat());
                    confirmation.to_vec()
                }
                Err(_) => random.bytes(CONFIRMATION_BYTES),
            };
            let more = match kind {
                2 => random.damaged(&confirmation, &self.recorded),
                _ => confirmation,
            };
            self.send(&mut far, &more, random, &mut passed);
            sent.extend(more);
        }
        // Only the exact bytes of an honest rank, with its own confirmation, are accepted.
        let honest = honest.filter(|honest| sent.starts_with(honest));
        let accepted = honest.is_some();
        assert!(accepted || kind != 0, "an honest rank was refused");
        let expected = [binding].into_iter().filter(|_| accepted).collect::<Vec<_>>();
        assert_eq!(passed.iter().map(|p| p.0).collect::<Vec<_>>(), expected);
        let mut last = [0; 2 * TAG_BYTES];
        let got_last = far.read(&mut last).unwrap_or(0);
        assert_eq!(got_last, if accepted { TAG_BYTES } else { 0 });
        if accepted {
            self.recorded = honest.unwrap_or_default();
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

    fn send(
        &mut self,
        far: &mut UnixStream,
        bytes: &[u8],
        random: &mut FuzzRandom,
        passed: &mut Vec<(Binding, SecureStream)>,
    ) {
        for piece in random.fragments(bytes) {
            // A dialer that was refused cannot write any more.
            if far.write_all(piece).is_err() {
                return;
            }
            self.drive(passed);
        }
    }

    fn drive(&mut self, passed: &mut Vec<(Binding, SecureStream)>) {
        let mut fds = Vec::new();
        self.acceptor.poll_fds(&mut fds);
        // All connections are read; reading one without bytes does no harm.
        fds.iter_mut().for_each(|fd| fd.revents = libc::POLLIN);
        passed.extend(self.acceptor.advance(&fds, clock::now()).0);
    }
}
