//! The service thread of an endpoint's TCP links: accepts and dials, and reads and writes for ranks that do not do so themselves.
//!
//! It never blocks on a peer: all connections are state machines under one `epoll`. Whoever has not proven itself in time
//! is dropped, and so is the oldest of too many who have not.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connect::{Handshake, PATIENCE, Role, Step, Target};
use super::pair::{RECONNECT, TcpPair};
use super::socket::{self, Event, Poller};
use super::{MOST_STREAMS, TcpConfig};
use crate::Rank;
use crate::error::LinkError;
use crate::handshake::Credentials;
use crate::peers::Peers;
use crate::thread;

/// How many connections may be unproven at a time.
const STRANGERS: usize = 256;
/// How long to leave the queue alone when nothing can be accepted, and between two attempts to dial.
const PAUSE: Duration = Duration::from_millis(50);
/// The time after which everything is looked at, if something happened: a rank may be too busy to do it.
const TICK: Duration = Duration::from_millis(20);
/// How long the peers may take to read the last of what was sent to them.
const LINGER: Duration = Duration::from_secs(2);
/// Attempts to dial a peer that hangs up within the handshake: it may have too many strangers at its door.
const ATTEMPTS: usize = 5;

// What events say: these, and pairs' own numbers below all of them.
const KICK: u64 = 1 << 56;
const LISTENER: u64 = 2 << 56;
const HANDSHAKE: u64 = 3 << 56;
const KIND: u64 = 0xff << 56;

/// A rank's listening sockets and the thread that serves its streams.
#[derive(Debug)]
pub(crate) struct Tcp {
    addresses: Vec<SocketAddr>,
    streams: u32,
    poller: Arc<Poller>,
    orders: Arc<Mutex<Orders>>,
    service: Mutex<Start>,
}

/// The thread starts when it is first needed; until then callers queue up in the kernel.
enum Start {
    Not(Box<Service>),
    Running(JoinHandle<()>),
    Over,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Not(_) => "Not",
            Self::Running(_) => "Running",
            Self::Over => "Over",
        })
    }
}

/// What the rank wants of the thread.
#[derive(Debug, Default)]
struct Orders {
    dial: Vec<(Rank, Vec<SocketAddr>, u32, Instant)>,
    end: bool,
}

impl Tcp {
    /// Listens, and does nothing more until [`start`](Self::start).
    pub(crate) fn new(
        config: &TcpConfig,
        peers: Arc<Peers>,
        party: Credentials,
    ) -> Result<Self, LinkError> {
        if config.streams == 0 || config.streams > MOST_STREAMS || config.addresses.is_empty() {
            return Err(LinkError::Misuse {
                what: "TCP needs an address and from 1 to 64 streams per peer",
            });
        }
        let system = |call| move |error: io::Error| LinkError::system(call, &error);
        let poller = Arc::new(Poller::new(KICK).map_err(system("epoll_create1"))?);
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for (number, &ip) in config.addresses.iter().enumerate() {
            let listener = socket::listen(ip).map_err(system("listen"))?;
            addresses.push(listener.local_addr().map_err(system("getsockname"))?);
            let event = LISTENER | number as u64;
            poller.add(listener.as_raw_fd(), libc::EPOLLIN, event).map_err(system("epoll_ctl"))?;
            listeners.push(listener);
        }
        let orders = Arc::<Mutex<Orders>>::default();
        let service = Box::new(Service {
            poller: poller.clone(),
            orders: orders.clone(),
            listeners,
            peers,
            party,
            pairs: HashMap::new(),
            ailing: Vec::new(),
            targets: HashMap::new(),
            handshakes: HashMap::new(),
            waiting: Vec::new(),
            next: 0,
            paused: None,
            tick: None,
            closing: None,
        });
        let service = Mutex::new(Start::Not(service));
        Ok(Self { addresses, streams: config.streams, poller, orders, service })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn streams(&self) -> u32 {
        self.streams
    }

    /// Starts the thread if it does not run.
    pub(crate) fn start(&self) -> Result<(), LinkError> {
        let mut start = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *start, Start::Over) {
            Start::Not(service) => {
                *start = Start::Running(thread::spawn("maypole-tcp", move || service.run())?);
            }
            other => *start = other,
        }
        Ok(())
    }

    /// Stops listening if the thread does not run: no peer will come by TCP.
    pub(crate) fn dismiss(&self) {
        let mut start = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*start, Start::Not(_)) {
            *start = Start::Over;
        }
    }

    /// Dials a peer if it is this rank's part; the table of peers will say when all streams are there, or why not.
    pub(crate) fn dial(&self, peer: Rank, to: Vec<SocketAddr>, streams: u32, deadline: Instant) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.dial.push((peer, to, streams, deadline));
        drop(orders);
        self.poller.kick();
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).end = true;
        self.poller.kick();
        let start = self.service.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Start::Running(thread) = std::mem::replace(start, Start::Over) {
            // A panic there has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

struct Service {
    poller: Arc<Poller>,
    orders: Arc<Mutex<Orders>>,
    listeners: Vec<TcpListener>,
    peers: Arc<Peers>,
    party: Credentials,
    pairs: HashMap<Rank, Arc<TcpPair>>,
    /// Those that miss streams.
    ailing: Vec<Arc<TcpPair>>,
    /// How to dial a peer again.
    targets: HashMap<Rank, Target>,
    handshakes: HashMap<u64, Handshake>,
    /// Streams to be dialed.
    waiting: Vec<Target>,
    /// Number of the next handshake.
    next: u64,
    /// Nothing is accepted before that.
    paused: Option<Instant>,
    /// When to look at everything.
    tick: Option<Instant>,
    /// When this end closes whatever is not closed.
    closing: Option<Instant>,
}

impl Service {
    fn run(mut self) {
        let mut events = [Event { events: 0, u64: 0 }; 64];
        while !self.is_over() {
            let timeout = self.timeout(Instant::now());
            let got = match self.poller.wait(&mut events, timeout) {
                Ok(got) => got,
                Err(error) => {
                    log::warn!("rank {}: epoll_wait failed: {error}", self.party.rank);
                    break;
                }
            };
            for event in &events[..got] {
                self.handle(event.u64);
            }
            self.orders();
            self.time(Instant::now());
        }
        for pair in self.pairs.values() {
            pair.close();
        }
    }

    fn is_over(&self) -> bool {
        self.closing.is_some_and(|limit| {
            Instant::now() >= limit || self.pairs.values().all(|pair| pair.is_closed())
        })
    }

    fn handle(&mut self, event: u64) {
        let number = event & !KIND;
        match event & KIND {
            KICK => {
                self.poller.kicked();
                // A pair that loses a stream kicks.
                let pairs = self.pairs.values();
                self.ailing = pairs.filter(|pair| !pair.missing().is_empty()).cloned().collect();
                self.soon();
            }
            LISTENER => self.accept(number as usize),
            HANDSHAKE => self.advance(number),
            _ => {
                if let Some(pair) = self.pairs.get(&((number >> 8) as Rank)) {
                    pair.serve((number & 0xff) as usize);
                }
                self.soon();
            }
        }
    }

    fn soon(&mut self) {
        if self.tick.is_none() {
            self.poller.set_ticking(true);
            self.tick = Some(Instant::now() + TICK);
        }
    }

    /// Milliseconds to sleep at most, rounded up; -1 for ever.
    fn timeout(&self, now: Instant) -> i32 {
        let handshakes = self.handshakes.values().map(|handshake| handshake.since + PATIENCE);
        let waiting = self.waiting.iter().map(|target| target.not_before);
        let cares = self.ailing.iter().filter_map(|pair| pair.care(now).until);
        let rest = self.paused.into_iter().chain(self.tick).chain(self.closing);
        let next = handshakes.chain(waiting).chain(cares).chain(rest).min();
        next.map_or(-1, |at| at.saturating_duration_since(now).as_millis().min(60_000) as i32 + 1)
    }

    /// What the rank asked for.
    fn orders(&mut self) {
        let orders =
            std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for (peer, addresses, streams, give_up) in orders.dial {
            let target = Target {
                peer,
                stream: 0,
                streams,
                addresses,
                attempts: 0,
                not_before: Instant::now(),
                give_up,
                first: true,
                refused: true,
                // The lower rank dials.
                probe: self.party.rank > peer,
            };
            if !target.probe {
                let pair = self.pair(peer, streams);
                for stream in pair.missing() {
                    self.waiting.push(Target { stream, ..target.clone() });
                }
            }
            self.targets.insert(peer, target);
        }
        if orders.end && self.closing.is_none() {
            self.closing = Some(Instant::now() + LINGER);
            self.waiting.clear();
            self.pause(false);
            self.listeners.clear();
            for handshake in std::mem::take(&mut self.handshakes).into_values() {
                self.poller.remove(handshake.socket.as_raw_fd());
            }
            for pair in self.pairs.values() {
                pair.leave();
            }
        }
    }

    /// What is due.
    fn time(&mut self, now: Instant) {
        if self.tick.is_some_and(|at| now >= at) {
            self.tick = None;
            // Before the look: what comes after it kicks again.
            self.poller.set_ticking(false);
            for pair in self.pairs.values() {
                pair.tick();
            }
        }
        if self.closing.is_some() {
            return;
        }
        if self.paused.is_some_and(|until| now >= until) {
            self.pause(false);
        }
        let late = |handshake: &Handshake| now >= handshake.since + PATIENCE;
        let late: Vec<u64> =
            self.handshakes.iter().filter(|(_, h)| late(h)).map(|(number, _)| *number).collect();
        for number in late {
            if let Some(handshake) = self.take(number) {
                let during = "connecting";
                let timeout = |peer| Some(LinkError::Timeout { peer, during });
                let error = match &handshake.role {
                    Role::Accepted(_) => None,
                    Role::Proven(peer, _) => timeout(*peer),
                    Role::Dialing(t) | Role::Reached(t) | Role::Asked(t, _) => timeout(t.peer),
                };
                self.failed(handshake.role, error, now);
            }
        }
        self.redial(now);
        let (due, later) =
            std::mem::take(&mut self.waiting).into_iter().partition(|t| now >= t.not_before);
        self.waiting = later;
        for target in due {
            let pair = self.pairs.get(&target.peer);
            if pair.is_some_and(|pair| pair.missing().contains(&target.stream)) {
                self.dial(target, now);
            }
        }
    }

    /// Sees to pairs that miss streams.
    fn redial(&mut self, now: Instant) {
        self.ailing.retain(|pair| !pair.missing().is_empty());
        for pair in &self.ailing {
            let care = pair.care(now);
            let Some(target) = self.targets.get(&pair.peer) else { continue };
            for stream in care.missing {
                if target.probe && (care.until.is_none() || stream > 0) {
                    break;
                }
                let mine = |t: &Target| (t.peer, t.stream) == (pair.peer, stream);
                let dialed = self.handshakes.values().any(|handshake| match &handshake.role {
                    Role::Dialing(t) | Role::Reached(t) | Role::Asked(t, _) => mine(t),
                    _ => false,
                });
                if !dialed && !self.waiting.iter().any(mine) {
                    let give_up = now + RECONNECT;
                    let target = Target { stream, not_before: now, give_up, ..target.clone() };
                    self.waiting.push(Target { first: false, ..target });
                }
            }
        }
    }

    fn dial(&mut self, target: Target, now: Instant) {
        match Handshake::dial(target) {
            Ok(handshake) => {
                let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET;
                self.welcome(handshake, events);
            }
            Err((target, error)) => {
                let error = LinkError::system("socket", &error);
                self.failed(Role::Dialing(target), Some(error), now);
            }
        }
    }

    fn accept(&mut self, number: usize) {
        while self.paused.is_none() {
            let Some(listener) = self.listeners.get(number) else { return };
            let error = match listener.accept() {
                Ok((stream, _)) => match Handshake::accept(OwnedFd::from(stream)) {
                    Ok(handshake) => {
                        self.make_room();
                        self.welcome(handshake, libc::EPOLLIN | libc::EPOLLET);
                        continue;
                    }
                    Err(error) => error,
                },
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // That one went away; the next may not.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => LinkError::system("accept", &error),
                },
            };
            log::warn!("rank {} cannot accept connections: {error}", self.party.rank);
            self.peers.trouble(error);
            self.pause(true);
        }
    }

    /// Stops or resumes accepting.
    fn pause(&mut self, pause: bool) {
        self.paused = pause.then(|| Instant::now() + PAUSE);
        for (number, listener) in self.listeners.iter().enumerate() {
            let events = if pause { 0 } else { libc::EPOLLIN };
            // It is registered, and no memory is needed to change it.
            let _ = self.poller.change(listener.as_raw_fd(), events, LISTENER | number as u64);
        }
    }

    /// Drops the oldest stranger if there are too many.
    fn make_room(&mut self) {
        let strangers = || self.handshakes.iter().filter(|(_, h)| h.is_stranger());
        if strangers().count() >= STRANGERS
            && let Some(oldest) = strangers().map(|(number, _)| *number).min()
        {
            log::warn!("rank {}: too many strangers at the door", self.party.rank);
            self.take(oldest);
        }
    }

    fn welcome(&mut self, handshake: Handshake, events: i32) {
        let number = self.next;
        self.next += 1;
        let fd = handshake.socket.as_raw_fd();
        match self.poller.add(fd, events, HANDSHAKE | number) {
            Ok(()) => {
                self.handshakes.insert(number, handshake);
            }
            Err(error) => {
                let error = LinkError::system("epoll_ctl", &error);
                self.failed(handshake.role, Some(error), Instant::now());
            }
        }
    }

    fn take(&mut self, number: u64) -> Option<Handshake> {
        let handshake = self.handshakes.remove(&number)?;
        self.poller.remove(handshake.socket.as_raw_fd());
        Some(handshake)
    }

    fn advance(&mut self, number: u64) {
        let layout = self.peers.layout;
        let Some(handshake) = self.handshakes.get_mut(&number) else { return };
        match handshake.advance(&self.party, &layout) {
            Step::Wait => {}
            Step::Failed(error) => {
                if let Some(handshake) = self.take(number) {
                    self.failed(handshake.role, error, Instant::now());
                }
            }
            Step::Done { peer, stream, streams } => {
                if let Some(handshake) = self.take(number) {
                    self.attach(peer, stream, streams, handshake.socket);
                }
            }
        }
    }

    fn attach(&mut self, peer: Rank, stream: u32, streams: u32, socket: OwnedFd) {
        self.peers.begin(peer);
        if streams == 0 || streams > MOST_STREAMS {
            let why = "the two disagree on how many streams they have";
            return self.peers.fail(peer, LinkError::Refused { peer, why });
        }
        let pair = self.pair(peer, streams);
        match pair.attach(stream, socket) {
            Ok(true) => self.peers.add_tcp(peer, pair),
            Ok(false) => {}
            Err(error) => self.peers.fail(peer, error),
        }
    }

    fn pair(&mut self, peer: Rank, streams: u32) -> Arc<TcpPair> {
        let Peers { inbox, layout, .. } = &*self.peers;
        let make = || TcpPair::new(peer, streams, inbox.clone(), *layout, self.poller.clone());
        self.pairs.entry(peer).or_insert_with(|| Arc::new(make())).clone()
    }

    /// A handshake came to nothing: try again, or say so.
    fn failed(&mut self, role: Role, error: Option<LinkError>, now: Instant) {
        let mut target = match role {
            Role::Accepted(_) => return,
            Role::Proven(peer, _) => {
                if let Some(error) = error {
                    log::warn!("rank {}: {error}", self.party.rank);
                    self.peers.fail(peer, error);
                }
                return;
            }
            Role::Dialing(target) | Role::Reached(target) | Role::Asked(target, _) => target,
        };
        let Some(error) = error else {
            // Somebody answered a probe, so the peer lives. Once more if it does not dial.
            target.refused = false;
            target.not_before = now + RECONNECT / 10;
            return self.waiting.push(target);
        };
        target.attempts += 1;
        let nobody = matches!(error, LinkError::System { errno: libc::ECONNREFUSED, .. });
        target.refused &= nobody;
        let round = target.attempts.is_multiple_of(target.addresses.len());
        let hopeless = match error {
            LinkError::Corrupt { .. } => true,
            LinkError::Refused { .. } => target.attempts >= ATTEMPTS,
            // It may be stopped.
            LinkError::Timeout { .. } => false,
            // Who publishes an address listens there until it ends.
            _ => target.attempts >= target.addresses.len() && target.first,
        };
        if target.refused
            && round
            && !target.first
            && let Some(pair) = self.pairs.get(&target.peer)
        {
            pair.give_up();
        }
        if now >= target.give_up || hopeless {
            if target.probe {
                // The pair's own time limit decides.
            } else if target.first {
                self.waiting.retain(|other| other.peer != target.peer);
                self.peers.fail(target.peer, error);
            } else {
                log::warn!("rank {}: a stream cannot be made again: {error}", self.party.rank);
                // Once more after a while, as long as others carry the traffic.
                target.not_before = now + RECONNECT;
                target.give_up = target.not_before + RECONNECT;
                self.waiting.push(target);
            }
            return;
        }
        target.not_before = if round { now + PAUSE } else { now };
        self.waiting.push(target);
    }
}
