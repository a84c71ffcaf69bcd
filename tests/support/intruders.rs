//! Strangers at all ports of a job, and a door at which real hellos are overheard.

use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole::Options;
use maypole::UniqueId;
use maypole::internal::bootstrap::RejoinListener;

/// Connections that the strangers hold at a time; one more ends the oldest.
const MOST_HELD: usize = 400;
/// Looking at which ports the job listens takes one part in so many of the strangers' time.
const LOOK_SHARE: u32 = 2;
/// Bytes of the answers to one who does not know the secret: none, the challenge of a link, that of the bootstrap.
const ANSWERS: [usize; 3] = [0, 32, 72];
/// What a dialer of the bootstrap sends before anything that is said in confidence: hello and proof.
const HELLO_AND_PROOF: usize = 56 + 32;
/// For strangers to connect. A full queue answers nobody.
const CONNECT: Duration = Duration::from_millis(100);
/// For the strangers to be through with it.
const PATIENCE: Duration = Duration::from_secs(40);

/// The root of a job of this process, and a proxy before it that records what its ranks say.
pub(crate) struct Door {
    secret: [u8; 32],
    reach: Vec<u8>,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    closed: Arc<AtomicBool>,
    proxy: Option<JoinHandle<()>>,
}

impl Door {
    pub(crate) fn open() -> Self {
        // Strangers, their proxy and the root are all in this process.
        crate::ranks::raise_descriptors();
        let secret = [0x5e; 32];
        let before = ports(&[std::process::id()]);
        let mut meeting = RejoinListener::open().expect("a port");
        let options = Options { timeout: PATIENCE, notice: PATIENCE, ..Options::default() };
        meeting.start_root(secret, &options).expect("a root");
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
        let mut reach = meeting.address()[..8].to_vec();
        reach.extend([1, 4, 127, 0, 0, 1]);
        reach.extend(port.to_le_bytes());

        let (heard, closed) = (Arc::default(), Arc::<AtomicBool>::default());
        let proxy = std::thread::spawn({
            let (heard, closed) = (Arc::clone(&heard), Arc::clone(&closed));
            move || serve(&listener, root, &heard, &closed)
        });
        Self { secret, reach, heard, closed, proxy: Some(proxy) }
    }

    /// The job's id, by which the root is reached through the proxy.
    pub(crate) fn id(&self) -> UniqueId {
        UniqueId::at_rejoin_listener(&self.reach, self.secret).expect("an id")
    }

    pub(crate) fn id_with_another_secret(&self) -> UniqueId {
        UniqueId::at_rejoin_listener(&self.reach, [0xe5; 32]).expect("an id")
    }

    /// How many handshakes were overheard.
    pub(crate) fn hellos(&self) -> usize {
        lock(&self.heard).iter().filter(|said| said.len() > HELLO_AND_PROOF).count()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(proxy) = self.proxy.take() {
            let _ = proxy.join();
        }
    }
}

/// Passes on what is said, in both directions, until the door is closed.
fn serve(
    listener: &TcpListener,
    root: SocketAddr,
    heard: &Arc<Mutex<Vec<Vec<u8>>>>,
    closed: &AtomicBool,
) {
    let mut pumps = Vec::new();
    while !closed.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        client.set_nonblocking(false).expect("a socket");
        // It ends when all have joined.
        let Ok(server) = TcpStream::connect(root) else { continue };
        let number = {
            let mut heard = lock(heard);
            heard.push(Vec::new());
            heard.len() - 1
        };
        let twin = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        let (from_client, to_server) = (twin(&client), twin(&server));
        let heard = Arc::clone(heard);
        pumps.push(std::thread::spawn(move || {
            pump(from_client, to_server, |bytes| lock(&heard)[number].extend(bytes));
        }));
        pumps.push(std::thread::spawn(move || pump(server, client, |_| ())));
    }
    for pump in pumps {
        pump.join().expect("a pump");
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        hear(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Strangers who come until they are stopped.
pub(crate) struct Fire {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: JoinHandle<String>,
    _door: Door,
}

impl Fire {
    /// Opens fire at the processes' ports, and at those of the root behind the door.
    pub(crate) fn start(pids: &[u32], door: Door) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let pids = [pids, &[std::process::id()]].concat();
        let thread = std::thread::spawn({
            let (stop, made, heard) =
                (Arc::clone(&stop), Arc::clone(&made), Arc::clone(&door.heard));
            move || {
                let mut strangers = Strangers { heard, ..Strangers::default() };
                let mut look_at = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let now = Instant::now();
                    if now >= look_at {
                        strangers.ports = ports(&pids);
                        look_at = Instant::now() + now.elapsed() * (LOOK_SHARE - 1);
                    }
                    strangers.one_more();
                    made.store(strangers.connected, Ordering::Relaxed);
                }
                strangers.report()
            }
        });
        Self { stop, made, thread, _door: door }
    }

    /// Returns when so many connections were made.
    pub(crate) fn made(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.made.load(Ordering::Relaxed) < count && !self.thread.is_finished() {
            assert!(Instant::now() < until, "only {:?} strangers came", self.made);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it and says what it was.
    pub(crate) fn stop(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("nobody is let in")
    }
}

#[derive(Default)]
struct Strangers {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    ports: Vec<Port>,
    held: VecDeque<Stranger>,
    /// Where anybody was connected.
    visited: HashSet<Port>,
    connected: usize,
    turned_away: usize,
    answered: usize,
    random: u64,
}

struct Stranger {
    stream: Stream,
    /// Said byte by byte, from the last one.
    trickle: Vec<u8>,
    /// It asked where `maypole ps` asks: whoever is of the same user is told what the process does, and nothing else.
    desk: bool,
}

impl Strangers {
    /// One comes, and the oldest goes.
    fn one_more(&mut self) {
        if self.ports.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            return;
        }
        let at = self.below(self.ports.len());
        let port = self.ports[at].clone();
        match port.connect() {
            Ok(stream) => {
                self.connected += 1;
                let desk = port.is_desk();
                self.visited.insert(port);
                self.speak(stream, desk);
            }
            Err(_) => self.turned_away += 1,
        }
        if self.held.len() > MOST_HELD {
            self.dismiss();
        }
        for _ in 0..8 {
            let at = self.below(self.held.len().max(1));
            if let Some(Stranger { stream, trickle, .. }) = self.held.get_mut(at)
                && let Some(byte) = trickle.pop()
            {
                stream.say(&[byte]);
            }
        }
    }

    /// Says what this stranger has to say.
    fn speak(&mut self, mut stream: Stream, desk: bool) {
        let (hello, noise) = (self.hello(), self.noise(300));
        let mut trickle = Vec::new();
        match self.below(8) {
            // Nothing, and stays.
            0 => {}
            // Nothing, and goes; all others end by a reset.
            1 => return,
            2 => stream.say(&noise),
            3 => stream.say(&hello[..28]),
            // A hello of our own making, and a false proof.
            4 => stream.say(&[&hello, &noise[..32]].concat()),
            // What a real rank said, or all but the last of it.
            kind @ (5 | 6) => {
                let said = self.overheard();
                stream.say(&said[..said.len().saturating_sub(kind - 5)]);
            }
            _ => trickle = hello.into_iter().chain(noise).rev().collect(),
        }
        stream.end_by_reset();
        self.held.push_back(Stranger { stream, trickle, desk });
    }

    /// The oldest goes. What it was answered must be no more than a challenge.
    fn dismiss(&mut self) {
        let Some(mut oldest) = self.held.pop_front() else { return };
        let answer = oldest.stream.answer();
        let harmless = oldest.desk || ANSWERS.contains(&answer);
        assert!(harmless, "a stranger was let in: {answer} bytes");
        self.answered += usize::from(answer > 0);
    }

    fn report(mut self) -> String {
        while !self.held.is_empty() {
            self.dismiss();
        }
        format!(
            "{} connections to {} ports, {} of which were challenged; {} were not taken",
            self.connected,
            self.visited.len(),
            self.answered,
            self.turned_away
        )
    }

    /// A hello to the root or to a rank, by one of the job's.
    fn hello(&mut self) -> Vec<u8> {
        let role = 1 + self.below(2) as u8;
        let to = if role == 1 { 0 } else { self.below(4) as u8 };
        let from = self.below(4) as u8;
        let mut hello = b"MAYPOLE\x01".to_vec();
        hello.extend([role, 0, 0, 0, from, 0, 0, 0, to, 0, 0, 0, 4, 0, 0, 0]);
        hello.extend(self.noise(32));
        hello
    }

    /// All that a rank said to the root.
    fn overheard(&mut self) -> Vec<u8> {
        let at = self.below(3);
        lock(&self.heard).get(at).cloned().unwrap_or_default()
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

/// Where a process listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Port {
    Tcp(SocketAddr),
    /// An abstract name.
    Unix(String),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Port {
    /// Whether `maypole ps` asks there.
    fn is_desk(&self) -> bool {
        matches!(self, Self::Unix(name) if name.starts_with("maypole/"))
    }

    fn connect(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, CONNECT)?;
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
    /// Leaves no address in TIME_WAIT: thousands of them would slow down all that looks for a free one.
    fn end_by_reset(&self) {
        let Self::Tcp(stream) = self else { return };
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the descriptor is open and `linger` is alive and of the length told.
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

    fn say(&mut self, bytes: &[u8]) {
        // A stranger may be cut off at any time.
        let _ = match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        };
    }

    /// Bytes that came.
    fn answer(&mut self) -> usize {
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

/// All ports at which these processes listen.
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

/// An address as in /proc/net/tcp: words of 32 bits in the host's order, and the port.
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
