//! Strangers that connect to all ports of a job, and a proxy that records the handshakes of real
//! ranks.

use maypole_transport::sync::{AtomicBool, AtomicUsize, Ordering};
use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole::Options;
use maypole::UniqueId;
use maypole::internal::bootstrap::RejoinListener;
use maypole_transport::noise::{ANSWER_BYTES, CONFIRMATION_BYTES, FIRST_BYTES, Key, REFUSAL_BYTES};

/// Most connections that the strangers hold open. One more ends the oldest.
const MOST_OPEN: usize = 400;
/// Finding the ports at which the job listens takes this fraction (1 / n) of the time of the
/// strangers.
const SCAN_SHARE: u32 = 2;
/// Bytes that a stranger may get: none, a refusal, or the answer to a first message that it
/// repeats.
const ANSWERS: [usize; 3] = [0, REFUSAL_BYTES, ANSWER_BYTES];
/// Bytes that a rank sends in its handshake.
const HANDSHAKE_BYTES: usize = FIRST_BYTES + CONFIRMATION_BYTES;
/// How long a stranger tries to connect. A listener whose queue is full does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the strangers may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(40);

/// A bootstrap root in this process, and a proxy in front of it that records what ranks send.
pub(crate) struct RecordingProxy {
    secret: Key,
    reach: Vec<u8>,
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    closed: Arc<AtomicBool>,
    proxy: Option<JoinHandle<()>>,
}

impl RecordingProxy {
    pub(crate) fn open() -> Self {
        // Strangers, proxy and root are all in this process.
        crate::ranks::raise_descriptors();
        let secret = Key::new([0x5e; 32]);
        let before = ports(&[std::process::id()]);
        let mut rejoin = RejoinListener::open().expect("a port");
        let options = Options { timeout: TEST_TIMEOUT, notice: TEST_TIMEOUT, ..Options::default() };
        rejoin.start_root(&secret, &[], &options).expect("a root");
        let loopback = |port: &Port| match port {
            Port::Tcp(address) if address.ip() == Ipv4Addr::LOCALHOST => Some(*address),
            _ => None,
        };
        let now = ports(&[std::process::id()]).into_iter().filter(|port| !before.contains(port));
        let root = now.filter_map(|port| loopback(&port)).next().expect("the root is reached");

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("an address").port();
        // The host's tag, one address, its family.
        let mut reach = rejoin.address()[..8].to_vec();
        reach.extend([1, 4, 127, 0, 0, 1]);
        reach.extend(port.to_le_bytes());

        let (recorded, closed) = (Arc::default(), Arc::<AtomicBool>::default());
        let proxy = std::thread::spawn({
            let (recorded, closed) = (Arc::clone(&recorded), Arc::clone(&closed));
            move || serve(&listener, root, &recorded, &closed)
        });
        Self { secret, reach, recorded, closed, proxy: Some(proxy) }
    }

    /// The unique id of the job, with the address of the proxy.
    pub(crate) fn id(&self) -> UniqueId {
        UniqueId::at_rejoin_listener(&self.reach, &self.secret).expect("an id")
    }

    /// The same id with another secret.
    pub(crate) fn id_with_another_secret(&self) -> UniqueId {
        UniqueId::at_rejoin_listener(&self.reach, &Key::new([0xe5; 32])).expect("an id")
    }

    /// The number of handshakes that were recorded.
    pub(crate) fn handshakes(&self) -> usize {
        lock(&self.recorded).iter().filter(|sent| sent.len() > HANDSHAKE_BYTES).count()
    }
}

impl Drop for RecordingProxy {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(proxy) = self.proxy.take() {
            let _ = proxy.join();
        }
    }
}

/// Passes bytes on in both directions, until the proxy is closed.
fn serve(
    listener: &TcpListener,
    root: SocketAddr,
    recorded: &Arc<Mutex<Vec<Vec<u8>>>>,
    closed: &AtomicBool,
) {
    let mut pumps = Vec::new();
    while !closed.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        client.set_nonblocking(false).expect("a socket");
        // The root ends when all ranks have joined.
        let Ok(server) = TcpStream::connect(root) else { continue };
        let number = {
            let mut recorded = lock(recorded);
            recorded.push(Vec::new());
            recorded.len() - 1
        };
        let twin = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        let (from_client, to_server) = (twin(&client), twin(&server));
        let recorded = Arc::clone(recorded);
        pumps.push(std::thread::spawn(move || {
            pump(from_client, to_server, |bytes| lock(&recorded)[number].extend(bytes));
        }));
        pumps.push(std::thread::spawn(move || pump(server, client, |_| ())));
    }
    for pump in pumps {
        pump.join().expect("a pump");
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut record: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        record(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Strangers that connect until they are stopped.
pub(crate) struct StrangerAttack {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: JoinHandle<String>,
    _proxy: RecordingProxy,
}

impl StrangerAttack {
    /// Starts to connect to the ports of these processes, and to those of the root behind the
    /// proxy.
    pub(crate) fn start(pids: &[u32], proxy: RecordingProxy) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let pids = [pids, &[std::process::id()]].concat();
        let thread = std::thread::spawn({
            let (stop, made, recorded) =
                (Arc::clone(&stop), Arc::clone(&made), Arc::clone(&proxy.recorded));
            move || {
                let mut strangers = Strangers { recorded, ..Strangers::default() };
                let mut look_at = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let now = Instant::now();
                    if now >= look_at {
                        strangers.ports = ports(&pids);
                        look_at = Instant::now() + now.elapsed() * (SCAN_SHARE - 1);
                    }
                    strangers.connect_one();
                    made.store(strangers.connected, Ordering::Relaxed);
                }
                strangers.report()
            }
        });
        Self { stop, made, thread, _proxy: proxy }
    }

    /// Returns when this number of connections was made.
    pub(crate) fn wait_for(&self, count: usize) {
        let until = Instant::now() + TEST_TIMEOUT;
        while self.made.load(Ordering::Relaxed) < count && !self.thread.is_finished() {
            assert!(Instant::now() < until, "only {:?} strangers connected", self.made);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the strangers, and returns a summary.
    pub(crate) fn stop(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no stranger was accepted")
    }
}

#[derive(Default)]
struct Strangers {
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    ports: Vec<Port>,
    open: VecDeque<Stranger>,
    /// The ports to which a stranger was connected.
    visited: HashSet<Port>,
    connected: usize,
    refused: usize,
    answered: usize,
    random: u64,
}

struct Stranger {
    stream: Stream,
    /// Bytes to be sent one by one, in reverse order.
    to_send: Vec<u8>,
    /// Whether it connected to a status server, which answers any process of the same user, but
    /// only with the status.
    is_status_server: bool,
}

impl Strangers {
    /// Connects another stranger, and ends the oldest if there are too many.
    fn connect_one(&mut self) {
        if self.ports.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            return;
        }
        let at = self.below(self.ports.len());
        let port = self.ports[at].clone();
        match port.connect() {
            Ok(stream) => {
                self.connected += 1;
                let is_status_server = port.is_status_server();
                self.visited.insert(port);
                self.send_something(stream, is_status_server);
            }
            Err(_) => self.refused += 1,
        }
        if self.open.len() > MOST_OPEN {
            self.end_oldest();
        }
        for _ in 0..8 {
            let at = self.below(self.open.len().max(1));
            if let Some(Stranger { stream, to_send, .. }) = self.open.get_mut(at)
                && let Some(byte) = to_send.pop()
            {
                stream.send(&[byte]);
            }
        }
    }

    /// Sends one of several kinds of bytes.
    fn send_something(&mut self, mut stream: Stream, is_status_server: bool) {
        let (first, noise) = (self.first_message(), self.noise(300));
        let mut to_send = Vec::new();
        match self.below(8) {
            // Nothing, and the connection stays open.
            0 => {}
            // Nothing, and the connection ends; all others end by a reset.
            1 => return,
            2 => stream.send(&noise),
            3 => stream.send(&first[..28]),
            // A first message and a confirmation that were made up.
            4 => stream.send(&[&first, &noise[..CONFIRMATION_BYTES]].concat()),
            // What a real rank sent, completely or without the last byte; or its first message.
            kind @ (5 | 6) => {
                let mut sent = self.recorded_handshake();
                if self.below(4) == 0 {
                    sent.truncate(FIRST_BYTES);
                }
                stream.send(&sent[..sent.len().saturating_sub(kind - 5)]);
            }
            _ => to_send = first.into_iter().chain(noise).rev().collect(),
        }
        stream.end_by_reset();
        self.open.push_back(Stranger { stream, to_send, is_status_server });
    }

    /// Ends the oldest connection. It must have got no more than an answer.
    fn end_oldest(&mut self) {
        let Some(mut oldest) = self.open.pop_front() else { return };
        let answer = oldest.stream.received();
        let harmless = oldest.is_status_server || ANSWERS.contains(&answer);
        assert!(harmless, "a stranger was accepted and got {answer} bytes");
        self.answered += usize::from(answer > 0);
    }

    fn report(mut self) -> String {
        while !self.open.is_empty() {
            self.end_oldest();
        }
        format!(
            "{} connections to {} ports, {} of which got an answer; {} were refused",
            self.connected,
            self.visited.len(),
            self.answered,
            self.refused
        )
    }

    /// A first message that was made without the secret.
    fn first_message(&mut self) -> Vec<u8> {
        [b"MAYPOLE\x02", &self.noise(FIRST_BYTES - 8)[..]].concat()
    }

    /// The bytes that a rank has sent to the root.
    fn recorded_handshake(&mut self) -> Vec<u8> {
        let at = self.below(3);
        lock(&self.recorded).get(at).cloned().unwrap_or_default()
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }

    fn below(&mut self, bound: usize) -> usize {
        // The high bits of a linear congruential generator (Knuth's constants).
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.random >> 33) % bound as u64) as usize
    }
}

/// An address at which a process listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Port {
    Tcp(SocketAddr),
    /// The abstract name of a Unix socket.
    Unix(String),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Port {
    /// Whether it is a status server, which `maypole ps` asks.
    fn is_status_server(&self) -> bool {
        matches!(self, Self::Unix(name) if name.starts_with("maypole/"))
    }

    fn connect(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, CONNECT_TIMEOUT)?;
                stream.set_nonblocking(true)?;
                Stream::Tcp(stream)
            }
            Self::Unix(name) => {
                let stream = UnixStream::connect_addr(&UnixAddr::from_abstract_name(name)?)?;
                stream.set_nonblocking(true)?;
                Stream::Unix(stream)
            }
        })
    }
}

impl Stream {
    /// Makes the connection leave no address in TIME_WAIT: thousands of them would slow down the
    /// search for free ports.
    fn end_by_reset(&self) {
        let Self::Tcp(stream) = self else { return };
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the descriptor is open, and `linger` lives during the call and has the given
        // length.
        let set = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            )
        };
        assert_eq!(set, 0);
    }

    fn send(&mut self, bytes: &[u8]) {
        // The other end may close the connection of a stranger at any time.
        let _ = match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        };
    }

    /// The number of bytes that have come.
    fn received(&mut self) -> usize {
        let (mut buffer, mut count) = ([0; 256], 0);
        loop {
            let read = match self {
                Self::Tcp(stream) => stream.read(&mut buffer),
                Self::Unix(stream) => stream.read(&mut buffer),
            };
            match read {
                Ok(more @ 1..) => count += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return count,
            }
        }
    }
}

/// The addresses at which these processes listen.
fn ports(pids: &[u32]) -> Vec<Port> {
    let mut inodes = HashSet::new();
    for pid in pids {
        // A process may have ended.
        let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for target in fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()) {
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']'));
            inodes.extend(inode.map(str::to_owned));
        }
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "unix"] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            found.extend(match (table, &words[..]) {
                // A socket that accepts connections, and has a name.
                ("unix", [_, _, _, "00010000", _, _, inode, name]) if inodes.contains(*inode) => {
                    name.strip_prefix('@').map(|name| Port::Unix(name.to_owned()))
                }
                // State 0A is LISTEN.
                ("tcp" | "tcp6", [_, local, _, "0A", _, _, _, _, _, inode, ..])
                    if inodes.contains(*inode) =>
                {
                    address(local).map(Port::Tcp)
                }
                _ => None,
            });
        }
    }
    found
}

/// Reads an address as in /proc/net/tcp: words of 32 bits in the byte order of the host, and the
/// port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = if ip.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?))
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
