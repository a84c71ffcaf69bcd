//! An exchange over a star: every process has a connection to rank 0, which collects what all give and passes it on.

use std::io;
use std::os::unix::net::UnixStream;

use super::sealed::Sealed;
use super::{Exchange, socket};

/// A connection whose other end is known to be of the job.
pub(super) enum Connection {
    /// To a process of this user on this host, for which the kernel vouches.
    Host(UnixStream),
    /// To who knows the secret.
    Sealed(Box<Sealed>),
}

impl Connection {
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Host(stream) => socket::send(stream, message),
            Self::Sealed(sealed) => sealed.send(message),
        }
    }

    pub(super) fn receive(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Host(stream) => socket::receive(stream),
            Self::Sealed(sealed) => sealed.receive(),
        }
    }

    /// How long a read may take; `None` is for ever.
    pub(super) fn set_patience(&self, patience: Option<std::time::Duration>) -> io::Result<()> {
        match self {
            Self::Host(stream) => stream.set_read_timeout(patience),
            Self::Sealed(sealed) => sealed.stream().set_read_timeout(patience),
        }
    }
}

/// A process' part of the star.
pub(super) enum Star {
    /// Rank 0, with a connection to each of the others, from rank 1 on.
    Centre(Vec<Connection>),
    /// Another rank, of so many.
    Point(Connection, u32),
}

impl Exchange for Star {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        match self {
            Self::Centre(others) => {
                let mut all = vec![mine.to_vec()];
                for (rank, other) in (1..).zip(&mut *others) {
                    all.push(other.receive().map_err(|error| lost(rank, &error))?);
                }
                for (rank, other) in (1..).zip(others) {
                    for given in &all {
                        other.send(given).map_err(|error| lost(rank, &error))?;
                    }
                }
                Ok(all)
            }
            Self::Point(centre, nranks) => {
                centre.send(mine).map_err(|error| lost(0, &error))?;
                (0..*nranks).map(|_| centre.receive().map_err(|error| lost(0, &error))).collect()
            }
        }
    }
}

fn lost(rank: u32, error: &io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => "it has ended".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("cannot reach rank {rank} out of band: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_get_what_all_gave_until_one_ends() {
        let (centre, points): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| UnixStream::pair().unwrap())
            .map(|(a, b)| (Connection::Host(a), Connection::Host(b)))
            .unzip();
        let points: Vec<_> = (1_u8..)
            .zip(points)
            .map(|(rank, connection)| {
                std::thread::spawn(move || {
                    let mut star = Star::Point(connection, 3);
                    let all = star.all_gather(&[rank; 3]).unwrap();
                    // Rank 2 ends here.
                    (all, (rank == 1).then(|| star.all_gather(b"").unwrap_err().to_string()))
                })
            })
            .collect();
        let mut star = Star::Centre(centre);
        let all = star.all_gather(b"").unwrap();
        assert_eq!(all, [vec![], vec![1; 3], vec![2; 3]]);
        let error = star.all_gather(b"").unwrap_err().to_string();
        assert_eq!(error, "cannot reach rank 2 out of band: it has ended");
        drop(star);
        let ends: Vec<_> = points.into_iter().map(|it| it.join().unwrap()).collect();
        assert!(ends.iter().all(|(got, _)| *got == all));
        assert_eq!(ends[0].1.as_deref(), Some("cannot reach rank 0 out of band: it has ended"));
    }
}
