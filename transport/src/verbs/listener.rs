//! The thread behind the RDMA connections of an endpoint: it makes them, takes control messages,
//! and wakes ranks that sleep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_verbs::AsyncEvent;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::domain::VerbsDomain;
use super::ends::VerbsPeer;
use super::message::{ControlMessage, PathAttempt};
use super::pair::VerbsPair;
use super::path::Path;
use super::settings::{RdmaPath, RdmaReport};
use super::shared::VerbsShared;
use super::table::VerbsTable;
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
    table: Arc<VerbsTable>,
    peers: Arc<PeerTable>,
    /// The thread starts when it is first needed.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VerbsListener {
    pub(crate) fn new(domains: Vec<VerbsDomain>, peers: Arc<PeerTable>) -> Result<Self, LinkError> {
        let upgrade = UpgradeQueue::new().map_err(|error| LinkError::system("eventfd", error))?;
        let domains = domains.into_iter().map(Arc::new).collect();
        let (inbox, upgrade) = (peers.inbox.clone(), Arc::new(upgrade));
        let shared = VerbsShared::new(peers.rank, domains, peers.layout, inbox, upgrade);
        let table = Arc::new(VerbsTable::new(Arc::new(shared)));
        Ok(Self { table, peers, thread: Mutex::default() })
    }

    /// The devices and ports.
    pub(crate) fn devices(&self) -> String {
        self.table.shared.devices()
    }

    /// What is known of the paths to a peer that is reached over RDMA.
    pub(crate) fn report(&self, peer: Rank) -> Option<RdmaReport> {
        let state = self.table.lock();
        let pair = state.pairs.get(&peer)?;
        let path = |path: &Path| RdmaPath {
            device: self.table.shared.domains[path.domain].device(),
            active: path.is_active(),
            messages: path.messages,
            losses: path.losses,
        };
        Some(RdmaReport {
            paths: pair.paths.iter().map(path).collect(),
            repeated: pair.repeated,
            over_tcp: pair.messages_over_tcp(),
        })
    }

    /// Where the TCP side puts pairs that are to become RDMA connections.
    pub(crate) fn upgrade(&self) -> &Arc<UpgradeQueue> {
        &self.table.shared.upgrade
    }

    /// Starts the thread if it does not run.
    pub(crate) fn start(&self) -> Result<(), LinkError> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let service = VerbsService {
                table: self.table.clone(),
                peers: self.peers.clone(),
                pairs: HashMap::new(),
                connecting: Vec::new(),
                tick_at: None,
                retry_at: None,
                dead: Vec::new(),
            };
            *thread = Some(thread::spawn("maypole-verbs", move || service.run_guarded())?);
        }
        Ok(())
    }
}

impl Drop for VerbsListener {
    fn drop(&mut self) {
        self.table.shared.upgrade.end();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
    }
}

/// The state of the thread.
struct VerbsService {
    table: Arc<VerbsTable>,
    peers: Arc<PeerTable>,
    pairs: HashMap<Rank, Arc<VerbsPair>>,
    /// Pairs whose links cannot be used yet.
    connecting: Vec<Rank>,
    /// When to tell the peers of releases.
    tick_at: Option<Instant>,
    /// When to try again to make a path.
    retry_at: Option<Instant>,
    /// Numbers of the ports whose devices were removed.
    dead: Vec<usize>,
}

impl VerbsService {
    fn run_guarded(self) {
        let peers = self.peers.clone();
        peers.guard(|| self.run());
    }

    fn run(mut self) {
        loop {
            let requests = self.table.shared.upgrade.take();
            if requests.end {
                break;
            }
            for control in requests.complete {
                self.begin(&control);
            }
            for peer in requests.news {
                self.take_control(peer);
            }
            self.advance_paths();
            self.tick(Instant::now());
            if self.poll_before_sleep() {
                continue;
            }
            self.sleep();
        }
        self.pairs.values().for_each(|pair| pair.close());
    }

    /// Fetches completions once more, after it has asked for an event at the next one if somebody
    /// sleeps. Returns whether a path may go on.
    fn poll_before_sleep(&self) -> bool {
        let doorbell = &self.peers.inbox.header().doorbell;
        let mut state = self.table.lock();
        let is_making = state.pairs.values().flat_map(|pair| &pair.paths).any(Path::is_connecting);
        if doorbell.has_sleeper() || is_making {
            self.table.arm(&state);
        }
        let progress = self.table.poll(&mut state);
        drop(state);
        if progress {
            doorbell.ring();
        }
        progress && is_making
    }

    fn sleep(&mut self) {
        let until = self.retry_at.into_iter().chain(self.tick_at).min();
        let timeout = until.map(|until| {
            // Rounded up, so that the time has come afterwards.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let shared = self.table.shared.clone();
        let mut entries =
            vec![PollFd::from_borrowed_fd(shared.upgrade.descriptor(), PollFlags::IN)];
        let domains = shared.domains.iter().enumerate();
        let live: Vec<_> = domains.filter(|(index, _)| !self.dead.contains(index)).collect();
        for (_, domain) in &live {
            for descriptor in [domain.channel.descriptor(), domain.context.async_descriptor()] {
                entries.push(PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
            }
        }
        // If this fails, nothing is ready and the next round tries again.
        let _ = rustix::event::poll(&mut entries, timeout.as_ref());
        let mut has_completions = false;
        for ((index, domain), ready) in live.into_iter().zip(entries[1..].chunks(2)) {
            if ready[0].revents().contains(PollFlags::IN) {
                has_completions = true;
                while domain.channel.take_event() {}
            }
            if ready[1].revents().contains(PollFlags::IN) {
                self.take_async_events(index, domain);
            }
            // The descriptors of a device that was removed would never rest.
            let ended = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
            if ready.iter().any(|entry| entry.revents().intersects(ended)) {
                self.dead.push(index);
            }
        }
        // The rank looks for itself.
        if has_completions {
            self.peers.inbox.header().doorbell.ring();
        }
    }

    fn take_async_events(&self, index: usize, domain: &VerbsDomain) {
        let (rank, device) = (self.peers.rank, domain.device());
        let changed = |lost: Option<&str>| {
            let mut state = self.table.lock();
            state.pairs.values_mut().for_each(|pair| pair.port_changed(index, lost));
            self.table.poll(&mut state);
            drop(state);
            self.peers.inbox.header().doorbell.ring();
        };
        while let Ok(event) = domain.context.take_async_event() {
            match event {
                AsyncEvent::PortDown(port) if port == domain.port => {
                    log::warn!("rank {rank}: the port {device} is down");
                    changed(Some("the port is down"));
                }
                AsyncEvent::PortActive(port) if port == domain.port => {
                    log::warn!("rank {rank}: the port {device} is active again");
                    changed(None);
                }
                AsyncEvent::DeviceFatal => {
                    log::warn!("rank {rank}: the device {device} failed");
                    changed(Some("the device failed or was removed"));
                }
                AsyncEvent::GidChange(_) => {
                    let present = domain.describe();
                    log::info!("rank {rank}: the GIDs have changed; new connections: {present}");
                    changed(None);
                }
                other => log::debug!("rank {rank}: {device}: {other:?}"),
            }
        }
    }

    /// Begins to make a connection out of a pair.
    fn begin(&mut self, control: &Arc<TcpPair>) {
        let peer = control.peer;
        self.pairs.insert(peer, Arc::new(VerbsPair::new(control, &self.table)));
        self.connecting.push(peer);
        let ports = self.table.shared.domains.len() as u8;
        control.send_control(&ControlMessage::Ports(ports).encode());
        // The peer may have been faster.
        self.take_control(peer);
    }

    fn take_control(&mut self, peer: Rank) {
        let Some(pair) = self.pairs.get(&peer).cloned() else { return };
        while let Some(bytes) = pair.control.take_control() {
            let Some(message) = ControlMessage::decode(&bytes) else {
                let why = "a control message that no correct rank sends";
                let error = LinkError::Corrupt { peer, why };
                return pair.with_state(|state| state.fail(error, why));
            };
            match message {
                ControlMessage::Ports(theirs) => {
                    let count = pair.with_state(|state| state.make_paths(theirs));
                    for path in 0..count as u8 {
                        let first = PathAttempt { path, number: 1 };
                        self.table.begin_attempt(peer, first, true);
                    }
                }
                ControlMessage::Hello(attempt, _) => {
                    if pair.with_state(|state| state.is_new_attempt(attempt)) {
                        self.table.begin_attempt(peer, attempt, true);
                    }
                    pair.with_state(|state| state.take_path_message(attempt, message));
                }
                ControlMessage::Ready(attempt)
                | ControlMessage::Passed(attempt)
                | ControlMessage::Failed(attempt, _)
                | ControlMessage::Arrived { attempt, .. }
                | ControlMessage::Stopped(attempt, _) => {
                    pair.with_state(|state| state.take_path_message(attempt, message));
                    self.peers.inbox.header().doorbell.ring();
                }
                _ => pair.take_control(message),
            }
        }
    }

    /// Goes on with the paths that are being made, and begins those whose time has come.
    fn advance_paths(&mut self) {
        let now = Instant::now();
        self.retry_at = None;
        for (peer, pair) in &self.pairs {
            let (due, next) = pair.with_state(|state| {
                (0..state.paths.len()).for_each(|index| state.advance(index));
                state.retries(now)
            });
            for attempt in due {
                self.table.begin_attempt(*peer, attempt, false);
                // If it could not begin, it is tried again later.
                let (_, next) = pair.with_state(|state| state.retries(now));
                self.retry_at = self.retry_at.into_iter().chain(next).min();
            }
            self.retry_at = self.retry_at.into_iter().chain(next).min();
        }
        for peer in std::mem::take(&mut self.connecting) {
            let pair = self.pairs[&peer].clone();
            let gone = pair.control.gone();
            if gone.is_some() {
                // What it said before it went may complete the connection.
                self.take_control(peer);
            }
            let outcome = pair.with_state(|state| state.outcome());
            match outcome.or(gone.map(Err)) {
                None => self.connecting.push(peer),
                Some(Ok(())) => self.peers.add(peer, Arc::new(VerbsPeer::new(pair))),
                Some(Err(error)) => {
                    log::warn!("rank {}: {error}", self.peers.rank);
                    pair.with_state(|state| state.fail(error, &error.to_string()));
                    self.peers.set_failure(peer, error);
                }
            }
        }
    }

    /// Tells the peers of releases, and sends what waits, for a rank that may be busy elsewhere.
    fn tick(&mut self, now: Instant) {
        let upgrade = &self.table.shared.upgrade;
        if self.tick_at.is_some_and(|at| now >= at) {
            self.tick_at = None;
            upgrade.begin_tick();
            let mut left = false;
            let mut state = self.table.lock();
            self.table.poll(&mut state);
            for pair in state.pairs.values_mut() {
                pair.send_acks();
                left |= pair.owes_work();
            }
            drop(state);
            self.peers.inbox.header().doorbell.ring();
            if left {
                self.tick_at = Some(now + TICK);
            }
        }
        if self.tick_at.is_none() && upgrade.tick_is_pending() {
            self.tick_at = Some(now + TICK);
        }
    }
}
