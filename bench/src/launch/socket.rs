//! The exchange of [`local`](super::local): each process has a socket to the launcher, its standard input, over which all give
//! something and all get what everyone gave.
//!
//! The socket is inherited: the unique id, which holds a secret, is in no argument list and no environment.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{Exchange, LONGEST};

/// A process' end.
pub(super) struct Inherited {
    socket: UnixStream,
    nranks: u32,
}

impl Inherited {
    /// The one that the launcher gave this process as its standard input.
    pub(super) fn take(nranks: u32) -> io::Result<Self> {
        Ok(Self { socket: io::stdin().as_fd().try_clone_to_owned()?.into(), nranks })
    }
}

impl Exchange for Inherited {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        send(&mut self.socket, mine)?;
        (0..self.nranks).map(|_| receive(&mut self.socket)).collect()
    }
}

/// Sends one contribution.
pub(super) fn send(socket: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let mut message = (bytes.len() as u32).to_le_bytes().to_vec();
    message.extend_from_slice(bytes);
    socket.write_all(&message)
}

/// Receives one contribution.
pub(super) fn receive(socket: &mut UnixStream) -> io::Result<Vec<u8>> {
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
            let mut exchange = Inherited { socket: b, nranks: 2 };
            let gathered = exchange.all_gather(b"mine").unwrap();
            (gathered, exchange.all_gather(b""))
        });
        assert_eq!(receive(&mut a).unwrap(), b"mine");
        send(&mut a, b"").unwrap();
        send(&mut a, b"mine").unwrap();
        drop(a);
        let (gathered, end) = rank.join().unwrap();
        assert_eq!(gathered, [&b""[..], b"mine"]);
        assert!(end.is_err());
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(&[0xff; 8]).unwrap();
        assert_eq!(receive(&mut b).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
