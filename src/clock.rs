//! The clock that the control plane runs on.

use std::time::{Duration, Instant};

use maypole_control::time::Time;

use crate::process::LazyValue;

static START: LazyValue<Instant> = LazyValue::new(Instant::now);

/// The present time.
pub(crate) fn now() -> Time {
    time_of(Instant::now())
}

/// The time at this moment. Moments before the first use of the clock are its start.
pub(crate) fn time_of(moment: Instant) -> Time {
    Time::after_start(moment.saturating_duration_since(*START))
}

/// The moment after this time from now. A time that the system cannot express is a hundred years.
pub(crate) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + Duration::from_secs(3_153_600_000))
}

/// The moment of this time. A time that the system cannot express is an hour from now.
pub(crate) fn instant_of(time: Time) -> Instant {
    let hour = Duration::from_secs(3600);
    START.checked_add(time.since_start()).unwrap_or_else(|| Instant::now() + hour)
}
