//! The thread behind the RDMA connections of an endpoint: it makes them, takes control messages,
//! and wakes ranks that sleep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_verbs::AsyncEvent;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::connect::VerbsHandshake;
use super::domain::VerbsDomain;
use super::ends::VerbsPeer;
use super::group::CompletionGroup;
use super::message::ControlMessage;
use super::pair::VerbsPair;
use super::ring::rdma_error;
use crate::Rank;
use crate::error::LinkError;
use crate::peers::PeerTable;
use crate::tcp::pair::TcpPair;
use crate::tcp::pair::upgrade::UpgradeQueue;
use crate::thread;

/// The time after a release until its peer is told of it, because the rank may be busy elsewhere.
const TICK: Duration = Duration::from_millis(20);

/// The handle of the thread. Dropping it ends the thread and all connections.
#[derive(Debug)]
pub(crate) struct VerbsListener {
    domain: Arc<VerbsDomain>,
    peers: Arc<PeerTable>,
    upgrade: Arc<UpgradeQueue>,
    /// The thread starts when it is first needed.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VerbsListener {
    pub(crate) fn new(domain: VerbsDomain, peers: Arc<PeerTable>) -> Result<Self, LinkError> {
        let upgrade = UpgradeQueue::new().map_err(|error| LinkError::system("eventfd", error))?;
        let (domain, upgrade) = (Arc::new(domain), Arc::new(upgrade));
        Ok(Self { domain, peers, upgrade, thread: Mutex::default() })
    }

    /// The device and the port.
    pub(crate) fn device(&self) -> String {
        self.domain.device()
    }

    /// Where the TCP side puts pairs that are to become RDMA connections.
    pub(crate) fn upgrade(&self) -> &Arc<UpgradeQueue> {
        &self.upgrade
    }

    /// Starts the thread if it does not run.
    pub(crate) fn start(&self) -> Result<(), LinkError> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let service = VerbsService {
                domain: self.domain.clone(),
                peers: self.peers.clone(),
                upgrade: self.upgrade.clone(),
                groups: Vec::new(),
                handshakes: HashMap::new(),
                pairs: HashMap::new(),
                tick_at: None,
            };
            *thread = Some(thread::spawn("maypole-verbs", move || service.run_guarded())?);
        }
        Ok(())
    }
}

impl Drop for VerbsListener {
    fn drop(&mut self) {
        self.upgrade.end();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
    }
}

/// The state of the thread.
struct VerbsService {
    domain: Arc<VerbsDomain>,
    peers: Arc<PeerTable>,
    upgrade: Arc<UpgradeQueue>,
    groups: Vec<Arc<CompletionGroup>>,
    handshakes: HashMap<Rank, VerbsHandshake>,
    pairs: HashMap<Rank, Arc<VerbsPair>>,
    /// When to tell the peers of releases.
    tick_at: Option<Instant>,
}

impl VerbsService {
    fn run_guarded(self) {
        let peers = self.peers.clone();
        peers.guard(|| self.run());
    }

    fn run(mut self) {
        loop {
            let requests = self.upgrade.take();
            if requests.end {
                break;
            }
            for control in requests.complete {
                self.begin(&control);
            }
            for peer in requests.news {
                self.take_control(peer);
            }
            self.advance_handshakes();
            self.tick(Instant::now());
            if self.poll_before_sleep() {
                continue;
            }
            self.sleep();
        }
        self.pairs.values().for_each(|pair| pair.close());
    }

    /// Fetches completions once more, after it has asked for an event at the next one if somebody
    /// sleeps. Returns whether a handshake may go on.
    fn poll_before_sleep(&self) -> bool {
        let doorbell = &self.peers.inbox.header().doorbell;
        let waits = doorbell.has_sleeper() || !self.handshakes.is_empty();
        let mut progress = false;
        for group in &self.groups {
            if waits {
                // If this fails, polling fails too.
                let _ = group.completions.arm();
            }
            let mut state = group.lock();
            progress |= group.poll(&mut state);
        }
        if progress {
            doorbell.ring();
        }
        progress && !self.handshakes.is_empty()
    }

    fn sleep(&self) {
        let now = Instant::now();
        let failures = self.groups.iter().filter_map(|group| {
            let state = group.lock();
            let all = state.pairs.values().filter_map(|pair| pair.failure);
            all.map(|failure| failure.report_at).filter(|at| *at > now).min()
        });
        let reports = failures.min();
        let until = reports.into_iter().chain(self.tick_at).min();
        let timeout = until.map(|until| {
            // Rounded up, so that the time has come afterwards.
            let left = until.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let channel = self.domain.channel.descriptor();
        let events = self.domain.context.async_descriptor();
        let wake = self.upgrade.descriptor();
        let mut entries =
            [wake, channel, events].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        // If this fails, nothing is ready and the next round tries again.
        let _ = rustix::event::poll(&mut entries, timeout.as_ref());
        let [_, has_completions, has_events] = entries.map(|entry| !entry.revents().is_empty());
        if has_completions {
            while self.domain.channel.take_event() {}
        }
        if has_events {
            self.take_async_events();
        }
        // The rank looks for itself.
        if has_completions || reports.is_some_and(|at| Instant::now() >= at) {
            self.peers.inbox.header().doorbell.ring();
        }
    }

    fn take_async_events(&self) {
        let (rank, device) = (self.peers.rank, self.domain.device());
        while let Ok(event) = self.domain.context.take_async_event() {
            match event {
                AsyncEvent::PortDown(port) if port == self.domain.port => {
                    log::warn!("rank {rank}: the port {device} is down; its messages wait");
                }
                AsyncEvent::PortActive(port) if port == self.domain.port => {
                    log::warn!("rank {rank}: the port {device} is active again");
                }
                AsyncEvent::DeviceFatal => log::warn!("rank {rank}: the device {device} failed"),
                AsyncEvent::GidChange(_) => {
                    let present = self.domain.describe();
                    log::info!("rank {rank}: the GIDs have changed; new connections: {present}");
                }
                other => log::debug!("rank {rank}: {device}: {other:?}"),
            }
        }
    }

    /// Begins to make a connection out of a pair.
    fn begin(&mut self, control: &Arc<TcpPair>) {
        let peer = control.peer;
        let group = match self.group() {
            Ok(group) => group,
            Err(why) => return self.give_up(control, rdma_error(peer, why)),
        };
        let (domain, peers, upgrade) = (&self.domain, &self.peers, &self.upgrade);
        match VerbsHandshake::begin(control, &group, domain, peers, upgrade) {
            Ok(handshake) => {
                self.handshakes.insert(peer, handshake);
                // The peer may have been faster.
                self.take_control(peer);
            }
            Err(error) => self.give_up(control, error),
        }
    }

    /// A group with room for one more peer.
    fn group(&mut self) -> Result<Arc<CompletionGroup>, String> {
        let (receives, _) = self.domain.needs_per_peer();
        for group in &self.groups {
            if group.take_place(receives)? {
                return Ok(group.clone());
            }
        }
        let group = CompletionGroup::new(&self.domain).map_err(|error| error.to_string())?;
        if !group.take_place(receives)? {
            return Err("a new group has no room".to_owned());
        }
        self.groups.push(group.clone());
        Ok(group)
    }

    fn take_control(&mut self, peer: Rank) {
        loop {
            let handshake = self.handshakes.get_mut(&peer);
            let control = match (&handshake, self.pairs.get(&peer)) {
                (Some(handshake), _) => &handshake.pair.control,
                (None, Some(pair)) => &pair.control,
                (None, None) => return,
            };
            let Some(bytes) = control.take_control() else { return };
            let Some(message) = ControlMessage::decode(&bytes) else {
                let control = control.clone();
                let why = "a control message that no correct rank sends";
                return self.give_up(&control, LinkError::Corrupt { peer, why });
            };
            match handshake {
                Some(handshake) => {
                    let result = handshake.take(message).and_then(|()| handshake.advance());
                    self.handle_progress(peer, result);
                }
                None => self.pairs[&peer].take_control(message),
            }
        }
    }

    fn advance_handshakes(&mut self) {
        let peers: Vec<Rank> = self.handshakes.keys().copied().collect();
        for peer in peers {
            let Some(handshake) = self.handshakes.get_mut(&peer) else { continue };
            let result = match handshake.pair.control.gone() {
                Some(error) => Err(error),
                None => handshake.advance(),
            };
            self.handle_progress(peer, result);
        }
    }

    fn handle_progress(&mut self, peer: Rank, result: Result<bool, LinkError>) {
        match result {
            Ok(false) => {}
            Ok(true) => {
                let Some(handshake) = self.handshakes.remove(&peer) else { return };
                self.pairs.insert(peer, handshake.pair.clone());
                self.peers.add(peer, Arc::new(VerbsPeer::new(handshake.pair)));
            }
            Err(error) => {
                let Some(handshake) = self.handshakes.remove(&peer) else { return };
                self.give_up(&handshake.pair.control, error);
            }
        }
    }

    /// No connection to this peer is made; both ends get the error.
    fn give_up(&mut self, control: &TcpPair, error: LinkError) {
        log::warn!("rank {}: {error}", self.peers.rank);
        control.send_control(&ControlMessage::Failed(error.to_string()).encode());
        match self.pairs.get(&control.peer) {
            Some(pair) => pair.with_state(|pair| pair.fail(error, &error.to_string())),
            None => self.peers.set_failure(control.peer, error),
        }
    }

    /// Tells the peers of releases, for a rank that may be busy elsewhere.
    fn tick(&mut self, now: Instant) {
        if self.tick_at.is_some_and(|at| now >= at) {
            self.tick_at = None;
            self.upgrade.begin_tick();
            let mut left = false;
            for group in &self.groups {
                let mut state = group.lock();
                group.poll(&mut state);
                for pair in state.pairs.values_mut() {
                    pair.send_acks();
                    left |= pair.owes_acks();
                }
            }
            self.peers.inbox.header().doorbell.ring();
            if left {
                self.tick_at = Some(now + TICK);
            }
        }
        if self.tick_at.is_none() && self.upgrade.tick_is_pending() {
            self.tick_at = Some(now + TICK);
        }
    }
}
