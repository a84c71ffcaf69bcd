//! The rendezvous of a job: rank 0 listens, the other ranks connect, and each proves that it
//! belongs to the job.
//!
//! At an abstract socket of the host the kernel tells which user is at the other end, and only
//! processes of the same user are accepted. The connecting rank first sends `rank nranks`. Over TCP
//! both ends prove in the handshake that they know the job's secret, and the handshake says which
//! rank connects. In both cases rank 0 answers `welcome` or says what is wrong.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use maypole_transport::net;
use maypole_transport::noise::{Binding, Key, Purpose};

use super::encrypted_connection::EncryptedConnection;
use super::host_socket;
use super::rank0_exchange::{Rank0Connection, Rank0Exchange};
use crate::bootstrap::{HandshakeAcceptor, poll};
use crate::clock;

/// How many ports are tried, from the first one on.
pub(super) const PORT_COUNT: u16 = 16;
/// How long the other end may take to send `rank nranks`, or the answer to it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many processes of this user may be about to send `rank nranks` at once.
const MAX_HANDSHAKES: usize = 64;

/// A process that takes part in the rendezvous.
#[derive(Clone, Copy)]
pub(super) struct Participant {
    pub(super) rank: u32,
    pub(super) nranks: u32,
    /// When to stop waiting for ranks that are missing.
    pub(super) deadline: Instant,
}

/// Where rank 0 listens.
pub(super) enum Rank0Listener {
    /// At an abstract socket.
    Host(UnixListener),
    /// At TCP ports, for processes that know the secret.
    Tcp(Vec<TcpListener>, Key),
}

impl Rank0Listener {
    /// Listens at the abstract socket of this name.
    pub(super) fn at_host_socket(name: &str) -> io::Result<Self> {
        host_socket::listen(name).map(Self::Host)
    }

    /// Listens at all of these addresses, at ports that the kernel chooses. Also returns the
    /// addresses with their ports.
    pub(super) fn at_any_port(ips: &[IpAddr], secret: Key) -> io::Result<(Self, Vec<SocketAddr>)> {
        if ips.is_empty() {
            return Err(io::Error::other("this host has no address"));
        }
        let bound = net::listen_at_each(ips.iter().map(|&ip| SocketAddr::new(ip, 0)))?;
        let (listeners, addresses) = bound.into_iter().unzip();
        Ok((Self::Tcp(listeners, secret), addresses))
    }

    /// Listens at all addresses of this host, at the first free port from this one on.
    pub(super) fn at_port(first: u16, secret: Key) -> io::Result<Self> {
        let mut failure = None;
        for port in first..=first.saturating_add(PORT_COUNT - 1) {
            // The IPv6 socket takes IPv4 connections too; not every kernel has IPv6.
            let everywhere = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
            let [v6, v4] = everywhere.map(|ip: IpAddr| SocketAddr::new(ip, port));
            match net::listen(v6).or_else(|_| net::listen(v4)) {
                Ok(listener) => return Ok(Self::Tcp(vec![listener], secret)),
                Err(error) => failure = Some(error),
            }
        }
        let why = failure.map_or(String::new(), |error| format!(": {error}"));
        Err(io::Error::other(format!(
            "rank 0 can listen at none of the {PORT_COUNT} ports from {first} on{why}"
        )))
    }

    /// Accepts a connection from every other rank.
    ///
    /// # Errors
    /// Names the ranks that did not connect before the deadline.
    pub(super) fn accept_all(self, participant: Participant) -> io::Result<Rank0Exchange> {
        match self {
            Self::Host(listener) => {
                let (sender, accepted) = mpsc::sync_channel(MAX_HANDSHAKES);
                // It closes the listener when this function returns.
                let mut open = OpenListeners::default();
                open.listeners.push(listener.as_fd().try_clone_to_owned()?);
                accept_in_threads(&open, listener, sender);
                admit_all(participant, &accepted).map(Rank0Exchange::Rank0)
            }
            Self::Tcp(listeners, secret) => {
                let acceptor = HandshakeAcceptor::new(listeners, secret, Purpose::Launch, 0);
                accept_handshakes(participant, acceptor).map(Rank0Exchange::Rank0)
            }
        }
    }
}

/// Accepts the ranks that prove that they know the secret; returns their connections, rank 1 first.
fn accept_handshakes(
    participant: Participant,
    mut acceptor: HandshakeAcceptor,
) -> io::Result<Vec<Rank0Connection>> {
    let Participant { nranks, deadline, .. } = participant;
    let mut others: Vec<Option<Rank0Connection>> = (1..nranks).map(|_| None).collect();
    while others.iter().any(Option::is_none) {
        if Instant::now() >= deadline {
            return Err(missing(&others));
        }
        let mut fds = Vec::new();
        acceptor.poll_fds(&mut fds);
        let now = clock::now();
        poll::wait(&mut fds, acceptor.wake().map_or(deadline, |wake| wake.min(deadline)));
        for (Binding { from, nranks: theirs, .. }, secure) in acceptor.advance(&fds, now).0 {
            // A connection that breaks now is that of a rank that will try again.
            let Ok(connection) = EncryptedConnection::new(secure) else { continue };
            let connection = Rank0Connection::Tcp(Box::new(connection));
            admit(check_rank(from, theirs, nranks, &others), connection, &mut others);
        }
    }
    Ok(others.into_iter().flatten().collect())
}

/// Waits for the first message of the other end.
pub(super) fn read_first(
    mut connection: Rank0Connection,
) -> io::Result<(Vec<u8>, Rank0Connection)> {
    connection.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    Ok((connection.receive()?, connection))
}

/// Waits until every other rank has connected; returns their connections, rank 1 first.
fn admit_all(
    participant: Participant,
    accepted: &Receiver<(Rank0Connection, Vec<u8>)>,
) -> io::Result<Vec<Rank0Connection>> {
    let Participant { nranks, deadline, .. } = participant;
    let mut others: Vec<Option<Rank0Connection>> = (1..nranks).map(|_| None).collect();
    while others.iter().any(Option::is_none) {
        match accepted.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((connection, hello)) => {
                admit(check_hello(&hello, nranks, &others), connection, &mut others);
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(missing(&others));
            }
        }
    }
    Ok(others.into_iter().flatten().collect())
}

/// Tells a process whether it takes part, and keeps its connection if so. One that breaks meanwhile
/// is that of a rank that will try again.
fn admit(
    rank: Result<u32, String>,
    mut connection: Rank0Connection,
    others: &mut [Option<Rank0Connection>],
) {
    let answer = rank.as_ref().err().map_or("welcome", |why| why);
    let sent = connection.send(answer.as_bytes());
    let sent = sent.and_then(|()| connection.set_read_timeout(None));
    if let (Ok(rank), Ok(())) = (rank, sent) {
        others[rank as usize - 1] = Some(connection);
    }
}

/// The error that names the ranks that did not connect.
fn missing(others: &[Option<Rank0Connection>]) -> io::Error {
    let missing = (1..).zip(others).filter(|(_, other)| other.is_none());
    let missing: Vec<_> = missing.map(|(rank, _): (u32, _)| rank.to_string()).collect();
    let what = format!("rank {} did not connect to rank 0", missing.join(", "));
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// The rank that a connecting process names in its first message.
fn check_hello(
    hello: &[u8],
    nranks: u32,
    others: &[Option<Rank0Connection>],
) -> Result<u32, String> {
    let text = std::str::from_utf8(hello).unwrap_or_default();
    let numbers = text.split_once(' ').and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    let Some((rank, theirs)): Option<(u32, u32)> = numbers else {
        return Err("rank 0 runs another version of Maypole".to_owned());
    };
    check_rank(rank, theirs, nranks, others)
}

/// Whether rank `rank` of `theirs` takes part in this job, or what is wrong.
fn check_rank(
    rank: u32,
    theirs: u32,
    nranks: u32,
    others: &[Option<Rank0Connection>],
) -> Result<u32, String> {
    if theirs != nranks {
        return Err(format!("its job has {nranks} ranks, yours has {theirs}; is it another job?"));
    }
    match others.get((rank as usize).wrapping_sub(1)) {
        Some(None) => Ok(rank),
        Some(Some(_)) => Err(format!("there are two ranks {rank}")),
        None => Err(format!("there is no rank {rank} in a job of {nranks} ranks")),
    }
}

/// The listeners of a rendezvous. When it is dropped, their threads end.
#[derive(Default)]
struct OpenListeners {
    closed: Arc<OnceLock<()>>,
    listeners: Vec<OwnedFd>,
}

impl Drop for OpenListeners {
    fn drop(&mut self) {
        let _ = self.closed.set(());
        for listener in &self.listeners {
            // SAFETY: the descriptor is open, since `listener` owns it. `accept` on the same socket
            // returns with an error from now on.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }
}

/// Accepts the connections of processes of this user in a thread, and waits for the first message
/// of each in a thread of its own, so that none can delay a rank. `sender` gets the connections
/// with their first messages.
fn accept_in_threads(
    open: &OpenListeners,
    listener: UnixListener,
    sender: SyncSender<(Rank0Connection, Vec<u8>)>,
) {
    let closed = open.closed.clone();
    // Every thread that waits holds a clone.
    let handshakes = Arc::new(());
    std::thread::spawn(move || {
        while closed.get().is_none() {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            // The connection is dropped; a rank of the job will try again.
            if Arc::strong_count(&handshakes) > MAX_HANDSHAKES
                || host_socket::check_same_user(&stream).is_err()
            {
                continue;
            }
            let (sender, held) = (sender.clone(), handshakes.clone());
            std::thread::spawn(move || {
                if let Ok((hello, connection)) = read_first(Rank0Connection::Host(stream)) {
                    let _ = sender.send((connection, hello));
                }
                drop(held);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    use super::super::LaunchExchange;
    use super::super::dial::{connect_to_addresses, connect_to_host_socket, connect_to_port};
    use super::*;

    fn participant(rank: u32, nranks: u32) -> Participant {
        Participant { rank, nranks, deadline: Instant::now() + Duration::from_secs(20) }
    }

    fn assert_all_exchange(mut exchanges: Vec<Rank0Exchange>) {
        std::thread::scope(|scope| {
            for (rank, exchange) in (0_u8..).zip(&mut exchanges) {
                scope.spawn(move || {
                    assert_eq!(exchange.all_gather(&[rank]).unwrap(), [[0], [1], [2]]);
                });
            }
        });
    }

    #[test]
    fn processes_of_one_host_find_each_other_without_a_secret() {
        let name = format!("test {} {}", std::process::id(), "x".repeat(100));
        let others: Vec<_> = [1, 2]
            .map(|rank| {
                let name = name.clone();
                std::thread::spawn(move || {
                    connect_to_host_socket(&name, participant(rank, 3)).unwrap()
                })
            })
            .into();
        let listener = Rank0Listener::at_host_socket(&name).unwrap();
        let second = Rank0Listener::at_host_socket(&name).err().unwrap();
        assert!(second.to_string().contains("another job"));
        let mut exchanges = vec![listener.accept_all(participant(0, 3)).unwrap()];
        exchanges.extend(others.into_iter().map(|it| it.join().unwrap()));
        assert_all_exchange(exchanges);
    }

    #[test]
    fn ranks_with_the_secret_are_accepted_while_strangers_connect() {
        let (listener, addresses) =
            Rank0Listener::at_any_port(&["127.0.0.1".parse().unwrap()], Key::new([3; 32])).unwrap();
        let strangers: Vec<_> =
            (0..10).map(|_| TcpStream::connect(addresses[0]).unwrap()).collect();
        let mut wrong = participant(1, 3);
        wrong.deadline = Instant::now();
        let known = addresses.clone();
        let wrong = std::thread::spawn(move || {
            connect_to_addresses(&known, &Key::new([4; 32]), wrong).err().unwrap()
        });
        let others: Vec<_> = [1, 2]
            .map(|rank| {
                let known = addresses.clone();
                std::thread::spawn(move || {
                    connect_to_addresses(&known, &Key::new([3; 32]), participant(rank, 3)).unwrap()
                })
            })
            .into();
        let mut exchanges = vec![listener.accept_all(participant(0, 3)).unwrap()];
        exchanges.extend(others.into_iter().map(|it| it.join().unwrap()));
        assert_all_exchange(exchanges);
        assert!(wrong.join().unwrap().to_string().contains("rank 0 is not found"));
        drop(strangers);
    }

    #[test]
    fn a_port_of_another_program_is_skipped() {
        let (taken, first) = (0..)
            .map(|_| {
                TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0))).unwrap()
            })
            .map(|listener| {
                let port = listener.local_addr().unwrap().port();
                (listener, port)
            })
            .find(|(_, port)| *port < u16::MAX - PORT_COUNT)
            .unwrap();
        let listener = Rank0Listener::at_port(first, Key::new([3; 32])).unwrap();
        let other = std::thread::spawn(move || {
            connect_to_port("127.0.0.1", first, &Key::new([3; 32]), participant(1, 2)).map(drop)
        });
        // The program at the first port is a stranger to rank 1, which closes the connection when
        // it receives something else than the handshake.
        let stranger = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = taken.accept() {
                let _ = io::Write::write_all(&mut stream, &[0; 64]);
            }
        });
        listener.accept_all(participant(0, 2)).unwrap();
        other.join().unwrap().unwrap();
        drop(stranger);
    }

    #[test]
    fn errors_name_missing_ranks_and_say_what_is_wrong_with_a_hello() {
        let (listener, _) =
            Rank0Listener::at_any_port(&["127.0.0.1".parse().unwrap()], Key::new([3; 32])).unwrap();
        let mut participant = participant(0, 3);
        participant.deadline = Instant::now() + Duration::from_millis(20);
        let error = listener.accept_all(participant).err().unwrap();
        assert_eq!(error.to_string(), "rank 1, 2 did not connect to rank 0");
        let others = [None, Some(Rank0Connection::Host(UnixStream::pair().unwrap().0))];
        assert_eq!(check_hello(b"1 3", 3, &others), Ok(1));
        for (hello, why) in
            [("2 3", "two ranks 2"), ("0 3", "no rank 0"), ("1 4", "yours has 4"), ("x", "version")]
        {
            let error = check_hello(hello.as_bytes(), 3, &others).unwrap_err();
            assert!(error.contains(why), "{hello}: {error}");
        }
    }
}
