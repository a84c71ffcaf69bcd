//! Someone on the path between a rank and the root: a proxy that drops, changes, repeats, splices
//! and injects bytes. The ranks join, or every one gets an error that names the connection or the
//! rank behind it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use maypole_control::listener_addresses::ListenerAddresses;
use maypole_transport::noise::{ANSWER_BYTES, CONFIRMATION_BYTES, FIRST_BYTES, TAG_BYTES};

use super::super::listener_address::host_tag;
use super::{LONG, create, join_each, options, rank_info, register, root_addresses, with_watchdog};
use crate::bootstrap::{BootstrapError, RankSet, UniqueId, join_with};
use crate::test_share::some_of;

/// What is done to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    Nothing,
    /// Changes a bit of the byte at this position, of the first connection.
    Change(usize),
    /// Drops what comes first after the handshake.
    Drop,
    /// Sends it twice.
    Repeat,
    /// Sends what came there on an earlier connection in its place.
    Splice,
    /// Sends other bytes before it.
    Inject,
}

/// Bytes of the handshake in each direction.
const FROM_DIALER: usize = FIRST_BYTES + CONFIRMATION_BYTES;
const FROM_LISTENER: usize = ANSWER_BYTES + TAG_BYTES;

/// The id with the address of a proxy in front of the root, which attacks one direction.
fn behind_proxy(id: &UniqueId, attack: Attack, from_dialer: bool) -> UniqueId {
    let root = root_addresses(id)[0];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses: Vec<SocketAddr> = vec![listener.local_addr().unwrap()];
    // What came first after the handshake, on the first connection.
    let recorded = Arc::<Mutex<Vec<u8>>>::default();
    thread::spawn(move || {
        for (connection, client) in listener.incoming().enumerate() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(root)) else { return };
            let twins = (client.try_clone().unwrap(), server.try_clone().unwrap());
            // For a splice there must be an earlier connection.
            let attacked = match attack {
                Attack::Splice => connection == 1,
                _ => connection == 0,
            };
            let chosen = move |direction| {
                if attacked && direction == from_dialer { attack } else { Attack::Nothing }
            };
            let recorded = [recorded.clone(), recorded.clone()];
            let [to_server, to_client] = recorded;
            let keep = connection == 0;
            thread::spawn(move || {
                let record = (keep && from_dialer).then_some(&*to_server);
                pump(client, server, FROM_DIALER, chosen(true), record, &to_server);
            });
            thread::spawn(move || {
                let record = (keep && !from_dialer).then_some(&*to_client);
                pump(twins.1, twins.0, FROM_LISTENER, chosen(false), record, &to_client);
            });
        }
    });
    let root = ListenerAddresses { host_tag: host_tag(), addresses };
    UniqueId::of_running_root(&id.contents().unwrap().secret, &root)
}

/// Passes bytes on, of which the first `handshake` are the handshake.
fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    handshake: usize,
    attack: Attack,
    record: Option<&Mutex<Vec<u8>>>,
    recorded: &Mutex<Vec<u8>>,
) {
    let mut at = 0;
    let mut buffer = vec![0; 1 << 16];
    let mut done = false;
    loop {
        // What follows the handshake comes in a piece of its own.
        let room = if at < handshake { handshake - at } else { buffer.len() };
        let Ok(count @ 1..) = from.read(&mut buffer[..room]) else { break };
        let mut bytes = buffer[..count].to_vec();
        let here = at..at + count;
        let first = at >= handshake && !done;
        if first && let Some(record) = record {
            record.lock().unwrap().extend(&bytes);
        }
        match attack {
            Attack::Change(byte) if here.contains(&byte) => bytes[byte - at] ^= 4,
            Attack::Drop if first => bytes.clear(),
            Attack::Repeat if first => bytes = bytes.repeat(2),
            Attack::Splice if first => bytes = recorded.lock().unwrap().clone(),
            Attack::Inject if first => bytes = [&[30, 0][..], &[7; 30], &bytes].concat(),
            _ => {}
        }
        done |= first;
        at += count;
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The results of three ranks, of which rank 1 reaches the root through the proxy.
fn attacked(
    attack: Attack,
    from_dialer: bool,
    timeout: Duration,
) -> Vec<Result<(), BootstrapError>> {
    let id = create();
    let proxied = behind_proxy(&id, attack, from_dialer);
    if attack == Attack::Splice {
        // An earlier connection of the same rank, which ends at once.
        drop(register(&proxied, 1, 3));
    }
    let joined = join_each(0..3, |rank| {
        let id = if rank == 1 { proxied } else { id };
        move || join_with(&id, rank, 3, &rank_info(rank), &options(timeout))
    });
    joined.into_iter().map(|result| result.map(drop)).collect()
}

#[test]
fn a_handshake_that_is_changed_once_is_made_again() {
    with_watchdog(|| {
        for byte in [0, 7, 20, 60, FIRST_BYTES - 1, FIRST_BYTES, FROM_DIALER - 1] {
            let results = attacked(Attack::Change(byte), true, LONG);
            assert!(results.iter().all(Result::is_ok), "byte {byte} to the root: {results:?}");
        }
        for byte in [0, 20, ANSWER_BYTES - 1, ANSWER_BYTES, FROM_LISTENER - 1] {
            let results = attacked(Attack::Change(byte), false, LONG);
            assert!(results.iter().all(Result::is_ok), "byte {byte} of the root: {results:?}");
        }
    });
}

#[test]
fn what_is_changed_after_the_handshake_ends_in_errors_that_name_the_connection() {
    for (index, kind) in [
        |handshake| Attack::Change(handshake),
        |handshake| Attack::Change(handshake + 2),
        |handshake| Attack::Change(handshake + 30),
        |_| Attack::Drop,
        |_| Attack::Repeat,
        |_| Attack::Splice,
        |_| Attack::Inject,
    ]
    .into_iter()
    .enumerate()
    {
        for from_dialer in some_of(&[true, false], index) {
            let attack = kind(if from_dialer { FROM_DIALER } else { FROM_LISTENER });
            let results =
                with_watchdog(move || attacked(attack, from_dialer, Duration::from_secs(1)));
            // Nobody reads what is repeated if the connection has done its work before it comes.
            if attack == Attack::Repeat && results.iter().all(Result::is_ok) {
                continue;
            }
            for (rank, result) in results.iter().enumerate() {
                let Err(error) = result else {
                    panic!("{attack:?} {from_dialer}: rank {rank} joined: {results:?}")
                };
                let text = error.to_string();
                let named = match error {
                    BootstrapError::MissingRanks { ranks, .. } => *ranks == RankSet::new([1]),
                    // Of what is dropped only time tells.
                    BootstrapError::TimedOut { .. } => true,
                    _ => text.contains("root") || text.contains("rank 1 "),
                };
                assert!(named, "{attack:?} {from_dialer}: rank {rank} says {text}");
            }
        }
    }
}
