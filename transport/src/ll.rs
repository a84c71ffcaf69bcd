//! The flag-line protocol: small messages in cache lines that carry their own flag.
//!
//! A message of up to [`LL_CAPACITY`] bytes takes one slot of [`LINES`] lines of 64 bytes. Each line holds 56 bytes of the
//! message and a flag, the message's sequence and tag; the sender stores the payload and then, with release, the
//! flag. The receiver polls the flag of every line that the message needs, and so gets the data with the very cache
//! miss that told it that they are there: one miss one way.
//!
//! There are [`SLOTS`] slots, used in turn. The receiver acknowledges only every [`ACK_EVERY`]th release, so that most
//! messages cost the sender no miss on the way back; up to `ACK_EVERY - 1` released slots may be unknown to the sender,
//! which leaves [`LlSender::CREDITS`] to rely on.
//!
//! Both ends know the length of each message beforehand. A line never shows a stale flag as new: between two uses of
//! the same 32-bit sequence, the sender clears each slot once.

use core::mem::MaybeUninit;

use crate::copy;
use crate::doorbell::Doorbell;
use crate::error::LinkError;
use crate::link::Sequence;
use crate::rank_header::RankPair;
use crate::sync::{AtomicU64, Cell, Ordering};

/// Payload of a line in bytes.
pub const LL_LINE_PAYLOAD: usize = 56;
/// Lines of a slot. (Loom checks a smaller ring, as its work grows with every word.)
pub const LINES: usize = if cfg!(loom) { 2 } else { 32 };
/// Bytes of the longest message.
pub const LL_CAPACITY: usize = LINES * LL_LINE_PAYLOAD;
/// Slots of a ring; a power of two.
pub const SLOTS: u64 = if cfg!(loom) { 2 } else { 8 };
/// The receiver acknowledges every so many messages; divides [`SLOTS`].
pub const ACK_EVERY: u64 = if cfg!(loom) { 2 } else { 4 };

/// Where a link's receiver says up to which message it has released. On a line of its own; all zeros says none.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct AckWord(pub(crate) AtomicU64);

/// The memory of a ring. All zeros is an empty one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct LlRing {
    slots: [Slot; SLOTS as usize],
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Slot {
    lines: [Line; LINES],
    /// An odd number of lines per slot spreads the first lines of the slots over the sets of the caches.
    _skew: MaybeUninit<[u8; 64]>,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Line {
    payload: Cell<[u8; LL_LINE_PAYLOAD]>,
    flag: AtomicU64,
}

// SAFETY: made to be shared: payloads are accessed as the flags grant it, which the loom model checks.
unsafe impl Sync for LlRing {}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Line>() == 64 && size_of::<LlRing>() == 8 * 33 * 64);

/// What [`LlReceiver::poll`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlPoll {
    /// Not all of the message is there yet.
    Pending,
    /// It is there.
    Ready,
    /// A message is there, with another tag: the two ends do not do the same thing.
    Mismatch {
        /// What the sender wrote.
        seen_tag: u32,
    },
}

/// The sending end. Used by one thread at a time.
pub struct LlSender {
    ring: *const LlRing,
    ack: *const AckWord,
    /// Of the next message.
    next: Sequence,
    /// Released by the receiver, as far as we know.
    acked: Sequence,
    pair: RankPair,
}

/// The receiving end. Used by one thread at a time.
pub struct LlReceiver {
    ring: *const LlRing,
    ack: *const AckWord,
    /// Of the first message that is not released.
    next: Sequence,
    /// Lines of it that have arrived.
    arrived: usize,
    pair: RankPair,
}

// SAFETY: the ring and the ack word are kept by `pair`, and this end's side of the protocol moves with it.
unsafe impl Send for LlSender {}
// SAFETY: as above.
unsafe impl Send for LlReceiver {}

impl LlSender {
    /// Messages that can be sent and not yet released, at least.
    pub const CREDITS: u32 = (SLOTS - ACK_EVERY + 1) as u32;

    /// The sending end of a fresh ring.
    ///
    /// # Safety
    /// Ring and ack word are zeroed or new, live as long as `pair`, and have no other sending end.
    pub unsafe fn new(ring: *const LlRing, ack: *const AckWord, pair: RankPair) -> Self {
        Self { ring, ack, next: 1, acked: 0, pair }
    }

    /// Whether a slot is free. Always true with fewer than [`CREDITS`](Self::CREDITS) messages unreleased.
    #[inline]
    pub fn ready(&mut self) -> bool {
        self.next - self.acked <= SLOTS || self.refresh()
    }

    /// Sends a message. The receiver's doorbell is left to the caller: [`full_fence`](crate::sync::full_fence), then
    /// [`doorbell`](Self::doorbell)`().ring_fenced()`.
    ///
    /// # Safety
    /// [`ready`](Self::ready) was true since the last message; `len` bytes at `src` are readable; `len` is at most
    /// [`LL_CAPACITY`].
    #[inline]
    pub unsafe fn write(&mut self, src: *const u8, len: usize, tag: u32) {
        debug_assert!(len <= LL_CAPACITY);
        if len > LL_LINE_PAYLOAD {
            // SAFETY: this function's own conditions.
            return unsafe { self.write_many(src, len, tag) };
        }
        // SAFETY: `slot` has room for a line's payload and `src` for `len` bytes.
        unsafe {
            copy::short(src, self.first_line(), len);
            self.publish(len, tag);
        }
    }

    /// The first [`LL_LINE_PAYLOAD`] bytes of the next message, to be filled in place and [published](Self::publish).
    ///
    /// # Safety
    /// [`ready`](Self::ready) was true since the last message. The memory is the caller's until `publish`.
    #[inline]
    pub unsafe fn first_line(&mut self) -> *mut u8 {
        self.lines()[0].payload.with_mut(<*mut _>::cast)
    }

    /// Sends the first `len` bytes of [`first_line`](Self::first_line). The doorbell is left to the caller, as in
    /// [`write`](Self::write).
    ///
    /// # Safety
    /// [`ready`](Self::ready) was true since the last message; `len` is at most [`LL_LINE_PAYLOAD`].
    #[inline]
    pub unsafe fn publish(&mut self, len: usize, tag: u32) {
        debug_assert!(len <= LL_LINE_PAYLOAD && self.next - self.acked <= SLOTS);
        // Pairs as `line`.
        self.lines()[0].flag.store(flag(self.next, tag), Ordering::Release);
        self.advance(1);
    }

    /// The receiver's doorbell.
    #[inline]
    pub fn doorbell(&self) -> &Doorbell {
        self.pair.peer_doorbell()
    }

    /// Why waiting for a free slot is in vain, if it is. Not on the fast path.
    #[cold]
    pub fn wait_error(&mut self) -> Option<LinkError> {
        let error = self.pair.aborted().or_else(|| self.pair.gone())?;
        let gone = !matches!(error, LinkError::Aborted { .. });
        (!(gone && self.ready())).then_some(error)
    }

    #[inline]
    fn lines(&self) -> &[Line; LINES] {
        // SAFETY: `new` was promised that the ring lives as long as `self`; slots are only reached through atomics
        // and cells.
        unsafe { &(*self.ring).slots[(self.next % SLOTS) as usize].lines }
    }

    /// # Safety
    /// As for `write`.
    unsafe fn write_many(&mut self, src: *const u8, len: usize, tag: u32) {
        debug_assert!(self.next - self.acked <= SLOTS);
        let flag = flag(self.next, tag);
        for (index, line) in self.lines()[..lines_of(len)].iter().enumerate() {
            let start = index * LL_LINE_PAYLOAD;
            let part = (len - start).min(LL_LINE_PAYLOAD);
            line.payload.with_mut(|payload| {
                // SAFETY: `start + part <= len` bytes are readable at `src`; the slot is free, so the line is ours.
                unsafe { copy::line(src.add(start), payload.cast(), part) }
            });
            // Pairs as `line`.
            line.flag.store(flag, Ordering::Release);
        }
        self.advance(lines_of(len));
    }

    #[inline]
    fn advance(&mut self, written: usize) {
        // Once in 2^31 messages, on each slot: see `clear`.
        if self.next as u32 & 0x7fff_ffff & !(SLOTS as u32 - 1) == 0x4000_0000 {
            self.clear(written);
        }
        self.next += 1;
    }

    /// Long messages are rare: the flag of a late line could have waited until its 32 bits of sequence come again. Clears
    /// the lines that the message just written does not need (so that the receiver does not look at them).
    #[cold]
    fn clear(&mut self, written: usize) {
        for line in &self.lines()[written..] {
            // Seen by the receiver with this message's flag (pairs as `line`) or with a later one.
            line.flag.store(0, Ordering::Release);
        }
    }

    #[cold]
    fn refresh(&mut self) -> bool {
        // Pairs as `line-ack`: the receiver's reads of the slots happen before our next stores to them.
        // SAFETY: `new` was promised that the word lives as long as `self`.
        self.acked = unsafe { (*self.ack).0.load(Ordering::Acquire) };
        self.next - self.acked <= SLOTS
    }
}

impl LlReceiver {
    /// The receiving end of a fresh ring.
    ///
    /// # Safety
    /// Ring and ack word are zeroed or new, live as long as `pair`, and have no other receiving end.
    pub unsafe fn new(ring: *const LlRing, ack: *const AckWord, pair: RankPair) -> Self {
        Self { ring, ack, next: 1, arrived: 0, pair }
    }

    /// Looks for the next message, whose length and tag are known.
    #[inline]
    pub fn poll(&mut self, len: usize, tag: u32) -> LlPoll {
        debug_assert!(len <= LL_CAPACITY);
        let expected = flag(self.next, tag);
        let needed = lines_of(len);
        while self.arrived < needed {
            // Pairs as `line`.
            let seen = self.lines()[self.arrived].flag.load(Ordering::Acquire);
            if seen != expected {
                return self.unexpected(seen);
            }
            self.arrived += 1;
        }
        LlPoll::Ready
    }

    /// Copies the message.
    ///
    /// # Safety
    /// [`poll`](Self::poll) with this length was `Ready` since the last release; `len` bytes at `dst` are writable.
    #[inline]
    pub unsafe fn read(&self, dst: *mut u8, len: usize) {
        debug_assert!(lines_of(len) <= self.arrived);
        if len <= LL_LINE_PAYLOAD {
            // SAFETY: the line has arrived; `dst` has room for `len` bytes.
            return unsafe { copy::short(self.first_line(), dst, len) };
        }
        for (index, line) in self.lines()[..lines_of(len)].iter().enumerate() {
            let start = index * LL_LINE_PAYLOAD;
            let part = (len - start).min(LL_LINE_PAYLOAD);
            line.payload.with(|payload| {
                // SAFETY: `start + part <= len` bytes are writable at `dst`; the line has arrived.
                unsafe { copy::line(payload.cast(), dst.add(start), part) }
            });
        }
    }

    /// The first [`LL_LINE_PAYLOAD`] bytes of the message, to be read in place after `poll` was `Ready` and until
    /// [`release`](Self::release). Aligned to 64.
    #[inline]
    pub fn first_line(&self) -> *const u8 {
        self.lines()[0].payload.with(<*const _>::cast)
    }

    /// Gives the slot of the message that was `Ready` back.
    #[inline]
    pub fn release(&mut self) {
        debug_assert!(self.arrived > 0, "no message has arrived");
        if self.next.is_multiple_of(ACK_EVERY) {
            // Pairs as `line-ack`.
            // SAFETY: `new` was promised that the word lives as long as `self`.
            unsafe { (*self.ack).0.store(self.next, Ordering::Release) };
            self.pair.peer_doorbell().ring();
        }
        self.next += 1;
        self.arrived = 0;
    }

    /// Why waiting for the message is in vain, if it is. Not on the fast path.
    #[cold]
    pub fn wait_error(&mut self, len: usize, tag: u32) -> Option<LinkError> {
        let error = self.pair.aborted().or_else(|| self.pair.gone())?;
        let gone = !matches!(error, LinkError::Aborted { .. });
        (!(gone && self.poll(len, tag) != LlPoll::Pending)).then_some(error)
    }

    #[inline]
    fn lines(&self) -> &[Line; LINES] {
        // SAFETY: as in `LlSender::lines`.
        unsafe { &(*self.ring).slots[(self.next % SLOTS) as usize].lines }
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
fn lines_of(len: usize) -> usize {
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
        // SAFETY: `ring` is kept by the pair and has these two ends alone.
        unsafe {
            let pair = RankPair::new(&raw const ring.2, &raw const ring.2, 1, ring.clone());
            let (lines, ack) = (&raw const ring.0, &raw const ring.1);
            (LlSender::new(lines, ack, pair.clone()), LlReceiver::new(lines, ack, pair))
        }
    }

    fn step(sender: &mut LlSender, receiver: &mut LlReceiver, len: usize, salt: u8) {
        let data: Vec<u8> = (0..len).map(|i| i as u8 ^ salt).collect();
        let mut back = vec![0; len];
        assert!(sender.ready());
        assert_eq!(
            receiver.poll(len, 7),
            LlPoll::Pending,
            "a line of an old message was taken for new"
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
    fn every_length_arrives_whole() {
        let (mut sender, mut receiver) = ends();
        for len in 0..=LL_CAPACITY {
            step(&mut sender, &mut receiver, len, len as u8);
        }
    }

    #[test]
    fn late_lines_survive_the_wrap_of_the_sequence() {
        let (mut sender, mut receiver) = ends();
        // Long messages write all lines; then 2^32 sequences pass with short messages alone.
        let jump = |sender: &mut LlSender, receiver: &mut LlReceiver, to: u64| {
            (sender.next, sender.acked, receiver.next) = (to, to - 1, to);
        };
        for _ in 0..SLOTS {
            step(&mut sender, &mut receiver, LL_CAPACITY, 1);
        }
        for quarter in [0x4000_0000, 0xc000_0000] {
            jump(&mut sender, &mut receiver, quarter);
            for _ in 0..SLOTS {
                step(&mut sender, &mut receiver, 8, 2);
            }
        }
        jump(&mut sender, &mut receiver, (1 << 32) - 2);
        for _ in 0..2 {
            step(&mut sender, &mut receiver, 8, 2);
        }
        for _ in 0..=SLOTS {
            assert!(sender.ready());
            // One line of a long message: the rest must not look arrived.
            let next = flag(receiver.next, 7);
            for line in &receiver.lines()[1..] {
                assert_ne!(line.flag.load(Ordering::Relaxed), next);
            }
            step(&mut sender, &mut receiver, LL_CAPACITY, 3);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::rank_header::RankHeader;
    use loom::sync::Arc;
    use loom::thread;

    struct Memory {
        ring: LlRing,
        ack: AckWord,
        sender: RankHeader,
        receiver: RankHeader,
    }

    fn memory() -> std::sync::Arc<Memory> {
        let line = || Line { payload: Cell::new([0; LL_LINE_PAYLOAD]), flag: AtomicU64::new(0) };
        let slot = || Slot { lines: [line(), line()], _skew: MaybeUninit::uninit() };
        std::sync::Arc::new(Memory {
            ring: LlRing { slots: [slot(), slot()] },
            ack: AckWord::default(),
            sender: RankHeader::default(),
            receiver: RankHeader::default(),
        })
    }

    fn ends(memory: &std::sync::Arc<Memory>) -> (LlSender, LlReceiver) {
        let (sender, receiver) = (&raw const memory.sender, &raw const memory.receiver);
        // SAFETY: `memory` is kept by the pairs and has these two ends alone.
        unsafe {
            let out = RankPair::new(sender, receiver, 1, memory.clone());
            let inc = RankPair::new(receiver, sender, 0, memory.clone());
            let (ring, ack) = (&raw const memory.ring, &raw const memory.ack);
            (LlSender::new(ring, ack, out), LlReceiver::new(ring, ack, inc))
        }
    }

    /// Messages of one and two lines go round the ring, with both sides sleeping whenever they can. Loom checks that
    /// the payload is never read and written at once, and that nobody sleeps for ever.
    #[test]
    fn loom_lines_arrive_whole_and_wake() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let memory = memory();
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
