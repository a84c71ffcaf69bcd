//! Windows: memory that other ranks write to without its owner's doing, and signals by which they tell.
//!
//! A window is registered by all ranks together, each with memory of its own. Then [`put`](crate::Communicator::put) copies into another
//! rank's, [`signal`](crate::Communicator::signal) adds one to what that rank has of this one, and
//! [`wait_signals`](crate::Communicator::wait_signals) waits for signals and consumes them (`comm/window`). What a rank put before a signal is there when the
//! signal is.
//!
//! Puts and signals are messages (`message`) on a channel of their own of the links that the ranks have anyway: threads, shared
//! memory or TCP. At the other end a thread of the communicator (`serve`) applies them in their order, whatever the
//! owner does meanwhile. It sleeps on the rank's doorbell, so that on a communicator with windows everything that rings costs a system
//! call. It is started with the first window; a communicator without windows has none.

mod message;
mod serve;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::link::{ReceiveSlots, SendSlots};

use crate::comm::AbortHandle;
use crate::error::Error;
use crate::plan::exchange;
use crate::tune::MOST_CHANNELS;
use crate::watch;
pub(crate) use message::{HEADER, Message, TAG};

/// The channel of puts and signals, after those of all schedules.
pub(crate) const CHANNEL: Channel = exchange::FIRST_BEYOND + MOST_CHANNELS;

/// A window of a communicator; the same number on all of its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId(pub(crate) u32);

/// A communicator's windows. Dropping them ends their thread.
#[derive(Default)]
pub(crate) struct Windows {
    pub(crate) made: u32,
    /// Bytes of every rank's part, of the windows that this rank has not deregistered.
    pub(crate) sizes: HashMap<WindowId, Vec<u64>>,
    /// From the first window on.
    pub(crate) service: Option<Service>,
}

/// What it takes to write to others, and to be written to.
pub(crate) struct Service {
    /// By rank; none to this one.
    pub(crate) outgoing: Vec<Option<Box<dyn SendSlots>>>,
    /// How many signals of each rank were waited for.
    pub(crate) consumed: Vec<u64>,
    pub(crate) board: Arc<Board>,
    endpoint: Arc<Endpoint>,
    thread: Option<JoinHandle<()>>,
    /// Of the process that made it.
    generation: u32,
}

/// What the thread and the communicator share.
pub(crate) struct Board {
    /// This rank's memory of each window. Locked while something is written to it.
    pub(crate) extents: Mutex<HashMap<u32, Extent>>,
    /// How many signals of each rank have come.
    pub(crate) signals: Vec<AtomicU64>,
    /// Per rank: 1 once nothing more comes from it.
    pub(crate) closed: Vec<AtomicU64>,
    /// Why a rank's messages could not be applied.
    pub(crate) failure: Mutex<Option<Error>>,
    /// 1 when the thread shall end.
    pub(crate) stop: AtomicU64,
}

/// Memory that was lent to a window.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: who registered the memory promised that it may be written to from any thread until it is deregistered.
unsafe impl Send for Extent {}

impl Board {
    fn new(nranks: usize) -> Self {
        let zeros = || (0..nranks).map(|_| AtomicU64::new(0)).collect();
        Self {
            extents: Mutex::default(),
            signals: zeros(),
            closed: zeros(),
            failure: Mutex::default(),
            stop: AtomicU64::new(0),
        }
    }

    /// Whole at all times, so a panic elsewhere under the lock does no harm.
    pub(crate) fn extents(&self) -> MutexGuard<'_, HashMap<u32, Extent>> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_signal(&self, of: Rank) {
        // Pairs as `window-signal`: who sees the signal sees what was put before it.
        self.signals[of as usize].fetch_add(1, Ordering::Release);
    }

    pub(crate) fn signals(&self, of: Rank) -> u64 {
        // Pairs as `window-signal`.
        self.signals[of as usize].load(Ordering::Acquire)
    }
}

impl Service {
    /// Of `rank`, with its ends of the links to all others, by rank.
    ///
    /// # Errors
    /// If there are no more threads.
    pub(crate) fn start(
        rank: Rank,
        outgoing: Vec<Option<Box<dyn SendSlots>>>,
        incoming: Vec<(Rank, Box<dyn ReceiveSlots>)>,
        endpoint: &Arc<Endpoint>,
        abort: AbortHandle,
    ) -> Result<Self, Error> {
        let nranks = outgoing.len();
        let board = Arc::new(Board::new(nranks));
        let thread = if incoming.is_empty() {
            None
        } else {
            let (board, endpoint) = (board.clone(), endpoint.clone());
            let run = move || serve::run(rank, incoming, &board, &endpoint, &abort);
            let spawned = watch::without_signals(|| {
                std::thread::Builder::new().name("maypole-window".into()).spawn(run)
            });
            Some(spawned.map_err(|error| Error::System {
                call: "pthread_create",
                errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
            })?)
        };
        let (endpoint, generation) = (endpoint.clone(), watch::generation());
        Ok(Self { outgoing, consumed: vec![0; nranks], board, endpoint, thread, generation })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A child made by fork does not have the thread.
        if self.generation != watch::generation() {
            return;
        }
        self.board.stop.store(1, Ordering::Release);
        self.endpoint.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}
