//! How a rank connects to rank 0, which may start later than this rank.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use maypole_transport::noise::{Binding, Key, Purpose};

use super::encrypted_connection::EncryptedConnection;
use super::host_socket;
use super::rank0_exchange::{Rank0Connection, Rank0Exchange};
use super::rendezvous::{PORT_COUNT, Participant, read_first};
use crate::bootstrap::{DialOutcome, Dialer, poll};

/// How long the addresses of a name are tried before the name is looked up again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(10);

/// Connects to rank 0 on this host.
pub(super) fn connect_to_host_socket(
    name: &str,
    participant: Participant,
) -> io::Result<Rank0Exchange> {
    let Participant { rank, nranks, deadline } = participant;
    let mut pause = Duration::from_millis(5);
    loop {
        let answer = host_socket::connect(name).map(Rank0Connection::Host).and_then(|mut it| {
            it.send(format!("{rank} {nranks}").as_bytes())?;
            read_first(it)
        });
        match answer {
            Ok((answer, connection)) => return joined(participant, name, &answer, connection),
            Err(error) if Instant::now() + pause >= deadline => {
                return Err(not_found(name, error.kind(), &error));
            }
            // Rank 0 does not listen yet.
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Connects to rank 0, which listens at one of these addresses.
pub(super) fn connect_to_addresses(
    addresses: &[SocketAddr],
    secret: &Key,
    participant: Participant,
) -> io::Result<Rank0Exchange> {
    let name = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    connect_over_tcp(participant, &name, secret, || Ok(addresses.to_vec()))
}

/// Connects to rank 0, which listens at one of the ports from the first on.
pub(super) fn connect_to_port(
    host: &str,
    first: u16,
    secret: &Key,
    participant: Participant,
) -> io::Result<Rank0Exchange> {
    let last = first.saturating_add(PORT_COUNT - 1);
    let name = format!("{host}, ports {first} to {last}");
    connect_over_tcp(participant, &name, secret, || {
        let found: Vec<SocketAddr> = (host, 0).to_socket_addrs()?.collect();
        let at = |port| found.iter().map(move |address| SocketAddr::new(address.ip(), port));
        Ok((first..=last).flat_map(at).collect())
    })
}

/// Connects to rank 0 at one of the addresses that `resolve` returns, and proves the secret. Tries
/// until rank 0 answers, which may start later than this rank. `name` says in errors where rank 0
/// was looked for.
fn connect_over_tcp(
    participant: Participant,
    name: &str,
    secret: &Key,
    resolve: impl Fn() -> io::Result<Vec<SocketAddr>>,
) -> io::Result<Rank0Exchange> {
    let Participant { rank, nranks, deadline } = participant;
    let binding = Binding { purpose: Purpose::Launch, from: rank, to: 0, nranks, stream: 0 };
    let mut kind = io::ErrorKind::TimedOut;
    loop {
        let (addresses, mut last) = match resolve() {
            Ok(addresses) if !addresses.is_empty() => (addresses, String::new()),
            Ok(_) => (Vec::new(), String::from("the name of the host has no address")),
            Err(error) => (Vec::new(), format!("the name cannot be resolved: {error}")),
        };
        let only_loopback =
            !addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback());
        let until = deadline.min(Instant::now() + RESOLVE_AGAIN);
        let mut dialer = Dialer::new(secret.clone(), binding, addresses);
        loop {
            match dialer.advance().map_err(io::Error::other)? {
                DialOutcome::Connected(secure) => {
                    let connection =
                        Rank0Connection::Tcp(Box::new(EncryptedConnection::new(secure)?));
                    let (answer, connection) = read_first(connection)?;
                    return joined(participant, name, &answer, connection);
                }
                // Another program or job may listen there for a while, or at another port.
                DialOutcome::WrongId(_) => kind = io::ErrorKind::PermissionDenied,
                DialOutcome::NotYet => {}
            }
            if Instant::now() >= until {
                break;
            }
            poll::wait(&mut [dialer.poll_fd()], until.min(dialer.wake()));
        }
        if last.is_empty() {
            last = dialer.last_error().to_owned();
        }
        if Instant::now() >= deadline {
            if kind == io::ErrorKind::PermissionDenied {
                last += "; is MAYPOLE_SECRET_FILE the same for all ranks?";
            }
            if only_loopback {
                last += "; these are loopback addresses, which lead to this host: if rank 0 is on \
                         another host, see what /etc/hosts says of its name";
            }
            return Err(not_found(name, kind, &last));
        }
    }
}

fn not_found(name: &str, kind: io::ErrorKind, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(kind, format!("rank 0 is not found at {name}: {why}"))
}

/// This rank's part of the exchange, if rank 0 accepts it.
fn joined(
    participant: Participant,
    name: &str,
    answer: &[u8],
    connection: Rank0Connection,
) -> io::Result<Rank0Exchange> {
    if answer != b"welcome" {
        let why = String::from_utf8_lossy(answer);
        return Err(io::Error::other(format!("rank 0 at {name} refuses this rank: {why}")));
    }
    connection.set_read_timeout(None)?;
    Ok(Rank0Exchange::Other(connection, participant.nranks))
}
