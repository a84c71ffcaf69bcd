//! Links on which things go wrong, for tests: a wrapper around the slots of any link.
//!
//! It does what the contract allows and a test machine never shows: messages, credits and acknowledgements that come late,
//! back-pressure for no reason. And it does what must be noticed: a damaged tag or byte, a rank that aborts or whose process
//! is killed in the middle of a call.
//!
//! It does not drop, repeat or reorder messages. The contract forbids that to a link, so nothing above one is made to bear
//! it, and there is nothing to test: a link over an unreliable path repairs such faults below its contract, and that is
//! where they must be injected.
//!
//! Whether and how long something is withheld, and what is damaged, follows from the seed, the link, the direction and the
//! sequence alone; a run with the same seed meets the same faults whatever its timing. Only bounds in microseconds are the
//! clock's.
//!
//! No wake-up is lost: whoever polls what is withheld also rings this rank's own doorbell, so that a wait that was about to
//! sleep looks again. Such a wait spins until the time is over. Lines are passed through as they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Rank;
use crate::endpoint::Endpoint;
use crate::error::LinkError;
use crate::link::{
    Incoming, Lendable, Outgoing, ReceiveSlots, ReceivedMessage, SendSlots, Sequence, SlotMut,
};
use crate::sync::{AtomicU64, Ordering};

/// How often something happens, in parts of 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(u64);

/// What goes wrong, and how often. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultRecipe {
    /// What the choices follow from.
    pub seed: u64,
    /// How many of the messages, credits and acknowledgements are withheld.
    pub delay: Rate,
    /// For how long at most.
    pub longest: Duration,
    /// How many reservations are refused at first although there is credit.
    pub backpressure: Rate,
    /// How many messages are damaged.
    pub corrupt: Rate,
    /// What of them.
    pub part: Part,
    /// The process of this rank kills itself in place of sending this message, counted from 1 over all its links.
    pub kill: Option<(Rank, u64)>,
    /// This rank aborts right after sending this message.
    pub abort: Option<(Rank, u64)>,
}

/// The part of a message that is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Its tag, which the receiver compares with its own.
    #[default]
    Tag,
    /// A byte of its payload, which nothing above the link checks. Lent messages and empty ones are left alone.
    Payload,
}

impl FaultRecipe {
    /// Reads `seed=7,delay=0.1:200us,backpressure=0.05,corrupt=0.001,kill=1:20,abort=2:30`: any of these, in any order, where a
    /// rate is from 0 to 1 and `corrupt=0.001:payload` damages payloads. None if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut recipe = Self::default();
        for item in text.split(',') {
            let (name, value) = item.trim().split_once('=')?;
            let (first, second) = match value.split_once(':') {
                Some((first, second)) => (first, Some(second)),
                None => (value, None),
            };
            match (name, second) {
                ("seed", None) => recipe.seed = first.parse().ok()?,
                ("delay", Some(longest)) => {
                    recipe.delay = Rate::parse(first)?;
                    let micros: u32 = longest.strip_suffix("us")?.parse().ok()?;
                    recipe.longest = Duration::from_micros(micros.into());
                }
                ("backpressure", None) => recipe.backpressure = Rate::parse(first)?,
                ("corrupt", part) => {
                    recipe.corrupt = Rate::parse(first)?;
                    recipe.part = match part {
                        None | Some("tag") => Part::Tag,
                        Some("payload") => Part::Payload,
                        Some(_) => return None,
                    };
                }
                ("kill", Some(message)) => recipe.kill = Some(moment(first, message)?),
                ("abort", Some(message)) => recipe.abort = Some(moment(first, message)?),
                _ => return None,
            }
        }
        Some(recipe)
    }

    /// The same without the ends: what a communicator made from this one inherits, whose ranks have other numbers.
    #[must_use]
    pub fn without_kill_and_abort(&self) -> Self {
        Self { kill: None, abort: None, ..self.clone() }
    }
}

fn moment(rank: &str, message: &str) -> Option<(Rank, u64)> {
    let message = message.parse().ok().filter(|&message| message > 0)?;
    Some((rank.parse().ok()?, message))
}

impl Rate {
    fn parse(text: &str) -> Option<Self> {
        let rate: f64 = text.parse().ok()?;
        (0.0..=1.0).contains(&rate).then_some(Self((rate * Self::ALWAYS) as u64))
    }

    const ALWAYS: f64 = (1u64 << 32) as f64;

    /// Whether it happens, for a random number.
    fn hits(self, random: u64) -> bool {
        random >> 32 < self.0
    }
}

/// The faults of one rank.
#[derive(Clone)]
pub struct FaultInjector {
    recipe: Arc<FaultRecipe>,
    /// This rank, whose doorbell is rung.
    endpoint: Arc<Endpoint>,
    /// What the rank does to abort.
    abort: Arc<dyn Fn() + Send + Sync>,
    /// Messages sent so far, over all links.
    sent: Arc<AtomicU64>,
}

impl FaultInjector {
    /// The faults by `recipe` of the rank of `endpoint`, which aborts by calling `abort`.
    pub fn new(
        recipe: FaultRecipe,
        endpoint: Arc<Endpoint>,
        abort: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { recipe: Arc::new(recipe), endpoint, abort: Arc::new(abort), sent: Arc::default() }
    }

    /// Both ends that this rank has of the links to and from `peer` on `channel`, with the faults on them.
    pub fn wrap(
        &self,
        peer: Rank,
        channel: u16,
        (outgoing, incoming): (Outgoing, Incoming),
    ) -> (Outgoing, Incoming) {
        let link =
            u64::from(self.endpoint.rank()) << 40 | u64::from(peer) << 16 | u64::from(channel);
        let seed = |kind: Kind| mixed(mixed(self.recipe.seed ^ (kind as u64) << 60) ^ link);
        let gate = |kind: Kind| Gate {
            kind,
            seed: seed(kind),
            recipe: self.recipe.clone(),
            endpoint: self.endpoint.clone(),
            number: 0,
            held: None,
        };
        let sender = FaultySender {
            inner: outgoing.slots,
            faults: self.clone(),
            damage: seed(Kind::Damage),
            credits: gate(Kind::Credit),
            acknowledgements: gate(Kind::Acknowledgement),
            next: 1,
            slot: None,
            released: 0,
        };
        let receiver =
            FaultyReceiver { inner: incoming.slots, messages: gate(Kind::ReceivedMessage) };
        (
            Outgoing { slots: Box::new(sender), ll: outgoing.ll },
            Incoming { slots: Box::new(receiver), ll: incoming.ll },
        )
    }

    /// To be called before a message is sent; does not return if the process is to be killed.
    fn count(&self) -> bool {
        // Only counted, nothing is published by it.
        let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Some((self.endpoint.rank(), number));
        if self.recipe.kill == now {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        self.recipe.abort == now
    }
}

/// What a random number is for: each has its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Credit,
    Acknowledgement,
    ReceivedMessage,
    Damage,
}

/// Withholds what is there for a while. Whether it does is decided once for each number, when it is first asked.
struct Gate {
    kind: Kind,
    seed: u64,
    recipe: Arc<FaultRecipe>,
    endpoint: Arc<Endpoint>,
    /// The last number that was asked for; numbers begin with 1.
    number: Sequence,
    held: Option<Held>,
}

struct Held {
    polls: u32,
    until: Instant,
}

/// Most polls for which something is withheld, where polls are what bounds it.
const MOST_POLLS: u64 = 64;

impl Gate {
    /// Whether `number`, which is there, may be seen.
    fn passes(&mut self, number: Sequence) -> bool {
        if number != self.number {
            self.number = number;
            self.held = self.hold(mixed(self.seed ^ number));
        }
        let Some(held) = &mut self.held else { return true };
        held.polls = held.polls.saturating_sub(1);
        if held.polls == 0 || Instant::now() >= held.until {
            self.held = None;
            return true;
        }
        // Whoever has just been told that there is nothing must not fall asleep: nobody else will ring.
        self.endpoint.doorbell().ring();
        false
    }

    /// Of the delayed, half are withheld for a number of polls (or the longest time), half for a time.
    fn hold(&self, random: u64) -> Option<Held> {
        let FaultRecipe { delay, longest, backpressure, .. } = *self.recipe;
        let refused = mixed(!random);
        if self.kind == Kind::Credit && backpressure.hits(refused) {
            let polls = 2 + mixed(refused) as u32 % 8;
            return Some(Held { polls, until: Instant::now() + Duration::from_millis(1) });
        }
        if !delay.hits(random) {
            return None;
        }
        let random = mixed(random);
        let (polls, time) = if random & 1 == 0 {
            (2 + (random >> 1) % MOST_POLLS, longest)
        } else {
            (u64::from(u32::MAX), longest.mul_f64((random >> 32) as f64 / Rate::ALWAYS))
        };
        Some(Held { polls: polls as u32, until: Instant::now() + time })
    }
}

struct FaultySender {
    inner: Box<dyn SendSlots>,
    faults: FaultInjector,
    /// Seed of the choice what is damaged.
    damage: u64,
    credits: Gate,
    acknowledgements: Gate,
    /// Sequence of the next message.
    next: Sequence,
    /// Where it is written, if it was reserved.
    slot: Option<SlotMut>,
    /// What the caller was told.
    released: Sequence,
}

// SAFETY: the address in `slot` is of the inner link's memory, which moves with it.
unsafe impl Send for FaultySender {}

impl FaultySender {
    /// The tag that is sent in place of `tag`; damages the reserved slot if that is what is to be damaged.
    fn damaged(&mut self, len: usize, tag: u32, lent: bool) -> u32 {
        let random = mixed(self.damage ^ self.next);
        let FaultRecipe { corrupt, part, .. } = *self.faults.recipe;
        if !corrupt.hits(random) {
            return tag;
        }
        let random = mixed(random);
        match part {
            Part::Tag => return tag ^ 1 << (random % 32),
            Part::Payload => {
                let slot = self.slot.filter(|slot| !lent && len > 0 && len <= slot.capacity);
                if let Some(slot) = slot {
                    // SAFETY: the slot is reserved, which makes its bytes ours, and `len` fits.
                    unsafe { *slot.data.add((random >> 8) as usize % len) ^= 1 << (random % 8) };
                }
            }
        }
        tag
    }

    fn sent(&mut self, sequence: Sequence, abort: bool) {
        debug_assert_eq!(sequence, self.next);
        self.next = sequence + 1;
        self.slot = None;
        if abort {
            (self.faults.abort)();
        }
    }
}

impl SendSlots for FaultySender {
    fn capacity(&self) -> usize {
        self.inner.capacity()
    }

    fn credits(&self) -> u32 {
        self.inner.credits()
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.slot = self.inner.reserve()?.filter(|_| self.credits.passes(self.next));
        Ok(self.slot)
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.slot.is_some(), "send without a reserved slot");
        let tag = self.damaged(len, tag, false);
        let abort = self.faults.count();
        let sequence = self.inner.send(len, tag);
        self.sent(sequence, abort);
        sequence
    }

    fn lendable(&self) -> Lendable {
        self.inner.lendable()
    }

    fn can_lend(&mut self, data: *const u8, len: usize) -> bool {
        self.inner.can_lend(data, len)
    }

    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        if self.reserve()?.is_none() {
            return Ok(None);
        }
        let tag = self.damaged(len, tag, true);
        let abort = self.faults.count();
        // SAFETY: the caller's promise; we tell of a release only after the inner link did.
        let sequence = unsafe { self.inner.lend(data, len, tag) }?;
        if let Some(sequence) = sequence {
            self.sent(sequence, abort);
        }
        Ok(sequence)
    }

    fn released(&mut self) -> Sequence {
        let released = self.inner.released();
        if released > self.released && self.acknowledgements.passes(self.released + 1) {
            self.released = released;
        }
        self.released
    }
}

struct FaultyReceiver {
    inner: Box<dyn ReceiveSlots>,
    messages: Gate,
}

impl ReceiveSlots for FaultyReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let message = self.inner.receive()?;
        Ok(message.filter(|message| self.messages.passes(message.sequence)))
    }

    fn release(&mut self) {
        self.inner.release();
    }
}

/// One step of splitmix64: every bit of the result depends on every bit of `seed`.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointConfig;
    use crate::inbox::InboxLayout;

    fn recipe(text: &str) -> FaultRecipe {
        FaultRecipe::parse(text).unwrap()
    }

    /// A rank that is connected to itself, and its links, with the faults of `text` on them.
    fn link(text: &str) -> (Arc<Endpoint>, Outgoing, Incoming) {
        let layout = InboxLayout { nranks: 1, channels: 1, slot_bytes: 64, depth: 4 };
        let secret = crate::memory::random().unwrap();
        let config = EndpointConfig { rank: 0, nranks: 1, secret, layout };
        let endpoint = Arc::new(Endpoint::new(config).unwrap());
        endpoint.connect(0, &endpoint.address(), Instant::now()).unwrap();
        let to_abort = endpoint.clone();
        let faults = FaultInjector::new(recipe(text), endpoint.clone(), move || to_abort.abort(9));
        let (out, inc) = faults.wrap(0, 0, endpoint.open(0, 0).unwrap());
        (endpoint, out, inc)
    }

    /// Sends a message of eight zeros and returns how many polls it took to come, its tag and the set bits of its payload.
    fn exchange((_, out, inc): &mut (Arc<Endpoint>, Outgoing, Incoming)) -> (u32, u32, u32) {
        let slot = loop {
            if let Some(slot) = out.slots.reserve().unwrap() {
                break slot;
            }
        };
        // SAFETY: the slot is reserved and has 64 bytes.
        unsafe { slot.data.write_bytes(0, 8) };
        out.slots.send(8, 0);
        let mut polls = 1;
        let message = loop {
            if let Some(message) = inc.slots.receive().unwrap() {
                break message;
            }
            polls += 1;
        };
        // SAFETY: the message is there and eight bytes long.
        let data = unsafe { message.data.cast::<u64>().read_unaligned() };
        inc.slots.release();
        (polls, message.tag, data.count_ones())
    }

    #[test]
    fn recipes_are_read() {
        let all = recipe(
            "seed=7, delay=0.5:200us,backpressure=1,corrupt=0.25:payload,kill=1:20,abort=2:1",
        );
        let expected = FaultRecipe {
            seed: 7,
            delay: Rate(1 << 31),
            longest: Duration::from_micros(200),
            backpressure: Rate(1 << 32),
            corrupt: Rate(1 << 30),
            part: Part::Payload,
            kill: Some((1, 20)),
            abort: Some((2, 1)),
        };
        assert_eq!(all, expected);
        assert!(Rate(1 << 32).hits(u64::MAX) && !Rate(0).hits(0));
        for bad in
            ["", "seed", "seed=x", "delay=0.1", "delay=0.1:5", "delay=2:5us", "kill=1", "x=1"]
        {
            assert_eq!(FaultRecipe::parse(bad), None, "{bad}");
        }
        for bad in ["kill=1:0", "corrupt=NaN", "corrupt=0.1:head", "backpressure=-1", "seed=1:2"] {
            assert_eq!(FaultRecipe::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_and_another_gives_others() {
        let run = |seed: u32| {
            let mut link = link(&format!("seed={seed},backpressure=0.2,corrupt=0.3"));
            (0..200).map(|_| exchange(&mut link)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn what_is_withheld_comes_after_its_polls_and_rings_until_then() {
        let (endpoint, ..) = link("seed=0");
        let mut gate = Gate {
            kind: Kind::ReceivedMessage,
            seed: 0,
            recipe: Arc::new(recipe("delay=1:1000us")),
            endpoint: endpoint.clone(),
            number: 1,
            held: Some(Held { polls: 5, until: Instant::now() + Duration::from_secs(600) }),
        };
        let mut polls = 0;
        // Nobody else rings.
        assert!(endpoint.doorbell().wait(0, 0, Some(Duration::from_secs(20)), || {
            polls += 1;
            gate.passes(1)
        }));
        assert_eq!(polls, 5);
        assert!(gate.passes(1));
        // A new number is a new choice.
        assert!(!gate.passes(2));
    }

    #[test]
    fn damage_is_one_bit_of_what_was_asked_for() {
        let mut tags = link("corrupt=1");
        let mut payloads = link("corrupt=1:payload");
        for _ in 0..50 {
            let (_, tag, bits) = exchange(&mut tags);
            assert_eq!((tag.count_ones(), bits), (1, 0));
            let (_, tag, bits) = exchange(&mut payloads);
            assert_eq!((tag, bits), (0, 1));
        }
    }

    #[test]
    fn an_abort_comes_after_its_message() {
        let mut link = link("abort=0:3");
        exchange(&mut link);
        exchange(&mut link);
        let (endpoint, out, inc) = &mut link;
        out.slots.reserve().unwrap().unwrap();
        assert_eq!(endpoint.aborted(), None);
        assert_eq!(out.slots.send(0, 0), 3);
        let aborted = LinkError::Aborted { by: 0, reason: 9 };
        assert_eq!(inc.slots.receive().unwrap_err(), aborted);
        assert_eq!(out.slots.reserve().unwrap_err(), aborted);
    }
}
