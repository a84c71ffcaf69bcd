//! The LL protocol (low latency): small messages in cache lines that carry their own flag.
//!
//! A message of up to [`LL_CAPACITY`] bytes takes one slot of [`LINES_PER_SLOT`] lines of 64 bytes.
//! Each LL line holds 56 bytes of the message and a flag, which consists of the message's sequence
//! and tag. The sender stores the payload and then, with release, the flag. The receiver polls the
//! flag of every line that the message needs. The cache miss that brings the flag also brings the
//! data, so a message costs one miss in one direction.
//!
//! There are [`LL_SLOTS`] slots, used in turn. The receiver acknowledges only every
//! [`ACK_EVERY`]th release, so most messages cost the sender no cache miss for the way back. The
//! sender may therefore not know of up to `ACK_EVERY - 1` released slots, which leaves
//! [`LlSender::CREDITS`] that it can rely on.
//!
//! Both ends know the length of each message beforehand. A line never shows an old flag as new:
//! between two uses of the same 32-bit sequence, the sender clears each slot once.

use core::mem::MaybeUninit;

use crate::Sequence;
use crate::copy::{copy_mostly, copy_short};
use crate::doorbell::Doorbell;
use crate::error::LinkError;
use crate::rank_header::RankPair;
use crate::sync::{AtomicU64, Cell, Ordering};

/// Payload bytes of an LL line.
pub const LL_LINE_PAYLOAD: usize = 56;
/// Lines of a slot: a send and a receive of 2 KiB take three quarters of the time of slots, those
/// of 8 KiB half as long again. (Loom checks a smaller ring, because its work grows with every
/// word.)
pub const LINES_PER_SLOT: usize = if cfg!(loom) { 2 } else { 40 };
/// Bytes of the longest message.
pub const LL_CAPACITY: usize = LINES_PER_SLOT * LL_LINE_PAYLOAD;
/// Slots of a ring; a power of two.
pub const LL_SLOTS: u64 = if cfg!(loom) { 2 } else { 8 };
/// The receiver acknowledges one in so many messages; divides [`LL_SLOTS`].
pub const ACK_EVERY: u64 = if cfg!(loom) { 2 } else { 4 };

/// The word in which a link's receiver stores the sequence of the last message that it released.
/// It has cache lines of its own. Zero: no message was released.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct AckWord(pub(crate) AtomicU64);

/// The memory of an LL ring. All zeros is an empty ring.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct LlRing {
    slots: [LlSlot; LL_SLOTS as usize],
}

#[derive(Debug)]
#[repr(C, align(64))]
struct LlSlot {
    lines: [LlLine; LINES_PER_SLOT],
    /// An odd number of lines per slot spreads the first lines of the slots over the cache sets.
    _skew: MaybeUninit<[u8; 64]>,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct LlLine {
    payload: Cell<[u8; LL_LINE_PAYLOAD]>,
    flag: AtomicU64,
}

// SAFETY: payloads are only accessed while the flags allow it, which the loom model checks.
unsafe impl Sync for LlRing {}

#[cfg(not(loom))]
const _: () = assert!(size_of::<LlLine>() == 64 && size_of::<LlRing>() == 8 * 41 * 64);

impl LlRing {
    /// Writes the flag of a random line as a sender may or may not do, for tests of the receiver.
    pub(crate) fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        let slot = &self.slots[(random() % LL_SLOTS) as usize];
        // Most messages have few lines.
        let most = [1, 3, LINES_PER_SLOT][random() as usize % 3];
        let line = &slot.lines[random() as usize % most];
        let seen = line.flag.load(Ordering::Relaxed);
        let sequence = match random() % 6 {
            0 => seen >> 32,
            // That of the next message in this line, or of the one after it.
            uses @ 1..4 => (seen >> 32) + uses.min(2) * LL_SLOTS,
            4 => random() % (2 * LL_SLOTS),
            _ => random(),
        };
        let tag = if random().is_multiple_of(2) { seen as u32 } else { random() as u32 };
        line.flag.store(flag(sequence, tag), Ordering::Release);
    }
}

/// What [`LlReceiver::poll`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlPoll {
    /// The message has not arrived completely.
    Pending,
    /// The message has arrived.
    Ready,
    /// A message with another tag has arrived: the two ends do not make the same calls.
    Mismatch {
        /// The tag that the sender wrote.
        seen_tag: u32,
    },
}

/// The sending end. Used by one thread at a time.
pub struct LlSender {
    ring: *const LlRing,
    ack: *const AckWord,
    /// Sequence of the next message.
    next: Sequence,
    /// Sequence of the last message that is known to be released.
    acked: Sequence,
    pair: RankPair,
}

/// The receiving end. Used by one thread at a time.
pub struct LlReceiver {
    ring: *const LlRing,
    ack: *const AckWord,
    /// Sequence of the first message that is not released.
    next: Sequence,
    /// Number of lines of that message that have arrived.
    arrived: usize,
    pair: RankPair,
}

// SAFETY: `pair` keeps the ring and the ack word alive, and this end's role moves with it.
unsafe impl Send for LlSender {}
// SAFETY: as above.
unsafe impl Send for LlReceiver {}

impl LlSender {
    /// The number of messages that can always be sent before one is released.
    pub const CREDITS: u32 = (LL_SLOTS - ACK_EVERY + 1) as u32;

    /// The sending end of a fresh ring.
    ///
    /// # Safety
    /// Ring and ack word are zeroed or new, live as long as `pair`, and have no other sending end.
    pub unsafe fn new(ring: *const LlRing, ack: *const AckWord, pair: RankPair) -> Self {
        Self { ring, ack, next: 1, acked: 0, pair }
    }

    /// Whether a slot is free. Always true while fewer than [`CREDITS`](Self::CREDITS) messages are
    /// not released.
    #[inline]
    pub fn ready(&mut self) -> bool {
        self.next - self.acked <= LL_SLOTS || self.refresh()
    }

    /// Sends a message. It does not ring the receiver's doorbell. The caller does that with
    /// [`full_fence`](crate::sync::full_fence), then
    /// [`doorbell`](Self::doorbell)`().ring_fenced()`.
    ///
    /// # Safety
    /// [`ready`](Self::ready) was true since the last message; `len` bytes at `src` are readable;
    /// `len` is at most [`LL_CAPACITY`].
    #[inline]
    pub unsafe fn write(&mut self, src: *const u8, len: usize, tag: u32) {
        debug_assert!(len <= LL_CAPACITY);
        if len > LL_LINE_PAYLOAD {
            // SAFETY: this function's own conditions.
            return unsafe { self.write_many(src, len, tag) };
        }
        // SAFETY: the first line has room for `len` bytes, and `src` has `len` bytes.
        unsafe {
            copy_short(src, self.first_line(), len);
            self.publish(len, tag);
        }
    }

    /// The memory of the first [`LL_LINE_PAYLOAD`] bytes of the next message, to be filled in place
    /// and [published](Self::publish).
    ///
    /// # Safety
    /// [`ready`](Self::ready) was true since the last message. The caller may write the memory
    /// until it calls `publish`.
    #[inline]
    pub unsafe fn first_line(&mut self) -> *mut u8 {
        self.lines()[0].payload.with_mut(<*mut _>::cast)
    }

    /// Sends the first `len` bytes of [`first_line`](Self::first_line). The caller rings the
    /// doorbell, as for [`write`](Self::write).
    ///
    /// # Safety
    /// [`ready`](Self::ready) was true since the last message; `len` is at most
    /// [`LL_LINE_PAYLOAD`].
    #[inline]
    pub unsafe fn publish(&mut self, len: usize, tag: u32) {
        debug_assert!(len <= LL_LINE_PAYLOAD && self.next - self.acked <= LL_SLOTS);
        // Release, paired as `ll-line`.
        self.lines()[0].flag.store(flag(self.next, tag), Ordering::Release);
        self.advance(1);
    }

    /// The receiver's doorbell.
    #[inline]
    pub fn doorbell(&self) -> &Doorbell {
        self.pair.peer_doorbell()
    }

    /// The error with which a wait for a free slot ends, if it cannot succeed any more. Not for the
    /// fast path.
    #[cold]
    pub fn wait_error(&mut self) -> Option<LinkError> {
        if let Some(aborted) = self.pair.aborted() {
            return Some(aborted);
        }
        if self.acknowledged() >= self.next {
            let why = "it released an LL message that was not sent";
            return Some(LinkError::Corrupt { peer: self.pair.peer(), why });
        }
        self.pair.gone().filter(|_| !self.ready())
    }

    #[inline]
    fn lines(&self) -> &[LlLine; LINES_PER_SLOT] {
        // SAFETY: the caller of `new` promised that the ring lives as long as `self`. Slots are
        // only reached through atomics and cells.
        unsafe { &(*self.ring).slots[(self.next % LL_SLOTS) as usize].lines }
    }

    /// Sends a message of several lines.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    unsafe fn write_many(&mut self, src: *const u8, len: usize, tag: u32) {
        debug_assert!(self.next - self.acked <= LL_SLOTS);
        let flag = flag(self.next, tag);
        for (index, line) in self.lines()[..lines_for(len)].iter().enumerate() {
            let start = index * LL_LINE_PAYLOAD;
            let part = (len - start).min(LL_LINE_PAYLOAD);
            line.payload.with_mut(|payload| {
                // SAFETY: `start + part <= len` bytes are readable at `src`. The slot is free, so
                // its lines may be written.
                unsafe { copy_mostly::<LL_LINE_PAYLOAD>(src.add(start), payload.cast(), part) }
            });
            // Release, paired as `ll-line`.
            line.flag.store(flag, Ordering::Release);
        }
        self.advance(lines_for(len));
    }

    #[inline]
    fn advance(&mut self, written: usize) {
        // True for each slot once in 2^31 messages: see `clear`.
        if self.next as u32 & 0x7fff_ffff & !(LL_SLOTS as u32 - 1) == 0x4000_0000 {
            self.clear(written);
        }
        self.next += 1;
    }

    /// Clears the flags of the lines that the message just written does not use, at which the
    /// receiver does not look. Long messages may be so rare that such a flag is still there when
    /// its 32 bits of sequence come again.
    #[cold]
    fn clear(&mut self, written: usize) {
        for line in &self.lines()[written..] {
            // Visible to the receiver with this message's flag (paired as `ll-line`) or a later
            // one.
            line.flag.store(0, Ordering::Release);
        }
    }

    #[cold]
    fn refresh(&mut self) -> bool {
        let acked = self.acknowledged();
        // A wait for a peer that acknowledges what was not sent ends by `wait_error`.
        if acked < self.next {
            self.acked = acked;
        }
        self.next - self.acked <= LL_SLOTS
    }

    fn acknowledged(&self) -> Sequence {
        // Acquire, paired as `ll-ack`: the receiver's reads of a slot happen before the next stores
        // to it.
        // SAFETY: the caller of `new` promised that the word lives as long as `self`.
        unsafe { (*self.ack).0.load(Ordering::Acquire) }
    }
}

impl LlReceiver {
    /// The receiving end of a fresh ring.
    ///
    /// # Safety
    /// Ring and ack word are zeroed or new, live as long as `pair`, and have no other receiving
    /// end.
    pub unsafe fn new(ring: *const LlRing, ack: *const AckWord, pair: RankPair) -> Self {
        Self { ring, ack, next: 1, arrived: 0, pair }
    }

    /// Looks for the next message, whose length and tag are known.
    #[inline]
    pub fn poll(&mut self, len: usize, tag: u32) -> LlPoll {
        debug_assert!(len <= LL_CAPACITY);
        let expected = flag(self.next, tag);
        let needed = lines_for(len);
        while self.arrived < needed {
            // Acquire, paired as `ll-line`.
            let seen = self.lines()[self.arrived].flag.load(Ordering::Acquire);
            if seen != expected {
                return self.unexpected(seen);
            }
            self.arrived += 1;
        }
        LlPoll::Ready
    }

    /// The tag of the next message if it has begun to arrive, whatever its length. What its sender
    /// sent before, also by slots, is then visible too.
    pub fn begun(&self) -> Option<u32> {
        // Acquire, paired as `ll-line`.
        let seen = self.lines()[0].flag.load(Ordering::Acquire);
        ((seen >> 32) as u32 == self.next as u32).then_some(seen as u32)
    }

    /// Copies the message to `dst`.
    ///
    /// # Safety
    /// [`poll`](Self::poll) with this length was `Ready` since the last release; `len` bytes at
    /// `dst` are writable.
    #[inline]
    pub unsafe fn read(&self, dst: *mut u8, len: usize) {
        debug_assert!(lines_for(len) <= self.arrived);
        if len <= LL_LINE_PAYLOAD {
            // SAFETY: the line has arrived; `dst` has room for `len` bytes.
            return unsafe { copy_short(self.first_line(), dst, len) };
        }
        for (index, line) in self.lines()[..lines_for(len)].iter().enumerate() {
            let start = index * LL_LINE_PAYLOAD;
            let part = (len - start).min(LL_LINE_PAYLOAD);
            line.payload.with(|payload| {
                // SAFETY: `start + part <= len` bytes are writable at `dst`; the line has arrived.
                unsafe { copy_mostly::<LL_LINE_PAYLOAD>(payload.cast(), dst.add(start), part) }
            });
        }
    }

    /// The first [`LL_LINE_PAYLOAD`] bytes of the message, aligned to 64. They may be read in place
    /// after `poll` was `Ready` and until [`release`](Self::release).
    #[inline]
    pub fn first_line(&self) -> *const u8 {
        self.lines()[0].payload.with(<*const _>::cast)
    }

    /// Releases the slot of the message that was `Ready`.
    #[inline]
    pub fn release(&mut self) {
        debug_assert!(self.arrived > 0, "no message has arrived");
        if self.next.is_multiple_of(ACK_EVERY) {
            // Release, paired as `ll-ack`.
            // SAFETY: the caller of `new` promised that the word lives as long as `self`.
            unsafe { (*self.ack).0.store(self.next, Ordering::Release) };
            self.pair.peer_doorbell().ring();
        }
        self.next += 1;
        self.arrived = 0;
    }

    /// The error with which a wait for the message ends, if it cannot arrive any more. Not for the
    /// fast path.
    #[cold]
    pub fn wait_error(&mut self, len: usize, tag: u32) -> Option<LinkError> {
        if let Some(aborted) = self.pair.aborted() {
            return Some(aborted);
        }
        if self.poll(len, tag) == LlPoll::Pending && self.is_ahead() {
            let why = "an LL message has the wrong sequence";
            return Some(LinkError::Corrupt { peer: self.pair.peer(), why });
        }
        let gone = self.pair.gone()?;
        (self.poll(len, tag) == LlPoll::Pending).then_some(gone)
    }

    /// Whether the line that is awaited has the flag of a later message, which a correct sender
    /// cannot have sent yet. The flags of earlier messages are at most 2^31 sequences old: see
    /// `LlSender::advance`.
    fn is_ahead(&self) -> bool {
        let lines = self.lines();
        let seen = lines.get(self.arrived).map_or(0, |line| line.flag.load(Ordering::Acquire));
        seen != 0 && ((seen >> 32) as u32).wrapping_sub(self.next as u32).cast_signed() > 0
    }

    #[inline]
    fn lines(&self) -> &[LlLine; LINES_PER_SLOT] {
        // SAFETY: as in `LlSender::lines`.
        unsafe { &(*self.ring).slots[(self.next % LL_SLOTS) as usize].lines }
    }

    #[inline]
    fn unexpected(&self, seen: u64) -> LlPoll {
        if (seen >> 32) as u32 == self.next as u32 {
            return LlPoll::Mismatch { seen_tag: seen as u32 };
        }
        LlPoll::Pending
    }
}

#[inline(always)]
fn flag(sequence: Sequence, tag: u32) -> u64 {
    sequence << 32 | u64::from(tag)
}

/// Lines of a message of `len` bytes: at least one, which carries the flag.
#[inline(always)]
fn lines_for(len: usize) -> usize {
    len.div_ceil(LL_LINE_PAYLOAD).max(1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::rank_header::RankHeader;
    use std::sync::Arc;

    fn ends() -> (LlSender, LlReceiver) {
        // SAFETY: all zeros is an empty ring.
        let ring: Arc<(LlRing, AckWord, RankHeader)> = Arc::new(unsafe { core::mem::zeroed() });
        // SAFETY: the pair keeps the ring alive, which has only these two ends.
        unsafe {
            let pair = RankPair::new(&raw const ring.2, &raw const ring.2, 1, ring.clone());
            let (lines, ack) = (&raw const ring.0, &raw const ring.1);
            (LlSender::new(lines, ack, pair.clone()), LlReceiver::new(lines, ack, pair))
        }
    }

    fn send_and_receive(sender: &mut LlSender, receiver: &mut LlReceiver, len: usize, salt: u8) {
        let data: Vec<u8> = (0..len).map(|i| i as u8 ^ salt).collect();
        let mut back = vec![0; len];
        assert!(sender.ready());
        assert_eq!(
            receiver.poll(len, 7),
            LlPoll::Pending,
            "the line of an old message was taken for a new one"
        );
        // SAFETY: a slot is free; `data` has `len` bytes.
        unsafe { sender.write(data.as_ptr(), len, 7) };
        assert_eq!(receiver.poll(len, 7), LlPoll::Ready);
        // SAFETY: the message is there; `back` has `len` bytes.
        unsafe { receiver.read(back.as_mut_ptr(), len) };
        assert_eq!(data, back);
        receiver.release();
    }

    #[test]
    fn stray_writes_are_reported() {
        let corrupt = |error| matches!(error, Some(LinkError::Corrupt { peer: 1, .. }));
        let (mut sender, mut receiver) = ends();
        for sequence in [receiver.next + LL_SLOTS, receiver.next + 1, 1 << 31] {
            assert_eq!(receiver.wait_error(8, 7), None);
            // Release, paired as `ll-line`.
            receiver.lines()[0].flag.store(flag(sequence, 7), Ordering::Release);
            assert_eq!(receiver.poll(8, 7), LlPoll::Pending);
            assert!(corrupt(receiver.wait_error(8, 7)), "{sequence}");
            receiver.lines()[0].flag.store(0, Ordering::Release);
        }
        for acked in [LL_SLOTS + 1, u64::MAX] {
            let (mut sender, _receiver) = ends();
            for _ in 0..LL_SLOTS {
                assert!(sender.ready());
                // SAFETY: a slot is free; no bytes are read.
                unsafe { sender.write(core::ptr::null(), 0, 7) };
            }
            assert!(!sender.ready());
            assert_eq!(sender.wait_error(), None);
            // SAFETY: the ring keeps the word alive.
            unsafe { (*sender.ack).0.store(acked, Ordering::Release) };
            assert!(!sender.ready());
            assert!(corrupt(sender.wait_error()), "{acked}");
        }
        send_and_receive(&mut sender, &mut receiver, 8, 1);
    }

    #[test]
    fn messages_of_every_length_arrive_unchanged() {
        let (mut sender, mut receiver) = ends();
        for len in 0..=LL_CAPACITY {
            send_and_receive(&mut sender, &mut receiver, len, len as u8);
        }
    }

    #[test]
    fn old_flags_are_not_taken_for_new_after_the_sequence_wraps() {
        let (mut sender, mut receiver) = ends();
        // Long messages write all lines. Then 2^32 sequences pass, with only short messages.
        let jump = |sender: &mut LlSender, receiver: &mut LlReceiver, to: u64| {
            (sender.next, sender.acked, receiver.next) = (to, to - 1, to);
        };
        for _ in 0..LL_SLOTS {
            send_and_receive(&mut sender, &mut receiver, LL_CAPACITY, 1);
        }
        for quarter in [0x4000_0000, 0xc000_0000] {
            jump(&mut sender, &mut receiver, quarter);
            for _ in 0..LL_SLOTS {
                send_and_receive(&mut sender, &mut receiver, 8, 2);
            }
        }
        jump(&mut sender, &mut receiver, (1 << 32) - 2);
        for _ in 0..2 {
            send_and_receive(&mut sender, &mut receiver, 8, 2);
        }
        for _ in 0..=LL_SLOTS {
            assert!(sender.ready());
            // The later lines of the slot must not look as if they had arrived.
            let next = flag(receiver.next, 7);
            for line in &receiver.lines()[1..] {
                assert_ne!(line.flag.load(Ordering::Relaxed), next);
            }
            send_and_receive(&mut sender, &mut receiver, LL_CAPACITY, 3);
        }
    }
}

#[cfg(all(test, loom))]
pub(crate) mod loom_tests {
    use super::*;
    use crate::rank_header::RankHeader;
    use loom::sync::Arc;
    use loom::thread;

    struct LlModel {
        ring: LlRing,
        ack: AckWord,
        sender: RankHeader,
        receiver: RankHeader,
    }

    fn model_memory() -> std::sync::Arc<LlModel> {
        let line = || LlLine { payload: Cell::new([0; LL_LINE_PAYLOAD]), flag: AtomicU64::new(0) };
        let slot = || LlSlot { lines: [line(), line()], _skew: MaybeUninit::uninit() };
        std::sync::Arc::new(LlModel {
            ring: LlRing { slots: [slot(), slot()] },
            ack: AckWord::default(),
            sender: RankHeader::default(),
            receiver: RankHeader::default(),
        })
    }

    fn ends(memory: &std::sync::Arc<LlModel>) -> (LlSender, LlReceiver) {
        let (sender, receiver) = (&raw const memory.sender, &raw const memory.receiver);
        // SAFETY: the pairs keep the memory alive, which has only these two ends.
        unsafe {
            let out = RankPair::new(sender, receiver, 1, memory.clone());
            let inc = RankPair::new(receiver, sender, 0, memory.clone());
            let (ring, ack) = (&raw const memory.ring, &raw const memory.ack);
            (LlSender::new(ring, ack, out), LlReceiver::new(ring, ack, inc))
        }
    }

    /// The ends of an empty ring, which keep it alive.
    pub(crate) fn new_ends() -> (LlSender, LlReceiver) {
        ends(&model_memory())
    }

    /// Messages of one and two lines go round the ring; both sides sleep whenever they can. Loom
    /// checks that no payload is read and written at the same time, and that no side sleeps
    /// forever.
    #[test]
    fn loom_messages_arrive_unchanged_and_wake_the_receiver() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let memory = model_memory();
            let (mut sender, mut receiver) = ends(&memory);
            let shared = Arc::new(memory);
            let theirs = shared.clone();
            const LENGTHS: [usize; 4] = [8, 60, 0, 60];
            let handle = thread::spawn(move || {
                for (tag, len) in LENGTHS.into_iter().enumerate() {
                    let mut data = [0_u8; LL_CAPACITY];
                    let bell = &theirs.receiver.doorbell;
                    assert!(
                        bell.wait(0, 0, None, || receiver.poll(len, tag as u32) == LlPoll::Ready)
                    );
                    // SAFETY: the message is there; `data` has room for every message.
                    unsafe { receiver.read(data.as_mut_ptr(), len) };
                    assert!(data[..len].iter().all(|&byte| byte == tag as u8 + 1));
                    receiver.release();
                }
            });
            for (tag, len) in LENGTHS.into_iter().enumerate() {
                assert!(shared.sender.doorbell.wait(0, 0, None, || sender.ready()));
                // SAFETY: a slot is free; no message is longer than the array.
                unsafe { sender.write([tag as u8 + 1; LL_CAPACITY].as_ptr(), len, tag as u32) };
                sender.doorbell().ring();
            }
            handle.join().unwrap();
        });
    }
}
