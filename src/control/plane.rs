//! The control plane as one rank uses it: records calls, reports long waits, and fails calls.

use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_control::communicator::ControlTiming;
use maypole_control::report::Report;
use maypole_control::time::Time;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::sync::{AtomicU64, Ordering};

use super::flight_recorder::FlightRecorder;
use super::served_communicator::ServedCommunicator;
use super::service;
use super::{CommunicatorCommand, ControlShared, PeerInfo, VERDICT, VERDICT_TIME, dump};
use crate::bootstrap::ControlTree;
use crate::call_signature::CallSignature;
use crate::config::Config;
use crate::device::memory::signals::DeviceSignals;
use crate::error::Error;
use crate::process::{self, generation};

/// How often the calls of neighbours are compared.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);

/// The control plane of one communicator. Dropping it leaves the communicator once the peers have
/// what this rank has sent to them; it does not wait for their calls.
pub(crate) struct ControlPlane {
    shared: Arc<ControlShared>,
    /// The [`generation`] of the process that made it.
    generation: u32,
    timing: ControlTiming,
    /// The number of the last call that has ended.
    sequence: u64,
    /// Whether the call after it is recorded.
    call_recorded: Cell<bool>,
    /// The hash of all calls up to the last that has ended.
    history: u64,
}

impl ControlPlane {
    /// Hands the tree over to the service thread. `key` identifies the communicator: it is the same
    /// on all of its ranks, and differs from that of any other. `peers` are all ranks in their
    /// order.
    ///
    /// # Errors
    /// The service thread cannot be started.
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
            // SAFETY: the call has no preconditions.
            thread: unsafe { libc::gettid() },
            generation: generation(),
            record: FlightRecorder::default(),
            flush_timeout: config.flush_timeout,
            endpoint: Arc::downgrade(endpoint),
            queue: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
            connecting: AtomicU64::new(0),
            device: OnceLock::new(),
        });
        let (report, timeout) = (config.report, config.timeout);
        let timing = ControlTiming { report, timeout, compare: COMPARE_INTERVAL };
        let mut tree = Some(tree);
        let added = service::add(|| {
            let tree = tree.take()?;
            Some(ServedCommunicator::new(shared.clone(), tree, peers, timing))
        });
        added.inspect_err(|error| {
            // Without the service, this rank itself must inform the others.
            if let Some(tree) = &mut tree {
                tree.give_up(error.to_string());
            }
        })?;
        Ok(Self {
            shared,
            generation: generation(),
            timing,
            sequence: 0,
            call_recorded: Cell::new(false),
            history: 0,
        })
    }

    /// A hash of all calls so far. It differs between ranks from the first call on in which they
    /// differed.
    #[inline]
    pub(crate) fn history(&self) -> u32 {
        // The high bits depend on all bits of the calls.
        (self.history >> 32) as u32
    }

    /// Records the current call, so that other ranks can ask for it. This is called before a wait;
    /// a call that never waits is recorded at its end.
    pub(crate) fn begin_call(&self, signature: CallSignature) {
        if !self.call_recorded.replace(true) {
            self.shared.record.begin(self.sequence + 1, signature, self.history);
        }
    }

    /// Checks, before every use, that this process made the communicator.
    ///
    /// # Errors
    /// [`Error::InvalidUsage`] in a child made by fork.
    #[inline]
    pub(crate) fn check_fork(&self) -> Result<(), Error> {
        if generation() != self.generation {
            return Err(made_before_fork());
        }
        Ok(())
    }

    /// Records the end of the current call.
    #[inline]
    pub(crate) fn end_call(&mut self, signature: CallSignature) {
        self.sequence += 1;
        if !self.call_recorded.replace(false) {
            self.shared.record.begin(self.sequence, signature, self.history);
        }
        self.shared.record.end(self.sequence);
        self.history = signature.extend(self.history);
    }

    /// Removes the current call from the record: it was refused before any message was sent.
    pub(crate) fn cancel_call(&self) {
        if self.call_recorded.replace(false) {
            self.shared.record.retract(self.sequence + 1);
        }
    }

    /// Records the rank that a wait is about to sleep for, or None when the wait is over.
    pub(crate) fn set_waiting_for(&self, peer: Option<Rank>) {
        self.shared.record.waits(peer);
    }

    /// After how long a wait is investigated, and after how long it is an error.
    pub(crate) fn timing(&self) -> &ControlTiming {
        &self.timing
    }

    /// Starts to find out why this rank has waited for `peer` since `since`. The result is a
    /// report.
    pub(crate) fn investigate(&self, peer: Rank, since: Time) {
        self.shared.send(CommunicatorCommand::Investigate(peer, since));
    }

    /// The error of a wait that has reached the timeout of the user.
    pub(crate) fn timeout_error(&self, peer: Option<Rank>, waited: Duration) -> Error {
        let rank = self.shared.rank;
        let what = self.shared.record.read().last();
        Error::Timeout { rank, peer: peer.unwrap_or(rank), what, waited }
    }

    /// Records that a connection to `peer` is being made, until the result is dropped. A long
    /// attempt is investigated.
    pub(crate) fn connecting_to(&self, peer: Rank) -> Connecting<'_> {
        self.shared.connecting.store(u64::from(peer) + 1, Ordering::Relaxed);
        self.set_waiting_for(Some(peer));
        self.shared.send(CommunicatorCommand::Connecting(peer));
        Connecting { shared: &self.shared }
    }

    /// Ends the communicator on all ranks because this rank fails with `error`. Finds out more
    /// where that is possible, and returns the error that every later call returns.
    pub(crate) fn fail(&self, error: Error) -> Error {
        self.shared.fail(error)
    }

    /// Ends the waits of all connected ranks because of `error`, unless they have ended. The ranks
    /// learn the rank at fault if the error names one; otherwise they wait for the verdict.
    pub(crate) fn abort_peers(&self, error: &Error) {
        self.shared.abort_peers(error);
    }

    /// The error that ended the communicator, if it has ended.
    pub(crate) fn final_error(&self) -> Option<Error> {
        self.shared.final_error()
    }

    /// The reports about long waits, oldest first.
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.shared.state().reports.iter().cloned().collect()
    }

    /// Collects the bytes that every rank gives, in the order of the ranks, over the control tree;
    /// see [`ControlTree::all_gather`].
    ///
    /// # Errors
    /// A rank died, left or aborted, or the deadline has passed.
    pub(crate) fn all_gather(
        &self,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.check_fork()?;
        if bytes.len() > crate::bootstrap::MOST_ITEM {
            return Err(Error::internal("more bytes than an exchange carries"));
        }
        let command = CommunicatorCommand::Exchange(bytes.to_vec(), deadline);
        self.shared.state().exchanged = None;
        self.shared.send(command);
        // The service thread ends the exchange at the deadline; the additional time is for the
        // thread itself.
        let until = deadline + VERDICT_TIME;
        let result = self.shared.wait(until, |state| state.exchanged.take());
        result.unwrap_or_else(|| Err(Error::internal("the service thread does not answer")))
    }

    /// Connects the communicator with its work on a device: the end of the communicator ends the
    /// work, and a failure of the work ends the communicator.
    pub(crate) fn attach_device(&self, signals: &Arc<DeviceSignals>) {
        // This is called once.
        let _ = self.shared.device.set(signals.clone());
        if self.shared.final_error().is_some() {
            signals.abort();
        }
    }

    /// Makes the service thread check the work on the device regularly, because work was queued.
    #[cold]
    pub(crate) fn watch_device(&self) {
        self.shared.send(CommunicatorCommand::WatchDevice);
    }

    /// The error for [`fail`](Self::fail) of work on the device that was ended.
    pub(crate) fn device_stop_error(&self) -> Error {
        let by = self.shared.rank;
        self.final_error().unwrap_or_else(|| LinkError::Aborted { by, reason: VERDICT }.into())
    }

    /// The part that abort handles use.
    pub(crate) fn shared(&self) -> Arc<ControlShared> {
        self.shared.clone()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // A child made by fork has no service thread, and must not act for its parent.
        if generation() != self.generation {
            return;
        }
        self.shared.flush(self.shared.flush_deadline());
        service::leave(&self.shared);
        // The leave message must be sent before the process ends. The thread never blocks, so this
        // waits for its next turn.
        let until = Instant::now() + VERDICT_TIME;
        self.shared.wait(until, |state| state.removed.then_some(()));
        service::remove();
    }
}

/// A connection that is being made.
pub(crate) struct Connecting<'a> {
    shared: &'a ControlShared,
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.shared.connecting.store(0, Ordering::Relaxed);
        self.shared.record.waits(None);
    }
}

#[cold]
fn made_before_fork() -> Error {
    Error::InvalidUsage {
        what: String::from(
            "the communicator was made before this process was forked, and belongs to the parent \
             process; make a new one in this process",
        ),
    }
}
