//! The thread of the proxy: runs the pumps, and sleeps when there is nothing to move.
//!
//! Peers ring the endpoint's doorbell and so end a sleep, but kernels cannot. While a launch is
//! running the thread therefore polls the rings of the kernels: without a pause for as long as a
//! rank of the host would spin, then after pauses that grow with the time for which nothing has
//! moved, up to a millisecond. So a kernel that sends after a silence of a millisecond waits for
//! about an eighth of that, and a kernel that waits behind a long one on its stream costs less than
//! a hundredth of a core. All pauses are spent sleeping on the doorbell, so messages of peers are
//! never late.

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

/// The longest sleep. It bounds the delay if a ring of the doorbell is missing.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);
/// The shortest and the longest pause while kernels may have sent something.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// A pause is the time for which nothing has moved, divided by this.
const PAUSE_DIVISOR: u32 = 8;

/// The threads end after the links have taken everything that kernels sent.
pub(super) const STOPPED: u64 = 1;
/// The threads end at once.
pub(super) const ABANDONED: u64 = 2;

/// The state that the threads and the communicator share.
pub(super) struct ProxyState {
    pub(super) endpoint: Arc<Endpoint>,
    /// Whether works that the host has queued have not finished.
    pub(super) queued: Box<dyn Fn() -> bool + Send + Sync>,
    /// The number of launches.
    pub(super) calls: AtomicU64,
    /// 1 after a call was captured: from then on works may begin at any time.
    pub(super) captured: AtomicU64,
    /// Not zero when the threads have to end: [`STOPPED`] or [`ABANDONED`].
    pub(super) stop: AtomicU64,
    /// The pumps that the thread has not yet taken.
    pub(super) new_pumps: Mutex<Vec<Pump>>,
    /// The number of pumps ever added.
    pub(super) added: AtomicU64,
    /// The number of times that the thread has run all pumps.
    #[cfg(test)]
    pub(super) rounds: AtomicU64,
    /// Called with the first error; empty after that.
    pub(super) fail: Mutex<Option<FailHandler>>,
}

/// The handler of an error that ends the communicator.
pub(super) type FailHandler = Box<dyn FnOnce(Error) + Send>;

impl ProxyState {
    /// Whether a kernel may be running.
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

    /// Whether the threads have to end at once.
    pub(super) fn is_abandoned(&self) -> bool {
        // Pairs as `proxy-stop`.
        self.stop.load(Ordering::Acquire) == ABANDONED
    }

    /// Runs `work` and catches panics. The first error is passed to `fail`, unless the threads are
    /// already ending.
    pub(super) fn guard(&self, work: impl FnOnce() -> Result<(), Error>) {
        let error = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => {
                Error::internal("a thread of the proxy panicked; the message is on standard error")
            }
        };
        let fail = self.fail.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(fail) = fail.filter(|_| !self.is_stopped()) {
            fail(error);
        }
    }
}

/// Runs until the proxy is stopped and the links have taken everything that kernels sent, or until
/// the first error. Returns the pumps, because kernels may still use their rings.
pub(super) fn run(state: &ProxyState, spin_policy: SpinPolicy) -> Vec<Pump> {
    use_precise_timers();
    let mut pumps = Vec::new();
    state.guard(|| Ok(serve(state, spin_policy, &mut pumps)?));
    pumps
}

fn serve(
    state: &ProxyState,
    spin_policy: SpinPolicy,
    pumps: &mut Vec<Pump>,
) -> Result<(), LinkError> {
    let endpoint = &*state.endpoint;
    let mut idle = IdleLoop::new(endpoint.doorbell(), spin_policy);
    let mut calls = 0;
    loop {
        // Read this before the rings: when it is set no kernel runs any more, so rings that are
        // flushed after that remain flushed.
        let stopped = state.is_stopped();
        if state.added.load(Ordering::Acquire) != pumps.len() as u64 {
            let mut new_pumps = state.new_pumps.lock().unwrap_or_else(PoisonError::into_inner);
            pumps.append(&mut new_pumps);
        }
        #[cfg(test)]
        state.rounds.fetch_add(1, Ordering::Relaxed);
        if run_pumps(endpoint, pumps)? {
            idle.reset();
            continue;
        }
        let before = std::mem::replace(&mut calls, state.calls.load(Ordering::Relaxed));
        if calls != before {
            // A new launch: the silence before it does not matter.
            idle.reset();
        }
        if state.is_abandoned() || (stopped && flushed(pumps)?) {
            return Ok(());
        }
        if let Some(error) = endpoint.aborted() {
            return Err(error);
        }
        if state.is_captured() {
            check_peers(pumps)?;
        }
        idle.wait(state.is_busy());
    }
}

/// Runs every pump once; true if something moved.
fn run_pumps(endpoint: &Endpoint, pumps: &mut [Pump]) -> Result<bool, LinkError> {
    // Lent memory is copied before this returns, so the lender is told that it is read until then.
    let _reading = pumps.iter().any(Pump::borrows).then(|| endpoint.reading());
    let mut moved = false;
    for pump in pumps {
        moved |= pump.run()?;
    }
    Ok(moved)
}

/// Whether the links have taken everything that kernels sent.
fn flushed(pumps: &mut [Pump]) -> Result<bool, LinkError> {
    for pump in pumps {
        if !pump.is_flushed()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fails if a peer has died. Used when calls were captured: it is not known which peers a replay
/// needs, and a peer that left is assumed not to be needed any more.
fn check_peers(pumps: &mut [Pump]) -> Result<(), LinkError> {
    let dead = |pump: &Pump| pump.gone().filter(|gone| matches!(gone, LinkError::PeerDied { .. }));
    pumps.iter().find_map(dead).map_or(Ok(()), Err)
}

/// The waiting from the first round in which nothing moved to the next one in which something does.
struct IdleLoop<'a> {
    doorbell: &'a Doorbell,
    spin_policy: SpinPolicy,
    polls: u32,
    armed: Option<SleepTicket>,
    /// When the first sleep began.
    since: Option<Instant>,
}

impl<'a> IdleLoop<'a> {
    fn new(doorbell: &'a Doorbell, spin_policy: SpinPolicy) -> Self {
        Self { doorbell, spin_policy, polls: 0, armed: None, since: None }
    }

    /// Waits after a round in which nothing moved. If `busy`, a kernel may send without ringing the
    /// doorbell.
    fn wait(&mut self, busy: bool) {
        let SpinPolicy { spins, yields, shares_cores } = self.spin_policy;
        // Where cores are shared, the ranks that wait for this thread may need this one.
        let spins = if shares_cores { 0 } else { spins };
        self.polls = self.polls.saturating_add(1);
        if self.polls <= spins {
            std::hint::spin_loop();
        } else if self.polls <= spins.saturating_add(yields) {
            std::thread::yield_now();
        } else if let Some(ticket) = self.armed.take() {
            let since = *self.since.get_or_insert_with(Instant::now);
            let limit = if busy { pause(since.elapsed()) } else { LONGEST_SLEEP };
            self.doorbell.sleep(ticket, Some(limit));
        } else {
            // Armed before the last round of the pumps, so that no ring is lost.
            self.armed = Some(self.doorbell.prepare_to_sleep());
        }
    }

    /// Starts afresh after a round in which something moved.
    fn reset(&mut self) {
        (self.polls, self.armed, self.since) = (0, None, None);
    }
}

/// How long to sleep when nothing has moved for `silence` and a kernel may be running.
fn pause(silence: Duration) -> Duration {
    (silence / PAUSE_DIVISOR).clamp(PAUSES.0, PAUSES.1)
}

/// Makes short sleeps of this thread precise. By default Linux may extend them by 50 us to save
/// power.
fn use_precise_timers() {
    // SAFETY: the call takes no pointers. If it failed, sleeps would only be longer.
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
