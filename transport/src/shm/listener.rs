//! The thread that accepts connections of other processes and notices when they end.
//!
//! It never blocks on a peer: all connections are state machines under one `poll`. Whoever has not proven itself within
//! [`PATIENCE`] is dropped, and so is the oldest of too many who have not. A proven peer's connection stays in the
//! set without cost; over it come the peer's offers of segments and answers to ours, and that it ends means that the peer's
//! process left or died.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::sharing::{FRAME, Sharing};
use super::socket;
use crate::Rank;
use crate::error::LinkError;
use crate::handshake::{Credentials, HELLO, Medium, Nonce};
use crate::inbox::PeerInbox;
use crate::memory;
use crate::peers::Peers;
use crate::thread;

/// How long a stranger may take to prove itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many connections may be unproven at a time.
const STRANGERS: usize = 64;
/// How long to leave the queue alone when nothing can be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// A rank's listening socket and its thread.
#[derive(Debug)]
pub(crate) struct Listener {
    name: String,
    /// Wakes the thread; its end ends the thread.
    kick: UnixStream,
    adopted: Sender<(Rank, Arc<Sharing>)>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn start(peers: Arc<Peers>, party: Credentials) -> Result<Self, LinkError> {
        let system = |call| move |error: io::Error| LinkError::system(call, &error);
        let random: [u8; 16] = memory::random()?;
        let name = format!("maypole-{:032x}", u128::from_le_bytes(random));
        let address = SocketAddr::from_abstract_name(&name).map_err(system("bind"))?;
        let listener = UnixListener::bind_addr(&address).map_err(system("bind"))?;
        listener.set_nonblocking(true).map_err(system("fcntl"))?;
        let (kick, kicked) = UnixStream::pair().map_err(system("socketpair"))?;
        kick.set_nonblocking(true).map_err(system("fcntl"))?;
        kicked.set_nonblocking(true).map_err(system("fcntl"))?;
        let (adopted, to_adopt) = channel();
        let service =
            Service { listener, kicked, to_adopt, peers, party, paused: None, connections: vec![] };
        let thread = thread::spawn("maypole-listen", move || service.run())?;
        Ok(Self { name, kick, adopted, thread: Some(thread) })
    }

    /// The abstract name of the socket.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Serves a connection that this rank has dialed.
    pub(crate) fn adopt(&self, peer: Rank, sharing: Arc<Sharing>) {
        // The thread lives as long as `self`; a full pipe means that it is awake anyway.
        let _ = self.adopted.send((peer, sharing));
        let _ = io::Write::write(&mut &self.kick, &[0]);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.kick.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

struct Service {
    listener: UnixListener,
    kicked: UnixStream,
    to_adopt: Receiver<(Rank, Arc<Sharing>)>,
    peers: Arc<Peers>,
    party: Credentials,
    /// Nothing is accepted before that.
    paused: Option<Instant>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: Arc<UnixStream>,
    stage: Stage,
}

enum Stage {
    /// It owes us a hello.
    Stranger { since: Instant, challenge: Nonce, hello: [u8; HELLO], got: usize },
    /// It has proven itself and owes us its inbox.
    Proven { since: Instant, peer: Rank },
    /// All is done.
    Connected { peer: Rank, sharing: Arc<Sharing>, frame: Box<Partial> },
}

/// A frame of which `got` bytes have come.
#[derive(Default)]
struct Partial {
    bytes: [u8; FRAME],
    got: usize,
    file: Option<OwnedFd>,
}

impl Connection {
    /// To a peer with which all is done.
    fn of(peer: Rank, sharing: Arc<Sharing>) -> Self {
        let stream = sharing.stream().clone();
        Self { stream, stage: Stage::Connected { peer, sharing, frame: Box::default() } }
    }
}

impl Stage {
    fn since(&self) -> Option<Instant> {
        match self {
            Self::Stranger { since, .. } | Self::Proven { since, .. } => Some(*since),
            Self::Connected { .. } => None,
        }
    }
}

/// What becomes of a connection.
enum Next {
    Wait,
    Again,
    Drop,
}

impl Service {
    fn run(mut self) {
        while let Some(ready) = self.poll() {
            let mut ready = ready.into_iter();
            let mut connections = std::mem::take(&mut self.connections);
            let now = Instant::now();
            connections.retain_mut(|connection| {
                let due = connection.stage.since().is_some_and(|since| now >= since + PATIENCE);
                let keep = !ready.next().unwrap_or(false) || self.serve(connection);
                if keep && due && connection.stage.since().is_some() {
                    self.give_up(connection);
                    return false;
                }
                keep
            });
            self.connections = connections;
            for (peer, sharing) in self.to_adopt.try_iter() {
                self.connections.push(Connection::of(peer, sharing));
            }
            self.accept();
        }
        // Links that live on keep a connection open; the peer is to see its end all the same.
        for connection in &self.connections {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Sleeps until there is something to do: which connections are ready; None if it is time to end.
    fn poll(&mut self) -> Option<Vec<bool>> {
        let entry =
            |fd: &dyn AsRawFd, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        let now = Instant::now();
        self.paused = self.paused.filter(|&until| until > now);
        let accepting = if self.paused.is_none() { libc::POLLIN } else { 0 };
        let mut entries = vec![entry(&self.kicked, libc::POLLIN), entry(&self.listener, accepting)];
        entries.extend(self.connections.iter().map(|c| entry(&*c.stream, libc::POLLIN)));
        let limits = self.connections.iter().filter_map(|c| Some(c.stage.since()? + PATIENCE));
        let timeout = limits.chain(self.paused).min().map_or(-1, |limit| {
            // Rounded up, so as not to wake just before.
            limit.saturating_duration_since(now).as_millis() as libc::c_int + 1
        });
        // SAFETY: the entries are alive, as many as it is told; the kernel writes their `revents`.
        let result =
            unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
        if result < 0 {
            // Interrupted, or out of memory for a moment: look at everything, nothing blocks.
            entries.iter_mut().for_each(|entry| entry.revents = libc::POLLIN);
        }
        if entries[0].revents != 0 {
            let mut bytes = [0; 64];
            while let Ok(got) = self.kicked.read(&mut bytes) {
                if got == 0 {
                    return None;
                }
            }
        }
        Some(entries[2..].iter().map(|entry| entry.revents != 0).collect())
    }

    fn accept(&mut self) {
        while self.paused.is_none() {
            let result = self.listener.accept().and_then(|(stream, _)| self.greet(stream));
            match result {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // That one went away; the next may not.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    let error = LinkError::system("accept", &error);
                    log::warn!("rank {} cannot accept connections: {error}", self.peers.me);
                    self.peers.trouble(error);
                    self.paused = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Takes a new connection in and challenges it. An error is ours; a stranger's is the end of its connection.
    fn greet(&mut self, stream: UnixStream) -> io::Result<()> {
        if !socket::same_user(&stream)? {
            log::warn!("rank {}: a process of another user tried to connect", self.peers.me);
            return Ok(());
        }
        stream.set_nonblocking(true)?;
        let challenge =
            Credentials::nonce().map_err(|_| io::Error::from_raw_os_error(libc::ENOSYS))?;
        // A fresh socket has room for it; if not, the other end is already gone.
        if io::Write::write(&mut &stream, &challenge).ok() != Some(challenge.len()) {
            return Ok(());
        }
        let mut strangers = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| matches!(connection.stage, Stage::Stranger { .. }));
        if let Some((oldest, _)) = strangers.next()
            && strangers.count() + 1 >= STRANGERS
        {
            log::warn!("rank {}: too many strangers at the door", self.peers.me);
            self.connections.remove(oldest);
        }
        let stage = Stage::Stranger { since: Instant::now(), challenge, hello: [0; HELLO], got: 0 };
        self.connections.push(Connection { stream: Arc::new(stream), stage });
        Ok(())
    }

    /// Does all that can be done without waiting; false drops the connection.
    fn serve(&self, connection: &mut Connection) -> bool {
        loop {
            let Connection { stream, stage } = connection;
            let next = match stage {
                Stage::Stranger { challenge, hello, got, .. } => {
                    match read(stream, &mut hello[*got..]) {
                        Ok(0) => Next::Drop,
                        Ok(more) => {
                            *got += more;
                            if *got < HELLO {
                                Next::Again
                            } else if let Some(peer) = self.prove(stream, challenge, hello) {
                                *stage = Stage::Proven { since: Instant::now(), peer };
                                Next::Again
                            } else {
                                Next::Drop
                            }
                        }
                        Err(next) => next,
                    }
                }
                Stage::Proven { peer, .. } => match self.complete(stream, *peer) {
                    Ok(Some(sharing)) => {
                        *connection = Connection::of(*peer, sharing);
                        Next::Again
                    }
                    Ok(None) => Next::Wait,
                    Err(error) => {
                        log::warn!("rank {}: {error}", self.peers.me);
                        self.peers.fail(*peer, error);
                        Next::Drop
                    }
                },
                Stage::Connected { peer, sharing, frame } => {
                    let next = self.share(*peer, sharing, frame);
                    if matches!(next, Next::Drop) {
                        self.peers.lost(*peer);
                    }
                    next
                }
            };
            match next {
                Next::Again => {}
                Next::Wait => return true,
                Next::Drop => return false,
            }
        }
    }

    /// Checks a hello and answers it with our proof and our inbox.
    fn prove(&self, stream: &UnixStream, challenge: &Nonce, hello: &[u8; HELLO]) -> Option<Rank> {
        let me = self.peers.me;
        let Some((peer, _, proof)) = self.party.answer(Medium::Shm, *challenge, hello) else {
            log::warn!("rank {me}: refused a process that does not know the communicator's secret");
            return None;
        };
        if self.peers.get(peer).is_some() {
            log::warn!("rank {me}: refused a second process that says it is rank {peer}");
            return None;
        }
        self.peers.begin(peer);
        if let Err(error) = socket::send(stream, &proof, self.peers.inbox.file()) {
            self.peers.fail(peer, broken(peer, "sendmsg", &error));
            return None;
        }
        Some(peer)
    }

    /// Reads what a connected peer says of segments, a frame at most.
    fn share(&self, peer: Rank, sharing: &Sharing, frame: &mut Partial) -> Next {
        match socket::receive(sharing.stream(), &mut frame.bytes[frame.got..]) {
            Ok((0, _)) => return Next::Drop,
            Ok((got, file)) => {
                frame.got += got;
                frame.file = file.or(frame.file.take());
            }
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Next::Wait,
                    // The frame has come, and there is no room for its descriptor: an offer that is refused.
                    _ if error.raw_os_error() == Some(libc::EMFILE) => frame.got = FRAME,
                    _ => return Next::Drop,
                }
            }
        }
        if frame.got == FRAME {
            let Partial { bytes, file, .. } = std::mem::take(frame);
            if !sharing.serve(&bytes, file) {
                log::warn!("rank {}: rank {peer} sent what is no frame", self.peers.me);
                return Next::Drop;
            }
            // A rank may wait for an answer.
            self.peers.inbox.header().doorbell.ring();
        }
        Next::Again
    }

    /// Takes the inbox of a proven peer; None if it has not come yet.
    fn complete(
        &self,
        stream: &Arc<UnixStream>,
        peer: Rank,
    ) -> Result<Option<Arc<Sharing>>, LinkError> {
        let refused = |why| Err(LinkError::Refused { peer, why });
        let file = match socket::receive(stream, &mut [0]) {
            Ok((0, _)) => return refused(CLOSED),
            Ok((_, None)) => return refused("it handed over no inbox"),
            Ok((_, Some(file))) => file,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(broken(peer, "recvmsg", &error)),
        };
        let inbox = PeerInbox::map(file.as_fd(), self.peers.me, peer, self.peers.layout)?;
        // The dialer counts on nothing before this: a connection that ends without it was never made. And nothing else may come to it
        // first, so it is not known to this rank before.
        match io::Write::write(&mut &**stream, &[CONFIRMED]) {
            Ok(1) => {}
            Ok(_) => return refused(CLOSED),
            Err(error) => return Err(broken(peer, "write", &error)),
        }
        let sharing = Arc::new(Sharing::new(stream.clone()));
        self.peers.add(peer, inbox, Some(sharing.clone()));
        Ok(Some(sharing))
    }

    fn give_up(&self, connection: &Connection) {
        if let Stage::Proven { peer, .. } = connection.stage {
            self.peers.fail(peer, LinkError::Timeout { peer, during: "exchanging inboxes" });
        }
    }
}

/// The last byte of a handshake, to the dialer.
const CONFIRMED: u8 = 1;

const CLOSED: &str = "it closed the connection before it was made";

/// A call on the connection of a proven peer failed.
fn broken(peer: Rank, call: &'static str, error: &io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            LinkError::Refused { peer, why: CLOSED }
        }
        _ => LinkError::system(call, error),
    }
}

fn read(mut stream: &UnixStream, bytes: &mut [u8]) -> Result<usize, Next> {
    stream.read(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Next::Wait,
        io::ErrorKind::Interrupted => Next::Again,
        _ => Next::Drop,
    })
}
