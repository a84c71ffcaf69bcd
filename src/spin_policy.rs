//! How long a waiting rank polls before it sleeps.

use std::time::Duration;

/// How often a wait polls, with a pause and then with a yield between two polls, before it sleeps.
/// It is fixed per communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpinPolicy {
    /// Polls with a pause instruction between them.
    pub(crate) spins: u32,
    /// Polls with a `sched_yield` between them.
    pub(crate) yields: u32,
}

/// A yield that takes longer has given the core to a program that does not yield itself. A wait
/// then sleeps, because the kernel gives the core to a thread that wakes up sooner than to one that
/// yields again. Ranks that share a core hand it on in about a microsecond each.
const SLOW_YIELD: Duration = Duration::from_micros(100);

impl SpinPolicy {
    /// The policy for a node on which `ranks` ranks share `cores` cores. `spins` overrides the
    /// number of spins.
    pub(crate) fn new(ranks: usize, cores: usize, spins: Option<u32>) -> Self {
        // A futex sleep and wake-up costs about 5 us on a quiet host and 50 us on a busy one. Where
        // every rank has a core, a wait spins for that long. Elsewhere the peer may need this core
        // before it can make progress. A yield gives it the core, and returns at once if nobody
        // wants it. It also returns at once if the peer was started in a session of its own, as
        // torchrun does: the kernel then gives each session a fair share (autogroup), and a yield
        // gives the core to threads of the same session only. So ranks yield no longer than a sleep
        // and wake-up takes. With 4 ranks in sessions of their own on 2 cores that other programs
        // use too, collectives of up to 128 KiB took 2 to 9 times as long with 200 yields as with
        // 20. Without other programs, calls of 4 and 8 ranks took 0.6 to 1.8 times as long.
        let automatic = if ranks <= cores { 4000 } else { 20 };
        Self { spins: spins.unwrap_or(automatic), yields: 20 }
    }

    /// How many polls count as made after poll number `polls`, whose yield took `time`: all before
    /// the sleep, if the yield was slow.
    pub(crate) fn after_yield(self, polls: u32, time: Duration) -> u32 {
        if time > SLOW_YIELD { self.spins.saturating_add(self.yields) } else { polls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_yield_is_the_last_before_the_sleep() {
        let policy = SpinPolicy::new(4, 2, None);
        assert!(policy.spins < SpinPolicy::new(2, 2, None).spins);
        let first = policy.spins + 1;
        assert_eq!(policy.after_yield(first, Duration::from_micros(1)), first);
        let last = policy.spins + policy.yields;
        assert_eq!(policy.after_yield(first, Duration::from_millis(3)), last);
    }
}
