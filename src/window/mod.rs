//! Windows: memory of each rank that other ranks write to, and signals by which they announce it.
//!
//! All ranks register a window together, each with memory of its own. Then [`put`] copies into the
//! memory of another rank, [`signal`] adds one to the number of signals that this rank has from the
//! caller, and [`wait_signals`] waits for signals and consumes them (`comm/window`). When a rank
//! has a signal, everything that the signalling rank put before it is there.
//!
//! Where both ranks run on one host and the part of the peer lies in memory of the library
//! ([`SharedBuffer`](crate::memory::SharedBuffer)), a put is one copy into it, and a signal is one
//! addition to a signal word of the peer, which lies in such memory too. The doorbell of the peer
//! is rung; no code of the peer runs.
//!
//! Other puts are messages (`message`) on a channel of their own, over the links that the ranks
//! have in any case: threads, shared memory or TCP. A thread of the receiving communicator
//! (`serve`) applies them in order, whatever the owner does meanwhile. It sleeps on the doorbell of
//! the rank, so every ring of that doorbell costs a system call. The thread is started with the
//! first window for which some rank needs messages; a communicator without such windows has no
//! thread. A signal does not overtake a put: as long as the peer has not applied a message, signals
//! to it are messages too.
//!
//! [`put`]: crate::Communicator::put
//! [`signal`]: crate::Communicator::signal
//! [`wait_signals`]: crate::Communicator::wait_signals

mod message;
mod serve;
mod signal_words;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::link::{ReceiveSlots, SendSlots, Sequence};
use maypole_transport::segment::PeerSegment;

use crate::channels;
use crate::control::ControlShared;
use crate::error::Error;
use crate::process;
pub(crate) use message::{HEADER_BYTES, WINDOW_TAG, WindowInfo, WindowMessage};
#[cfg(test)]
pub(crate) use signal_words::WINDOW_SLOTS;
pub(crate) use signal_words::{PeerSignalWords, SignalWords, WindowMemory};

/// The channel of puts and signals.
pub(crate) const CHANNEL: Channel = channels::WINDOWS;

/// A window of a communicator. The number is the same on all of its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId(pub(crate) u32);

/// The windows of a communicator. Dropping them ends their thread.
#[derive(Default)]
pub(crate) struct Windows {
    /// The number of windows that were made.
    pub(crate) made: u32,
    /// The parts of all ranks, of the windows that this rank has not deregistered.
    pub(crate) parts: HashMap<WindowId, Vec<WindowPart>>,
    /// Present from the first window on.
    pub(crate) service: Option<WindowService>,
}

/// The part of a window at one rank.
pub(crate) struct WindowPart {
    /// The length in bytes.
    pub(crate) bytes: u64,
    /// The segment and the offset at which the part begins, if this rank can write to it directly.
    pub(crate) reach: Option<(PeerSegment, usize)>,
    /// The slot among the signal words of that rank, if the part has one.
    pub(crate) slot: Option<u32>,
}

/// What a rank needs to write to other ranks, and to be written to.
pub(crate) struct WindowService {
    /// The sending ends of the links, by rank; None for this rank.
    pub(crate) outgoing: Vec<Option<WindowSender>>,
    /// The signal words of other ranks to which this rank writes directly, by rank.
    pub(crate) peer_words: Vec<Option<PeerSignalWords>>,
    /// How many signals of each rank were consumed.
    pub(crate) consumed: Vec<u64>,
    /// The signal words of this rank, and what it shares with its thread.
    pub(crate) signal_words: Arc<SignalWords>,
    /// The receiving ends of the links, until the thread has them.
    incoming: Vec<(Rank, Box<dyn ReceiveSlots>)>,
    endpoint: Arc<Endpoint>,
    thread: Option<JoinHandle<()>>,
    /// The [generation](process::generation) of the process that made it.
    generation: u32,
}

/// The sending end of a link for puts.
pub(crate) struct WindowSender {
    pub(crate) slots: Box<dyn SendSlots>,
    /// The number of the last message.
    pub(crate) sent: Sequence,
}

impl WindowSender {
    /// Whether the peer has applied all messages.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.slots.released() >= self.sent
    }
}

impl WindowService {
    /// The service over these ends of the links to all other ranks, by rank.
    ///
    /// # Errors
    /// There is no memory for the signal words.
    pub(crate) fn new(
        outgoing: Vec<Option<WindowSender>>,
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

    /// Starts the thread that applies messages, unless it runs. The thread aborts the communicator
    /// by `control` when it gets a message that cannot be applied.
    ///
    /// # Errors
    /// The process has no thread left.
    pub(crate) fn start(&mut self, rank: Rank, control: Arc<ControlShared>) -> Result<(), Error> {
        if self.incoming.is_empty() {
            return Ok(());
        }
        let incoming = std::mem::take(&mut self.incoming);
        let (signal_words, endpoint) = (self.signal_words.clone(), self.endpoint.clone());
        let run = move || {
            let serve = || serve::run(rank, incoming, &signal_words, &endpoint, &control);
            if let Err(payload) = catch_unwind(AssertUnwindSafe(serve)) {
                control.fail(Error::panic(&*payload));
            }
        };
        let spawned = process::spawn_thread("maypole-window", None, run);
        self.thread = Some(spawned.map_err(|error| Error::System {
            call: "pthread_create",
            errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
        })?);
        Ok(())
    }

    /// Why no more signals of `peer` will come than have come, if that is so.
    pub(crate) fn ended(&self, peer: Rank) -> Option<LinkError> {
        let gone = || self.endpoint.gone(peer);
        if self.thread.is_none() {
            // Signals are written directly, so none can be on its way.
            return gone();
        }
        self.signal_words.is_closed(peer).then(|| gone().unwrap_or(LinkError::PeerLeft { peer }))
    }

    /// Whether the thread that applies messages runs.
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
        self.signal_words.stop_thread();
        self.endpoint.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}
