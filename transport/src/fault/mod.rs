//! Links on which failures are injected, for tests: wrappers around the slots of any link.
//!
//! The wrappers do what the contract allows but a test machine rarely shows: messages, credits and
//! acknowledgements that come late, and back-pressure without need. They also do what must be
//! detected: they damage a tag, a byte of a payload, or what the header of a message or an
//! acknowledgement says, let a rank abort, or kill its process in the middle of a call.
//!
//! They do not drop, repeat or reorder messages. The contract forbids that to a link, so nothing
//! above a link must tolerate it. A link over an unreliable network repairs such failures below its
//! contract, and they must be injected there.
//!
//! Whether and how long something is withheld, and what is damaged, depends only on the seed, the
//! link, the direction and the sequence. A run with the same seed therefore has the same failures,
//! whatever its timing. Only limits in microseconds depend on the clock.
//!
//! No wake-up is lost: a poll of something that is withheld also rings this rank's own doorbell, so
//! that a wait that was about to sleep polls again. Such a wait spins until the time is over. LL
//! messages pass unchanged, so they may overtake messages in slots; the contract says that they do
//! not. Communicators with injected failures therefore send none.

mod ends;
mod gate;
mod recipe;

use std::sync::Arc;

use self::ends::{FaultyReceiver, FaultySender};
use self::gate::{DelayGate, FaultPurpose};
use crate::Rank;
use crate::endpoint::Endpoint;
use crate::link::{Incoming, Outgoing};
use crate::sync::{AtomicU64, Ordering};

pub use self::recipe::{DamagedPart, FaultRate, FaultRecipe};

/// Injects failures into the links of one rank.
#[derive(Clone)]
pub struct FaultInjector {
    recipe: Arc<FaultRecipe>,
    /// The rank's endpoint, whose doorbell is rung.
    endpoint: Arc<Endpoint>,
    /// What the rank does to abort.
    abort: Arc<dyn Fn() + Send + Sync>,
    /// Number of messages sent so far, over all links.
    sent: Arc<AtomicU64>,
}

impl FaultInjector {
    /// Injects failures by `recipe` into links of the rank of `endpoint`, which aborts by calling
    /// `abort`.
    pub fn new(
        recipe: FaultRecipe,
        endpoint: Arc<Endpoint>,
        abort: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { recipe: Arc::new(recipe), endpoint, abort: Arc::new(abort), sent: Arc::default() }
    }

    /// Wraps both ends that this rank has of the links to and from `peer` on `channel`.
    pub fn wrap(
        &self,
        peer: Rank,
        channel: u16,
        (outgoing, incoming): (Outgoing, Incoming),
    ) -> (Outgoing, Incoming) {
        let link =
            u64::from(self.endpoint.rank()) << 40 | u64::from(peer) << 16 | u64::from(channel);
        let gate = |purpose| DelayGate::new(purpose, link, &self.recipe, &self.endpoint);
        let sender = FaultySender {
            inner: outgoing.slots,
            injector: self.clone(),
            damage_seed: gate::seed(&self.recipe, link, FaultPurpose::Damage),
            credits: gate(FaultPurpose::Credit),
            acknowledgements: gate(FaultPurpose::Acknowledgement),
            next: 1,
            slot: None,
            released: 0,
        };
        let receiver = FaultyReceiver {
            inner: incoming.slots,
            injector: self.clone(),
            damage_seed: gate::seed(&self.recipe, link, FaultPurpose::Damage),
            messages: gate(FaultPurpose::Message),
            next: 1,
        };
        (
            Outgoing { slots: Box::new(sender), ll: outgoing.ll },
            Incoming { slots: Box::new(receiver), ll: incoming.ll },
        )
    }

    /// Called before a message is sent. Returns whether to abort after it; does not return if the
    /// process is to be killed, or the rank to panic.
    fn before_send(&self) -> bool {
        // Relaxed: only the number counts.
        let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Some((self.endpoint.rank(), number));
        if self.recipe.kill == now {
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
        assert!(self.recipe.panic != now, "injected: message {number} is not sent");
        self.recipe.abort == now
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::LinkError;
    use crate::endpoint::EndpointConfig;
    use crate::inbox::InboxLayout;

    /// A rank that is connected to itself, and its links, with the failures of the recipe `text`.
    pub(crate) fn faulty_link(text: &str) -> (Arc<Endpoint>, Outgoing, Incoming) {
        let layout = InboxLayout { nranks: 1, channels: 1, slot_bytes: 64, depth: 4 };
        let secret = crate::noise::Key::random().unwrap();
        let config = EndpointConfig { rank: 0, nranks: 1, secret, layout };
        let endpoint = Arc::new(Endpoint::new(config).unwrap());
        endpoint.connect(0, &endpoint.address(), Instant::now()).unwrap();
        let recipe = FaultRecipe::parse(text).unwrap();
        let to_abort = endpoint.clone();
        let injector = FaultInjector::new(recipe, endpoint.clone(), move || to_abort.abort(9));
        let (out, inc) = injector.wrap(0, 0, endpoint.open(0, 0).unwrap());
        (endpoint, out, inc)
    }

    /// Sends a message of eight zeros and returns how many polls it took to come, its tag and the
    /// set bits of its payload.
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
        // SAFETY: the message has arrived and is eight bytes long.
        let data = unsafe { message.data.cast::<u64>().read_unaligned() };
        inc.slots.release();
        (polls, message.tag, data.count_ones())
    }

    #[test]
    fn the_seed_determines_the_failures() {
        let run = |seed: u32| {
            let mut link = faulty_link(&format!("seed={seed},backpressure=0.2,corrupt=0.3"));
            (0..200).map(|_| exchange(&mut link)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn damage_is_one_bit_of_the_part_that_was_asked_for() {
        let mut tags = faulty_link("corrupt=1");
        let mut payloads = faulty_link("corrupt=1:payload");
        for _ in 0..50 {
            let (_, tag, bits) = exchange(&mut tags);
            assert_eq!((tag.count_ones(), bits), (1, 0));
            let (_, tag, bits) = exchange(&mut payloads);
            assert_eq!((tag, bits), (0, 1));
        }
    }

    #[test]
    fn an_abort_comes_after_its_message() {
        let mut link = faulty_link("abort=0:3");
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
