//! The exchange of `maypole bench -np`: each process has a socket to the launcher, which collects
//! the contributions of all and sends them to each. The socket is the process's standard input.
//!
//! The socket is inherited, so the unique id, which holds a secret, is in no argument list and in
//! no environment.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use maypole::launch::{LaunchExchange, read_message, write_message};

/// A process's end of its socket to the launcher.
pub(super) struct InheritedSocket {
    socket: UnixStream,
    nranks: u32,
}

impl InheritedSocket {
    /// The socket that the launcher gave this process as its standard input.
    pub(super) fn from_stdin(nranks: u32) -> io::Result<Self> {
        Ok(Self { socket: io::stdin().as_fd().try_clone_to_owned()?.into(), nranks })
    }
}

impl LaunchExchange for InheritedSocket {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        write_message(&mut self.socket, mine)?;
        (0..self.nranks).map(|_| read_message(&mut self.socket)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contributions_arrive_whole_and_in_order() {
        let (mut launcher, socket) = UnixStream::pair().unwrap();
        let rank = std::thread::spawn(move || {
            let mut exchange = InheritedSocket { socket, nranks: 2 };
            let gathered = exchange.all_gather(b"mine").unwrap();
            (gathered, exchange.all_gather(b""))
        });
        assert_eq!(read_message(&mut launcher).unwrap(), b"mine");
        write_message(&mut launcher, b"").unwrap();
        write_message(&mut launcher, b"mine").unwrap();
        drop(launcher);
        let (gathered, end) = rank.join().unwrap();
        assert_eq!(gathered, [&b""[..], b"mine"]);
        assert!(end.is_err());
    }
}
