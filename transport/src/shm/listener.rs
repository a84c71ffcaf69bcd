//! The thread that accepts connections of other processes and notices when they end.
//!
//! The thread never blocks on a peer: all connections are state machines under one `poll`. A
//! connection that has not proven itself within ten seconds is dropped, and so is the oldest one if
//! there are too many. A proven peer's connection stays in the set. Over it come the peer's offers
//! of segments and its answers to this rank's offers. Its end means that the peer's process left or
//! died.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::ends::ShmPeer;
use super::sharing::{SEGMENT_FRAME_BYTES, SegmentSharing};
use super::socket;
use super::stage::{
    ConnectionStage, InboxAnswer, NextAction, OTHER_MEMORY, PartialConfirmation, PartialFrame,
    ShmConnection, has_word, word_data,
};
use crate::Rank;
use crate::credentials::Credentials;
use crate::error::LinkError;
use crate::inbox::PeerInbox;
use crate::noise::{self, CONFIRMATION_BYTES, DATA_BYTES, FIRST_BYTES, Purpose};
use crate::peers::PeerTable;
use crate::process::occupy_standard_streams;
use crate::random::random_bytes;
use crate::strangers;
use crate::thread;

/// How many connections may be unproven at a time.
const MAX_UNPROVEN: usize = 64;
/// How long to wait after an error before accepting again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A rank's listening socket and its thread.
#[derive(Debug)]
pub(crate) struct ShmListener {
    name: String,
    /// A byte wakes the thread; the end of the stream ends the thread.
    wake: UnixStream,
    dialed: Sender<(Rank, Arc<SegmentSharing>)>,
    thread: Option<JoinHandle<()>>,
}

impl ShmListener {
    /// Listens at an abstract name and starts the thread.
    pub(crate) fn start(
        peers: Arc<PeerTable>,
        credentials: Credentials,
    ) -> Result<Self, LinkError> {
        let system = |call| move |error: io::Error| LinkError::system(call, error);
        let random: [u8; 16] = random_bytes()?;
        let name = format!("maypole-{:032x}", u128::from_le_bytes(random));
        let address = SocketAddr::from_abstract_name(&name).map_err(system("bind"))?;
        let listener = UnixListener::bind_addr(&address).map_err(system("bind"))?;
        listener.set_nonblocking(true).map_err(system("fcntl"))?;
        let (wake, woken) = UnixStream::pair().map_err(system("socketpair"))?;
        wake.set_nonblocking(true).map_err(system("fcntl"))?;
        woken.set_nonblocking(true).map_err(system("fcntl"))?;
        let (dialed, to_serve) = channel();
        let service = ShmService {
            listener,
            woken,
            dialed: to_serve,
            peers,
            credentials,
            paused_until: None,
            connections: vec![],
        };
        let guard = service.peers.clone();
        let run = move || guard.guard(|| service.run());
        let thread = thread::spawn("maypole-listen", run)?;
        Ok(Self { name, wake, dialed, thread: Some(thread) })
    }

    /// The abstract name of the socket.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Lets the thread serve a connection that this rank has dialed.
    pub(crate) fn serve(&self, peer: Rank, sharing: Arc<SegmentSharing>) {
        // The thread lives as long as `self`. If the stream is full, the thread is awake anyway.
        let _ = self.dialed.send((peer, sharing));
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for ShmListener {
    fn drop(&mut self) {
        let _ = self.wake.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
    }
}

/// The state of the thread.
struct ShmService {
    listener: UnixListener,
    woken: UnixStream,
    dialed: Receiver<(Rank, Arc<SegmentSharing>)>,
    peers: Arc<PeerTable>,
    credentials: Credentials,
    /// Nothing is accepted before this time.
    paused_until: Option<Instant>,
    connections: Vec<ShmConnection>,
}

impl ShmService {
    fn run(mut self) {
        while let Some(ready) = self.wait_for_events() {
            let mut ready = ready.into_iter();
            let mut connections = std::mem::take(&mut self.connections);
            let now = Instant::now();
            connections.retain_mut(|connection| {
                let due = connection.stage.deadline().is_some_and(|deadline| now >= deadline);
                let keep = !ready.next().unwrap_or(false) || self.advance(connection);
                keep && !(due && connection.stage.deadline().is_some())
            });
            self.connections = connections;
            for (peer, sharing) in self.dialed.try_iter() {
                self.connections.push(ShmConnection::connected(peer, sharing));
            }
            self.accept_all();
        }
        // Links that still exist keep their connection open, but the peer must see its end.
        for connection in &self.connections {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Sleeps until there is something to do. Returns for each connection whether it is ready;
    /// `None` if the thread must end.
    fn wait_for_events(&mut self) -> Option<Vec<bool>> {
        let now = Instant::now();
        self.paused_until = self.paused_until.filter(|&until| until > now);
        let accepting =
            if self.paused_until.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut entries = Vec::with_capacity(2 + self.connections.len());
        entries.push(PollFd::from_borrowed_fd(self.woken.as_fd(), PollFlags::IN));
        entries.push(PollFd::from_borrowed_fd(self.listener.as_fd(), accepting));
        for connection in &self.connections {
            entries.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN));
        }
        let deadlines = self.connections.iter().filter_map(|c| c.stage.deadline());
        let timeout = deadlines.chain(self.paused_until).min().map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let failed = rustix::event::poll(&mut entries, timeout.as_ref()).is_err();
        // After a failure (interrupted, or briefly out of memory) all are checked; nothing blocks.
        let is_ready = |entry: &PollFd<'_>| failed || !entry.revents().is_empty();
        let woken = is_ready(&entries[0]);
        let ready = entries[2..].iter().map(is_ready).collect();
        if woken {
            let mut bytes = [0; 64];
            while let Ok(got) = (&self.woken).read(&mut bytes) {
                if got == 0 {
                    return None;
                }
            }
        }
        Some(ready)
    }

    fn accept_all(&mut self) {
        occupy_standard_streams();
        while self.paused_until.is_none() {
            let result = self.listener.accept().and_then(|(stream, _)| self.add(stream));
            match result {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // This caller went away; the next may not.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    let error = LinkError::system("accept", error);
                    log::warn!("rank {} cannot accept connections: {error}", self.peers.rank);
                    self.peers.set_accept_error(error);
                    self.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Adds a new connection. An error is this rank's; a fault of the caller only ends its
    /// connection.
    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        let rank = self.peers.rank;
        if !socket::is_same_user(&stream)? {
            strangers::report(
                log::Level::Warn,
                format_args!("rank {rank}: a process of another user tried to connect"),
            );
            return Ok(());
        }
        stream.set_nonblocking(true)?;
        // Those that have sent nothing valid go first.
        let unproven = self.connections.iter().enumerate().filter_map(|(at, connection)| {
            match connection.stage {
                ConnectionStage::AwaitFirst { .. } => Some((false, at)),
                ConnectionStage::AwaitConfirmation { .. } => Some((true, at)),
                ConnectionStage::Connected { .. } => None,
            }
        });
        if unproven.clone().count() >= MAX_UNPROVEN
            && let Some((_, oldest)) = unproven.min()
        {
            strangers::report(
                log::Level::Warn,
                format_args!("rank {rank}: too many connections that have not proven themselves"),
            );
            self.connections.remove(oldest);
        }
        let since = Instant::now();
        let stage = ConnectionStage::AwaitFirst { since, first: [0; FIRST_BYTES], got: 0 };
        self.connections.push(ShmConnection { stream: Arc::new(stream), stage });
        Ok(())
    }

    /// Does everything that is possible without waiting. False drops the connection.
    fn advance(&self, connection: &mut ShmConnection) -> bool {
        loop {
            let ShmConnection { stream, stage } = connection;
            let next = match stage {
                ConnectionStage::AwaitFirst { first, got, .. } => {
                    match read(stream, &mut first[*got..]) {
                        Ok(0) => NextAction::Drop,
                        Ok(more) => {
                            *got += more;
                            if *got < FIRST_BYTES {
                                NextAction::Continue
                            } else if let Some(next) = self.answer(stream, first) {
                                *stage = next;
                                NextAction::Continue
                            } else {
                                NextAction::Drop
                            }
                        }
                        Err(next) => next,
                    }
                }
                ConnectionStage::AwaitConfirmation { confirmation, .. } => {
                    match confirmation.read(stream) {
                        Ok(false) => NextAction::Continue,
                        // The stage ends here.
                        Ok(true) => match self.take_confirmation(connection) {
                            Some(connected) => {
                                *connection = connected;
                                NextAction::Continue
                            }
                            None => NextAction::Drop,
                        },
                        Err(next) => next,
                    }
                }
                ConnectionStage::Connected { peer, sharing, frame } => {
                    let next = self.read_frame(*peer, sharing, frame);
                    if matches!(next, NextAction::Drop) {
                        self.peers.connection_ended(*peer);
                    }
                    next
                }
            };
            match next {
                NextAction::Continue => {}
                NextAction::Wait => return true,
                NextAction::Drop => return false,
            }
        }
    }

    /// Answers a first message with this rank's inbox. Returns the next stage; `None` if the dialer
    /// is refused.
    fn answer(&self, stream: &UnixStream, first: &[u8; FIRST_BYTES]) -> Option<ConnectionStage> {
        let rank = self.peers.rank;
        let (listener, answer) =
            match self.credentials.answer(Purpose::Shm, first, &word_data(&self.peers)) {
                Ok(answered) => answered,
                Err(refused) => {
                    strangers::report(
                        log::Level::Warn,
                        format_args!(
                            "rank {rank}: refused a process that does not know the communicator's \
                         secret"
                        ),
                    );
                    if let Some(reply) = refused.reply {
                        let _ = socket::send(stream, &reply);
                    }
                    return None;
                }
            };
        let (peer, is_proof) = (listener.binding().from, is_proof(&listener));
        if self.peers.get(peer).is_some() && !is_proof {
            log::warn!("rank {rank}: refused a second process that says it is rank {peer}");
            return None;
        }
        if !is_proof {
            self.peers.clear_failure(peer);
            self.peers.let_others_ring();
        }
        let file = match self.peers.file_for(peer) {
            Ok(file) => file,
            Err(error) => {
                if !is_proof {
                    self.peers.set_failure(peer, error);
                }
                return None;
            }
        };
        if let Err(error) = socket::send_with_descriptor(stream, &answer, file) {
            // If the dialer went away it was no failure: it may have sent the message long ago.
            if let error @ LinkError::System { .. } = stream_error(peer, "sendmsg", error)
                && !is_proof
            {
                self.peers.set_failure(peer, error);
            }
            return None;
        }
        let confirmation = PartialConfirmation {
            listener,
            bytes: [0; CONFIRMATION_BYTES],
            got: 0,
            file: None,
            no_room: None,
        };
        let (since, confirmation) = (Instant::now(), Box::new(confirmation));
        Some(ConnectionStage::AwaitConfirmation { since, peer, confirmation })
    }

    /// Takes the confirmation and the inbox of a peer, which is then proven. Returns the connection
    /// over which inboxes are exchanged; `None` if that failed.
    fn take_confirmation(&self, connection: &mut ShmConnection) -> Option<ShmConnection> {
        let since = Instant::now();
        let over = ConnectionStage::AwaitFirst { since, first: [0; FIRST_BYTES], got: 0 };
        let ConnectionStage::AwaitConfirmation { peer, confirmation, .. } =
            std::mem::replace(&mut connection.stage, over)
        else {
            return None;
        };
        let PartialConfirmation { listener, bytes, file, no_room, .. } = *confirmation;
        // Until now the peer may be someone who repeats its first message, so that nothing is
        // reported of it.
        let is_proof = is_proof(&listener);
        let (_, _, data) = listener.finish(&bytes).ok()?;
        let taken = match no_room {
            Some(error) => Err(LinkError::system("recvmsg", error)),
            None => self.take_inbox(&connection.stream, peer, &data, file),
        };
        if is_proof {
            // The dialer knows, and the connection has served its purpose.
            return None;
        }
        let taken = taken.map(|inbox| {
            let sharing = Arc::new(SegmentSharing::new(connection.stream.clone()));
            let own = self.peers.inbox.clone();
            self.peers.add(peer, Arc::new(ShmPeer::new(peer, own, inbox, sharing.clone())));
            sharing
        });
        match taken {
            Ok(sharing) => Some(ShmConnection::connected(peer, sharing)),
            Err(error) => {
                log::warn!("rank {}: {error}", self.peers.rank);
                self.peers.set_failure(peer, error);
                None
            }
        }
    }

    /// Takes the inbox of a proven peer, and tells the peer so.
    fn take_inbox(
        &self,
        stream: &Arc<UnixStream>,
        peer: Rank,
        data: &[u8; DATA_BYTES],
        file: Option<OwnedFd>,
    ) -> Result<PeerInbox, LinkError> {
        let refused = |why| LinkError::Refused { peer, why };
        if !InboxAnswer::is_sent(data) {
            return Err(refused("it cannot use the inbox of this rank"));
        }
        let file = file.ok_or(refused("it sent no inbox"))?;
        let inbox = PeerInbox::map(file.as_fd(), self.peers.rank, peer, self.peers.layout)?;
        if !has_word(&inbox, data) {
            return Err(refused(OTHER_MEMORY));
        }
        // The dialer relies on nothing before this byte: a connection that ends without it was
        // never made. The byte must also be the first on the stream, so this rank adds the peer
        // later.
        match (&**stream).write(&[CONFIRMED]) {
            Ok(1) => {}
            Ok(_) => return Err(refused(CLOSED)),
            Err(error) => return Err(stream_error(peer, "write", error)),
        }
        Ok(inbox)
    }

    /// Reads at most one frame of a connected peer.
    fn read_frame(
        &self,
        peer: Rank,
        sharing: &SegmentSharing,
        frame: &mut PartialFrame,
    ) -> NextAction {
        match socket::receive(sharing.stream(), &mut frame.bytes[frame.got..]) {
            Ok((0, _)) => return NextAction::Drop,
            Ok((got, file)) => {
                frame.got += got;
                frame.file = file.or(frame.file.take());
            }
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::WouldBlock => return NextAction::Wait,
                    // The frame has arrived, but the process has no room for its descriptor: an
                    // offer that will be refused.
                    _ if error.raw_os_error() == Some(libc::EMFILE) => {
                        frame.got = SEGMENT_FRAME_BYTES;
                    }
                    _ => return NextAction::Drop,
                }
            }
        }
        if frame.got == SEGMENT_FRAME_BYTES {
            let PartialFrame { bytes, file, .. } = std::mem::take(frame);
            if !sharing.handle_frame(&bytes, file) {
                let rank = self.peers.rank;
                log::warn!("rank {rank}: rank {peer} sent an invalid frame about segments");
                return NextAction::Drop;
            }
            // A rank may wait for an answer.
            self.peers.inbox.header().doorbell.ring();
        }
        NextAction::Continue
    }
}

/// Whether the dialer only proves that it shares the host.
fn is_proof(listener: &noise::Listener) -> bool {
    listener.binding().purpose == Purpose::Host
}

/// The byte after a handshake, from the listener to the dialer.
const CONFIRMED: u8 = 1;

const CLOSED: &str = "it closed the connection before it was made";

/// The error for a failed call on the connection of a proven peer.
fn stream_error(peer: Rank, call: &'static str, error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            LinkError::Refused { peer, why: CLOSED }
        }
        _ => LinkError::system(call, error),
    }
}

fn read(mut stream: &UnixStream, bytes: &mut [u8]) -> Result<usize, NextAction> {
    stream.read(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => NextAction::Wait,
        io::ErrorKind::Interrupted => NextAction::Continue,
        _ => NextAction::Drop,
    })
}
