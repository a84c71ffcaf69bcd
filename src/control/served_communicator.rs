//! One communicator as the service thread serves it: connects the state machine of its control
//! tree with the sockets, the processes, the links and the device of the rank.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_control::activity::{Activity, RecorderSnapshot};
use maypole_control::communicator::{
    ControlInput, ControlOutput, ControlTiming, DeviceProgress, LocalFacts, ProcessName,
    ProcessState,
};
use maypole_control::report::Report;
use maypole_control::verdict::Verdict;
use maypole_transport::error::{FailedDial, LinkError};
use maypole_transport::sync::Ordering;

use super::status::{CommunicatorStatus, RankProcess};
use super::verdict_error::{error_of, verdict_of};
use super::{
    CommunicatorCommand, ControlShared, DEAD, LEFT, MOST_REPORTS, PeerInfo, USER_ABORT,
    USER_REVOKE, VERDICT,
};
use crate::bootstrap::ControlTree;
use crate::bootstrap::poll::{poll_fd, poll_now};
use crate::clock;
use crate::error::Error;
use crate::process::ProcessWatch;

/// How often connections are looked at for hosts that are gone. The thread wakes as often to
/// compare calls.
const HOST_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A communicator that the service thread serves.
pub(super) struct ServedCommunicator {
    shared: Arc<ControlShared>,
    tree: ControlTree,
    peers: Vec<PeerInfo>,
    /// The processes of neighbours on this host, and of the ranks before and after this one on this
    /// host, as far as they can be watched.
    watched: Vec<WatchedRank>,
    /// When the connections were last looked at for hosts that are gone.
    hosts_checked: Instant,
    /// Whether the state machine believes that a connection is being made.
    is_connecting: bool,
    outputs: VecDeque<ControlOutput>,
}

/// The process of a rank.
struct WatchedRank {
    rank: Rank,
    process: ProcessWatch,
    /// Whether the state machine knows that the process has ended.
    is_known_to_have_ended: bool,
}

/// What a rank can look up. `all` are all communicators of the process.
struct ServedFacts<'a> {
    shared: &'a ControlShared,
    peers: &'a [PeerInfo],
    watched: &'a [WatchedRank],
    all: &'a [Arc<ControlShared>],
}

impl LocalFacts for ServedFacts<'_> {
    fn snapshot(&self) -> RecorderSnapshot {
        self.shared.record.read()
    }

    fn activity(&self) -> Activity {
        let snapshot = self.snapshot();
        let same_thread = |other: &&Arc<ControlShared>| {
            other.key != self.shared.key && other.thread == self.shared.thread
        };
        let elsewhere = self.all.iter().filter(same_thread).find_map(|other| {
            let seen = other.record.read();
            let wait = seen
                .waits_for
                .map_or(String::new(), |peer| format!(", waiting for its rank {peer}"));
            seen.in_call.then(|| format!("{}{wait}", seen.last()))
        });
        Activity { elsewhere: elsewhere.filter(|_| !snapshot.in_call), snapshot }
    }

    fn process_state(&self, rank: Rank) -> Option<ProcessState> {
        if let Some(watched) = self.watched.iter().find(|watched| watched.rank == rank) {
            return Some(watched.process.state());
        }
        watch(self.peers, self.shared.rank, rank).map(|process| process.state())
    }

    fn process_name(&self, rank: Rank) -> ProcessName {
        self.peers.get(rank as usize).map_or(ProcessName::default(), |peer| ProcessName {
            host: peer.host.clone(),
            pid: peer.process.pid,
        })
    }

    fn link_failure(&self) -> Option<Verdict> {
        let error = self.shared.final_error()?;
        let is_of_link = matches!(
            error,
            Error::Aborted { .. }
                | Error::Revoked { .. }
                | Error::Link(LinkError::PeerDied { .. } | LinkError::PeerLeft { .. })
        );
        is_of_link.then(|| verdict_of(self.shared.rank, &error))
    }

    fn has_left_link(&self, rank: Rank) -> bool {
        let gone = self.shared.endpoint.upgrade().and_then(|endpoint| endpoint.gone(rank));
        matches!(gone, Some(LinkError::PeerLeft { .. }))
    }

    fn device(&self) -> Option<DeviceProgress> {
        let signals = self.shared.device.get()?;
        Some(DeviceProgress { launched: signals.launched(), finished: signals.finished() })
    }
}

/// Watches the process of `rank` for rank `me`, if it runs on this host and can be watched.
fn watch(peers: &[PeerInfo], me: Rank, rank: Rank) -> Option<ProcessWatch> {
    let peer = peers.get(rank as usize).filter(|peer| peer.same_host)?;
    peers[me as usize].process.watch(&peer.process)
}

/// The ranks before and after rank `me` among those of its host, in a ring.
fn next_on_host(peers: &[PeerInfo], me: Rank) -> impl Iterator<Item = Rank> {
    let nranks = peers.len() as Rank;
    let others = move |step: Rank| (1..nranks).map(move |i| (me + i * step) % nranks);
    let is_here = |rank: &Rank| peers[*rank as usize].same_host;
    let after = others(1).find(is_here);
    let before = others(nranks - 1).find(is_here);
    after.into_iter().chain(before.filter(move |_| before != after))
}

impl ServedCommunicator {
    /// Begins to serve a communicator: watches the processes and hosts of its neighbours.
    pub(super) fn new(
        shared: Arc<ControlShared>,
        mut tree: ControlTree,
        peers: Vec<PeerInfo>,
        timing: ControlTiming,
    ) -> Self {
        let mut watched = Vec::new();
        for rank in tree.neighbours() {
            if !peers[rank as usize].same_host {
                tree.enable_keep_alive(rank);
            } else if let Some(process) = watch(&peers, shared.rank, rank) {
                watched.push(WatchedRank { rank, process, is_known_to_have_ended: false });
            }
            // Of a process that cannot be watched, the end of its connection shows the end.
        }
        // A process on another host whose sockets a child holds is dead for this rank only if
        // someone there says so: each process is watched by the two next to it.
        for rank in next_on_host(&peers, shared.rank) {
            if !watched.iter().any(|it: &WatchedRank| it.rank == rank)
                && let Some(process) = watch(&peers, shared.rank, rank)
            {
                watched.push(WatchedRank { rank, process, is_known_to_have_ended: false });
            }
        }
        tree.start_service(timing);
        let served = Self {
            shared,
            tree,
            peers,
            watched,
            hosts_checked: Instant::now(),
            is_connecting: false,
            outputs: VecDeque::new(),
        };
        // A neighbour may have failed while the rest of this rank was set up.
        if let Some(verdict) = served.tree.verdict().cloned() {
            served.end(&verdict);
        }
        served
    }

    /// Runs a part of the service. A panic in it ends the communicator on all ranks.
    pub(super) fn guard(
        &mut self,
        all: &[Arc<ControlShared>],
        part: impl FnOnce(&mut Self, &[Arc<ControlShared>]),
    ) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| part(self, all))) {
            let (rank, why) = (self.shared.rank, Error::panic(&*payload).to_string());
            let verdict = Verdict::Failed { rank, why };
            // First what needs no state that the panic may have spoilt.
            self.end(&verdict);
            let tell = || self.handle(ControlInput::Decide(verdict), all);
            if catch_unwind(AssertUnwindSafe(tell)).is_err() {
                log::error!("rank {rank}: the control plane cannot tell other ranks of its panic");
            }
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.shared.id
    }

    pub(super) fn shared(&self) -> Arc<ControlShared> {
        self.shared.clone()
    }

    /// What the communicator does now.
    pub(super) fn status(&self) -> CommunicatorStatus {
        let shared = &*self.shared;
        let snapshot = shared.record.read();
        let error = shared.final_error();
        CommunicatorStatus {
            key: shared.key,
            rank: shared.rank,
            nranks: shared.nranks,
            sequence: snapshot.sequence,
            in_call: snapshot.in_call,
            call: snapshot.last(),
            waits_for: snapshot.waits_for,
            waited: if snapshot.in_call { shared.record.waited(snapshot.sequence) } else { None },
            ended: error.as_ref().map(ToString::to_string),
            result: error.as_ref().map_or((0, false), |error| {
                let is_aborted = matches!(error, Error::Aborted { .. } | Error::Revoked { .. });
                (error.code() as u8, is_aborted)
            }),
            counts: shared.record.counts(),
            dead: match error {
                Some(Error::Link(LinkError::PeerDied { peer })) => self.process_of(peer),
                _ => None,
            },
            here: self.ranks_here(),
        }
    }

    fn process_of(&self, rank: Rank) -> Option<RankProcess> {
        let peer = self.peers.get(rank as usize)?;
        Some(RankProcess { rank, host: peer.host.clone(), pid: peer.process.pid })
    }

    /// The ranks of this host and their processes, as far as the numbers mean the same to them.
    fn ranks_here(&self) -> Vec<(Rank, u32)> {
        let Some(own) = self.peers.get(self.shared.rank as usize) else { return Vec::new() };
        let here = |peer: &&PeerInfo| peer.same_host && peer.process.counts_with(&own.process);
        let ranks = (0..).zip(&self.peers);
        ranks.filter(|(_, peer)| here(peer)).map(|(rank, peer)| (rank, peer.process.pid)).collect()
    }

    /// Appends the entries to poll.
    pub(super) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        self.tree.poll_fds(fds);
        let running = self.watched.iter().filter(|it| !it.is_known_to_have_ended);
        fds.extend(running.map(|it| poll_fd(it.process.as_raw_fd(), libc::POLLIN)));
    }

    /// When [`turn`](Self::turn) must be called at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.tree.wake()
    }

    /// Does what the thread of the communicator asks for.
    pub(super) fn obey(&mut self, command: CommunicatorCommand, all: &[Arc<ControlShared>]) {
        let input = match command {
            #[cfg(test)]
            CommunicatorCommand::Panic => panic!("injected into the service thread"),
            CommunicatorCommand::Investigate(peer, since) => {
                ControlInput::Investigate { peer, since }
            }
            CommunicatorCommand::Connecting(peer) => {
                self.is_connecting = true;
                ControlInput::Connecting(Some(peer))
            }
            CommunicatorCommand::WatchDevice => ControlInput::WatchDevice,
            CommunicatorCommand::Decide(verdict) => ControlInput::Decide(verdict),
            CommunicatorCommand::FindMismatch(peer, fallback) => {
                ControlInput::FindMismatch { peer, fallback }
            }
            CommunicatorCommand::Exchange(bytes, deadline) => {
                ControlInput::Exchange { bytes, deadline: clock::time_of(deadline) }
            }
        };
        self.handle(input, all);
    }

    /// Handles all events that have come. `all` are all communicators of the process.
    pub(super) fn turn(&mut self, all: &[Arc<ControlShared>]) {
        // Before the connections are read: what a process sent before it ended can then be read.
        let ended = self.ended_processes();
        if self.is_connecting && self.shared.connecting.load(Ordering::Relaxed) == 0 {
            self.is_connecting = false;
            self.handle(ControlInput::Connecting(None), all);
        }
        if self.hosts_checked.elapsed() >= HOST_CHECK_INTERVAL {
            self.hosts_checked = Instant::now();
            self.tree.end_connections_to_lost_hosts();
        }
        let facts =
            ServedFacts { shared: &self.shared, peers: &self.peers, watched: &self.watched, all };
        self.tree.read(&facts, &mut self.outputs);
        self.carry_out(all);
        for rank in ended {
            self.handle(ControlInput::ProcessEnded(rank), all);
        }
    }

    /// Leaves the communicator: informs the neighbours and the peers, and closes the connections to
    /// the neighbours. The endpoint may live on, because of an abort handle, or because the process
    /// ends without dropping it.
    pub(super) fn leave(mut self, all: &[Arc<ControlShared>]) {
        // A failure that this rank knows must go out before the farewell on its links.
        self.handle(ControlInput::Leave, all);
        if let Some(endpoint) = self.shared.endpoint.upgrade() {
            endpoint.leave();
        }
        self.tree.close();
        self.shared.change(|state| state.removed = true);
    }

    /// The watched ranks whose process has ended since the last call.
    fn ended_processes(&mut self) -> Vec<Rank> {
        let running = self.watched.iter_mut().filter(|it| !it.is_known_to_have_ended);
        let mut running: Vec<&mut WatchedRank> = running.collect();
        let entry = |it: &&mut WatchedRank| poll_fd(it.process.as_raw_fd(), libc::POLLIN);
        let mut fds: Vec<libc::pollfd> = running.iter().map(entry).collect();
        poll_now(&mut fds);
        let ended = running.iter_mut().zip(&fds).filter(|(_, fd)| fd.revents & libc::POLLIN != 0);
        let ended = ended.map(|(it, _)| {
            it.is_known_to_have_ended = true;
            it.rank
        });
        ended.collect()
    }

    /// Passes an input to the state machine and does what it wants.
    fn handle(&mut self, input: ControlInput, all: &[Arc<ControlShared>]) {
        let facts =
            ServedFacts { shared: &self.shared, peers: &self.peers, watched: &self.watched, all };
        self.tree.handle(input, &facts, &mut self.outputs);
        self.carry_out(all);
    }

    /// The last attempt to connect to the rank that the report is about, if it is not connected.
    fn failed_dial(&self, report: &Report) -> Option<FailedDial> {
        self.shared.endpoint.upgrade()?.failed_dial(*report.chain.first()?)
    }

    fn carry_out(&mut self, all: &[Arc<ControlShared>]) {
        while let Some(output) = self.outputs.pop_front() {
            match output {
                ControlOutput::Ended(verdict) => self.end(&verdict),
                ControlOutput::EndAllWaits(dead) => self.shared.abort_endpoint(DEAD | dead),
                ControlOutput::Exchanged(result) => {
                    let result = result.map_err(|verdict| error_of(&verdict));
                    self.shared.change(|state| state.exchanged = Some(result));
                }
                ControlOutput::Report(report) => {
                    let report = match self.failed_dial(&report) {
                        Some(dial) => report.with_failed_dial(dial),
                        None => report,
                    };
                    log::warn!("{report}");
                    self.shared.change(|state| {
                        if state.reports.len() == MOST_REPORTS {
                            state.reports.pop_front();
                        }
                        state.reports.push_back(report);
                    });
                }
                ControlOutput::CheckDevice => {
                    let input = self.check_device();
                    self.handle(input, all);
                }
                // The connections were served; a bootstrap is over.
                ControlOutput::Close(_)
                | ControlOutput::Send(..)
                | ControlOutput::Missing(..)
                | ControlOutput::Left => {}
            }
        }
    }

    /// Ends the waits of this rank: after a death those for what has not arrived from the dead
    /// rank, and otherwise all. A rank that fails because of a death ends the waits of its peers.
    fn end(&self, verdict: &Verdict) {
        self.shared.change(|state| {
            state.verdict.get_or_insert(verdict.clone());
        });
        if let Verdict::Dead { rank, .. } = *verdict {
            return self.shared.mark_dead(rank);
        }
        self.shared.abort_endpoint(match *verdict {
            Verdict::Left { rank } => LEFT | rank,
            Verdict::Aborted { by } if by == self.shared.rank => USER_ABORT,
            Verdict::Revoked { by } if by == self.shared.rank => USER_REVOKE,
            _ => VERDICT,
        });
    }

    /// Looks whether the work on the device has failed.
    fn check_device(&self) -> ControlInput {
        let (rank, none) = (self.shared.rank, ControlInput::DeviceChecked(None));
        let Some(signals) = self.shared.device.get() else { return none };
        if let Some(failure) = signals.kernel_error() {
            return match failure {
                Error::Mismatch { ranks: [_, peer], what } => {
                    ControlInput::FindMismatch { peer, fallback: what }
                }
                other => ControlInput::Decide(verdict_of(rank, &other)),
            };
        }
        if signals.is_aborted() {
            return none;
        }
        if let Err(error) = signals.query_device() {
            return ControlInput::Decide(verdict_of(rank, &error.into()));
        }
        if signals.is_idle() && signals.unwatch() {
            return none;
        }
        let (launched, finished) = (signals.launched(), signals.finished());
        ControlInput::DeviceChecked(Some(DeviceProgress { launched, finished }))
    }
}
