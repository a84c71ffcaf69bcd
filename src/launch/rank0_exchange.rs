//! An exchange over connections to rank 0, which collects the contributions of all ranks and passes
//! them on.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::encrypted_connection::EncryptedConnection;
use super::{LaunchExchange, frame};

/// A connection whose other end is known to belong to the job.
pub(super) enum Rank0Connection {
    /// To a process of the same user on this host, as the kernel confirmed.
    Host(UnixStream),
    /// To a process that knows the secret.
    Tcp(Box<EncryptedConnection>),
}

impl Rank0Connection {
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Host(stream) => frame::write_message(stream, message),
            Self::Tcp(connection) => connection.send(message),
        }
    }

    pub(super) fn receive(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Host(stream) => frame::read_message(stream),
            Self::Tcp(connection) => connection.receive(),
        }
    }

    /// Limits how long a read may take; None removes the limit.
    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Host(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(connection) => connection.stream().set_read_timeout(timeout),
        }
    }
}

/// One rank's part of the exchange.
pub(super) enum Rank0Exchange {
    /// Rank 0, with its connections to all other ranks, rank 1 first.
    Rank0(Vec<Rank0Connection>),
    /// Another rank, with its connection to rank 0 and the number of ranks.
    Other(Rank0Connection, u32),
}

impl LaunchExchange for Rank0Exchange {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        match self {
            Self::Rank0(others) => {
                let mut all = vec![mine.to_vec()];
                for (rank, other) in (1..).zip(&mut *others) {
                    all.push(other.receive().map_err(|error| lost(rank, &error))?);
                }
                for (rank, other) in (1..).zip(others) {
                    for contribution in &all {
                        other.send(contribution).map_err(|error| lost(rank, &error))?;
                    }
                }
                Ok(all)
            }
            Self::Other(rank0, nranks) => {
                rank0.send(mine).map_err(|error| lost(0, &error))?;
                (0..*nranks).map(|_| rank0.receive().map_err(|error| lost(0, &error))).collect()
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
    io::Error::new(error.kind(), format!("the launch exchange has lost rank {rank}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_get_all_contributions_until_one_ends() {
        let (rank0, others): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| UnixStream::pair().unwrap())
            .map(|(a, b)| (Rank0Connection::Host(a), Rank0Connection::Host(b)))
            .unzip();
        let others: Vec<_> = (1_u8..)
            .zip(others)
            .map(|(rank, connection)| {
                std::thread::spawn(move || {
                    let mut exchange = Rank0Exchange::Other(connection, 3);
                    let all = exchange.all_gather(&[rank; 3]).unwrap();
                    // Rank 2 ends here.
                    (all, (rank == 1).then(|| exchange.all_gather(b"").unwrap_err().to_string()))
                })
            })
            .collect();
        let mut exchange = Rank0Exchange::Rank0(rank0);
        let all = exchange.all_gather(b"").unwrap();
        assert_eq!(all, [vec![], vec![1; 3], vec![2; 3]]);
        let error = exchange.all_gather(b"").unwrap_err().to_string();
        assert_eq!(error, "the launch exchange has lost rank 2: it has ended");
        drop(exchange);
        let ends: Vec<_> = others.into_iter().map(|it| it.join().unwrap()).collect();
        assert!(ends.iter().all(|(got, _)| *got == all));
        assert_eq!(ends[0].1.as_deref(), Some("the launch exchange has lost rank 0: it has ended"));
    }
}
