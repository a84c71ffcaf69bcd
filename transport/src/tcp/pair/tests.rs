//! Memory of the caller, of which the link must not make use any longer. The peer is a pair of
//! sockets, and no other thread runs, so that each test decides what arrives when.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream as StdStream};
use std::sync::Arc;

use rustix::net::sockopt;

use super::*;
use crate::Sequence;
use crate::conformance::Watchdog;
use crate::link::PostedMemory;
use crate::noise::{Binding, DATA_BYTES, Dialer, Key, Listener, Purpose, Session};
use crate::tcp::frame::{EMPTY, FRAME_HEADER_BYTES, Frame, FrameKind};

/// Much more than the buffers of the sockets.
const LEN: usize = 4 << 20;
const BUFFER_BYTES: usize = 64 << 10;
const LAYOUT: InboxLayout = InboxLayout { nranks: 2, channels: 1, slot_bytes: LEN, depth: 2 };

fn session() -> Session {
    let key = Key::new([7; 32]);
    let binding = Binding { purpose: Purpose::Tcp, from: 0, to: 1, nranks: 2, stream: 0 };
    let (dialer, first) = Dialer::new(&key, &binding).unwrap();
    let data = [0; DATA_BYTES];
    let (_, answer) = Listener::answer(&key, &first, &data, |_| true).ok().unwrap();
    dialer.finish(&answer, &data).ok().unwrap().0
}

/// A pair with so many streams, and the other ends of these.
fn pair_and_peer(streams: u32) -> (TcpPair, Vec<StdStream>) {
    let inbox = Arc::new(Inbox::new(0, LAYOUT).unwrap());
    let poller = Arc::new(Poller::new(u64::MAX).unwrap());
    let watch = Arc::new(SocketWatch::new(poller.clone(), inbox.clone()));
    let pair = TcpPair::new(1, streams, inbox, LAYOUT, (poller, watch), None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = Vec::new();
    for number in 0..streams {
        let near = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        sockopt::set_socket_send_buffer_size(&near, BUFFER_BYTES).unwrap();
        sockopt::set_socket_recv_buffer_size(&far, BUFFER_BYTES).unwrap();
        far.set_nonblocking(true).unwrap();
        let stream = TcpStream::new(near.into(), Box::new(session()), true);
        assert_eq!(pair.attach(number, stream), Ok(number + 1 == streams));
        peer.push(far);
    }
    (pair, peer)
}

/// Reads so many bytes from the pair, which writes meanwhile.
fn read(pair: &TcpPair, socket: &mut StdStream, len: usize) -> Vec<u8> {
    let (mut bytes, mut got) = (vec![0; len], 0);
    while got < len {
        pair.flush_queued();
        match socket.read(&mut bytes[got..]) {
            Ok(0) => panic!("the stream has ended"),
            Ok(more) => got += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    bytes
}

/// Reads a message of [`LEN`] bytes, all of which must be this one.
fn expect_message(pair: &TcpPair, socket: &mut StdStream, sequence: Sequence, byte: u8) {
    let header = read(pair, socket, FRAME_HEADER_BYTES);
    let frame = Frame::decode(header.first_chunk().unwrap()).unwrap();
    assert_eq!((frame.kind, frame.sequence), (FrameKind::Data, sequence));
    assert_eq!(frame.len as usize, LEN);
    let content = read(pair, socket, LEN);
    let other = content.iter().position(|&b| b != byte);
    assert_eq!(other, None, "message {sequence} is not what was lent");
}

fn lend(pair: &TcpPair, data: &[u8]) -> Sequence {
    // SAFETY: the tests change `data` only after the release or `withdraw`.
    unsafe { pair.lend(0, data.as_ptr(), data.len(), 1) }.unwrap().unwrap()
}

#[test]
fn a_message_that_is_still_repeated_after_its_release_is_repeated_from_a_copy() {
    let _watchdog = Watchdog::new("a message is repeated");
    let (pair, mut peer) = pair_and_peer(2);
    let mut data = vec![5_u8; LEN];
    assert_eq!(lend(&pair, &data), 1);
    // The peer has all of the message when that stream ends.
    let mut first = peer.pop().unwrap();
    expect_message(&pair, &mut first, 1, 5);
    drop(first);
    while pair.missing_streams().is_empty() {
        assert_eq!(pair.released(0, true), 0);
        std::thread::yield_now();
    }
    // The other stream has begun to repeat the message, and its peer does not read.
    let second = &mut peer[0];
    second.write_all(&Frame { ack: 1, ..EMPTY }.encode()).unwrap();
    while pair.released(0, true) < 1 {
        std::thread::yield_now();
    }
    data.fill(6);
    expect_message(&pair, second, 1, 5);
}

#[test]
fn messages_that_are_withdrawn_arrive_as_they_were_lent() {
    let _watchdog = Watchdog::new("lent messages are withdrawn");
    let (pair, mut peer) = pair_and_peer(1);
    let mut data = vec![5_u8; LEN];
    // One that is being written, and one that waits.
    assert_eq!((lend(&pair, &data), lend(&pair, &data)), (1, 2));
    pair.withdraw(0);
    data.fill(6);
    expect_message(&pair, &mut peer[0], 1, 5);
    expect_message(&pair, &mut peer[0], 2, 5);
}

#[test]
fn the_rest_of_a_message_is_not_stored_in_posted_memory_that_was_withdrawn() {
    let _watchdog = Watchdog::new("posted memory is withdrawn");
    const HALF: usize = 500;
    let (pair, mut peer) = pair_and_peer(1);
    let mut memory = vec![0_u8; 2 * HALF];
    let data = memory.as_mut_ptr();
    // SAFETY: the memory is as long. This thread alone uses it.
    unsafe { pair.post(0, PostedMemory { data, len: 2 * HALF, tag: 3 }) };
    let header =
        Frame { kind: FrameKind::Data, len: 2 * HALF as u32, sequence: 1, tag: 3, ..EMPTY };
    peer[0].write_all(&header.encode()).unwrap();
    peer[0].write_all(&[5; HALF]).unwrap();
    // SAFETY: as above.
    while unsafe { data.wrapping_add(HALF - 1).read() } == 0 {
        assert!(pair.receive(0).unwrap().is_none());
        std::thread::yield_now();
    }
    pair.withdraw_posted(0);
    peer[0].write_all(&[6; HALF]).unwrap();
    // The answer says that the rest was read.
    peer[0].write_all(&Frame { kind: FrameKind::Ask, ..EMPTY }.encode()).unwrap();
    let mut answer = [0; FRAME_HEADER_BYTES];
    while peer[0].peek(&mut answer).unwrap_or(0) < FRAME_HEADER_BYTES {
        assert!(pair.receive(0).unwrap().is_none());
        std::thread::yield_now();
    }
    assert_eq!(Frame::decode(&answer), Some(EMPTY));
    assert!(memory[..HALF].iter().all(|&byte| byte == 5));
    assert!(memory[HALF..].iter().all(|&byte| byte == 0), "the rest was stored");
}

/// The bytes of a message of four bytes, all 5.
fn small_message() -> Vec<u8> {
    let header = Frame { kind: FrameKind::Data, len: 4, sequence: 1, tag: 3, ..EMPTY };
    [&header.encode()[..], &[5; 4]].concat()
}

#[test]
fn an_abort_ends_waits_and_what_has_arrived_is_received() {
    let _watchdog = Watchdog::new("a message arrives before an abort");
    let (pair, mut peer) = pair_and_peer(1);
    peer[0].write_all(&small_message()).unwrap();
    while pair.lock().receive_ring(0).arrived() == 0 {
        pair.tick();
        std::thread::yield_now();
    }
    pair.header().abort(1, 7);
    let message = pair.receive(0).unwrap().unwrap();
    assert_eq!((message.len, message.tag), (4, 3));
    pair.release(0, 0);
    assert_eq!(pair.receive(0).unwrap_err(), LinkError::Aborted { by: 1, reason: 7 });
}

/// There is no service thread, so that the rank itself must read.
#[test]
fn a_rank_that_sleeps_on_its_sockets_is_woken_by_arrivals_and_by_its_doorbell() {
    let _watchdog = Watchdog::new("a rank sleeps on its sockets");
    let (pair, mut peer) = pair_and_peer(1);
    let (patience, watch) = (Duration::from_secs(60), pair.watch.clone());
    let wait = |ready: &dyn Fn() -> bool| {
        loop {
            let ticket = watch.prepare_to_sleep().expect("nobody else sleeps there");
            assert!(watch.prepare_to_sleep().is_none(), "two threads sleep there");
            if ready() {
                return;
            }
            ticket.sleep(patience, |data| pair.read_stream(decode_event_data(data).1));
        }
    };
    let socket = &mut peer[0];
    std::thread::scope(|scope| {
        scope.spawn(|| socket.write_all(&small_message()).unwrap());
        wait(&|| pair.lock().receive_ring(0).arrived() == 1);
    });
    assert_eq!(pair.receive(0).unwrap().unwrap().tag, 3);
    pair.release(0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| pair.header().abort(1, 7));
        wait(&|| pair.header().aborted().is_some());
    });
}
