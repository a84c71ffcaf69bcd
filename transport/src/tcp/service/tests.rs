//! Ranks of which one lets no connection in, as behind a firewall.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::address::EndpointAddress;
use crate::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use crate::inbox::InboxLayout;
use crate::noise::Key;
use crate::tcp::TcpConfig;

/// A listener whose queue is full: the kernel drops all that is sent to it, as a firewall does. The
/// connections fill the queue.
fn blackhole() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: the call takes numbers. It shortens the queue to one connection.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().unwrap();
    let mut connections = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        connections.push(stream);
    }
    (listener, connections, address)
}

#[test]
fn a_rank_that_lets_no_connection_in_dials() {
    let (_listener, connections, nowhere) = blackhole();
    assert!(connections.len() < 10, "the queue is not full");
    for streams in [1, 3] {
        // 1 lets no connection in, then 0, and then the two reach each other at once.
        for closed in [Some(1), Some(0), None] {
            let layout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 64, depth: 2 };
            let addresses = vec!["127.0.0.1".parse().unwrap()];
            let tcp = Some(TcpConfig { addresses, streams });
            let links = EnabledLinks { local: false, shm: false, tcp, verbs: None };
            let secret = Key::new([7; 32]);
            let config = |rank| EndpointConfig { rank, nranks: 2, secret: secret.clone(), layout };
            let [first, second] =
                [0, 1].map(|rank| Endpoint::with_links(config(rank), &links).unwrap());
            let mut addresses = [&first, &second].map(Endpoint::address);
            if let Some(closed) = closed {
                let mut address = EndpointAddress::decode(&addresses[closed]).unwrap();
                address.tcp = vec![nowhere];
                addresses[closed] = address.encode();
            }
            let ranks = [(first, addresses[1].clone()), (second, addresses[0].clone())];
            let ranks = ranks.map(|(endpoint, address)| thread::spawn(|| talk(endpoint, address)));
            for rank in ranks {
                rank.join().unwrap();
            }
        }
    }
}

/// Connects to the other rank, and sends and receives messages.
#[expect(clippy::needless_pass_by_value, reason = "a thread owns them")]
fn talk(endpoint: Endpoint, address: Vec<u8>) {
    let peer = 1 - endpoint.rank();
    endpoint.connect(peer, &address, Instant::now() + Duration::from_secs(60)).unwrap();
    let (mut outgoing, mut incoming) = endpoint.open(peer, 0).unwrap();
    let wait = |look: &mut dyn FnMut() -> bool| {
        assert!(endpoint.doorbell().wait(0, 0, Some(Duration::from_secs(60)), look));
    };
    for number in 0..100_u8 {
        wait(&mut || match outgoing.slots.reserve().unwrap() {
            Some(slot) => {
                // SAFETY: a slot has 64 bytes, and this one is reserved.
                unsafe { slot.data.write(number) };
                true
            }
            None => false,
        });
        outgoing.slots.send(1, 9);
        wait(&mut || match incoming.slots.receive().unwrap() {
            Some(message) => {
                // SAFETY: the message has one byte, and is not released.
                assert_eq!((message.len, unsafe { message.data.read() }), (1, number));
                true
            }
            None => false,
        });
        incoming.slots.release();
    }
}
