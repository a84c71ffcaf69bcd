//! The rendezvous of a job: rank 0 listens, the other ranks connect, and each proves that it
//! belongs to the job.
//!
//! At an abstract socket of the host the kernel tells which user is at the other end, and only
//! processes of the same user are accepted. Over TCP both ends must know the job's secret. In both
//! cases the connecting rank first sends `rank nranks`, and rank 0 answers `welcome` or says what
//! is wrong.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::encrypted_connection::{EncryptedConnection, SECRET_BYTES, Side};
use super::host_socket;
use super::rank0_exchange::{Rank0Connection, Rank0Exchange};

/// How many ports are tried, from the first one on.
const PORT_COUNT: u16 = 16;
/// How long a connecting process may take for each step of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many connections, of strangers too, may be in their handshake at once.
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
    Tcp(Vec<TcpListener>, [u8; SECRET_BYTES]),
}

impl Rank0Listener {
    /// Listens at the abstract socket of this name.
    pub(super) fn at_host_socket(name: &str) -> io::Result<Self> {
        host_socket::listen(name).map(Self::Host)
    }

    /// Listens at all of these addresses, at ports that the kernel chooses. Also returns the
    /// addresses with their ports.
    pub(super) fn at_any_port(
        ips: &[IpAddr],
        secret: [u8; SECRET_BYTES],
    ) -> io::Result<(Self, Vec<SocketAddr>)> {
        let mut failure = io::Error::other("this host has no address");
        let mut listeners = Vec::new();
        for &ip in ips {
            match TcpListener::bind((ip, 0)) {
                Ok(listener) => listeners.push(listener),
                Err(error) => failure = error,
            }
        }
        if listeners.is_empty() {
            return Err(failure);
        }
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        Ok((Self::Tcp(listeners, secret), addresses))
    }

    /// Listens at all addresses of this host, at the first free port from this one on.
    pub(super) fn at_port(first: u16, secret: [u8; SECRET_BYTES]) -> io::Result<Self> {
        let mut failure = None;
        for port in first..=first.saturating_add(PORT_COUNT - 1) {
            // The IPv6 socket takes IPv4 connections too; not every kernel has IPv6.
            let bound =
                TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
            match bound {
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
        let (sender, accepted) = mpsc::sync_channel(MAX_HANDSHAKES);
        // It closes the listeners when this function returns.
        let mut open = OpenListeners::default();
        match self {
            Self::Host(listener) => {
                open.listeners.push(listener.as_fd().try_clone_to_owned()?);
                let accept = move || listener.accept().map(|(stream, _)| stream);
                accept_in_threads(&open, accept, sender, |stream| {
                    host_socket::check_same_user(&stream)?;
                    Ok(Rank0Connection::Host(stream))
                });
            }
            Self::Tcp(listeners, secret) => {
                for listener in listeners {
                    open.listeners.push(listener.as_fd().try_clone_to_owned()?);
                    let accept = move || listener.accept().map(|(stream, _)| stream);
                    accept_in_threads(&open, accept, sender.clone(), move |stream| {
                        encrypt(stream, &secret, Side::Listener)
                    });
                }
                drop(sender);
            }
        }
        admit_all(participant, &accepted).map(Rank0Exchange::Rank0)
    }
}

/// Connects to rank 0 on this host.
pub(super) fn connect_to_host_socket(
    name: &str,
    participant: Participant,
) -> io::Result<Rank0Exchange> {
    connect(participant, name, || host_socket::connect(name).map(Rank0Connection::Host))
}

/// Connects to rank 0, which listens at one of these addresses.
pub(super) fn connect_to_addresses(
    addresses: &[SocketAddr],
    secret: &[u8; SECRET_BYTES],
    participant: Participant,
) -> io::Result<Rank0Exchange> {
    let names = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut turns = addresses.iter().cycle();
    connect(participant, &names, || {
        let Some(address) = turns.next() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "rank 0 has no address"));
        };
        dial(address, secret)
    })
}

/// Connects to rank 0, which listens at one of the ports from the first on.
pub(super) fn connect_to_port(
    host: &str,
    first: u16,
    secret: &[u8; SECRET_BYTES],
    participant: Participant,
) -> io::Result<Rank0Exchange> {
    let last = first.saturating_add(PORT_COUNT - 1);
    let name = format!("{host}, ports {first} to {last}");
    let mut next = first;
    connect(participant, &name, || {
        let port = next;
        next = if port == last { first } else { port + 1 };
        let mut failure = io::Error::other("the name of the host has no address");
        for address in (host, port).to_socket_addrs()? {
            match dial(&address, secret) {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    })
}

fn dial(address: &SocketAddr, secret: &[u8; SECRET_BYTES]) -> io::Result<Rank0Connection> {
    encrypt(TcpStream::connect_timeout(address, HANDSHAKE_TIMEOUT)?, secret, Side::Dialer)
}

fn encrypt(
    stream: TcpStream,
    secret: &[u8; SECRET_BYTES],
    side: Side,
) -> io::Result<Rank0Connection> {
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    Ok(Rank0Connection::Tcp(Box::new(EncryptedConnection::new(stream, secret, side)?)))
}

/// Tries to connect until rank 0 answers, which may start later than this rank. `name` says in
/// errors where rank 0 was looked for.
fn connect(
    participant: Participant,
    name: &str,
    mut attempt: impl FnMut() -> io::Result<Rank0Connection>,
) -> io::Result<Rank0Exchange> {
    let Participant { rank, nranks, deadline } = participant;
    let mut pause = Duration::from_millis(5);
    loop {
        let answer = attempt().and_then(|mut connection| {
            connection.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
            connection.send(format!("{rank} {nranks}").as_bytes())?;
            Ok((connection.receive()?, connection))
        });
        match answer {
            Ok((answer, connection)) if answer == b"welcome" => {
                connection.set_read_timeout(None)?;
                return Ok(Rank0Exchange::Other(connection, nranks));
            }
            Ok((answer, _)) => {
                let why = String::from_utf8_lossy(&answer);
                return Err(io::Error::other(format!("rank 0 at {name} refuses this rank: {why}")));
            }
            Err(error) if Instant::now() + pause >= deadline => {
                let what = format!("rank 0 is not found at {name}: {error}");
                return Err(io::Error::new(error.kind(), what));
            }
            // Rank 0 does not listen yet, or listens at another port, or another program does.
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
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
            Ok((mut connection, hello)) => {
                let rank = check_hello(&hello, nranks, &others);
                let answer = rank.as_ref().err().map_or("welcome", |why| why);
                let sent = connection.send(answer.as_bytes());
                if let (Ok(rank), Ok(())) = (rank, sent) {
                    connection.set_read_timeout(None)?;
                    others[rank as usize - 1] = Some(connection);
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let missing = (1..).zip(&others).filter(|(_, other)| other.is_none());
                let missing: Vec<_> = missing.map(|(rank, _): (u32, _)| rank.to_string()).collect();
                let what = format!("rank {} did not connect to rank 0", missing.join(", "));
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        }
    }
    Ok(others.into_iter().flatten().collect())
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

/// Accepts connections in a thread, and does the handshake of each in a thread of its own, so that
/// a stranger cannot delay a rank. `sender` gets the connections with their first messages.
fn accept_in_threads<S: Send + 'static>(
    open: &OpenListeners,
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    sender: SyncSender<(Rank0Connection, Vec<u8>)>,
    handshake: impl Fn(S) -> io::Result<Rank0Connection> + Clone + Send + 'static,
) {
    let closed = open.closed.clone();
    // Every handshake holds a clone.
    let handshakes = Arc::new(());
    std::thread::spawn(move || {
        while closed.get().is_none() {
            let Ok(stream) = accept() else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            // The connection is dropped; a rank of the job will try again.
            if Arc::strong_count(&handshakes) > MAX_HANDSHAKES {
                continue;
            }
            let (sender, handshake, held) = (sender.clone(), handshake.clone(), handshakes.clone());
            std::thread::spawn(move || {
                let greeted = handshake(stream).and_then(|mut connection| {
                    connection.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
                    Ok((connection.receive()?, connection))
                });
                if let Ok((hello, connection)) = greeted {
                    let _ = sender.send((connection, hello));
                }
                drop(held);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::LaunchExchange;
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
            Rank0Listener::at_any_port(&["127.0.0.1".parse().unwrap()], [3; 32]).unwrap();
        let strangers: Vec<_> =
            (0..10).map(|_| TcpStream::connect(addresses[0]).unwrap()).collect();
        let mut wrong = participant(1, 3);
        wrong.deadline = Instant::now();
        let known = addresses.clone();
        let wrong = std::thread::spawn(move || {
            connect_to_addresses(&known, &[4; 32], wrong).err().unwrap()
        });
        let others: Vec<_> = [1, 2]
            .map(|rank| {
                let known = addresses.clone();
                std::thread::spawn(move || {
                    connect_to_addresses(&known, &[3; 32], participant(rank, 3)).unwrap()
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
        let listener = Rank0Listener::at_port(first, [3; 32]).unwrap();
        let other = std::thread::spawn(move || {
            connect_to_port("127.0.0.1", first, &[3; 32], participant(1, 2)).map(drop)
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
            Rank0Listener::at_any_port(&["127.0.0.1".parse().unwrap()], [3; 32]).unwrap();
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
