//! The thread that connects to peers, so that queueing a call does not wait for them.
//!
//! A call can be queued as soon as its rings exist. Its kernels may fill them before the peer is
//! connected, and one thread may queue the calls of several ranks that have to connect to each
//! other. Of two ranks the lower one dials, and the service thread of the other answers at any
//! time. The higher rank waits to be dialed, which may take until the other rank makes its call. So
//! this thread dials first, and then checks the connections that it waits for in turn, so that none
//! delays another.

use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::error::LinkError;
use maypole_transport::link::{Incoming, Outgoing};
use maypole_transport::sync::Ordering;

use super::pump::{LinkRings, Pump};
use super::serve::ProxyState;
use crate::error::Error;

/// The first and the longest pause between two checks of the connections that are waited for.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Opens the link to a rank on a channel. Waits until the given time at most, and then returns
/// [`LinkError::Timeout`].
pub(crate) type Connect =
    Box<dyn Fn(Rank, Channel, Instant) -> Result<(Outgoing, Incoming), Error> + Send>;

/// A link that is to be opened.
pub(super) struct ConnectRequest {
    pub(super) peer: Rank,
    pub(super) channel: Channel,
    pub(super) rings: LinkRings,
    /// The time at which the attempt fails.
    pub(super) deadline: Instant,
}

/// Opens the requested links, until there are no more requests or an error occurs.
pub(super) fn run(
    me: Rank,
    state: &ProxyState,
    requests: &Receiver<ConnectRequest>,
    connect: &Connect,
) -> Result<(), Error> {
    let mut waiting: Vec<ConnectRequest> = Vec::new();
    let mut pause = RETRY_PAUSES.0;
    loop {
        let next = match waiting.is_empty() {
            true => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => requests.recv_timeout(pause),
        };
        match next {
            Ok(request) => {
                waiting.push(request);
                waiting.extend(requests.try_iter());
                // The links that this rank dials come first.
                waiting.sort_by_key(|request| request.peer < me);
                pause = RETRY_PAUSES.0;
            }
            Err(RecvTimeoutError::Timeout) => pause = (2 * pause).min(RETRY_PAUSES.1),
            Err(RecvTimeoutError::Disconnected) if waiting.is_empty() => return Ok(()),
            // The proxy is ending, but kernels have sent messages for the links that are missing.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(RETRY_PAUSES.1),
        }
        if state.is_abandoned() {
            return Ok(());
        }
        for request in std::mem::take(&mut waiting) {
            let now = Instant::now();
            let until = if request.peer > me { request.deadline } else { now };
            match connect(request.peer, request.channel, until) {
                Ok(link) => state.hand_over(Pump::new(request.peer, link, request.rings)),
                Err(Error::Link(LinkError::Timeout { .. })) if now < request.deadline => {
                    waiting.push(request);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl ProxyState {
    /// Hands a pump to the thread that runs the pumps.
    fn hand_over(&self, pump: Pump) {
        self.new_pumps.lock().unwrap_or_else(PoisonError::into_inner).push(pump);
        // Pairs as `proxy-added`.
        self.added.fetch_add(1, Ordering::Release);
        self.endpoint.doorbell().ring();
    }
}
