//! Looks whether a rank still listens, without a handshake: a survivor of a communicator that does
//! not come to a shrink may have left, and has then closed its rejoin listener.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use maypole_transport::net;

use super::poll::poll_fd;

/// How long the network may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A look at the addresses of one rank. No function waits.
pub(super) struct ListenerProbe {
    rank: u32,
    /// The addresses that were not tried.
    addresses: Vec<SocketAddr>,
    /// The connection that is being made, and until when.
    connecting: Option<(TcpStream, Instant)>,
}

/// What a probe has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeResult {
    NotYet,
    /// The host of the rank refuses connections at all of its addresses: it does not listen.
    Gone,
    /// Something listens, or the network does not say.
    Unknown,
}

impl ListenerProbe {
    /// A look at these addresses of a rank. None if there are none.
    pub(super) fn new(rank: u32, addresses: Vec<SocketAddr>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self { rank, addresses, connecting: None })
    }

    /// The rank.
    pub(super) fn rank(&self) -> u32 {
        self.rank
    }

    /// The entry with which to poll the probe.
    pub(super) fn poll_fd(&self) -> libc::pollfd {
        let fd = self.connecting.as_ref().map_or(-1, |(stream, _)| stream.as_raw_fd());
        poll_fd(fd, libc::POLLOUT)
    }

    /// When [`advance`](Self::advance) must be called at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.connecting.as_ref().map(|(_, until)| *until)
    }

    /// Continues as far as possible without waiting.
    pub(super) fn advance(&mut self) -> ProbeResult {
        loop {
            let Some((stream, until)) = self.connecting.take() else {
                let Some(address) = self.addresses.pop() else { return ProbeResult::Gone };
                match net::connect(address) {
                    Ok(socket) => {
                        let until = Instant::now() + CONNECT_TIMEOUT;
                        self.connecting = Some((socket.into(), until));
                    }
                    Err(error) if is_refused(&error) => {}
                    Err(_) => return ProbeResult::Unknown,
                }
                continue;
            };
            match stream.take_error() {
                Ok(None) => {}
                Ok(Some(error)) if is_refused(&error) => continue,
                Ok(Some(_)) | Err(_) => return ProbeResult::Unknown,
            }
            match (stream.peer_addr(), stream.local_addr()) {
                // The kernel may give the connecting socket the very port to which it connects, if
                // no process listens there.
                (Ok(peer), Ok(local)) if peer == local => {}
                (Ok(_), _) => return ProbeResult::Unknown,
                (Err(_), _) if until <= Instant::now() => return ProbeResult::Unknown,
                (Err(_), _) => {
                    self.connecting = Some((stream, until));
                    return ProbeResult::NotYet;
                }
            }
        }
    }
}

fn is_refused(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNREFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::poll;
    use std::net::TcpListener;

    fn probe(addresses: Vec<SocketAddr>) -> ProbeResult {
        let mut probe = ListenerProbe::new(0, addresses).unwrap();
        loop {
            match probe.advance() {
                ProbeResult::NotYet => {
                    poll::wait(&mut [probe.poll_fd()], probe.wake().unwrap_or_else(Instant::now))
                }
                result => return result,
            }
        }
    }

    #[test]
    fn a_rank_is_gone_only_if_all_of_its_addresses_refuse() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        // The port of a connection, where nobody else can listen meanwhile.
        let connection = TcpStream::connect(open).unwrap();
        let closed = connection.local_addr().unwrap();
        assert_eq!(probe(vec![closed]), ProbeResult::Gone);
        assert_eq!(probe(vec![open]), ProbeResult::Unknown);
        assert_eq!(probe(vec![closed, open]), ProbeResult::Unknown);
        assert_eq!(probe(vec![open, closed]), ProbeResult::Unknown);
    }
}
