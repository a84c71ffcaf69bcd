//! A peer that is reached over TCP: its streams, and the links that they carry.
//!
//! A thread that waits for something reads the sockets itself, under the lock of the pair. The
//! service thread reads and writes only for a rank that sleeps, that is busy elsewhere, or that
//! could not write everything. A socket is armed for the service thread when its rank is about to
//! sleep on its doorbell alone. After an event it stays disarmed until the rank sleeps so again or
//! until the thread's next tick. A rank that sleeps on its sockets too reads what arrives itself.

mod control;
mod messages;
mod progress;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::state::{StreamEntry, TcpPairState};
use self::upgrade::UpgradeQueue;
use super::poller::{EventFlags, Poller};
use super::socket;
use super::stream::{QueuedFrame, ReadExtent, StreamEnd, TcpStream};
use super::watch::SocketWatch;
use crate::Rank;
use crate::error::LinkError;
use crate::inbox::{Inbox, InboxLayout};
use crate::rank_header::RankHeader;

/// How long a pair of which all streams broke may take to connect again.
pub(crate) const RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long messages of a process that has ended may still be on their way.
const LAST_MESSAGES_TIME: Duration = Duration::from_secs(1);

/// The reason in an abort frame that says that the peer's bytes did not arrive as they were sent.
/// No communicator has this reason.
const DAMAGED: u32 = u32::MAX;

/// A peer and everything that is shared with it.
#[derive(Debug)]
pub(crate) struct TcpPair {
    pub(crate) peer: Rank,
    inbox: Arc<Inbox>,
    layout: InboxLayout,
    /// Used only to record whether the peer is present.
    peer_header: RankHeader,
    poller: Arc<Poller>,
    /// Where the rank itself waits for the streams, once all are there.
    watch: Arc<SocketWatch>,
    /// Set if the messages of the pair travel another way, which control messages make: then no
    /// message uses the streams, which are always read.
    upgrade: Option<Arc<UpgradeQueue>>,
    state: Mutex<TcpPairState>,
}

/// What the service thread must do for a pair whose streams are not all there.
#[derive(Debug, Default)]
pub(crate) struct RepairNeeds {
    /// Numbers of the streams that are missing.
    pub(crate) missing: Vec<u32>,
    /// Set if no stream is there: when the pair gives up.
    pub(crate) until: Option<Instant>,
}

/// The data of a stream's events.
fn event_data(peer: Rank, stream: usize) -> u64 {
    u64::from(peer) << 8 | stream as u64
}

/// The peer and the stream of an event's data, as [`event_data`] makes it.
pub(crate) fn decode_event_data(data: u64) -> (Rank, usize) {
    ((data >> 8) as Rank, (data & 0xff) as usize)
}

/// Set-up, repair and shutdown.
impl TcpPair {
    pub(crate) fn new(
        peer: Rank,
        streams: u32,
        inbox: Arc<Inbox>,
        layout: InboxLayout,
        (poller, watch): (Arc<Poller>, Arc<SocketWatch>),
        upgrade: Option<Arc<UpgradeQueue>>,
    ) -> Self {
        let state = Mutex::new(TcpPairState::new(streams, &layout));
        let peer_header = RankHeader::default();
        Self { peer, inbox, layout, peer_header, poller, watch, upgrade, state }
    }

    /// A panic under the lock is a bug of this library. The state is then useless, but memory-safe.
    fn lock(&self) -> MutexGuard<'_, TcpPairState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This rank's own header.
    fn header(&self) -> &RankHeader {
        self.inbox.header()
    }

    /// Adds a new stream of a proven peer, in place of the one that had its number. If both ranks
    /// have dialed, both keep the stream that the lower one has dialed. True if all streams are
    /// there for the first time.
    pub(crate) fn attach(&self, number: u32, mut stream: TcpStream) -> Result<bool, LinkError> {
        let mut state = self.lock();
        let index = number as usize;
        let Some(entry) = state.streams.get(index) else {
            return Err(LinkError::Refused {
                peer: self.peer,
                why: "the two disagree on how many streams they have",
            });
        };
        if state.leaving || state.peer_left || self.gone().is_some() {
            return Ok(false);
        }
        if let Some(before) = &entry.stream {
            if before.by_lower && !stream.by_lower {
                return Ok(false);
            }
            // Both have dialed, or the peer has noticed an end that this rank has not.
            self.remove_stream(&mut state, index, StreamEnd::Broken);
        }
        socket::set_stream_options(stream.fd.as_fd());
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        self.poller
            .add(&stream.fd, flags, event_data(self.peer, index))
            .map_err(|error| LinkError::system("epoll_ctl", error))?;
        stream.armed = flags;
        if let Some(LinkError::Aborted { by, reason }) = self.header().aborted() {
            stream.queue.push_back(QueuedFrame::Abort(by, reason));
        }
        state.streams[index] = StreamEntry { stream: Some(stream), end: None };
        state.disconnected_since = None;
        self.resend(&mut state, None);
        self.flush(&mut state);
        let first = !state.complete && state.live_streams() == state.streams.len();
        state.complete |= first;
        if state.complete && self.upgrade.is_none() {
            let all = 0..state.streams.len();
            for index in if first { all } else { index..index + 1 } {
                if let Some(stream) = state.stream(index) {
                    self.watch.add(&stream.fd, event_data(self.peer, index));
                }
            }
        }
        Ok(first)
    }

    /// Numbers of the streams that are missing.
    pub(crate) fn missing_streams(&self) -> Vec<u32> {
        let state = self.lock();
        let missing = |index: &u32| state.streams[*index as usize].stream.is_none();
        (0..state.streams.len() as u32).filter(missing).collect()
    }

    /// What must be done to repair the pair. Declares the peer dead if the time for that is over.
    pub(crate) fn repair_needs(&self, now: Instant) -> RepairNeeds {
        let state = self.lock();
        let is_over = state.leaving || state.peer_left || state.failure.is_some();
        if !state.complete || is_over || self.gone().is_some() {
            return RepairNeeds::default();
        }
        let until = state.disconnected_since.map(|since| since + RECONNECT_TIMEOUT);
        drop(state);
        if until.is_some_and(|until| now >= until) {
            self.declare_dead();
            return RepairNeeds::default();
        }
        RepairNeeds { missing: self.missing_streams(), until }
    }

    /// Declares the peer dead if no stream is left, because nobody listens at its address any more.
    pub(crate) fn give_up(&self) {
        let disconnected = self.lock().disconnected_since.is_some();
        if disconnected {
            self.declare_dead();
        }
    }

    /// The process of the peer has ended. Its streams end when all that it sent has been read,
    /// unless its host is gone or a child made by fork holds them.
    pub(crate) fn process_ended(&self) {
        let mut state = self.lock();
        state.dead_at.get_or_insert(Instant::now() + LAST_MESSAGES_TIME);
        let disconnected = state.disconnected_since.is_some();
        drop(state);
        if disconnected {
            self.declare_dead();
        }
    }

    /// Why nothing more can be received: the peer is gone, or what it sent is wrong.
    pub(crate) fn ended(&self) -> Option<LinkError> {
        self.lock().failure.or_else(|| self.gone())
    }

    /// Records that the peer is dead, and wakes the ranks that wait for it.
    pub(crate) fn declare_dead(&self) {
        self.peer_header.die();
        self.header().doorbell.ring();
    }

    /// Whether and how the peer is gone.
    pub(crate) fn gone(&self) -> Option<LinkError> {
        self.peer_header.gone(self.peer)
    }

    /// Ends the peer's waits.
    pub(crate) fn abort(&self, by: Rank, reason: u32) {
        let mut state = self.lock();
        for stream in state.live() {
            // Ahead of all frames that are not begun. The first abort counts.
            if !stream.queue.iter().any(|frame| matches!(frame, QueuedFrame::Abort(..))) {
                stream.queue.push_front(QueuedFrame::Abort(by, reason));
            }
        }
        self.flush(&mut state);
    }

    /// Asks the peer to say when everything that was sent has arrived.
    pub(crate) fn begin_flush(&self) {
        let mut state = self.lock();
        state.flushing = true;
        state.queue_questions();
        self.flush(&mut state);
        self.arm_all(&mut state);
    }

    /// The number and the bytes of the messages that are not known to have arrived, and of which
    /// that can still be learnt.
    pub(crate) fn under_way(&self) -> (u64, u64) {
        let mut state = self.lock();
        self.poll_sockets(&mut state);
        if state.peer_left || self.nothing_found::<()>(&state).is_err() {
            return (0, 0);
        }
        let each = state.channels.iter_mut().map(|channel| channel.sending.under_way());
        each.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }

    /// Queues a leave frame behind everything that is to be sent.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        if state.leaving {
            return;
        }
        self.send_acks(&mut state);
        state.leaving = true;
        for stream in state.live() {
            stream.queue.push_back(QueuedFrame::Leave);
        }
        self.flush(&mut state);
        self.arm_all(&mut state);
    }

    /// Whether no stream is left.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().live_streams() == 0
    }

    /// Ends all streams at once.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.leaving = true;
        for index in 0..state.streams.len() {
            self.remove_stream(&mut state, index, StreamEnd::Closed);
        }
    }
}

/// The service thread's part of the traffic.
impl TcpPair {
    /// Handles an event: a stream has something to read, or room to write.
    pub(crate) fn handle_event(&self, index: usize) {
        let mut state = self.lock();
        let Some(stream) = state.stream(index) else { return };
        stream.armed = EventFlags::empty();
        let progress = self.read(&mut state, index, ReadExtent::All, StreamEnd::Closed);
        self.flush(&mut state);
        if progress {
            self.header().doorbell.ring();
        }
        // A rank that is awake reads for itself.
        let always = state.leaving || self.upgrade.is_some();
        if self.header().doorbell.has_sleeper() || always {
            self.arm(&mut state, index);
        }
    }

    /// Reads a stream that has something to read, for the rank, which has slept on its sockets.
    pub(crate) fn read_stream(&self, index: usize) {
        let mut state = self.lock();
        // The rank comes back here at once if this leaves something unread.
        let extent = if state.filled > 0 { ReadExtent::All } else { ReadExtent::UntilFilled };
        let progress = self.read(&mut state, index, extent, StreamEnd::Closed);
        self.flush(&mut state);
        if progress {
            self.header().doorbell.ring();
        }
    }

    /// Reads and writes on all streams, for a rank that may be busy elsewhere.
    pub(crate) fn tick(&self) {
        let mut state = self.lock();
        let progress = self.read_and_write(&mut state, ReadExtent::All);
        self.send_acks(&mut state);
        self.arm_all(&mut state);
        if progress {
            self.header().doorbell.ring();
        }
    }
}
