//! Windows: memory that other ranks write to without its owner's doing, and signals by which they tell.
//!
//! A window is registered by all ranks together, each with memory of its own. Then [`put`](crate::Communicator::put) copies into another
//! rank's, [`signal`](crate::Communicator::signal) adds one to what that rank has of this one, and
//! [`wait_signals`](crate::Communicator::wait_signals) waits for signals and consumes them (`comm/window`). What a rank put before a signal is there when the
//! signal is.
//!
//! Where both ranks run on one host and the peer's part lies in memory of the library ([`SharedBuffer`](crate::memory::SharedBuffer)), a put is one copy into
//! it, and a signal one addition to a word of the peer's signal_words (`signal_words`), which lies in such memory too. The peer's doorbell is rung; nothing of the
//! peer's runs.
//!
//! Other puts are messages (`message`) on a channel of their own of the links that the ranks have anyway: threads, shared
//! memory or TCP. At the other end a thread of the communicator (`serve`) applies them in their order, whatever the
//! owner does meanwhile. It sleeps on the rank's doorbell, so that on a communicator that has it everything that rings costs a system
//! call. It is started with the first window for which some rank needs messages; a communicator without such windows has none. A signal
//! overtakes no put: as long as a message to the peer is not applied, signals to it are messages too.

mod message;
mod serve;
mod signal_words;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::link::{ReceiveSlots, SendSlots, Sequence};
use maypole_transport::segment::PeerSegment;

use crate::channels;
use crate::comm::AbortHandle;
use crate::error::Error;
use crate::process;
pub(crate) use message::{HEADER_BYTES, WINDOW_TAG, WindowInfo, WindowMessage};
pub(crate) use signal_words::{MOST_DIRECT_WINDOWS, PeerSignalWords, SignalWords};

/// The channel of puts and signals, after those of all schedules.
pub(crate) const CHANNEL: Channel = channels::WINDOWS;

/// A window of a communicator; the same number on all of its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId(pub(crate) u32);

/// A communicator's windows. Dropping them ends their thread.
#[derive(Default)]
pub(crate) struct Windows {
    pub(crate) made: u32,
    /// Every rank's part, of the windows that this rank has not deregistered.
    pub(crate) parts: HashMap<WindowId, Vec<WindowPart>>,
    /// From the first window on.
    pub(crate) service: Option<WindowService>,
}

/// A rank's part of a window.
pub(crate) struct WindowPart {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Where it is, if this rank writes to it itself: from that byte on.
    pub(crate) reach: Option<(PeerSegment, usize)>,
}

/// What it takes to write to others, and to be written to.
pub(crate) struct WindowService {
    /// By rank; none to this one.
    pub(crate) outgoing: Vec<Option<Outgoing>>,
    /// The peer_words that this rank writes to itself, by rank.
    pub(crate) peer_words: Vec<Option<PeerSignalWords>>,
    /// How many signals of each rank were waited for.
    pub(crate) consumed: Vec<u64>,
    pub(crate) signal_words: Arc<SignalWords>,
    /// The other direction, until the thread has it.
    incoming: Vec<(Rank, Box<dyn ReceiveSlots>)>,
    endpoint: Arc<Endpoint>,
    thread: Option<JoinHandle<()>>,
    /// Of the process that made it.
    generation: u32,
}

/// This rank's end of a link for puts.
pub(crate) struct Outgoing {
    pub(crate) slots: Box<dyn SendSlots>,
    /// The last message.
    pub(crate) sent: Sequence,
}

impl Outgoing {
    /// Whether the peer has applied all messages.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.slots.released() >= self.sent
    }
}

/// Memory that was lent to a window.
#[derive(Clone, Copy)]
pub(crate) struct WindowMemory {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: who registered the memory promised that it may be written to from any thread until it is deregistered.
unsafe impl Send for WindowMemory {}

impl WindowService {
    /// With a rank's ends of the links to all others, by rank.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(
        outgoing: Vec<Option<Outgoing>>,
        incoming: Vec<(Rank, Box<dyn ReceiveSlots>)>,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Self, Error> {
        let nranks = outgoing.len();
        Ok(Self {
            outgoing,
            peer_words: vec![None; nranks],
            consumed: vec![0; nranks],
            signal_words: Arc::new(SignalWords::new(nranks)?),
            incoming,
            endpoint: endpoint.clone(),
            thread: None,
            generation: process::generation(),
        })
    }

    /// Starts the thread that applies messages, unless it runs.
    ///
    /// # Errors
    /// If there are no more threads.
    pub(crate) fn start(&mut self, rank: Rank, abort: AbortHandle) -> Result<(), Error> {
        if self.incoming.is_empty() {
            return Ok(());
        }
        let incoming = std::mem::take(&mut self.incoming);
        let (signal_words, endpoint) = (self.signal_words.clone(), self.endpoint.clone());
        let run = move || serve::run(rank, incoming, &signal_words, &endpoint, &abort);
        let spawned = process::spawn_thread("maypole-window", None, run);
        self.thread = Some(spawned.map_err(|error| Error::System {
            call: "pthread_create",
            errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
        })?);
        Ok(())
    }

    /// Why no more signals of `peer` come than have come, if so.
    pub(crate) fn ended(&self, peer: Rank) -> Option<LinkError> {
        let gone = || self.endpoint.gone(peer);
        if self.thread.is_none() {
            // Nothing is on the way.
            return gone();
        }
        self.signal_words.is_closed(peer).then(|| gone().unwrap_or(LinkError::PeerLeft { peer }))
    }

    /// Whether messages are applied.
    #[cfg(test)]
    pub(crate) fn has_thread(&self) -> bool {
        self.thread.is_some()
    }
}

impl Drop for WindowService {
    fn drop(&mut self) {
        // A child made by fork does not have the thread.
        if self.generation != process::generation() {
            return;
        }
        self.signal_words.stop.store(1, Ordering::Release);
        self.endpoint.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}
