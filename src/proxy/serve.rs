//! The proxy's thread: turns the pumps, and sleeps when there is nothing to move.
//!
//! What can end a sleep are the peers, who ring the endpoint's doorbell, and the kernels, who cannot. As long as a launch is under way
//! the kernels must therefore be looked at now and then: at once for as long as a rank of the host would spin, then after pauses that
//! grow with the time that nothing has moved, to a millisecond. So a kernel that sends after a silence of a millisecond waits
//! about an eighth of that, and a kernel that waits behind a long one on its stream costs a core less than a hundredth. All pauses are
//! spent on the doorbell: what peers send is never late.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use maypole_transport::doorbell::{Doorbell, SleepTicket};
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::sync::{AtomicU64, Ordering};

use super::pump::Pump;
use crate::error::Error;
use crate::spin_policy::SpinPolicy;

/// The longest sleep: bounds the damage if something does not ring that should.
const NAP: Duration = Duration::from_millis(500);
/// The shortest and the longest pause while kernels may have news.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// Pauses are this part of the time for which nothing has moved.
const PART: u32 = 8;

/// The threads end when all that kernels have sent is on its way.
pub(super) const STOPPED: u64 = 1;
/// They end at once.
pub(super) const ABANDONED: u64 = 2;

/// What the threads and the communicator share.
pub(super) struct Board {
    pub(super) endpoint: Arc<Endpoint>,
    /// Whether works that the host has queued are not through.
    pub(super) queued: Box<dyn Fn() -> bool + Send + Sync>,
    /// How often something was queued.
    pub(super) calls: AtomicU64,
    /// 1 once a call was captured: from then on works may begin at any time.
    pub(super) captured: AtomicU64,
    /// Not zero when the threads shall end.
    pub(super) stop: AtomicU64,
    /// Pumps that the thread has not taken, and how many there ever were.
    pub(super) fresh: Mutex<Vec<Pump>>,
    pub(super) added: AtomicU64,
    /// How often the thread has looked.
    #[cfg(test)]
    pub(super) turns: AtomicU64,
    /// What is to be done with the first error, until there is one.
    pub(super) fail: Mutex<Option<Fail>>,
}

/// What is done with an error that ends the communicator.
pub(super) type Fail = Box<dyn FnOnce(Error) + Send>;

impl Board {
    /// A kernel may be running.
    fn is_busy(&self) -> bool {
        self.is_captured() || (self.queued)()
    }

    fn is_captured(&self) -> bool {
        self.captured.load(Ordering::Relaxed) != 0
    }

    fn is_stopped(&self) -> bool {
        // Pairs as `proxy-stop`.
        self.stop.load(Ordering::Acquire) != 0
    }

    /// What kernels have sent need not go any more.
    pub(super) fn is_abandoned(&self) -> bool {
        // Pairs as `proxy-stop`.
        self.stop.load(Ordering::Acquire) == ABANDONED
    }

    /// Does `work`, on a thread that no panic leaves. An error goes to `fail`, if it is the first; not when all is over.
    pub(super) fn guard(&self, work: impl FnOnce() -> Result<(), Error>) {
        let error = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => {
                Error::internal("a thread of the proxy panicked; its message is on standard error")
            }
        };
        let fail = self.fail.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(fail) = fail.filter(|_| !self.is_stopped()) {
            fail(error);
        }
    }
}

/// Runs until it is stopped and all that kernels sent is on its way, or to the first error. Gives the pumps back: kernels may still use their
/// rings.
pub(super) fn run(board: &Board, spin_policy: SpinPolicy) -> Vec<Pump> {
    sharpen();
    let mut pumps = Vec::new();
    board.guard(|| Ok(serve(board, spin_policy, &mut pumps)?));
    pumps
}

fn serve(board: &Board, spin_policy: SpinPolicy, pumps: &mut Vec<Pump>) -> Result<(), LinkError> {
    let endpoint = &*board.endpoint;
    let mut rest = Rest::new(endpoint.doorbell(), spin_policy);
    let mut calls = 0;
    loop {
        // Before the look at the rings: no kernel runs any more when it is set, so what is flushed then is all.
        let stopped = board.is_stopped();
        if board.added.load(Ordering::Acquire) != pumps.len() as u64 {
            let mut fresh = board.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            pumps.append(&mut fresh);
        }
        #[cfg(test)]
        board.turns.fetch_add(1, Ordering::Relaxed);
        if turn(endpoint, pumps)? {
            rest.over();
            continue;
        }
        let before = std::mem::replace(&mut calls, board.calls.load(Ordering::Relaxed));
        if calls != before {
            // The silence before it says nothing.
            rest.over();
        }
        if board.is_abandoned() || (stopped && flushed(pumps)?) {
            return Ok(());
        }
        if let Some(error) = endpoint.aborted() {
            return Err(error);
        }
        if board.is_captured() {
            departed(pumps)?;
        }
        rest.idle(board.is_busy());
    }
}

/// Turns every pump once; true if something moved.
fn turn(endpoint: &Endpoint, pumps: &mut [Pump]) -> Result<bool, LinkError> {
    // Lent memory is copied within the turn, so who lends it is told that it is read for no longer.
    let _reading = pumps.iter().any(Pump::borrows).then(|| endpoint.reading());
    let mut moved = false;
    for pump in pumps {
        moved |= pump.turn()?;
    }
    Ok(moved)
}

fn flushed(pumps: &mut [Pump]) -> Result<bool, LinkError> {
    for pump in pumps {
        if !pump.is_flushed()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a replay needs is not known here. A dead peer is an error; one that left ought not to be needed any more.
fn departed(pumps: &mut [Pump]) -> Result<(), LinkError> {
    let dead = |pump: &Pump| pump.gone().filter(|gone| matches!(gone, LinkError::PeerDied { .. }));
    pumps.iter().find_map(dead).map_or(Ok(()), Err)
}

/// One rest, from the first turn in vain to the next that moves something.
struct Rest<'a> {
    bell: &'a Doorbell,
    spin_policy: SpinPolicy,
    polls: u32,
    armed: Option<SleepTicket>,
    /// Since it sleeps now and then.
    since: Option<Instant>,
}

impl<'a> Rest<'a> {
    fn new(bell: &'a Doorbell, spin_policy: SpinPolicy) -> Self {
        Self { bell, spin_policy, polls: 0, armed: None, since: None }
    }

    /// To be called after every turn in vain; returns when it is time for the next one. `busy`: a kernel may have news that ring no bell.
    fn idle(&mut self, busy: bool) {
        let SpinPolicy { spins, yields } = self.spin_policy;
        self.polls = self.polls.saturating_add(1);
        if self.polls <= spins {
            std::hint::spin_loop();
        } else if self.polls <= spins.saturating_add(yields) {
            std::thread::yield_now();
        } else if let Some(ticket) = self.armed.take() {
            let since = *self.since.get_or_insert_with(Instant::now);
            let nap = if busy { pause(since.elapsed()) } else { NAP };
            self.bell.sleep(ticket, Some(nap));
        } else {
            // The bell is asked to ring before the last turn, so that no ring is lost.
            self.armed = Some(self.bell.prepare_to_sleep());
        }
    }

    /// To be called after a turn that moved something.
    fn over(&mut self) {
        (self.polls, self.armed, self.since) = (0, None, None);
    }
}

/// How long to sleep when nothing has moved for `silence` and a kernel may have news.
fn pause(silence: Duration) -> Duration {
    (silence / PART).clamp(PAUSES.0, PAUSES.1)
}

/// Short sleeps of this thread end when they should: the kernel may let others be late by 50 us to save power.
fn sharpen() {
    // SAFETY: no memory is involved. It cannot fail, and if it did, sleeps would be longer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_silence_to_a_bound() {
        let micros = Duration::from_micros;
        assert_eq!(pause(Duration::ZERO), micros(20));
        assert_eq!(pause(micros(800)), micros(100));
        assert_eq!(pause(Duration::from_secs(3600)), micros(1000));
    }
}
