//! The doorbell: how a rank sleeps, and how whoever has something for it wakes it.
//!
//! One word, a generation in steps of two and a bit that says that someone may be asleep. Whoever waits sets the bit,
//! looks once more at what it waits for, and sleeps as long as the word does not change. Whoever has news
//! makes them visible, fences, and looks at the bit: if it is clear, which is the rule, that is all, one fence and one load
//! of a line that nobody writes. If it is set, the first to clear it (which moves the generation on) wakes
//! everybody; the others need not.
//!
//! No wake-up is lost: the fences of the two sides are ordered. If the ringer's comes first, the waiter's second look
//! sees the news; if the waiter's comes first, the ringer sees the bit. All who sleep are woken and look again, so one
//! bell serves several threads and any number of reasons.

use core::time::Duration;
use std::time::Instant;

use crate::sync::{FutexWord, Ordering, full_fence, spin_hint};

/// A word in memory shared by all who ring. All zeros is a valid one that nobody sleeps on.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Doorbell {
    word: FutexWord,
}

/// Somebody sleeps, or is about to.
const SLEEPING: u32 = 1;

/// The right to sleep, given before the last look. Dropping it is fine: at most one ring wakes nobody.
#[derive(Debug)]
#[must_use = "look at what you wait for, then park"]
pub struct SleepTicket(u32);

impl Doorbell {
    /// Wakes the owner if it sleeps. To be called after the stores that the owner waits for.
    #[inline]
    pub fn ring(&self) {
        full_fence();
        self.ring_fenced();
    }

    /// As [`ring`](Self::ring), for a caller that has called [`full_fence`] since those stores: one for many bells.
    #[inline]
    pub fn ring_fenced(&self) {
        let word = self.word.value().load(Ordering::Relaxed);
        if word & SLEEPING != 0 {
            self.wake(word);
        }
    }

    /// Announces that the caller is about to sleep. Look at what you wait for *after* this, then [`park`](Self::sleep).
    pub fn prepare_to_sleep(&self) -> SleepTicket {
        let word = self.word.value().fetch_or(SLEEPING, Ordering::Relaxed);
        full_fence();
        SleepTicket(word | SLEEPING)
    }

    /// Somebody sleeps, or is about to. For links whose news must be fetched by someone while the rank sleeps: a look
    /// between [`prepare`](Self::prepare_to_sleep) and [`park`](Self::sleep) sees it.
    pub fn has_sleeper(&self) -> bool {
        self.word.value().load(Ordering::Relaxed) & SLEEPING != 0
    }

    /// Sleeps until the bell has rung since the ticket was given, or the time is over; or wakes for no reason.
    pub fn sleep(&self, ticket: SleepTicket, timeout: Option<Duration>) {
        self.word.wait(ticket.0, timeout);
    }

    /// Waits until `ready` says so: looks `spins` times in a row, then `yields` times giving the processor away in between,
    /// then sleeps. False if `timeout` passed first. Everything that can make `ready` true must ring this bell.
    pub fn wait(
        &self,
        spins: u32,
        yields: u32,
        timeout: Option<Duration>,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        for _ in 0..spins {
            if ready() {
                return true;
            }
            spin_hint();
        }
        for _ in 0..yields {
            if ready() {
                return true;
            }
            std::thread::yield_now();
        }
        // A timeout too long to be a point in time is no timeout.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let ticket = self.prepare_to_sleep();
            if ready() {
                return true;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            self.sleep(ticket, left);
        }
    }

    #[cold]
    fn wake(&self, word: u32) {
        // Whoever fails here was overtaken by another ringer, who wakes all that slept on this word.
        if self
            .word
            .value()
            .compare_exchange(word, word.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            self.word.wake_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::AtomicU32;

    #[test]
    fn a_timeout_ends_the_wait() {
        let bell = Doorbell::default();
        assert!(!bell.wait(3, 3, Some(Duration::from_millis(5)), || false));
        assert!(bell.wait(0, 0, Some(Duration::ZERO), || true));
    }

    #[test]
    fn one_ring_answers_all_tickets_and_the_next_costs_no_call() {
        let bell = Doorbell::default();
        let word = || bell.word.value().load(Ordering::Relaxed);
        bell.ring();
        assert_eq!(word(), 0, "nobody sleeps, nothing is written");
        let (first, second) = (bell.prepare_to_sleep(), bell.prepare_to_sleep());
        bell.ring();
        let rung = word();
        assert_eq!(rung & SLEEPING, 0);
        bell.ring();
        assert_eq!(word(), rung);
        // Both return at once: the bell has rung since.
        bell.sleep(first, None);
        bell.sleep(second, None);
    }

    #[test]
    fn several_sleepers_are_woken_every_time() {
        const ROUNDS: u32 = 2_000;
        let (bell, round, seen) = (Doorbell::default(), AtomicU32::new(0), AtomicU32::new(0));
        let back = Doorbell::default();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for want in 1..=ROUNDS {
                        let woken = bell.wait(0, 0, Some(Duration::from_secs(20)), || {
                            round.load(Ordering::Acquire) >= want
                        });
                        assert!(woken, "a wake-up was lost in round {want}");
                        seen.fetch_add(1, Ordering::Release);
                        back.ring();
                    }
                });
            }
            for now in 1..=ROUNDS {
                round.store(now, Ordering::Release);
                bell.ring();
                assert!(back.wait(0, 0, Some(Duration::from_secs(20)), || {
                    seen.load(Ordering::Acquire) == 3 * now
                }));
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::AtomicU32;
    use loom::sync::Arc;
    use loom::thread;

    /// Loom reports a deadlock if a waiter sleeps for ever.
    #[test]
    fn loom_no_wake_up_is_lost() {
        loom::model(|| {
            let shared = Arc::new((Doorbell::default(), AtomicU32::new(0)));
            let ringer = shared.clone();
            let handle = thread::spawn(move || {
                ringer.1.store(1, Ordering::Relaxed);
                ringer.0.ring();
            });
            assert!(shared.0.wait(0, 0, None, || shared.1.load(Ordering::Relaxed) == 1));
            handle.join().unwrap();
        });
    }

    /// Two ringers, of which one waiter needs both: the one that is overtaken may rely on the other's wake.
    #[test]
    fn loom_two_ringers_one_waiter() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new((Doorbell::default(), AtomicU32::new(0), AtomicU32::new(0)));
            let (first, second) = (shared.clone(), shared.clone());
            let one = thread::spawn(move || {
                first.1.store(1, Ordering::Relaxed);
                first.0.ring();
            });
            let two = thread::spawn(move || {
                second.2.store(1, Ordering::Relaxed);
                second.0.ring();
            });
            assert!(shared.0.wait(0, 0, None, || {
                shared.1.load(Ordering::Relaxed) + shared.2.load(Ordering::Relaxed) == 2
            }));
            one.join().unwrap();
            two.join().unwrap();
        });
    }

    /// Two waiters on one bell, with different reasons.
    #[test]
    fn loom_one_ringer_two_waiters() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new((Doorbell::default(), AtomicU32::new(0), AtomicU32::new(0)));
            let other = shared.clone();
            let waiter = thread::spawn(move || {
                other.0.wait(0, 0, None, || other.1.load(Ordering::Relaxed) == 1);
            });
            let ringer = shared.clone();
            let rings = thread::spawn(move || {
                ringer.1.store(1, Ordering::Relaxed);
                ringer.0.ring();
                ringer.2.store(1, Ordering::Relaxed);
                ringer.0.ring();
            });
            shared.0.wait(0, 0, None, || shared.2.load(Ordering::Relaxed) == 1);
            waiter.join().unwrap();
            rings.join().unwrap();
        });
    }
}
