//! Dialing a rank of another process.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::socket;
use crate::Rank;
use crate::error::LinkError;
use crate::handshake::{Credentials, Medium, NONCE, PROOF};
use crate::inbox::PeerInbox;
use crate::peers::Peers;

/// How often a wait looks whether the communicator was aborted.
const SLICE: Duration = Duration::from_millis(100);

/// Dials `peer` and exchanges inboxes. The stream is to be kept: it ends when the peer dies.
pub(crate) fn connect(
    peers: &Peers,
    party: &Credentials,
    peer: Rank,
    name: &[u8],
    deadline: Instant,
) -> Result<(PeerInbox, UnixStream), LinkError> {
    let dial = Dial { peers, peer, deadline };
    let refused = |why| LinkError::Refused { peer, why };
    let stream = loop {
        match socket::connect(name, dial.patience()?) {
            Ok(stream) => break stream,
            Err(error) if is_timeout(&error) => {}
            Err(error) => {
                let no_socket =
                    error.raw_os_error().is_some_and(|e| e == libc::EMFILE || e == libc::ENFILE);
                let call = if no_socket { "socket" } else { "connect" };
                return Err(LinkError::system(call, &error));
            }
        }
    };
    if !socket::same_user(&stream).map_err(|error| LinkError::system("getsockopt", &error))? {
        return Err(refused("its socket belongs to another user"));
    }

    let mut challenge = [0; NONCE];
    dial.read(&stream, &mut challenge)?;
    let (dialed, hello) = party.dial((Medium::Shm, 0), peer, challenge)?;
    (&stream).write_all(&hello).map_err(|error| dial.broken("write", &error))?;

    let mut proof = [0; PROOF];
    let (mut got, file) = loop {
        stream
            .set_read_timeout(Some(dial.patience()?))
            .map_err(|e| dial.broken("setsockopt", &e))?;
        match socket::receive(&stream, &mut proof) {
            Ok(received) => break received,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(dial.broken("recvmsg", &error)),
        }
    };
    if got == 0 {
        return Err(refused(
            "it does not accept this rank; the two hold different secrets or sizes",
        ));
    }
    dial.read(&stream, &mut proof[std::mem::replace(&mut got, 0)..])?;
    if !party.accepts(&dialed, &proof) {
        return Err(refused("it cannot prove that it belongs to the communicator"));
    }
    let file = file.ok_or(refused("it handed over no inbox"))?;
    let inbox = PeerInbox::map(file.as_fd(), peers.me, peer, peers.layout)?;
    socket::send(&stream, &[0], peers.inbox.file())
        .map_err(|error| dial.broken("sendmsg", &error))?;
    // Its confirmation: a peer that could not take our inbox has not died, it has refused.
    dial.read(&stream, &mut [0])?;
    stream.set_nonblocking(true).map_err(|error| LinkError::system("fcntl", &error))?;
    Ok((inbox, stream))
}

struct Dial<'a> {
    peers: &'a Peers,
    peer: Rank,
    deadline: Instant,
}

impl Dial<'_> {
    /// How long the next call may block; an error if waiting is over.
    fn patience(&self) -> Result<Duration, LinkError> {
        if let Some(error) = self.peers.inbox.header().aborted() {
            return Err(error);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::Timeout { peer: self.peer, during: "connecting" });
        }
        Ok(left.min(SLICE))
    }

    fn read(&self, mut stream: &UnixStream, mut bytes: &mut [u8]) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            stream
                .set_read_timeout(Some(self.patience()?))
                .map_err(|error| self.broken("setsockopt", &error))?;
            match stream.read(bytes) {
                Ok(0) => return Err(self.closed()),
                Ok(got) => bytes = &mut bytes[got..],
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(self.broken("read", &error)),
            }
        }
        Ok(())
    }

    fn closed(&self) -> LinkError {
        LinkError::Refused { peer: self.peer, why: "it closed the connection before it was made" }
    }

    fn broken(&self, call: &'static str, error: &io::Error) -> LinkError {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.closed(),
            _ => LinkError::system(call, error),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
