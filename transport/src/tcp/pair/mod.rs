//! A peer that is reached over TCP: its streams, and the links that they carry.
//!
//! A thread that waits for something reads the sockets itself, under the lock of the pair. The
//! service thread reads and writes only for a rank that sleeps, that is busy elsewhere, or that
//! could not write everything. A socket is armed for the service thread when its rank is about to
//! sleep. After an event it stays disarmed until the rank sleeps again or until the thread's next
//! tick.

mod control;
mod progress;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use self::state::{StreamEntry, TcpPairState};
use self::upgrade::UpgradeQueue;
use super::frame::{FRAME_HEADER_BYTES, Frame, FrameKind};
use super::poller::{EventFlags, Poller};
use super::ring::{CompleteMessage, EMPTY_MESSAGE, LentMemory, SentMessage, WithdrawnMessage};
use super::socket;
use super::stream::{QueuedFrame, ReadExtent, StreamEnd, TcpStream};
use crate::error::LinkError;
use crate::inbox::{Inbox, InboxLayout};
use crate::link::{HeaderDamage, PostedMemory, ReceivedMessage, SlotMut};
use crate::rank_header::RankHeader;
use crate::{Rank, Sequence};

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
    /// Set if the messages of the pair travel another way, which control messages make: then no
    /// message uses the streams, which are always read.
    upgrade: Option<Arc<UpgradeQueue>>,
    state: Mutex<TcpPairState>,
}

/// How many bytes of lent messages are written at the latest.
const LARGE_WRITE: usize = 512 << 10;

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
        poller: Arc<Poller>,
        upgrade: Option<Arc<UpgradeQueue>>,
    ) -> Self {
        let state = Mutex::new(TcpPairState::new(streams, &layout));
        let peer_header = RankHeader::default();
        Self { peer, inbox, layout, peer_header, poller, upgrade, state }
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

/// The ends of the links.
impl TcpPair {
    pub(crate) fn reserve(&self, channel: u16) -> Result<Option<SlotMut>, LinkError> {
        let mut state = self.lock();
        if self.await_credit(&mut state, channel)?.is_none() {
            return Ok(None);
        }
        let data = state.send_ring(channel).allocate();
        let data = data.ok_or_else(|| LinkError::system("malloc", Errno::NOMEM))?;
        Ok(Some(SlotMut { data, capacity: self.layout.slot_bytes }))
    }

    /// `None` while there is no credit.
    fn await_credit(
        &self,
        state: &mut TcpPairState,
        channel: u16,
    ) -> Result<Option<()>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        if !state.send_ring(channel).has_credit() {
            self.poll_sockets(state);
            if !state.send_ring(channel).has_credit() {
                return self.nothing_found(state);
            }
        }
        Ok(Some(()))
    }

    pub(crate) fn send(
        &self,
        channel: u16,
        len: usize,
        tag: u32,
        damage: Option<HeaderDamage>,
    ) -> Sequence {
        let mut state = self.lock();
        self.begin_message(&mut state, channel, SentMessage { len, tag, damage, ..EMPTY_MESSAGE })
    }

    /// As [`send`](Self::send), from memory of the caller. `None` while there is no credit.
    ///
    /// # Safety
    /// The `len` bytes at `data`, at most those of a slot, stay valid and unchanged until
    /// [`released`](Self::released) has returned the sequence or [`withdraw`](Self::withdraw) has
    /// returned.
    pub(crate) unsafe fn lend(
        &self,
        channel: u16,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        let mut state = self.lock();
        let lent = Some(LentMemory(data));
        let message = SentMessage { len, tag, lent, ..EMPTY_MESSAGE };
        if self.await_credit(&mut state, channel)?.is_none() {
            return Ok(None);
        }
        // For `withdraw`, which cannot fail.
        let slot = state.send_ring(channel).allocate();
        slot.ok_or_else(|| LinkError::system("malloc", Errno::NOMEM))?;
        Ok(Some(self.begin_message(&mut state, channel, message)))
    }

    fn begin_message(
        &self,
        state: &mut TcpPairState,
        channel: u16,
        message: SentMessage,
    ) -> Sequence {
        let ring = state.send_ring(channel);
        let sequence = ring.next;
        ring.next += 1;
        *ring.sent(sequence) = message;
        state.queue_message(channel, sequence);
        if message.lent.is_none() || state.queued_bytes(channel) >= LARGE_WRITE {
            self.flush(state);
        }
        sequence
    }

    /// Sends what [`lend`](Self::lend) has put off.
    pub(crate) fn flush_queued(&self) {
        self.flush(&mut self.lock());
    }

    /// Copies what was lent, so that the lenders may use the memory again.
    pub(crate) fn withdraw(&self, channel: u16) {
        let mut state = self.lock();
        self.keep_lent(&mut state, channel, Sequence::MAX);
        state.send_ring(channel).copy_lent();
        self.flush(&mut state);
    }

    /// The last released message. `poll` says whether to look for news on the sockets.
    pub(crate) fn released(&self, channel: u16, poll: bool) -> Sequence {
        let mut state = self.lock();
        let ring = state.send_ring(channel);
        if poll && ring.acked + 1 < ring.next {
            self.poll_sockets(&mut state);
        }
        let released = state.send_ring(channel).acked;
        // A stream may still repeat a message that has arrived on another one.
        self.keep_lent(&mut state, channel, released);
        released
    }

    /// Copies what streams are sending from memory that was lent for messages up to `last`. A
    /// stream for which there is no memory ends.
    fn keep_lent(&self, state: &mut TcpPairState, channel: u16, last: Sequence) {
        for index in 0..state.streams.len() {
            let kept = state.stream(index).map(|stream| stream.keep_lent(channel, last));
            if let Some(Err(end)) = kept {
                self.remove_stream(state, index, end);
            }
        }
    }

    pub(crate) fn receive(&self, channel: u16) -> Result<Option<ReceivedMessage>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        let mut state = self.lock();
        let mut first = state.receive_ring(channel).first();
        if first.is_none() {
            self.poll_sockets(&mut state);
            first = state.receive_ring(channel).first();
        }
        let Some((data, CompleteMessage { len, tag, .. })) = first else {
            return self.nothing_found(&state);
        };
        let sequence = state.receive_ring(channel).next;
        Ok(Some(ReceivedMessage { data, len, tag, sequence, in_other_process: false }))
    }

    /// Sends random frames, for tests of the peer.
    pub(crate) fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        let mut state = self.lock();
        let channel = (random() % u64::from(self.layout.channels)) as u16;
        let near = |number: u64, random: &mut dyn FnMut() -> u64| match random() % 4 {
            0 => random(),
            1 => random() % 16,
            _ => number.wrapping_add(random() % 4).wrapping_sub(1),
        };
        let sequence = near(state.send_ring(channel).next, random);
        let ack = near(state.receive_ring(channel).next, random);
        let slot_bytes = self.layout.slot_bytes as u64;
        let len = [random() % 64, random() % (2 * slot_bytes), random()][random() as usize % 3];
        let channel = if random().is_multiple_of(8) { random() as u16 } else { channel };
        let frame = Frame {
            kind: if random().is_multiple_of(8) { FrameKind::Ack } else { FrameKind::Data },
            release_awaited: random().is_multiple_of(4),
            channel,
            len: len as u32,
            sequence,
            ack,
            tag: random() as u32,
            arrived: if random().is_multiple_of(4) { random() as u32 } else { 0 },
        };
        let mut bytes = frame.encode().to_vec();
        if random().is_multiple_of(4) {
            bytes[random() as usize % FRAME_HEADER_BYTES] = random() as u8;
        }
        bytes.resize(bytes.len() + len.min(2 * slot_bytes) as usize, random() as u8);
        let index = random() as usize % state.streams.len();
        if let Some(stream) = state.stream(index) {
            let mut pieces = [socket::piece(bytes.as_mut_ptr(), bytes.len())];
            // A socket that takes nothing, or a part, is what it is.
            // SAFETY: the bytes are readable and are only read.
            let _ = unsafe { socket::send(stream.fd.as_fd(), &mut pieces) };
        }
    }

    /// Posts memory for the first message that is not released.
    ///
    /// # Safety
    /// The memory is valid for writes, and nothing else uses it, until the message is released or
    /// [`withdraw_posted`](Self::withdraw_posted) has returned.
    pub(crate) unsafe fn post(&self, channel: u16, memory: PostedMemory) {
        let mut state = self.lock();
        let TcpPairState { streams, channels, .. } = &mut *state;
        let ring = &mut channels[usize::from(channel)].receiving;
        if let Some(index) = ring.post(memory)
            && let Some(stream) = streams[index].stream.as_mut()
        {
            stream.store_in_posted(channel, ring);
        }
    }

    /// Ends the use of posted memory.
    pub(crate) fn withdraw_posted(&self, channel: u16) {
        let mut state = self.lock();
        match state.receive_ring(channel).withdraw() {
            WithdrawnMessage::None => {}
            WithdrawnMessage::Complete => state.filled -= 1,
            WithdrawnMessage::Partial(stream) => {
                if let Some(stream) = state.stream(stream) {
                    stream.drop_payload();
                }
            }
        }
    }

    /// Releases the first message; the next acknowledgement says `excess` messages more. Returns
    /// whether the peer waits for that.
    pub(crate) fn release(&self, channel: u16, excess: u64) -> bool {
        let mut state = self.lock();
        let ring = state.receive_ring(channel);
        let awaited = ring.first().is_some_and(|(_, message)| message.release_awaited);
        let was_posted = ring.release();
        ring.ack_excess += excess;
        let many = ring.unacked() >= u64::from(self.layout.depth.div_ceil(2));
        state.filled -= usize::from(was_posted);
        // The next message in the other direction carries the acknowledgement, and so does the next
        // wait. An acknowledgement of its own serves links with traffic in one direction.
        if many {
            self.send_acks(&mut state);
        }
        drop(state);
        // Behind a message in posted memory there may be more that was read and not yet used.
        if was_posted || !many {
            self.poller.wake_within_tick();
        }
        awaited
    }

    /// Acknowledges the releases that the peer was not told of.
    pub(crate) fn acknowledge(&self) {
        self.send_acks(&mut self.lock());
    }
}
