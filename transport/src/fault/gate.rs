//! Withholds messages, credits or acknowledgements for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recipe::{FaultRate, FaultRecipe};
use crate::Sequence;
use crate::endpoint::Endpoint;

/// What a random number is for. Each purpose has numbers of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultPurpose {
    Credit,
    Acknowledgement,
    Message,
    Damage,
}

/// The seed of the random numbers for one purpose on one link.
pub(super) fn seed(recipe: &FaultRecipe, link: u64, purpose: FaultPurpose) -> u64 {
    mix(mix(recipe.seed ^ (purpose as u64) << 60) ^ link)
}

/// Withholds items that are there. Whether an item is withheld is decided once for each sequence,
/// when it is first asked for.
pub(super) struct DelayGate {
    purpose: FaultPurpose,
    seed: u64,
    recipe: Arc<FaultRecipe>,
    endpoint: Arc<Endpoint>,
    /// The sequence that was last asked for. Sequences begin with 1.
    sequence: Sequence,
    withheld: Option<Withheld>,
}

/// An item is withheld until it was asked for this many times or until this time, whichever comes
/// first.
struct Withheld {
    polls: u32,
    until: Instant,
}

/// Maximum number of polls for which an item is withheld, if the number of polls is the limit.
const MAX_POLLS: u64 = 64;

impl DelayGate {
    pub(super) fn new(
        purpose: FaultPurpose,
        link: u64,
        recipe: &Arc<FaultRecipe>,
        endpoint: &Arc<Endpoint>,
    ) -> Self {
        Self {
            purpose,
            seed: seed(recipe, link, purpose),
            recipe: recipe.clone(),
            endpoint: endpoint.clone(),
            sequence: 0,
            withheld: None,
        }
    }

    /// Whether the item `sequence`, which is there, may be seen.
    pub(super) fn passes(&mut self, sequence: Sequence) -> bool {
        if sequence != self.sequence {
            self.sequence = sequence;
            self.withheld = self.decide(mix(self.seed ^ sequence));
        }
        let Some(withheld) = &mut self.withheld else { return true };
        withheld.polls = withheld.polls.saturating_sub(1);
        if withheld.polls == 0 || Instant::now() >= withheld.until {
            self.withheld = None;
            return true;
        }
        // The caller, which now sees nothing, must not fall asleep, because nobody else will ring.
        self.endpoint.doorbell().ring();
        false
    }

    /// Half of the delayed items are withheld for a number of polls (or the longest time), half for
    /// a time.
    fn decide(&self, random: u64) -> Option<Withheld> {
        let FaultRecipe { delay, longest, backpressure, .. } = *self.recipe;
        let refusal = mix(!random);
        if self.purpose == FaultPurpose::Credit && backpressure.happens(refusal) {
            let polls = 2 + mix(refusal) as u32 % 8;
            return Some(Withheld { polls, until: Instant::now() + Duration::from_millis(1) });
        }
        if !delay.happens(random) {
            return None;
        }
        let random = mix(random);
        let (polls, time) = if random & 1 == 0 {
            (2 + (random >> 1) % MAX_POLLS, longest)
        } else {
            let part = (random >> 32) as f64 / FaultRate::ALWAYS;
            (u64::from(u32::MAX), longest.mul_f64(part))
        };
        Some(Withheld { polls: polls as u32, until: Instant::now() + time })
    }
}

/// One step of splitmix64: every bit of the result depends on every bit of `seed`.
pub(super) fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::tests::faulty_link;

    #[test]
    fn a_withheld_item_appears_after_its_polls_and_the_doorbell_rings_until_then() {
        let (endpoint, ..) = faulty_link("seed=0");
        let mut gate = DelayGate {
            purpose: FaultPurpose::Message,
            seed: 0,
            recipe: Arc::new(FaultRecipe::parse("delay=1:1000us").unwrap()),
            endpoint: endpoint.clone(),
            sequence: 1,
            withheld: Some(Withheld { polls: 5, until: Instant::now() + Duration::from_secs(600) }),
        };
        let mut polls = 0;
        // No other thread rings.
        assert!(endpoint.doorbell().wait(0, 0, Some(Duration::from_secs(20)), || {
            polls += 1;
            gate.passes(1)
        }));
        assert_eq!(polls, 5);
        assert!(gate.passes(1));
        // A new sequence is a new decision.
        assert!(!gate.passes(2));
    }
}
