//! How the processes of a job meet: rank 0 listens, the others come, and each proves that it belongs.
//!
//! At an abstract socket of the host the kernel tells whose process is at the other end, and only one of the same user will do. Over
//! TCP both ends must know the job's secret. Either way the first message is `rank nranks`, and rank 0 answers `welcome` or
//! says what is wrong.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::sealed::{SECRET_BYTES, Sealed};
use super::star::{Connection, Star};

/// How many ports are tried, from the first on.
const PORTS: u16 = 16;
/// How long one who has come may take to say who it is.
const MANNERS: Duration = Duration::from_secs(5);
/// Strangers and others who may be at the door at once.
const MOST_AT_THE_DOOR: usize = 64;

/// Who meets.
#[derive(Clone, Copy)]
pub(super) struct Party {
    pub(super) rank: u32,
    pub(super) nranks: u32,
    /// When those who are missing are given up.
    pub(super) until: Instant,
}

/// Where rank 0 listens.
pub(super) enum Door {
    Host(UnixListener),
    Tcp(Vec<TcpListener>, [u8; SECRET_BYTES]),
}

impl Door {
    /// At the abstract socket of this name.
    pub(super) fn host(name: &str) -> io::Result<Self> {
        let listener = unix::SocketAddr::from_abstract_name(full(name))
            .and_then(|address| UnixListener::bind_addr(&address));
        listener.map(Self::Host).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another job of this host listens at {name}: give this one another address or port"),
            ),
            _ => error,
        })
    }

    /// At all of these addresses, ports of the kernel's choice; returns where.
    pub(super) fn anywhere(
        addresses: &[IpAddr],
        secret: [u8; SECRET_BYTES],
    ) -> io::Result<(Self, Vec<SocketAddr>)> {
        let mut failure = io::Error::other("this host has no address");
        let mut listeners = Vec::new();
        for &ip in addresses {
            match TcpListener::bind((ip, 0)) {
                Ok(listener) => listeners.push(listener),
                Err(error) => failure = error,
            }
        }
        if listeners.is_empty() {
            return Err(failure);
        }
        let at = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        Ok((Self::Tcp(listeners, secret), at))
    }

    /// At the first free port from this one on, of all addresses.
    pub(super) fn at_port(first: u16, secret: [u8; SECRET_BYTES]) -> io::Result<Self> {
        let mut failure = None;
        for port in first..=first.saturating_add(PORTS - 1) {
            // Both families, where the kernel has both.
            let bound =
                TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
            match bound {
                Ok(listener) => return Ok(Self::Tcp(vec![listener], secret)),
                Err(error) => failure = Some(error),
            }
        }
        let why = failure.map_or(String::new(), |error| format!(": {error}"));
        Err(io::Error::other(format!(
            "none of the {PORTS} ports from {first} on can be listened at{why}"
        )))
    }

    /// Lets all others in.
    ///
    /// # Errors
    /// Names those who did not come.
    pub(super) fn gather(self, party: Party) -> io::Result<Star> {
        let Party { nranks, until, .. } = party;
        let mut others: Vec<Option<Connection>> = (1..nranks).map(|_| None).collect();
        let (admit, admitted) = mpsc::sync_channel(MOST_AT_THE_DOOR);
        let mut closing = Closing::default();
        match self {
            Self::Host(listener) => {
                closing.listeners.push(listener.as_fd().try_clone_to_owned()?);
                let visitors = move || listener.accept().map(|(stream, _)| stream);
                receive_guests(&closing, visitors, admit, |stream| {
                    of_this_user(&stream)?;
                    Ok(Connection::Host(stream))
                });
            }
            Self::Tcp(listeners, secret) => {
                for listener in listeners {
                    closing.listeners.push(listener.as_fd().try_clone_to_owned()?);
                    let visitors = move || listener.accept().map(|(stream, _)| stream);
                    receive_guests(&closing, visitors, admit.clone(), move |stream| {
                        stream.set_read_timeout(Some(MANNERS))?;
                        Ok(Connection::Sealed(Box::new(Sealed::new(stream, &secret, false)?)))
                    });
                }
                drop(admit);
            }
        }
        while others.iter().any(Option::is_none) {
            let left = until.saturating_duration_since(Instant::now());
            match admitted.recv_timeout(left) {
                Ok((mut connection, hello)) => {
                    let answer = check(&hello, nranks, &others);
                    let said = connection
                        .send(answer.as_ref().err().map_or("welcome", |it| it).as_bytes());
                    if let (Ok(rank), Ok(())) = (answer, said) {
                        connection.set_patience(None)?;
                        others[rank as usize - 1] = Some(connection);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let missing = (1..).zip(&others).filter(|(_, other)| other.is_none());
                    let missing: Vec<_> =
                        missing.map(|(rank, _): (u32, _)| rank.to_string()).collect();
                    let names = missing.join(", ");
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("rank {names} did not come"),
                    ));
                }
            }
        }
        Ok(Star::Centre(others.into_iter().flatten().collect()))
    }
}

/// Goes to rank 0 on this host.
pub(super) fn visit_host(name: &str, party: Party) -> io::Result<Star> {
    let address = unix::SocketAddr::from_abstract_name(full(name))?;
    visit(party, name, || {
        let stream = UnixStream::connect_addr(&address)?;
        of_this_user(&stream)?;
        Ok(Connection::Host(stream))
    })
}

/// Goes to rank 0, which listens at one of these addresses.
pub(super) fn visit_any(
    addresses: &[SocketAddr],
    secret: &[u8; SECRET_BYTES],
    party: Party,
) -> io::Result<Star> {
    let place = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut turn = addresses.iter().cycle();
    visit(party, &place, || {
        let Some(address) = turn.next() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "rank 0 has no address"));
        };
        dial(address, secret)
    })
}

/// Goes to rank 0, which listens at one of the ports from the first on.
pub(super) fn visit_port(
    host: &str,
    first: u16,
    secret: &[u8; SECRET_BYTES],
    party: Party,
) -> io::Result<Star> {
    let last = first.saturating_add(PORTS - 1);
    let place = format!("{host}, ports {first} to {last}");
    let mut port = first;
    visit(party, &place, || {
        let now = port;
        port = if port == last { first } else { port + 1 };
        let mut failure = io::Error::other("the name has no address");
        for address in (host, now).to_socket_addrs()? {
            match dial(&address, secret) {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    })
}

fn dial(address: &SocketAddr, secret: &[u8; SECRET_BYTES]) -> io::Result<Connection> {
    let stream = TcpStream::connect_timeout(address, MANNERS)?;
    stream.set_read_timeout(Some(MANNERS))?;
    Ok(Connection::Sealed(Box::new(Sealed::new(stream, secret, true)?)))
}

/// Tries until rank 0 is there: it may start later.
fn visit(
    party: Party,
    place: &str,
    mut connect: impl FnMut() -> io::Result<Connection>,
) -> io::Result<Star> {
    let Party { rank, nranks, until } = party;
    let mut pause = Duration::from_millis(5);
    loop {
        let answer = connect().and_then(|mut connection| {
            connection.set_patience(Some(MANNERS))?;
            connection.send(format!("{rank} {nranks}").as_bytes())?;
            Ok((connection.receive()?, connection))
        });
        match answer {
            Ok((answer, connection)) if answer == b"welcome" => {
                connection.set_patience(None)?;
                return Ok(Star::Point(connection, nranks));
            }
            Ok((answer, _)) => {
                let why = String::from_utf8_lossy(&answer);
                return Err(io::Error::other(format!("rank 0 at {place}: {why}")));
            }
            Err(error) if Instant::now() + pause >= until => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("rank 0 is not found at {place}: {error}"),
                ));
            }
            // Not there yet, or at another port; or somebody else is.
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Ends the listening when all are there.
#[derive(Default)]
struct Closing {
    over: Arc<AtomicBool>,
    listeners: Vec<OwnedFd>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // SAFETY: the descriptor is open; `accept` then returns at once, and always, with an error.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }
}

/// Hears who comes, each in a thread of its own, so that no stranger keeps a rank waiting.
fn receive_guests<S: Send + 'static>(
    closing: &Closing,
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    admit: SyncSender<(Connection, Vec<u8>)>,
    greet: impl Fn(S) -> io::Result<Connection> + Clone + Send + 'static,
) {
    let over = closing.over.clone();
    let at_the_door = Arc::new(());
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let Ok(stream) = accept() else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            // One more is dropped, and comes again if it is ours.
            if Arc::strong_count(&at_the_door) > MOST_AT_THE_DOOR {
                continue;
            }
            let (admit, greet, place) = (admit.clone(), greet.clone(), at_the_door.clone());
            std::thread::spawn(move || {
                let heard = greet(stream).and_then(|mut connection| {
                    connection.set_patience(Some(MANNERS))?;
                    Ok((connection.receive()?, connection))
                });
                if let Ok((hello, connection)) = heard {
                    let _ = admit.send((connection, hello));
                }
                drop(place);
            });
        }
    });
}

/// The rank that a first message names.
fn check(hello: &[u8], nranks: u32, others: &[Option<Connection>]) -> Result<u32, String> {
    let text = std::str::from_utf8(hello).unwrap_or_default();
    let numbers = text.split_once(' ').and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    let Some((rank, theirs)): Option<(u32, u32)> = numbers else {
        return Err("another version of the program is there".to_owned());
    };
    if theirs != nranks {
        return Err(format!("it has {nranks} ranks, you have {theirs}: is it another job?"));
    }
    match others.get((rank as usize).wrapping_sub(1)) {
        Some(None) => Ok(rank),
        Some(Some(_)) => Err(format!("there are two ranks {rank}")),
        None => Err(format!("there is no rank {rank} of {nranks} to come")),
    }
}

/// The whole name of an abstract socket: no two users' are the same.
fn full(name: &str) -> String {
    // SAFETY: it has no preconditions.
    let user = unsafe { libc::geteuid() };
    let name = format!("maypole-launch/{user}/{name}");
    // The kernel's limit is 107 bytes.
    if name.len() <= 100 {
        return name;
    }
    let hash = super::sealed::mac(b"name", &[name.as_bytes()]);
    format!(
        "maypole-launch/{user}/{:032x}",
        u128::from_le_bytes(hash[..16].try_into().expect("16 bytes"))
    )
}

/// Refuses a peer that is not of this user.
fn of_this_user(stream: &UnixStream) -> io::Result<()> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` is writable for `len` bytes.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has no preconditions.
    if peer.uid != unsafe { libc::geteuid() } {
        let what = format!("a process of user {} is at the other end", peer.uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Exchange;
    use super::*;

    fn party(rank: u32, nranks: u32) -> Party {
        Party { rank, nranks, until: Instant::now() + Duration::from_secs(20) }
    }

    fn all_meet(mut stars: Vec<Star>) {
        std::thread::scope(|scope| {
            for (rank, star) in (0_u8..).zip(&mut stars) {
                scope.spawn(move || {
                    assert_eq!(star.all_gather(&[rank]).unwrap(), [[0], [1], [2]]);
                });
            }
        });
    }

    #[test]
    fn processes_of_one_host_meet_without_a_secret() {
        let name = format!("test {} {}", std::process::id(), "x".repeat(100));
        let visitors: Vec<_> = [1, 2]
            .map(|rank| {
                let name = name.clone();
                std::thread::spawn(move || visit_host(&name, party(rank, 3)).unwrap())
            })
            .into();
        let centre = Door::host(&name).unwrap();
        assert!(Door::host(&name).err().unwrap().to_string().contains("another job"));
        let mut stars = vec![centre.gather(party(0, 3)).unwrap()];
        stars.extend(visitors.into_iter().map(|it| it.join().unwrap()));
        all_meet(stars);
    }

    #[test]
    fn who_knows_the_secret_is_let_in_past_strangers() {
        let (door, at) = Door::anywhere(&["127.0.0.1".parse().unwrap()], [3; 32]).unwrap();
        let strangers: Vec<_> = (0..10).map(|_| TcpStream::connect(at[0]).unwrap()).collect();
        let mut wrong = party(1, 3);
        wrong.until = Instant::now();
        let places = at.clone();
        let wrong = std::thread::spawn(move || visit_any(&places, &[4; 32], wrong).err().unwrap());
        let visitors: Vec<_> = [1, 2]
            .map(|rank| {
                let at = at.clone();
                std::thread::spawn(move || visit_any(&at, &[3; 32], party(rank, 3)).unwrap())
            })
            .into();
        let mut stars = vec![door.gather(party(0, 3)).unwrap()];
        stars.extend(visitors.into_iter().map(|it| it.join().unwrap()));
        all_meet(stars);
        assert!(wrong.join().unwrap().to_string().contains("rank 0 is not found"));
        drop(strangers);
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let (taken, first) = (0..)
            .map(|_| {
                TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0))).unwrap()
            })
            .map(|listener| {
                let port = listener.local_addr().unwrap().port();
                (listener, port)
            })
            .find(|(_, port)| *port < u16::MAX - PORTS)
            .unwrap();
        let door = Door::at_port(first, [3; 32]).unwrap();
        let visitor = std::thread::spawn(move || {
            visit_port("127.0.0.1", first, &[3; 32], party(1, 2)).map(drop)
        });
        // The owner of the port is a stranger to the visitor, which hangs up on what it does not understand.
        let store = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = taken.accept() {
                let _ = io::Write::write_all(&mut stream, &[0; 64]);
            }
        });
        door.gather(party(0, 2)).unwrap();
        visitor.join().unwrap().unwrap();
        drop(store);
    }

    #[test]
    fn the_missing_are_named_and_the_wrong_are_told() {
        let (door, _) = Door::anywhere(&["127.0.0.1".parse().unwrap()], [3; 32]).unwrap();
        let mut party = party(0, 3);
        party.until = Instant::now() + Duration::from_millis(20);
        let error = door.gather(party).err().unwrap();
        assert_eq!(error.to_string(), "rank 1, 2 did not come");
        let others = [None, Some(Connection::Host(UnixStream::pair().unwrap().0))];
        assert_eq!(check(b"1 3", 3, &others), Ok(1));
        for (hello, why) in
            [("2 3", "two ranks 2"), ("0 3", "no rank 0"), ("1 4", "you have 4"), ("x", "version")]
        {
            assert!(check(hello.as_bytes(), 3, &others).unwrap_err().contains(why), "{hello}");
        }
    }
}
