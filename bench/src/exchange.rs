//! How the ranks of a benchmark meet: each has a socket to the launcher, its standard input, over which all give something
//! and all get what everyone gave. A barrier gives nothing.
//!
//! The socket is inherited: the unique id, which holds a secret, is in no argument list and no environment.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The longest contribution that is believed.
const LONGEST: usize = 1 << 20;

/// A rank's end.
pub(crate) struct Exchange {
    socket: UnixStream,
    nranks: u32,
}

impl Exchange {
    /// The one that the launcher gave this process as its standard input.
    pub(crate) fn inherited(nranks: u32) -> io::Result<Self> {
        Ok(Self { socket: io::stdin().as_fd().try_clone_to_owned()?.into(), nranks })
    }

    /// Gives `mine` to all ranks; returns what each of them gave, when all have.
    pub(crate) fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        send(&mut self.socket, mine)?;
        (0..self.nranks).map(|_| receive(&mut self.socket)).collect()
    }

    /// The same for two numbers.
    pub(crate) fn numbers(&mut self, mine: (f64, u64)) -> io::Result<Vec<(f64, u64)>> {
        let (a, b) = (mine.0.to_le_bytes(), mine.1.to_le_bytes());
        let all = self.all_gather(&[a, b].concat())?;
        all.iter()
            .map(|bytes| match bytes.as_chunks() {
                (&[a, b], []) => Ok((f64::from_le_bytes(a), u64::from_le_bytes(b))),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "ranks are out of step")),
            })
            .collect()
    }

    /// Returns when all ranks have called it.
    pub(crate) fn barrier(&mut self) -> io::Result<()> {
        self.all_gather(&[]).map(drop)
    }
}

/// Sends one contribution.
pub(crate) fn send(socket: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let mut message = (bytes.len() as u32).to_le_bytes().to_vec();
    message.extend_from_slice(bytes);
    socket.write_all(&message)
}

/// Receives one contribution.
pub(crate) fn receive(socket: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a contribution of absurd length"));
    }
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contributions_arrive_whole_and_in_order() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let rank = std::thread::spawn(move || {
            let mut exchange = Exchange { socket: b, nranks: 2 };
            let gathered = exchange.all_gather(b"mine").unwrap();
            let numbers = exchange.numbers((1.5, 7)).unwrap();
            (gathered, numbers, exchange.barrier().map_err(|e| e.kind()))
        });
        assert_eq!(receive(&mut a).unwrap(), b"mine");
        send(&mut a, b"").unwrap();
        send(&mut a, b"mine").unwrap();
        let mine = receive(&mut a).unwrap();
        send(&mut a, &mine).unwrap();
        send(&mut a, &mine).unwrap();
        drop(a);
        let (gathered, numbers, end) = rank.join().unwrap();
        assert_eq!(gathered, [&b""[..], b"mine"]);
        assert_eq!(numbers, [(1.5, 7); 2]);
        assert!(end.is_err());
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(&[0xff; 8]).unwrap();
        assert_eq!(receive(&mut b).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
