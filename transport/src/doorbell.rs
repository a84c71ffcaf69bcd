//! The doorbell: the word on which a rank sleeps and by which other ranks wake it.
//!
//! The word holds a generation, in steps of two, and a bit that says that a thread may be asleep. A
//! waiting thread sets the bit, checks its condition once more, and sleeps while the word does not
//! change. A ringing thread makes its news visible, fences, and looks at the bit. Usually the bit
//! is clear, and the ring has cost one fence and one load of a cache line that nobody writes. If
//! the bit is set, the first thread that clears it (which advances the generation) wakes all
//! sleepers; other ringing threads need not.
//!
//! No wake-up is lost, because the fences of the two sides are ordered. If the ringer's fence comes
//! first, the waiter's second check sees the news; if the waiter's fence comes first, the ringer
//! sees the bit. All sleepers are woken and check again, so one doorbell serves several threads and
//! any number of reasons to wait.

use core::time::Duration;
use std::time::Instant;

use crate::sync::{FutexWord, Ordering, full_fence, spin_hint};

/// The word of a doorbell, in memory shared by all that ring it. All zeros is a valid doorbell on
/// which no thread sleeps.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Doorbell {
    word: FutexWord,
}

/// A thread sleeps, or is about to.
const SLEEPING: u32 = 1;

/// The permission to sleep, issued before the last check of the condition. It may be dropped: then
/// at most one ring wakes nobody.
#[derive(Debug)]
#[must_use = "check the condition, then sleep"]
pub struct SleepTicket(u32);

impl Doorbell {
    /// Wakes the owner if it sleeps. Call it after the stores that the owner waits for.
    #[inline]
    pub fn ring(&self) {
        full_fence();
        self.ring_fenced();
    }

    /// Like [`ring`](Self::ring), for a caller that has called [`full_fence`] since those stores:
    /// one fence for many doorbells.
    #[inline]
    pub fn ring_fenced(&self) {
        let word = self.word.value().load(Ordering::Relaxed);
        if word & SLEEPING != 0 {
            self.wake(word);
        }
    }

    /// Announces that the caller is about to sleep. After this call, check the condition once more,
    /// then [`sleep`](Self::sleep).
    pub fn prepare_to_sleep(&self) -> SleepTicket {
        let word = self.word.value().fetch_or(SLEEPING, Ordering::Relaxed);
        full_fence();
        SleepTicket(word | SLEEPING)
    }

    /// Whether a thread sleeps or is about to. A link whose news must be fetched from a socket uses
    /// it: a check between [`prepare_to_sleep`](Self::prepare_to_sleep) and [`sleep`](Self::sleep)
    /// sees true.
    pub fn has_sleeper(&self) -> bool {
        self.word.value().load(Ordering::Relaxed) & SLEEPING != 0
    }

    /// Sleeps until the doorbell has rung since the ticket was issued or `timeout` has passed. It
    /// may also return for no reason.
    pub fn sleep(&self, ticket: SleepTicket, timeout: Option<Duration>) {
        self.word.wait(ticket.0, timeout);
    }

    /// Waits until `ready` returns true: calls it `spins` times in a row, then `yields` times with
    /// a yield of the processor after each, then sleeps between the calls. False if `timeout`
    /// passed first. Everything that can make `ready` true must ring this doorbell.
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
        // A timeout beyond the range of the clock is no timeout.
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
        // If the exchange fails, another ringer was faster, and wakes all that sleep on this word.
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
        let doorbell = Doorbell::default();
        assert!(!doorbell.wait(3, 3, Some(Duration::from_millis(5)), || false));
        assert!(doorbell.wait(0, 0, Some(Duration::ZERO), || true));
    }

    #[test]
    fn one_ring_serves_all_tickets_and_the_next_makes_no_system_call() {
        let doorbell = Doorbell::default();
        let word = || doorbell.word.value().load(Ordering::Relaxed);
        doorbell.ring();
        assert_eq!(word(), 0, "nobody sleeps, but the word was written");
        let (first, second) = (doorbell.prepare_to_sleep(), doorbell.prepare_to_sleep());
        doorbell.ring();
        let rung = word();
        assert_eq!(rung & SLEEPING, 0);
        doorbell.ring();
        assert_eq!(word(), rung);
        // Both return at once, because the doorbell has rung since.
        doorbell.sleep(first, None);
        doorbell.sleep(second, None);
    }

    #[test]
    fn several_sleepers_are_woken_every_time() {
        const ROUNDS: u32 = 2_000;
        let (doorbell, round, seen) = (Doorbell::default(), AtomicU32::new(0), AtomicU32::new(0));
        let back = Doorbell::default();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for want in 1..=ROUNDS {
                        let woken = doorbell.wait(0, 0, Some(Duration::from_secs(20)), || {
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
                doorbell.ring();
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

    /// Loom reports a deadlock if a waiter sleeps forever.
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

    /// One waiter needs two ringers: a ringer whose exchange fails relies on the other's wake-up.
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

    /// Two waiters on one doorbell wait for different things.
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
