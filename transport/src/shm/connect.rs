//! Dialing a rank of another process of the host.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::socket;
use super::stage::{InboxAnswer, OTHER_MEMORY, has_word};
use crate::Rank;
use crate::credentials::{self, Credentials};
use crate::error::LinkError;
use crate::inbox::PeerInbox;
use crate::noise::{self, ANSWER_BYTES, Purpose, REFUSAL_BYTES};
use crate::peers::PeerTable;

/// Longest time between two checks of a wait for an abort.
const ABORT_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Dials `peer` at the socket `name` and exchanges inboxes. Keep the stream: it ends when the peer
/// dies.
pub(crate) fn connect(
    peers: &PeerTable,
    credentials: &Credentials,
    peer: Rank,
    name: &[u8],
    deadline: Instant,
) -> Result<(PeerInbox, UnixStream), LinkError> {
    let dial = ShmDial { peers, peer, deadline, give_up: &|| false };
    let (inbox, stream) = dial.exchange_inboxes(credentials, name, Purpose::Shm)?;
    stream.set_nonblocking(true).map_err(|error| LinkError::system("fcntl", error))?;
    Ok((inbox, stream))
}

/// Proves that this rank shares the host of `peer`, which is lower, by the words in the memory of
/// their inboxes, which each reads from that of the other. `give_up` is asked during the wait.
///
/// # Errors
/// It is not proven.
pub(crate) fn prove_host(
    peers: &PeerTable,
    credentials: &Credentials,
    (peer, name): (Rank, &[u8]),
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(), LinkError> {
    let dial = ShmDial { peers, peer, deadline, give_up };
    dial.exchange_inboxes(credentials, name, Purpose::Host).map(|_| ())
}

struct ShmDial<'a> {
    peers: &'a PeerTable,
    peer: Rank,
    deadline: Instant,
    /// Asked during waits.
    give_up: &'a dyn Fn() -> bool,
}

impl ShmDial<'_> {
    /// Exchanges inboxes with the peer, and compares the words in them with what it says.
    fn exchange_inboxes(
        &self,
        credentials: &Credentials,
        name: &[u8],
        purpose: Purpose,
    ) -> Result<(PeerInbox, UnixStream), LinkError> {
        let Self { peers, peer, .. } = *self;
        let refused = |why| LinkError::Refused { peer, why };
        let stream = self.open_stream(name)?;
        if !socket::is_same_user(&stream).map_err(|error| LinkError::system("getsockopt", error))? {
            return Err(refused("its socket belongs to another user"));
        }

        let (dialer, first) = credentials.dial((purpose, 0), peer)?;
        (&stream).write_all(&first).map_err(|error| self.stream_error("write", error))?;

        let mut answer = [0; ANSWER_BYTES];
        let (mut got, file) = loop {
            self.bound_next_read(&stream)?;
            match socket::receive(&stream, &mut answer) {
                Ok(received) => break received,
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(self.stream_error("recvmsg", error)),
            }
        };
        if got == 0 {
            return Err(self.closed());
        }
        if got < REFUSAL_BYTES {
            self.read(&stream, &mut answer[got..REFUSAL_BYTES])?;
            got = REFUSAL_BYTES;
        }
        if let Some(why) = answer.first_chunk().and_then(noise::refusal_in) {
            return Err(credentials::refused(peer, why));
        }
        self.read(&stream, &mut answer[got..])?;
        let file = file.ok_or(refused("it sent no inbox"));
        let inbox =
            file.and_then(|file| PeerInbox::map(file.as_fd(), peers.rank, peer, peers.layout));
        let own = peers.file_for(peer);
        if purpose == Purpose::Shm {
            peers.let_others_ring();
        }
        let (inbox, own) = match (inbox, own) {
            (Ok(inbox), Ok(own)) => (Ok(inbox), Some(own)),
            (Err(error), _) | (_, Err(error)) => (Err(error), None),
        };
        let sent = if own.is_some() { InboxAnswer::Sent } else { InboxAnswer::Refused };
        let (_, said, confirmation) = dialer
            .finish(&answer, &sent.to_data(peers))
            .map_err(|why| credentials::refused(peer, why))?;
        if inbox.as_ref().is_ok_and(|inbox| !has_word(inbox, &said)) {
            return Err(refused(OTHER_MEMORY));
        }
        // If the inbox cannot be used the peer learns that too.
        let result = match own {
            Some(own) => socket::send_with_descriptor(&stream, &confirmation, own),
            None => socket::send(&stream, &confirmation),
        };
        let inbox = inbox?;
        result.map_err(|error| self.stream_error("sendmsg", error))?;
        // The peer's confirmation. A peer that cannot map this rank's inbox has refused, and not
        // died.
        self.read(&stream, &mut [0])?;
        Ok((inbox, stream))
    }

    fn open_stream(&self, name: &[u8]) -> Result<UnixStream, LinkError> {
        loop {
            match socket::connect(name, self.time_for_next_call()?) {
                Ok(stream) => return Ok(stream),
                Err(error) if is_timeout(&error) => {}
                Err(error) => {
                    let no_socket = error
                        .raw_os_error()
                        .is_some_and(|errno| errno == libc::EMFILE || errno == libc::ENFILE);
                    let call = if no_socket { "socket" } else { "connect" };
                    return Err(LinkError::system(call, error));
                }
            }
        }
    }

    /// How long the next call may block.
    ///
    /// # Errors
    /// The communicator was aborted, or the deadline has passed.
    fn time_for_next_call(&self) -> Result<Duration, LinkError> {
        if let Some(error) = self.peers.inbox.header().aborted() {
            return Err(error);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || (self.give_up)() {
            return Err(LinkError::Timeout { peer: self.peer, during: "connecting", last: None });
        }
        Ok(left.min(ABORT_CHECK_INTERVAL))
    }

    fn bound_next_read(&self, stream: &UnixStream) -> Result<(), LinkError> {
        let timeout = self.time_for_next_call()?;
        stream
            .set_read_timeout(Some(timeout))
            .map_err(|error| self.stream_error("setsockopt", error))
    }

    fn read(&self, mut stream: &UnixStream, mut bytes: &mut [u8]) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            self.bound_next_read(stream)?;
            match stream.read(bytes) {
                Ok(0) => return Err(self.closed()),
                Ok(got) => bytes = &mut bytes[got..],
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(self.stream_error("read", error)),
            }
        }
        Ok(())
    }

    fn closed(&self) -> LinkError {
        LinkError::Refused { peer: self.peer, why: "it closed the connection before it was made" }
    }

    fn stream_error(&self, call: &'static str, error: io::Error) -> LinkError {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.closed(),
            _ => LinkError::system(call, error),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
