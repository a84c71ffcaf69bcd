//! Reports of connections that were refused. They cannot fill the log: there is one line at most in
//! ten seconds, with the number of those that were left out.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::process::PerProcess;

/// The target of these lines, some of which are warnings, but not failures of a call.
pub const LOG_TARGET: &str = "maypole::strangers";

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// Limits how often something happens.
#[derive(Debug, Default)]
struct RateLimit {
    /// When it may happen next.
    next: Option<Instant>,
    /// How often it was left out since it happened last.
    left_out: u64,
}

/// For the lines of each level, from errors on.
static LINES: PerProcess<[Mutex<RateLimit>; 5]> = PerProcess::new();

/// Logs that a connection was refused, unless that was logged a moment ago.
pub fn report(level: log::Level, what: fmt::Arguments<'_>) {
    let lines = &LINES.get()[level as usize - 1];
    let left_out = lines.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
    match left_out {
        Some(0) => log::log!(target: LOG_TARGET, level, "{what}"),
        Some(more) => log::log!(
            target: LOG_TARGET,
            level,
            "{what}; {more} more connections were refused since the last such line"
        ),
        None => {}
    }
}

impl RateLimit {
    /// None if it must be left out now; otherwise how often it was left out before.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.left_out += 1;
            return None;
        }
        self.next = Some(now + PAUSE);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_counts_those_that_were_left_out() {
        let mut limit = RateLimit::default();
        let start = Instant::now();
        assert_eq!(limit.admit(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(limit.admit(start + PAUSE / 2), None);
        }
        assert_eq!(limit.admit(start + PAUSE), Some(1000));
        assert_eq!(limit.admit(start + PAUSE), None);
        assert_eq!(limit.admit(start + 3 * PAUSE), Some(1));
    }
}
