//! The doorbell: the word on which a rank sleeps and by which other ranks wake it.
//!
//! The word holds a generation, in steps of four, and two bits. The first says that a thread may be
//! asleep on the word. A waiting thread sets the bit, checks its condition once more, and sleeps
//! while the word does not change. A ringing thread makes its news visible, fences, and looks at
//! the bit. Usually the bit is clear, and the ring has cost one fence and one load of a cache line
//! that nobody writes. If the bit is set, the first thread that clears it (which advances the
//! generation) wakes all sleepers; other ringing threads need not.
//!
//! No wake-up is lost, because the fences of the two sides are ordered. If the ringer's fence comes
//! first, the waiter's second check sees the news; if the waiter's fence comes first, the ringer
//! sees the bit. All sleepers are woken and check again, so one doorbell serves several threads and
//! any number of reasons to wait.
//!
//! The second bit says in the same way that a thread of the owner may be asleep on descriptors, one
//! of which is an `eventfd` for this doorbell (see `wake_event.rs`). A thread that clears that bit
//! writes to the `eventfd`. Only the owner's process can do so, and other processes leave the bit:
//! a rank that they can wake does not sleep on descriptors.

use core::time::Duration;
use std::time::Instant;

use crate::sync::{FutexWord, Ordering, full_fence, spin_hint};
#[cfg(not(loom))]
use crate::wake_event;

/// The word of a doorbell, in memory shared by all that ring it. All zeros is a valid doorbell on
/// which no thread sleeps.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Doorbell {
    word: FutexWord,
}

/// A thread sleeps on the word, or is about to.
const SLEEPING: u32 = 1;
/// A thread sleeps on descriptors, or is about to.
const WATCHING: u32 = 2;
/// What a ring adds to the word.
const GENERATION: u32 = 4;

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
        if word & (SLEEPING | WATCHING) != 0 {
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

    /// Announces that the caller is about to sleep on descriptors, one of which is the `eventfd` of
    /// this doorbell. After this call, check the condition once more, then sleep, then call
    /// [`finish_watching`](Self::finish_watching). One thread at a time may do so.
    #[cfg(any(not(loom), test))]
    pub(crate) fn prepare_to_watch(&self) {
        self.word.value().fetch_or(WATCHING, Ordering::SeqCst);
        full_fence();
    }

    /// The caller of [`prepare_to_watch`](Self::prepare_to_watch) does not sleep any more.
    #[cfg(any(not(loom), test))]
    pub(crate) fn finish_watching(&self) {
        self.word.value().fetch_and(!WATCHING, Ordering::SeqCst);
    }

    /// Whether a thread sleeps on descriptors or is about to.
    #[cfg(not(loom))]
    pub(crate) fn has_watcher(&self) -> bool {
        self.word.value().load(Ordering::SeqCst) & WATCHING != 0
    }

    /// Whether a thread sleeps in either way or is about to.
    pub(crate) fn is_awaited(&self) -> bool {
        self.word.value().load(Ordering::Relaxed) & (SLEEPING | WATCHING) != 0
    }

    /// Whether a thread sleeps on the word or is about to. A link whose news must be fetched from a
    /// socket uses it: a check between [`prepare_to_sleep`](Self::prepare_to_sleep) and
    /// [`sleep`](Self::sleep) sees true.
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

    /// The address, which identifies the doorbell in its owner's process.
    #[cfg(not(loom))]
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    #[cold]
    #[cfg(not(loom))]
    fn wake(&self, word: u32) {
        let event = (word & WATCHING != 0).then(|| wake_event::find(self.address())).flatten();
        self.wake_with(word, event.map(|event| move || event.signal()));
    }

    #[cfg(loom)]
    fn wake(&self, word: u32) {
        self.wake_with(word, None::<fn()>);
    }

    /// Wakes the threads that `word` announces. `signal` wakes the one that sleeps on descriptors,
    /// if this process can.
    fn wake_with(&self, word: u32, signal: Option<impl FnOnce()>) {
        let mine = word & if signal.is_some() { SLEEPING | WATCHING } else { SLEEPING };
        let mut now = word;
        // A thread whose bit another ringer has cleared is woken by that ringer. One that has set
        // its bit since `word` was read sees the news itself.
        while now & mine != 0 {
            let rung = (now & !mine).wrapping_add(GENERATION);
            match self.word.value().compare_exchange(
                now,
                rung,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if now & mine & SLEEPING != 0 {
                        self.word.wake_all();
                    }
                    if now & mine & WATCHING != 0
                        && let Some(signal) = signal
                    {
                        signal();
                    }
                    return;
                }
                Err(other) => now = other,
            }
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
    fn only_a_process_that_has_the_event_wakes_a_thread_that_watches_descriptors() {
        let doorbell = Doorbell::default();
        doorbell.prepare_to_watch();
        let ticket = doorbell.prepare_to_sleep();
        // As in another process: the event is not known there.
        doorbell.ring();
        assert!(doorbell.has_watcher() && !doorbell.has_sleeper());
        doorbell.sleep(ticket, None);
        let event = wake_event::WakeEvent::register(doorbell.address()).unwrap();
        assert!(!event.reset());
        doorbell.ring();
        assert!(!doorbell.has_watcher() && event.reset());
        doorbell.ring();
        assert!(!event.reset(), "nobody watches, but it was signalled");
        doorbell.prepare_to_watch();
        doorbell.finish_watching();
        doorbell.ring();
        assert!(!event.reset(), "nobody watches any more");
        wake_event::WakeEvent::unregister(doorbell.address());
        assert!(wake_event::find(doorbell.address()).is_none());
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

    /// The counter of an `eventfd`, and a thread that waits until it is not zero.
    #[derive(Default)]
    struct Event {
        signalled: loom::sync::Mutex<bool>,
        signals: loom::sync::Condvar,
    }

    impl Event {
        fn signal(&self) {
            *self.signalled.lock().unwrap() = true;
            self.signals.notify_all();
        }

        fn wait_and_reset(&self) {
            let mut signalled = self.signalled.lock().unwrap();
            while !*signalled {
                signalled = self.signals.wait(signalled).unwrap();
            }
            *signalled = false;
        }
    }

    /// Waits as a rank does that sleeps on descriptors.
    fn watch(doorbell: &Doorbell, event: &Event, ready: impl Fn() -> bool) {
        while !ready() {
            doorbell.prepare_to_watch();
            if !ready() {
                event.wait_and_reset();
            }
            doorbell.finish_watching();
        }
    }

    /// Rings as a thread of the owner's process does.
    fn ring(doorbell: &Doorbell, event: &Event) {
        full_fence();
        let word = doorbell.word.value().load(Ordering::Relaxed);
        if word & (SLEEPING | WATCHING) != 0 {
            doorbell.wake_with(word, Some(|| event.signal()));
        }
    }

    /// Two ringers, and a thread that sleeps on descriptors and needs both.
    #[test]
    fn loom_a_thread_that_watches_descriptors_is_woken() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared =
                Arc::new((Doorbell::default(), Event::default(), [0; 2].map(AtomicU32::new)));
            let ringers = [0, 1].map(|which| {
                let ringer = shared.clone();
                thread::spawn(move || {
                    ringer.2[which].store(1, Ordering::Relaxed);
                    ring(&ringer.0, &ringer.1);
                })
            });
            let done = |which: usize| shared.2[which].load(Ordering::Relaxed) == 1;
            watch(&shared.0, &shared.1, || done(0) && done(1));
            for ringer in ringers {
                ringer.join().unwrap();
            }
        });
    }

    /// One thread sleeps on the word and one on descriptors. Another process rings too, which can
    /// wake only the first.
    #[test]
    fn loom_both_ways_to_sleep_are_independent() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let shared =
                Arc::new((Doorbell::default(), Event::default(), [0; 2].map(AtomicU32::new)));
            let done = |shared: &(Doorbell, Event, [AtomicU32; 2]), which: usize| {
                shared.2[which].load(Ordering::Relaxed) == 1
            };
            let sleeper = shared.clone();
            let sleeps = thread::spawn(move || {
                sleeper.0.wait(0, 0, None, || done(&sleeper, 0) && done(&sleeper, 1));
            });
            let foreign = shared.clone();
            let other_process = thread::spawn(move || {
                foreign.2[0].store(1, Ordering::Relaxed);
                foreign.0.ring();
            });
            let ringer = shared.clone();
            let rings = thread::spawn(move || {
                ringer.2[1].store(1, Ordering::Relaxed);
                ring(&ringer.0, &ringer.1);
            });
            watch(&shared.0, &shared.1, || done(&shared, 1));
            sleeps.join().unwrap();
            other_process.join().unwrap();
            rings.join().unwrap();
        });
    }
}
