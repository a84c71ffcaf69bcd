//! The thread that makes connections to peers, so that whoever queues a call does not wait for them.
//!
//! A call is queued when its rings are there. Its kernels may fill them before the peer has been met, and one thread may queue the calls of
//! several ranks that have to meet each other. The lower rank of two dials, which another's service thread answers at any time; the higher one
//! waits to be dialed, which may take until that rank makes its call. So those that dial go first, and of those that wait each is looked
//! at in turn: none keeps another waiting.

use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::error::LinkError;
use maypole_transport::link::{Incoming, Outgoing};
use maypole_transport::sync::Ordering;

use super::pump::{Pump, Rings};
use super::serve::Board;
use crate::error::Error;

/// How soon to look again after a look in vain, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Meets a rank on a channel, which it waits for until the given time at most: [`LinkError::Timeout`] if that rank has not come by then.
pub(crate) type Meet =
    Box<dyn Fn(Rank, Channel, Instant) -> Result<(Outgoing, Incoming), Error> + Send>;

/// A link that is to be made.
pub(super) struct Request {
    pub(super) peer: Rank,
    pub(super) channel: Channel,
    pub(super) rings: Rings,
    /// When to give up.
    pub(super) deadline: Instant,
}

/// Makes what is asked for, until nobody asks any more; or to the first error.
pub(super) fn run(
    me: Rank,
    board: &Board,
    requests: &Receiver<Request>,
    meet: &Meet,
) -> Result<(), Error> {
    let mut waiting: Vec<Request> = Vec::new();
    let mut pause = AGAIN.0;
    loop {
        let next = match waiting.is_empty() {
            true => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => requests.recv_timeout(pause),
        };
        match next {
            Ok(request) => {
                waiting.push(request);
                waiting.extend(requests.try_iter());
                // Those that this rank dials first.
                waiting.sort_by_key(|request| request.peer < me);
                pause = AGAIN.0;
            }
            Err(RecvTimeoutError::Timeout) => pause = (2 * pause).min(AGAIN.1),
            Err(RecvTimeoutError::Disconnected) if waiting.is_empty() => return Ok(()),
            // Kernels have sent what the last ones are for.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(AGAIN.1),
        }
        if board.is_abandoned() {
            return Ok(());
        }
        for request in std::mem::take(&mut waiting) {
            let now = Instant::now();
            let until = if request.peer > me { request.deadline } else { now };
            match meet(request.peer, request.channel, until) {
                Ok(link) => board.hand_over(Pump::new(request.peer, link, request.rings)),
                Err(Error::Link(LinkError::Timeout { .. })) if now < request.deadline => {
                    waiting.push(request);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Board {
    /// Gives a pump to the thread that turns them.
    fn hand_over(&self, pump: Pump) {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(pump);
        // Pairs as `proxy-added`.
        self.added.fetch_add(1, Ordering::Release);
        self.endpoint.doorbell().ring();
    }
}
