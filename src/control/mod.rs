//! The control plane: no silent hang, no silent mismatch.
//!
//! After init the connections of the control tree belong to one service thread per process, which sleeps until something
//! happens. It tells apart what is proven from what is only slow:
//!
//! ```text
//!  proven: a process ended, two ranks make different calls, the user's timeout or abort
//!          -> a verdict, flooded over the tree: every rank's waits end with the same error
//!  slow:   a wait of MAYPOLE_REPORT seconds -> the rank waited for is asked what it does, then the one that it waits for, ...
//!          -> a report that names the rank at the end of the chain and what keeps it; nothing ends
//! ```
//!
//! While all is well this costs a call the few stores of its [`record`], and nothing else.
//!
//! | file | idea |
//! |---|---|
//! | `record` | what a communicator is doing; the flight recorder |
//! | `verdict`, `report` | what is proven, and what is only slow |
//! | `message` | what ranks tell each other |
//! | `member` | one communicator, as the service thread sees it |
//! | `service` | the thread |
//! | `device` | what the thread sees of work on a CUDA device |
//! | `dump` | the flight recorder on demand |
//! | `live` | what other processes may ask: `maypole ps` |

mod device;
mod dump;
mod flight_recorder;
mod member;
mod message;
mod report;
mod service;
pub mod status;
mod verdict;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::bootstrap::{Abortable, ControlTree};
use crate::call_signature::CallSignature;
use crate::config::Config;
use crate::device::signals::Signals;
use crate::error::Error;
use crate::process::{self, ProcessIdentity, generation};
use flight_recorder::FlightRecorder;
use member::Member;
use service::{Command, Queue};
use verdict::Verdict;

pub use report::{Reason, Report};

/// Abortable reasons, as the peers see them: the verdict on the tree says why; the user asked for it; or, with [`DEAD`]
/// or [`LEFT`] set, the rank in the other bits died or left. (These need no tree: the rank that left may be a hole in it.)
const VERDICT: u32 = 1;
const USER_ABORT: u32 = 2;
const DEAD: u32 = 1 << 31;
const LEFT: u32 = 1 << 30;

/// For a verdict that others have heard to reach this rank too, and for the service thread to spread ours.
const VERDICT_PATIENCE: Duration = Duration::from_secs(2);
/// For the reason why a connection was not made to come over the tree.
const UNMADE_PATIENCE: Duration = Duration::from_millis(500);
/// For the rank accused of a mismatch to say what it does.
const ACCUSED_PATIENCE: Duration = Duration::from_secs(4);
/// Reports that are kept.
const MOST_REPORTS: usize = 64;

/// What the control plane must know of a rank.
#[derive(Clone, Debug)]
pub(crate) struct PeerInfo {
    /// Its host, for people.
    pub(crate) host: String,
    pub(crate) process: ProcessIdentity,
    /// Whether it runs on this host.
    pub(crate) near: bool,
}

/// A communicator's part of the control plane. Dropping it leaves in peace, and waits for nobody.
pub(crate) struct ControlPlane {
    shared: Arc<ControlShared>,
    /// The process that made it, as [`process::generation`] tells.
    generation: u32,
    report: Duration,
    timeout: Option<Duration>,
    /// Number of the last call that has ended.
    sequence: u64,
    /// The call after it is known to others.
    entered: Cell<bool>,
    /// Hash of all calls up to the last.
    history: u64,
}

/// What a communicator's thread, its abort handles and the service thread share.
pub(crate) struct ControlShared {
    id: u64,
    pub(crate) rank: Rank,
    pub(crate) nranks: u32,
    /// The same on all ranks of the communicator, and in no other.
    key: u64,
    /// The thread that made the communicator, which is most often the one that uses it.
    thread: i32,
    /// As in [`ControlPlane`].
    generation: u32,
    pub(crate) record: FlightRecorder,
    /// Not kept alive from here: it must end on the communicator's thread, which then has nothing left.
    endpoint: Weak<Endpoint>,
    /// Where commands go; set before anyone else sees this.
    queue: Mutex<Option<Arc<Queue>>>,
    state: Mutex<State>,
    /// Something in `state` changed.
    changed: Condvar,
    /// One more than the rank to which a connection is being made.
    opening: AtomicU64,
    /// Of a rank on a CUDA device.
    device: OnceLock<Arc<Signals>>,
}

#[derive(Default)]
struct State {
    verdict: Option<Verdict>,
    reports: VecDeque<Report>,
    exchanged: Option<Result<Vec<Vec<u8>>, Error>>,
    removed: bool,
}

impl ControlPlane {
    /// Hands the tree over to the service thread. `key` is the same on all ranks of the communicator and in no other;
    /// `peers` are all ranks, in order.
    pub(crate) fn start(
        tree: ControlTree,
        endpoint: &Arc<Endpoint>,
        key: u64,
        peers: Vec<PeerInfo>,
        config: &Config,
    ) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        process::notice_forks();
        service::notice_exit();
        dump::install();
        let shared = Arc::new(ControlShared {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            rank: tree.rank(),
            nranks: tree.nranks(),
            key,
            // SAFETY: it has no preconditions.
            thread: unsafe { libc::gettid() },
            generation: generation(),
            record: FlightRecorder::default(),
            endpoint: Arc::downgrade(endpoint),
            queue: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            opening: AtomicU64::new(0),
            device: OnceLock::new(),
        });
        let (report, timeout) = (config.report, config.timeout);
        let mut tree = Some(tree);
        let added = service::add(|| {
            tree.take().map(|tree| Member::new(shared.clone(), tree, peers, report, timeout))
        });
        let queue = added.inspect_err(|error| {
            // There is no service to tell the others.
            if let Some(tree) = &mut tree {
                tree.give_up(error.to_string());
            }
        })?;
        *lock(&shared.queue) = Some(queue);
        Ok(Self {
            shared,
            generation: generation(),
            report,
            timeout,
            sequence: 0,
            entered: Cell::new(false),
            history: 0,
        })
    }

    /// A hash of all calls so far, which differs between ranks from the first call on in which they differed.
    #[inline]
    pub(crate) fn history(&self) -> u32 {
        // The high bits depend on all of it.
        (self.history >> 32) as u32
    }

    /// Makes the current call known. Only from here on may others ask for it, so it is called before a wait, when there is time:
    /// a call that never waits is recorded at its end.
    pub(crate) fn begin_call(&self, signature: CallSignature) {
        if !self.entered.replace(true) {
            self.shared.record.begin(self.sequence + 1, signature);
        }
    }

    /// To be asked before every use.
    ///
    /// # Errors
    /// In a child made by fork.
    #[inline]
    pub(crate) fn check_fork(&self) -> Result<(), Error> {
        if generation() != self.generation {
            return Err(made_before_fork());
        }
        Ok(())
    }

    /// The communicator leaves a call.
    #[inline]
    pub(crate) fn end_call(&mut self, signature: CallSignature) {
        self.sequence += 1;
        if !self.entered.replace(false) {
            self.shared.record.begin(self.sequence, signature);
        }
        self.shared.record.end(self.sequence);
        self.history = signature.extend(self.history);
    }

    /// The call was refused before anything was sent: it does not count.
    pub(crate) fn cancel_call(&self) {
        if self.entered.replace(false) {
            self.shared.record.retract(self.sequence + 1);
        }
    }

    /// A wait that is about to sleep tells for whom; `None` when it is over.
    pub(crate) fn set_waiting_for(&self, peer: Option<Rank>) {
        self.shared.record.waits(peer);
    }

    /// After what time a wait is suspicious.
    pub(crate) fn report_after(&self) -> Duration {
        self.report
    }

    /// After what time a wait is an error.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// This rank waits for `peer` since `since`: finds out why, and reports it. Does not wait for that.
    pub(crate) fn investigate(&self, peer: Rank, since: Instant) {
        self.shared.send(Command::Suspect(self.shared.id, peer, since));
    }

    /// The error of a wait that is as long as the user allows.
    pub(crate) fn timeout_error(&self, peer: Option<Rank>, waited: Duration) -> Error {
        let rank = self.shared.rank;
        let what = self.shared.record.read().last();
        Error::Timeout { rank, peer: peer.unwrap_or(rank), what, waited }
    }

    /// While the result lives, a connection to `peer` is being made: that may be suspicious too.
    pub(crate) fn connecting_to(&self, peer: Rank) -> Opening<'_> {
        self.shared.opening.store(u64::from(peer) + 1, Ordering::Relaxed);
        self.set_waiting_for(Some(peer));
        self.shared.send(Command::Opening(self.shared.id, peer));
        Opening { shared: &self.shared }
    }

    /// This rank fails with `error`: tells all others why, finds out more where that can be, and returns what every later
    /// call returns.
    pub(crate) fn fail(&self, error: Error) -> Error {
        self.shared.fail(error)
    }

    /// Ends the waits of all connected ranks, if nothing has yet, because of `error`. Where that has a culprit they are told; else they
    /// wait for the verdict.
    pub(crate) fn abort_peers(&self, error: &Error) {
        self.shared.abort_peers(error);
    }

    /// What ended the communicator, if something did.
    pub(crate) fn final_error(&self) -> Option<Error> {
        self.shared.final_error()
    }

    /// What was found out about long waits, oldest first.
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.shared.state().reports.iter().cloned().collect()
    }

    /// Collects what every rank gives, in the order of the ranks, over the control tree; see
    /// [`ControlTree::all_gather`]. Death and abort end it.
    pub(crate) fn all_gather(
        &self,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.check_fork()?;
        if bytes.len() > crate::bootstrap::MOST_ITEM {
            return Err(Error::internal("more bytes than an exchange carries"));
        }
        let command = Command::Exchange(self.shared.id, bytes.to_vec(), deadline);
        self.shared.state().exchanged = None;
        self.shared.send(command);
        // The service thread ends the exchange at the deadline; the rest is for itself.
        let until = deadline + VERDICT_PATIENCE;
        let result = self.shared.wait(until, |state| state.exchanged.take());
        result.unwrap_or_else(|| Err(Error::internal("the service thread does not answer")))
    }

    /// From now on whatever ends the communicator ends what it has on its device, and what goes wrong there ends the communicator.
    pub(crate) fn attach_device(&self, signals: &Arc<Signals>) {
        // It is joined once.
        let _ = self.shared.device.set(signals.clone());
        if self.shared.final_error().is_some() {
            signals.abort();
        }
    }

    /// Work was queued on the device while the service thread did not look there: it is to look now and then.
    #[cold]
    pub(crate) fn watch_device(&self) {
        self.shared.send(Command::Look(self.shared.id));
    }

    /// Why work on the device was told to end, as an error for [`fail`](Self::fail).
    pub(crate) fn device_stop_error(&self) -> Error {
        let by = self.shared.rank;
        self.final_error().unwrap_or_else(|| LinkError::Aborted { by, reason: VERDICT }.into())
    }

    /// For abort handles.
    pub(crate) fn shared(&self) -> Arc<ControlShared> {
        self.shared.clone()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // A child made by fork has neither the thread nor a say.
        if generation() != self.generation {
            return;
        }
        self.shared.send(Command::Remove(self.shared.id));
        // The farewell must be out before the process may end; the thread never blocks, so this is its next turn.
        let until = Instant::now() + VERDICT_PATIENCE;
        self.shared.wait(until, |state| state.removed.then_some(()));
        service::remove();
    }
}

/// Ends when the connection is made.
pub(crate) struct Opening<'a> {
    shared: &'a ControlShared,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.shared.opening.store(0, Ordering::Relaxed);
        self.shared.record.waits(None);
    }
}

impl Abortable for ControlShared {
    fn abort(&self) {
        Self::abort(self);
    }
}

impl ControlShared {
    /// Ends every wait of the communicator, on all ranks.
    pub(crate) fn abort(&self) {
        // At once, then by way of the tree for the ranks that are not connected.
        self.abort_endpoint(USER_ABORT);
        self.send(Command::Decide(self.id, Verdict::Aborted { by: self.rank }));
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
        // Whatever went wrong here may be the effect of what others know better. (A rank that fails tells us before it
        // leaves: whoever saw it leave sees that too.)
        let aborted = self.endpoint.upgrade().and_then(|endpoint| endpoint.aborted());
        let error = aborted.map_or(error, Error::from);
        let (error, patience) = match error {
            // A verdict is on its way to us.
            Error::Link(LinkError::Aborted { by, reason: VERDICT }) => {
                let until = Instant::now() + VERDICT_PATIENCE;
                if let Some(error) =
                    self.wait(until, |state| state.verdict.as_ref().map(Verdict::error))
                {
                    return error;
                }
                (LinkError::Aborted { by, reason: VERDICT }.into(), VERDICT_PATIENCE)
            }
            Error::Mismatch { ranks: [_, peer], what } => {
                self.send(Command::Accuse(self.id, peer, what.clone()));
                (Error::Mismatch { ranks: [self.rank, peer], what }, ACCUSED_PATIENCE)
            }
            other => {
                let error = cause(other);
                // A connection that was not made says little: its other end may have failed, and why is on its way to us.
                if is_unmade(&error)
                    && let Some(verdict) =
                        self.wait(Instant::now() + UNMADE_PATIENCE, |state| state.verdict.clone())
                {
                    return verdict.error();
                }
                let verdict = Verdict::of(self.rank, &error);
                self.send(Command::Decide(self.id, verdict));
                (error, VERDICT_PATIENCE)
            }
        };
        let verdict = self.wait(Instant::now() + patience, |state| state.verdict.clone());
        match verdict {
            // Our own error says more here than what the others hear of it.
            Some(Verdict::Failed { rank, .. }) if rank == self.rank => error,
            Some(verdict) => verdict.error(),
            None => {
                self.abort_endpoint(VERDICT);
                error
            }
        }
    }

    pub(crate) fn final_error(&self) -> Option<Error> {
        let verdict = self.state().verdict.as_ref().map(Verdict::error);
        verdict.or_else(|| {
            let error = self.endpoint.upgrade()?.aborted()?;
            Some(cause(error.into()))
        })
    }

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

    /// False in a child made by fork, which shares descriptors and memory with its parent and must not use them.
    fn is_ours(&self) -> bool {
        generation() == self.generation
    }

    fn send(&self, command: Command) {
        if self.is_ours()
            && let Some(queue) = &*lock(&self.queue)
        {
            queue.send(command);
        }
    }

    /// Waits until `ready` finds something, or the time has come.
    fn wait<T>(&self, until: Instant, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
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

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state and wakes who waits for that.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// Whether the other end ended a connection in the making.
fn is_unmade(error: &Error) -> bool {
    matches!(
        error,
        Error::Link(
            LinkError::Refused { .. }
                | LinkError::PeerLeft { .. }
                | LinkError::System { errno: libc::ECONNREFUSED, .. }
        )
    )
}

/// What an abort by a peer was about.
fn cause(error: Error) -> Error {
    match error {
        Error::Link(LinkError::Aborted { reason, .. }) if reason & DEAD != 0 => {
            LinkError::PeerDied { peer: reason & !DEAD }.into()
        }
        Error::Link(LinkError::Aborted { reason, .. }) if reason & LEFT != 0 => {
            LinkError::PeerLeft { peer: reason & !LEFT }.into()
        }
        Error::Link(LinkError::Aborted { by, reason: USER_ABORT }) => Error::Aborted { by },
        other => other,
    }
}

#[cold]
fn made_before_fork() -> Error {
    Error::InvalidUsage {
        what: String::from(
            "the communicator was made before this process was forked from its parent, to which it belongs; make a new one here",
        ),
    }
}

/// All states are whole at all times, so a panic elsewhere under the lock does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
