//! The time as the state machines see it: a value that the caller passes in.

use std::ops::Add;
use std::time::Duration;

/// A moment, as the time since a start that the caller chose. All arithmetic saturates, so a clock
/// that jumps, or a process that was stopped, never causes a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The moment at which the clock started.
    pub const START: Self = Self(Duration::ZERO);

    /// The moment that is `since_start` after the start.
    pub const fn after_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// The time from the start to this moment.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_and_sums_saturate() {
        let (one, two) = (Duration::from_secs(1), Duration::from_secs(2));
        let (early, late) = (Time::after_start(one), Time::START + two);
        assert_eq!((late.since(early), early.since(late)), (one, Duration::ZERO));
        assert_eq!((late + Duration::MAX).since_start(), Duration::MAX);
        assert!(early < late);
    }
}
