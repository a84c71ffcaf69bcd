//! Completion queues.

use super::heap::Piece;
use super::lock::{Lock, Plain};
use super::{Entries, Event, fabric};
use crate::abi;
use crate::sync::{Acquire, AtomicU32, AtomicU64, Relaxed, Release};

/// Words of one completion.
const WORDS: usize = 8;

/// The queue that a completion frees a place of, when it is polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// The send queue of the queue pair: so many places.
    Send(u64),
    /// Its receive queue.
    #[default]
    Receive,
    /// A shared receive queue.
    Shared(u32),
}

/// One completion.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) wr_id: u64,
    pub(crate) status: u32,
    pub(crate) opcode: u32,
    pub(crate) byte_len: u32,
    /// In network byte order, or a key that was invalidated.
    pub(crate) immediate: u32,
    pub(crate) number: u32,
    pub(crate) source_number: u32,
    pub(crate) flags: u32,
    /// Place of the queue pair in the table.
    pub(crate) queue_pair: u32,
    pub(crate) source: Source,
    /// Nanoseconds of the clock of the device.
    pub(crate) time: u64,
}

impl Entry {
    fn to_words(self) -> [u64; WORDS] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (kind, detail) = match self.source {
            Source::Send(count) => (0, count),
            Source::Receive => (1, 0),
            Source::Shared(queue) => (2, u64::from(queue)),
        };
        [
            self.wr_id,
            pair(self.status, self.opcode),
            pair(self.byte_len, self.immediate),
            pair(self.number, self.source_number),
            pair(self.flags, self.queue_pair),
            kind,
            detail,
            self.time,
        ]
    }

    fn from_words(words: [u64; WORDS]) -> Self {
        let pair = |word: u64| (word as u32, (word >> 32) as u32);
        let (status, opcode) = pair(words[1]);
        let (byte_len, immediate) = pair(words[2]);
        let (number, source_number) = pair(words[3]);
        let (flags, queue_pair) = pair(words[4]);
        let source = match words[5] {
            0 => Source::Send(words[6]),
            1 => Source::Receive,
            _ => Source::Shared(words[6] as u32),
        };
        let (wr_id, time) = (words[0], words[7]);
        Self {
            wr_id,
            status,
            opcode,
            byte_len,
            immediate,
            number,
            source_number,
            flags,
            queue_pair,
            source,
            time,
        }
    }
}

/// The queue was full: a completion is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overflow;

#[repr(C)]
pub(crate) struct CompletionQueue {
    owner: AtomicU32,
    /// Of the context, for events.
    context: AtomicU32,
    /// Completions that were polled, and that were added, ever.
    polled: AtomicU64,
    added: AtomicU64,
    state: Lock<State>,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    ring: Piece,
    capacity: u32,
    /// 0: no event is wanted; 1: for the next completion; 2: for the next solicited one.
    armed: u32,
    /// The channel plus one.
    channel: u32,
    overflowed: u32,
    /// Address of the object in the owner.
    object: u64,
}

impl Plain for State {}

impl Entries for CompletionQueue {
    fn owner(&self) -> &AtomicU32 {
        &self.owner
    }
}

impl CompletionQueue {
    /// Begins a use of the entry. False if there is no memory.
    pub(crate) fn open(&self, context: u32, capacity: u32, channel: Option<u32>) -> bool {
        let Some(ring) = fabric().heap.allocate(capacity as usize * WORDS) else { return false };
        let mut state = self.state.lock();
        let channel = channel.map_or(0, |channel| channel + 1);
        *state = State { ring, capacity, armed: 0, channel, overflowed: 0, object: 0 };
        self.context.store(context, Relaxed);
        self.polled.store(0, Relaxed);
        self.added.store(0, Relaxed);
        true
    }

    pub(crate) fn set_object(&self, object: u64) {
        self.state.lock().object = object;
    }

    pub(crate) fn destroy(&self) {
        let mut state = self.state.lock();
        fabric().heap.free(state.ring);
        state.ring = Piece::default();
        state.capacity = 0;
        drop(state);
        self.release();
    }

    /// Adds a completion, and an event if one was asked for.
    pub(crate) fn push(&self, entry: Entry, solicited: bool) -> Result<(), Overflow> {
        let mut state = self.state.lock();
        let added = self.added.load(Relaxed);
        if added - self.polled.load(Acquire) >= u64::from(state.capacity) {
            let first = state.overflowed == 0;
            state.overflowed = 1;
            let object = state.object;
            drop(state);
            if first {
                let event = Event { object, kind: abi::IBV_EVENT_CQ_ERR, port: 0 };
                fabric().contexts[self.context.load(Relaxed) as usize].push(event);
            }
            return Err(Overflow);
        }
        self.write(&state, added, entry);
        // Pair "completion": a reader of the count sees the words, and all that the work did.
        self.added.store(added + 1, Release);
        let wanted = state.armed == 1
            || state.armed == 2 && (solicited || entry.status != abi::IBV_WC_SUCCESS);
        if wanted && state.channel != 0 {
            state.armed = 0;
            let event = Event { object: state.object, kind: 0, port: 0 };
            fabric().channels[state.channel as usize - 1].push(event);
        }
        Ok(())
    }

    fn write(&self, state: &State, position: u64, entry: Entry) {
        let place = (position % u64::from(state.capacity)) as usize * WORDS;
        let words = &fabric().heap.words(state.ring)[place..][..WORDS];
        for (word, value) in words.iter().zip(entry.to_words()) {
            word.store(value, Relaxed);
        }
    }

    fn read(&self, state: &State, position: u64) -> Entry {
        let place = (position % u64::from(state.capacity)) as usize * WORDS;
        let words = &fabric().heap.words(state.ring)[place..][..WORDS];
        Entry::from_words(std::array::from_fn(|i| words[i].load(Relaxed)))
    }

    /// Takes the oldest completion.
    pub(crate) fn poll(&self) -> Option<Entry> {
        // Pair "completion".
        if self.polled.load(Relaxed) == self.added.load(Acquire) {
            return None;
        }
        let state = self.state.lock();
        let polled = self.polled.load(Relaxed);
        if polled == self.added.load(Acquire) {
            return None;
        }
        let entry = self.read(&state, polled);
        self.polled.store(polled + 1, Release);
        drop(state);
        fabric().settings.polled.fetch_add(1, Relaxed);
        let queue_pair = &fabric().queue_pairs[entry.queue_pair as usize];
        match entry.source {
            Source::Shared(queue) => fabric().shared_queues[queue as usize].polled(),
            // Its completions are removed with a queue pair, so the entry has not been reused.
            Source::Receive => queue_pair.received(),
            Source::Send(count) => queue_pair.sent(count),
        }
        Some(entry)
    }

    /// Asks for an event at the next completion. False if there is no channel.
    pub(crate) fn arm(&self, solicited_only: bool) -> bool {
        let mut state = self.state.lock();
        // Any completion includes the solicited ones.
        if state.armed != 1 {
            state.armed = if solicited_only { 2 } else { 1 };
        }
        state.channel != 0
    }

    /// Removes the completions of a queue pair that ends.
    pub(crate) fn forget(&self, queue_pair: u32) {
        let state = self.state.lock();
        let (polled, added) = (self.polled.load(Relaxed), self.added.load(Relaxed));
        let mut kept = added;
        for position in (polled..added).rev() {
            let entry = self.read(&state, position);
            if entry.queue_pair != queue_pair {
                kept -= 1;
                self.write(&state, kept, entry);
            } else if let Source::Shared(queue) = entry.source {
                fabric().shared_queues[queue as usize].polled();
            }
        }
        self.polled.store(kept, Release);
    }

    /// Changes the capacity. False if more completions wait than the new one, or without memory.
    pub(crate) fn resize(&self, capacity: u32) -> Result<(), i32> {
        let mut state = self.state.lock();
        let (polled, added) = (self.polled.load(Relaxed), self.added.load(Relaxed));
        if added - polled > u64::from(capacity) {
            return Err(libc::EINVAL);
        }
        let ring = fabric().heap.allocate(capacity as usize * WORDS).ok_or(libc::ENOMEM)?;
        let old = *state;
        let new = State { ring, capacity, ..old };
        for position in polled..added {
            self.write(&new, position, self.read(&old, position));
        }
        *state = new;
        fabric().heap.free(old.ring);
        Ok(())
    }
}
