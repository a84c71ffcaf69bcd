//! What the ends of the links do: send, lend, receive, post and release messages.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::TcpPair;
use super::state::TcpPairState;
use crate::Sequence;
use crate::error::LinkError;
use crate::link::{HeaderDamage, PostedMemory, ReceivedMessage, SlotMut};
use crate::tcp::frame::{FRAME_HEADER_BYTES, Frame, FrameKind};
use crate::tcp::ring::{CompleteMessage, EMPTY_MESSAGE, LentMemory, SentMessage, WithdrawnMessage};
use crate::tcp::socket;

/// How many bytes of lent messages are written at the latest.
const LARGE_WRITE: usize = 512 << 10;

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

    /// `None` while there is no credit. A failed connection is an error also if there is credit: a
    /// rank that waits for a release has no other way to see it.
    fn await_credit(
        &self,
        state: &mut TcpPairState,
        channel: u16,
    ) -> Result<Option<()>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        if let Some(error) = state.failure {
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
        // What has arrived is delivered also after an abort.
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
