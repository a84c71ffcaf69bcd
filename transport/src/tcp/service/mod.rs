//! The service thread of an endpoint's TCP links: it accepts and dials, and reads and writes for
//! ranks that do not do so themselves.
//!
//! It never blocks on a peer: all connections are state machines under one `epoll`. A connection
//! that has not proven itself in time is dropped, and so is the oldest one if there are too many.

mod dial;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::EventData;
use rustix::io::Errno;

use super::MOST_STREAMS;
use super::connect::{
    DialTarget, HANDSHAKE_TIMEOUT, HandshakeProgress, HandshakeStage, TcpHandshake,
};
use super::ends::TcpPeer;
use super::pair::upgrade::{UPGRADE, UpgradeQueue};
use super::pair::{TcpPair, decode_event_data};
use super::poller::{Event, EventFlags, Poller};
use super::stream::TcpStream;
use super::watch::SocketWatch;
use crate::Rank;
use crate::credentials::Credentials;
use crate::error::LinkError;
use crate::peers::PeerTable;
use crate::process::occupy_standard_streams;
use crate::strangers;

/// How many connections may be unproven at a time.
const MAX_UNPROVEN: usize = 256;
/// How long to wait after an error before accepting again, and between two rounds of dialing.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The time after an event until all streams are checked, because a rank may be too busy to do so.
const TICK: Duration = Duration::from_millis(20);
/// How long the peers may take to read the last of what was sent to them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest sleep, in milliseconds. Waking earlier than needed does no harm.
const MAX_SLEEP_MS: u128 = 60_000;

// The kind of an event is in the top byte of its data. The data of streams have none.
/// The data of the event that wakes the thread.
pub(super) const WAKE_EVENT: u64 = 1 << 56;
/// The kind of an event of a listening socket; its number is in the other bits.
pub(super) const LISTENER_EVENT: u64 = 2 << 56;
/// The kind of an event of a handshake; its number is in the other bits.
const HANDSHAKE_EVENT: u64 = 3 << 56;
const EVENT_KIND: u64 = 0xff << 56;

/// What the rank asks of the thread.
#[derive(Debug, Default)]
pub(super) struct ServiceRequests {
    pub(super) dial: Vec<DialRequest>,
    pub(super) end: bool,
}

/// A peer to which all streams are to be made.
#[derive(Debug)]
pub(super) struct DialRequest {
    pub(super) peer: Rank,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) streams: u32,
    pub(super) deadline: Instant,
}

/// The state of the thread.
pub(super) struct TcpService {
    poller: Arc<Poller>,
    watch: Arc<SocketWatch>,
    requests: Arc<Mutex<ServiceRequests>>,
    listeners: Vec<TcpListener>,
    peers: Arc<PeerTable>,
    credentials: Credentials,
    /// Where pairs go whose messages are to travel over RDMA.
    upgrade: Option<Arc<UpgradeQueue>>,
    pairs: HashMap<Rank, Arc<TcpPair>>,
    /// The pairs of which streams are missing.
    incomplete: Vec<Arc<TcpPair>>,
    /// How to dial a peer again.
    targets: HashMap<Rank, DialTarget>,
    /// The lower ranks to which this rank has made streams, because they do not reach it.
    dialed_back: HashSet<Rank>,
    handshakes: HashMap<u64, TcpHandshake>,
    /// Streams to dial.
    to_dial: Vec<DialTarget>,
    next_handshake: u64,
    /// The addresses of peers of which it was said that they cannot be reached.
    told: HashSet<(Rank, SocketAddr)>,
    /// Nothing is accepted before this time.
    paused_until: Option<Instant>,
    /// When to check all streams.
    tick_at: Option<Instant>,
    /// Set while the thread ends: when it closes the streams that are still open.
    close_at: Option<Instant>,
}

impl TcpService {
    pub(super) fn new(
        (poller, watch): (Arc<Poller>, Arc<SocketWatch>),
        requests: Arc<Mutex<ServiceRequests>>,
        listeners: Vec<TcpListener>,
        peers: Arc<PeerTable>,
        credentials: Credentials,
        upgrade: Option<Arc<UpgradeQueue>>,
    ) -> Self {
        Self {
            poller,
            watch,
            requests,
            listeners,
            peers,
            credentials,
            upgrade,
            pairs: HashMap::new(),
            incomplete: Vec::new(),
            targets: HashMap::new(),
            dialed_back: HashSet::new(),
            handshakes: HashMap::new(),
            to_dial: Vec::new(),
            next_handshake: 0,
            told: HashSet::new(),
            paused_until: None,
            tick_at: None,
            close_at: None,
        }
    }

    /// Runs the thread until the rank asks it to end, or it panics.
    pub(super) fn run_guarded(self) {
        let peers = self.peers.clone();
        peers.guard(|| self.run());
    }

    fn run(mut self) {
        let none = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; 64];
        while !self.is_finished() {
            let timeout = self.sleep_time(Instant::now());
            let got = match self.poller.wait(&mut events, timeout.as_ref()) {
                Ok(got) => got,
                Err(error) => {
                    log::warn!("rank {}: epoll_wait failed: {error}", self.credentials.rank);
                    break;
                }
            };
            for event in &events[..got] {
                let data = event.data;
                self.handle_event(data.u64());
            }
            self.handle_requests();
            self.handle_timeouts(Instant::now());
        }
        for pair in self.pairs.values() {
            pair.close();
        }
    }

    fn is_finished(&self) -> bool {
        self.close_at.is_some_and(|limit| {
            Instant::now() >= limit || self.pairs.values().all(|pair| pair.is_closed())
        })
    }

    fn handle_event(&mut self, data: u64) {
        let number = data & !EVENT_KIND;
        match data & EVENT_KIND {
            WAKE_EVENT => {
                self.poller.clear_wake();
                // A pair that loses a stream wakes the thread.
                let pairs = self.pairs.values();
                let incomplete = pairs.filter(|pair| !pair.missing_streams().is_empty());
                self.incomplete = incomplete.cloned().collect();
                self.schedule_tick();
            }
            LISTENER_EVENT => self.accept_all(number as usize),
            HANDSHAKE_EVENT => self.advance_handshake(number),
            _ => {
                let (peer, stream) = decode_event_data(number);
                if let Some(pair) = self.pairs.get(&peer) {
                    pair.handle_event(stream);
                }
                self.schedule_tick();
            }
        }
    }

    fn schedule_tick(&mut self) {
        if self.tick_at.is_none() {
            self.poller.set_tick_pending(true);
            self.tick_at = Some(Instant::now() + TICK);
        }
    }

    /// How long the thread may sleep, in whole milliseconds, rounded up. `None` is forever.
    fn sleep_time(&self, now: Instant) -> Option<Timespec> {
        let handshakes = self.handshakes.values().map(|h| h.since + HANDSHAKE_TIMEOUT);
        let to_dial = self.to_dial.iter().map(|target| target.not_before);
        let repairs = self.incomplete.iter().filter_map(|pair| pair.repair_needs(now).until);
        let rest = self.paused_until.into_iter().chain(self.tick_at).chain(self.close_at);
        let next = handshakes.chain(to_dial).chain(repairs).chain(rest).min()?;
        let left = next.saturating_duration_since(now).as_millis().min(MAX_SLEEP_MS) as i64 + 1;
        Some(Timespec { tv_sec: left / 1000, tv_nsec: left % 1000 * 1_000_000 })
    }

    fn handle_requests(&mut self) {
        let requests =
            std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        for request in requests.dial {
            self.start_dialing(request);
        }
        if requests.end && self.close_at.is_none() {
            self.close_at = Some(Instant::now() + CLOSE_TIMEOUT);
            self.to_dial.clear();
            self.pause_accepting(false);
            self.listeners.clear();
            for handshake in std::mem::take(&mut self.handshakes).into_values() {
                self.poller.remove(&handshake.socket);
            }
            for pair in self.pairs.values() {
                pair.leave();
            }
        }
    }

    fn handle_timeouts(&mut self, now: Instant) {
        if self.tick_at.is_some_and(|at| now >= at) {
            self.tick_at = None;
            // Before the checks: a release after them wakes the thread again.
            self.poller.set_tick_pending(false);
            for pair in self.pairs.values() {
                pair.tick();
            }
        }
        if self.close_at.is_some() {
            return;
        }
        if self.paused_until.is_some_and(|until| now >= until) {
            self.pause_accepting(false);
        }
        self.drop_late_handshakes(now);
        self.queue_missing_streams(now);
        self.dial_due_targets(now);
    }

    fn drop_late_handshakes(&mut self, now: Instant) {
        let is_late = |handshake: &TcpHandshake| now >= handshake.since + HANDSHAKE_TIMEOUT;
        let late = self.handshakes.iter().filter(|(_, handshake)| is_late(handshake));
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        for number in late {
            if let Some(handshake) = self.remove_handshake(number) {
                let error = match &handshake.stage {
                    HandshakeStage::Connecting(target) => {
                        let (peer, address) = (target.peer, target.address());
                        Some(LinkError::unreachable(peer, address, Errno::TIMEDOUT))
                    }
                    // The peer's host is reached, but the peer does not answer.
                    stage => stage.target().map(|target| LinkError::Timeout {
                        peer: target.peer,
                        during: "connecting",
                        last: None,
                    }),
                };
                self.handle_failure(handshake.stage, error, now);
            }
        }
    }

    fn accept_all(&mut self, number: usize) {
        occupy_standard_streams();
        while self.paused_until.is_none() {
            let Some(listener) = self.listeners.get(number) else { return };
            let error = match listener.accept() {
                Ok((stream, _)) => {
                    self.limit_unproven();
                    let handshake = TcpHandshake::accept(OwnedFd::from(stream));
                    self.add_handshake(handshake, EventFlags::IN | EventFlags::ET);
                    continue;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // This caller went away; the next may not.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => LinkError::system("accept", error),
                },
            };
            log::warn!("rank {} cannot accept connections: {error}", self.credentials.rank);
            self.peers.set_accept_error(error);
            self.pause_accepting(true);
        }
    }

    /// Stops or resumes accepting.
    fn pause_accepting(&mut self, pause: bool) {
        self.paused_until = pause.then(|| Instant::now() + RETRY_PAUSE);
        for (number, listener) in self.listeners.iter().enumerate() {
            let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
            self.poller.change(listener, flags, LISTENER_EVENT | number as u64);
        }
    }

    /// Drops the oldest unproven connection if there are too many, first of those that have sent
    /// nothing valid.
    fn limit_unproven(&mut self) {
        let unproven =
            || self.handshakes.iter().filter_map(|(number, it)| Some((it.unproven()?, *number)));
        if unproven().count() >= MAX_UNPROVEN
            && let Some((_, oldest)) = unproven().min()
        {
            strangers::report(
                log::Level::Warn,
                format_args!(
                    "rank {}: too many connections that have not proven themselves",
                    self.credentials.rank
                ),
            );
            self.remove_handshake(oldest);
        }
    }

    fn add_handshake(&mut self, handshake: TcpHandshake, flags: EventFlags) {
        let number = self.next_handshake;
        self.next_handshake += 1;
        match self.poller.add(&handshake.socket, flags, HANDSHAKE_EVENT | number) {
            Ok(()) => {
                self.handshakes.insert(number, handshake);
            }
            Err(error) => {
                let error = LinkError::system("epoll_ctl", error);
                self.handle_failure(handshake.stage, Some(error), Instant::now());
            }
        }
    }

    fn remove_handshake(&mut self, number: u64) -> Option<TcpHandshake> {
        let handshake = self.handshakes.remove(&number)?;
        self.poller.remove(&handshake.socket);
        Some(handshake)
    }

    fn advance_handshake(&mut self, number: u64) {
        let layout = self.peers.layout;
        let Some(handshake) = self.handshakes.get_mut(&number) else { return };
        match handshake.advance(&self.credentials, &layout) {
            HandshakeProgress::Wait => {}
            HandshakeProgress::Failed(error) => {
                if let Some(handshake) = self.remove_handshake(number) {
                    self.handle_failure(handshake.stage, error, Instant::now());
                }
            }
            HandshakeProgress::Done { peer, stream: number_of_stream, streams, session } => {
                if let Some(handshake) = self.remove_handshake(number) {
                    let is_dialer = handshake.stage.target().is_some();
                    let by_lower = is_dialer == (self.credentials.rank < peer);
                    let stream = TcpStream::new(handshake.socket, session, by_lower);
                    self.attach(peer, (number_of_stream, streams), stream);
                }
            }
        }
    }

    fn attach(&mut self, peer: Rank, (number, streams): (u32, u32), stream: TcpStream) {
        self.peers.clear_failure(peer);
        let wanted = streams & !UPGRADE;
        if wanted == 0 || wanted > MOST_STREAMS || wanted != streams && self.upgrade.is_none() {
            let why = "the two disagree on how many streams they have";
            return self.peers.set_failure(peer, LinkError::Refused { peer, why });
        }
        let pair = self.pair(peer, streams);
        if number == 0 && !stream.by_lower {
            self.dial_rest_back(&pair);
        }
        match pair.attach(number, stream) {
            Ok(true) => match self.upgrade.as_ref().filter(|_| wanted != streams) {
                Some(upgrade) => upgrade.add_complete(pair),
                None => self.peers.add(peer, Arc::new(TcpPeer::new(pair, self.peers.layout))),
            },
            Ok(false) => {}
            Err(error) => self.peers.set_failure(peer, error),
        }
    }

    fn pair(&mut self, peer: Rank, streams: u32) -> Arc<TcpPair> {
        let PeerTable { inbox, layout, .. } = &*self.peers;
        let upgrade = self.upgrade.clone().filter(|_| streams & UPGRADE != 0);
        let (streams, sets) = (streams & !UPGRADE, (self.poller.clone(), self.watch.clone()));
        let make = || TcpPair::new(peer, streams, inbox.clone(), *layout, sets, upgrade);
        self.pairs.entry(peer).or_insert_with(|| Arc::new(make())).clone()
    }
}
