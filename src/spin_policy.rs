//! How long a waiting rank polls before it sleeps.

use std::time::Duration;

/// How often a wait polls, with a pause or a yield between two polls, before it sleeps. It is fixed
/// per communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpinPolicy {
    /// Polls with a pause instruction between them.
    pub(crate) spins: u32,
    /// Polls with a `sched_yield` between them.
    pub(crate) yields: u32,
    /// The ranks that share the cores of this rank outnumber them. Then a wait spins only while so
    /// many of them sleep that a core is left, or shortly after a yield that found that nobody
    /// wants the core. Otherwise it yields.
    pub(crate) shares_cores: bool,
}

/// A yield that takes longer has given the core to a program that does not yield itself. A wait
/// then sleeps, because the kernel gives the core to a thread that wakes up sooner than to one that
/// yields again. Ranks that share a core hand it on in about a microsecond each.
const SLOW_YIELD: Duration = Duration::from_micros(100);

/// A yield that takes less has given the core to nobody. To switch to another thread takes longer.
pub(crate) const QUICK_YIELD: Duration = Duration::from_micros(1);

impl SpinPolicy {
    /// The policy for a rank that shares `cores` cores with others, `ranks` ranks in all. `spins`
    /// overrides the number of spins, and whether it depends on the other ranks.
    pub(crate) fn new(ranks: usize, cores: usize, spins: Option<u32>) -> Self {
        // A futex sleep and wake-up costs about 5 us on a quiet host and 50 us on a busy one, or
        // where a virtual machine has to get its idle core back. A wait spins for that long where
        // no other rank needs the core. If it slept earlier, the others would wait longer and fall
        // asleep too: from then on every message would wake a rank. Where another rank is awake, it
        // may need this core before it can make progress. A yield gives it the core, and returns at
        // once if nobody wants it. It also returns at once if the peer was started in a session of
        // its own, as torchrun does: the kernel then gives each session a fair share (autogroup),
        // and a yield gives the core to threads of the same session only. So ranks yield no longer
        // than a sleep and wake-up takes. With 4 ranks in sessions of their own on 2 cores that
        // other programs use too, collectives of up to 128 KiB took 2 to 9 times as long with 200
        // yields as with 20.
        Self {
            spins: spins.unwrap_or(4000),
            yields: 20,
            shares_cores: spins.is_none() && ranks > cores,
        }
    }

    /// How many yields count as made after yield number `yields` took `time`: all before the sleep,
    /// if it was slow.
    pub(crate) fn after_yield(self, yields: u32, time: Duration) -> u32 {
        if time > SLOW_YIELD { self.yields } else { yields }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_yield_is_the_last_before_the_sleep() {
        let policy = SpinPolicy::new(4, 2, None);
        assert_eq!(policy.after_yield(1, Duration::from_micros(1)), 1);
        assert_eq!(policy.after_yield(1, Duration::from_millis(3)), policy.yields);
    }

    #[test]
    fn ranks_look_at_each_other_where_they_share_cores_unless_the_user_sets_the_spins() {
        assert!(SpinPolicy::new(4, 2, None).shares_cores);
        assert!(!SpinPolicy::new(2, 2, None).shares_cores);
        let set = SpinPolicy::new(4, 2, Some(7));
        assert_eq!((set.spins, set.shares_cores), (7, false));
    }
}
