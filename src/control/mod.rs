//! The control plane: finds dead, slow and mismatched ranks, and reports them or ends all waits.
//!
//! What it decides is in the crate `maypole_control`, as a state machine without I/O. Here are the
//! thread that serves it and what it needs to know of this rank.
//!
//! After init the connections of the control tree belong to one service thread per process, which
//! sleeps until an event comes. It distinguishes what is proven from what is only slow:
//!
//! ```text
//!  proven: a process ended, two ranks make different calls, the user set a timeout or aborted
//!          -> a verdict goes to all ranks over the tree; all their waits end with the same error
//!  slow:   a wait of MAYPOLE_REPORT seconds
//!          -> the rank that is waited for is asked what it does, then the rank that this one
//!             waits for, and so on
//!          -> a report names the rank at the end of the chain and what delays it; no call ends
//! ```
//!
//! As long as all is well, a call costs the few stores of its [`flight_recorder`] and nothing more.
//!
//! | file | purpose |
//! |---|---|
//! | `flight_recorder` | what a communicator is doing, and its last calls |
//! | `dump` | the flight recorder on demand |
//! | `status` | what other processes may ask: `maypole ps` |
//! | `ras` | the same in the protocol of NCCL's RAS service |
//! | `verdict_error` | verdicts as errors |
//! | `served_communicator` | one communicator, as the service thread serves it |
//! | `service` | the service thread |
//! | `plane` | what a communicator does with its control plane |
//!
//! This file has what the thread of a communicator, its abort handles and the service thread share.

mod dump;
mod flight_recorder;
mod plane;
mod ras;
mod served_communicator;
mod service;
pub mod status;
mod verdict_error;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_control::rank_set::RankSet;
use maypole_control::time::Time;
use maypole_control::verdict::Verdict;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::{FailedDial, LinkError};
use maypole_transport::sync::AtomicU64;

use crate::bootstrap::Abortable;
use crate::device::memory::signals::DeviceSignals;
use crate::error::Error;
use crate::process::{ProcessIdentity, generation};
use flight_recorder::FlightRecorder;
pub(crate) use plane::ControlPlane;
use service::{CommandQueue, ServiceCommand};
use verdict_error::{error_of, verdict_of};

pub use maypole_control::report::{DelayReason, Report};

// The reasons with which an endpoint is aborted, as the peers see them over their links. They need
// no control tree, in which the rank that left may be missing.

/// A verdict that travels over the control tree says why.
const VERDICT: u32 = 1;
/// The user aborted.
const USER_ABORT: u32 = 2;
/// The user revoked the communicator.
const USER_REVOKE: u32 = 3;
/// Flag: the rank in the other bits died.
const DEAD: u32 = 1 << 31;
/// Flag: the rank in the other bits left.
const LEFT: u32 = 1 << 30;

/// How long a verdict may take to reach this rank, or the service thread to send the verdict of
/// this rank.
const VERDICT_TIME: Duration = Duration::from_secs(2);
/// How long the reason may take to reach this rank why another refused a connection, or ended it
/// without a farewell.
const REFUSED_TIME: Duration = Duration::from_millis(500);
/// How long a rank that seems to make another call may take to answer what it does.
const MISMATCH_TIME: Duration = Duration::from_secs(4);
/// The number of reports that are kept.
const MOST_REPORTS: usize = 64;

/// What the control plane knows of a rank.
#[derive(Clone, Debug)]
pub(crate) struct PeerInfo {
    /// The name of its host, to be printed.
    pub(crate) host: String,
    pub(crate) process: ProcessIdentity,
    /// Whether it runs on this host.
    pub(crate) same_host: bool,
}

/// The state that the thread of a communicator, its abort handles and the service thread share.
pub(crate) struct ControlShared {
    /// The number of the communicator in this process.
    id: u64,
    pub(crate) rank: Rank,
    pub(crate) nranks: u32,
    /// Identifies the communicator: the same on all of its ranks, and in no other.
    key: u64,
    /// The thread that made the communicator, which is most often the one that uses it.
    thread: i32,
    /// The [`generation`] of the process that made it.
    generation: u32,
    pub(crate) record: FlightRecorder,
    /// How long this rank waits, when it leaves, until its messages have arrived.
    flush_timeout: Duration,
    /// The endpoint. It must be dropped by the thread of the communicator, so it is not kept alive
    /// here.
    endpoint: Weak<Endpoint>,
    /// The queue of commands to the service thread. Set before another thread sees this value.
    queue: OnceLock<Arc<CommandQueue>>,
    state: Mutex<ControlState>,
    /// Signalled when `state` changes.
    changed: Condvar,
    /// One more than the rank to which a connection is being made; 0 if none is.
    connecting: AtomicU64,
    /// The work of a rank on a CUDA device.
    device: OnceLock<Arc<DeviceSignals>>,
}

/// The part of [`ControlShared`] that is under a lock.
#[derive(Default)]
struct ControlState {
    /// What ended the communicator.
    verdict: Option<Verdict>,
    /// The last reports, oldest first.
    reports: VecDeque<Report>,
    /// The result of the last exchange.
    exchanged: Option<Result<Vec<Vec<u8>>, Error>>,
    /// Whether the service thread has left the communicator.
    removed: bool,
}

/// What the thread of a communicator asks of the service thread.
enum CommunicatorCommand {
    /// Find out why this rank has waited for that rank since that time.
    Investigate(Rank, Time),
    /// Watch the connection to that rank, which is being made.
    Connecting(Rank),
    /// Check the work on the device of the rank regularly.
    WatchDevice,
    /// End the communicator on all ranks.
    Decide(Verdict),
    /// Find out which other call the message of that rank belongs to. The text is used if that is
    /// not possible.
    FindMismatch(Rank, String),
    /// Take part in the next exchange over the tree, until the deadline.
    Exchange(Vec<u8>, Instant),
    /// Panic.
    #[cfg(test)]
    Panic,
}

impl Abortable for ControlShared {
    fn abort(&self) {
        Self::abort(self);
    }
}

impl ControlShared {
    /// Ends every wait of the communicator, on all ranks.
    pub(crate) fn abort(&self) {
        // Over the links, which is fastest, and over the tree for ranks to which no link is
        // connected.
        self.abort_endpoint(USER_ABORT);
        self.send(CommunicatorCommand::Decide(Verdict::Aborted { by: self.rank }));
    }

    /// As [`abort`](Self::abort), for a communicator of which others are to be made.
    pub(crate) fn revoke(&self) {
        self.abort_endpoint(USER_REVOKE);
        self.send(CommunicatorCommand::Decide(Verdict::Revoked { by: self.rank }));
    }

    /// As [`ControlPlane::abort_peers`].
    pub(crate) fn abort_peers(&self, error: &Error) {
        self.abort_endpoint(match *error {
            Error::Link(LinkError::PeerDied { peer }) => DEAD | peer,
            Error::Link(LinkError::PeerLeft { peer }) => LEFT | peer,
            _ => VERDICT,
        });
    }

    /// As [`ControlPlane::fail`].
    pub(crate) fn fail(&self, error: Error) -> Error {
        // The failure here may be the effect of another, which other ranks know. (A rank that fails
        // sends its verdict before it leaves, so a rank that saw it leave has the verdict.)
        let aborted = self.endpoint.upgrade().and_then(|endpoint| endpoint.aborted());
        let error = self.checked(aborted.map_or(error, Error::from));
        let (error, time) = match error {
            // A verdict is on its way to this rank.
            Error::Link(LinkError::Aborted { by, reason: VERDICT }) => {
                let until = Instant::now() + VERDICT_TIME;
                if let Some(error) = self.wait(until, |state| state.verdict.as_ref().map(error_of))
                {
                    return error;
                }
                (LinkError::Aborted { by, reason: VERDICT }.into(), VERDICT_TIME)
            }
            Error::Mismatch { ranks: [_, peer], what } => {
                self.send(CommunicatorCommand::FindMismatch(peer, what.clone()));
                (Error::Mismatch { ranks: [self.rank, peer], what }, MISMATCH_TIME)
            }
            other => {
                let error = cause(other);
                // A connection that was refused or has ended says little: its other end may have
                // failed, and its verdict may be on its way.
                if is_end_of_connection(&error)
                    && let Some(verdict) =
                        self.wait(Instant::now() + REFUSED_TIME, |state| state.verdict.clone())
                {
                    return error_of(&verdict);
                }
                let verdict = verdict_of(self.rank, &error);
                self.send(CommunicatorCommand::Decide(verdict));
                (error, VERDICT_TIME)
            }
        };
        let verdict = self.wait(Instant::now() + time, |state| state.verdict.clone());
        match verdict {
            // On this rank its own error says more than the text that the other ranks get.
            Some(Verdict::Failed { rank, .. }) if rank == self.rank => error,
            Some(verdict) => error_of(&verdict),
            None => {
                self.abort_endpoint(VERDICT);
                error
            }
        }
    }

    /// As [`ControlPlane::final_error`].
    pub(crate) fn final_error(&self) -> Option<Error> {
        let verdict = self.state().verdict.as_ref().map(error_of);
        verdict.or_else(|| {
            let error = self.endpoint.upgrade()?.aborted()?;
            Some(cause(self.checked(error.into())))
        })
    }

    /// The error, unless it is an abort that names a rank that does not exist: peers write the rank
    /// and the reason to memory of this rank.
    fn checked(&self, error: Error) -> Error {
        let Error::Link(LinkError::Aborted { by, reason }) = error else { return error };
        let ended = [DEAD, LEFT].into_iter().find(|flag| reason & flag != 0);
        let exists = |rank: Rank| rank < self.nranks;
        if exists(by) && ended.is_none_or(|flag| exists(reason & !flag)) {
            return error;
        }
        let peer = if exists(by) { by } else { self.rank };
        let why = "its word for aborts names a rank that does not exist";
        LinkError::Corrupt { peer, why }.into()
    }

    /// Waits until the peers have received what this rank has sent, because it leaves, at most
    /// until `until`. Tells all ranks if they have not. After a failure it returns at once.
    fn flush(&self, until: Instant) {
        let Some(endpoint) = self.endpoint.upgrade().filter(|_| self.is_ours()) else { return };
        let ended = self.state().verdict.clone();
        if endpoint.aborted().is_some() || !matches!(ended, None | Some(Verdict::Dead { .. })) {
            return;
        }
        let left = endpoint.flush(until.saturating_duration_since(Instant::now()));
        // An abort ends the flush too.
        if left.is_empty() || endpoint.aborted().is_some() {
            return;
        }
        let error = Error::LeftUnsent {
            rank: self.rank,
            peers: RankSet::new(left.iter().map(|it| it.peer)),
            messages: left.iter().map(|it| it.messages).sum(),
            bytes: left.iter().map(|it| it.bytes).sum(),
        };
        log::warn!("rank {}: {error}", self.rank);
        self.send(CommunicatorCommand::Decide(verdict_of(self.rank, &error)));
    }

    /// When this rank has waited long enough for its messages to arrive, from now on.
    fn flush_deadline(&self) -> Instant {
        crate::clock::after(self.flush_timeout)
    }

    /// Ends the waits for what has not arrived from a rank whose process has ended. What it sent
    /// before counts. Work on a device waits for memory and not for links, so all of it is ended.
    fn mark_dead(&self, rank: Rank) {
        if self.device.get().is_some() {
            self.abort_endpoint(DEAD | rank);
        } else if self.is_ours()
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint.process_ended(rank);
        }
    }

    /// Ends the waits on the links and the work on the device.
    fn abort_endpoint(&self, reason: u32) {
        if self.is_ours()
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint.abort(reason);
        }
        if self.is_ours()
            && let Some(signals) = self.device.get()
        {
            signals.abort();
        }
    }

    /// False in a child made by fork, which shares descriptors and memory with its parent and must
    /// not use them.
    fn is_ours(&self) -> bool {
        generation() == self.generation
    }

    /// Sends a command to the service thread.
    fn send(&self, command: CommunicatorCommand) {
        if self.is_ours()
            && let Some(queue) = self.queue.get()
        {
            queue.send(ServiceCommand::Communicator(self.id, command));
        }
    }

    /// Waits until `ready` returns a value, or the time `until` has come.
    fn wait<T>(
        &self,
        until: Instant,
        mut ready: impl FnMut(&mut ControlState) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = ready(&mut state) {
                return Some(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Makes the service thread panic.
    #[cfg(test)]
    pub(crate) fn panic_in_service(&self) {
        self.send(CommunicatorCommand::Panic);
    }

    fn state(&self) -> MutexGuard<'_, ControlState> {
        lock(&self.state)
    }

    /// Changes the state, and wakes the threads that wait for a change.
    fn change(&self, change: impl FnOnce(&mut ControlState)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// Whether the error is that the other end refused or ended a connection.
fn is_end_of_connection(error: &Error) -> bool {
    matches!(
        error,
        Error::Link(
            LinkError::Refused { .. }
                | LinkError::PeerLeft { .. }
                | LinkError::PeerDied { .. }
                | LinkError::System { errno: libc::ECONNREFUSED, .. }
                | LinkError::Unreachable { dial: FailedDial { errno: libc::ECONNREFUSED, .. }, .. }
        )
    )
}

/// The error that an abort by a peer stands for.
fn cause(error: Error) -> Error {
    match error {
        Error::Link(LinkError::Aborted { reason, .. }) if reason & DEAD != 0 => {
            LinkError::PeerDied { peer: reason & !DEAD }.into()
        }
        Error::Link(LinkError::Aborted { reason, .. }) if reason & LEFT != 0 => {
            LinkError::PeerLeft { peer: reason & !LEFT }.into()
        }
        Error::Link(LinkError::Aborted { by, reason: USER_ABORT }) => Error::Aborted { by },
        Error::Link(LinkError::Aborted { by, reason: USER_REVOKE }) => Error::Revoked { by },
        other => other,
    }
}

/// Locks, also after a panic of another thread under the lock: all states are valid at all times.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
