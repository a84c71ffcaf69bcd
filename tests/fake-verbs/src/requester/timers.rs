//! The timers of reliable connections.

use std::time::Duration;

use super::queue::{Core, SendQueue};
use crate::abi;
use crate::fabric::fabric;
use crate::misuse::log;
use crate::sync::Relaxed;

/// What became of the attempt to execute a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// It failed with this status, and the queue pair with it.
    Failed(abi::ibv_wc_status),
    /// It is tried again after this time.
    Wait(Duration),
}

/// How long a receiver without a receive asks the sender to wait, in units of 10 us, by the value
/// of `min_rnr_timer` (InfiniBand specification, table "RNR NAK timer field").
const NOT_READY: [u32; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536,
    2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

/// The number of retries that stands for "without end", when a receiver is not ready.
const FOR_EVER: u8 = 7;

/// How often work that waits for something without a timer is looked at.
pub(super) const TICK: Duration = Duration::from_millis(1);

fn hurried(duration: Duration) -> Duration {
    duration / fabric().settings.hurry.load(Relaxed).max(1)
}

/// No answer came.
fn unanswered(queue: &mut SendQueue) -> Outcome {
    let attributes = &queue.attributes;
    if attributes.timeout == 0 {
        return Outcome::Wait(TICK);
    }
    if queue.attempt.unanswered > u32::from(attributes.retry_cnt) {
        return Outcome::Failed(abi::IBV_WC_RETRY_EXC_ERR);
    }
    queue.attempt.unanswered += 1;
    let nanoseconds = 4096u64 << attributes.timeout.min(31);
    Outcome::Wait(hurried(Duration::from_nanos(nanoseconds)))
}

/// The receiver answered that it has no receive; `timer` is what it asks for.
pub(super) fn not_ready(queue: &mut SendQueue, timer: u8) -> Outcome {
    let retries = queue.attributes.rnr_retry;
    if retries != FOR_EVER {
        if queue.attempt.not_ready >= u32::from(retries) {
            return Outcome::Failed(abi::IBV_WC_RNR_RETRY_EXC_ERR);
        }
        queue.attempt.not_ready += 1;
    }
    // An answer came.
    queue.attempt.unanswered = 0;
    let units = u64::from(NOT_READY[usize::from(timer) % NOT_READY.len()]);
    Outcome::Wait(hurried(Duration::from_micros(10 * units)))
}

/// What an attempt without an answer means: a retry, or for an unreliable connection nothing.
pub(super) fn lost(core: &Core, queue: &mut SendQueue, why: &str) -> Outcome {
    log(format_args!("a message of queue pair {} is lost: {why}", core.number));
    if core.kind == abi::IBV_QPT_RC { unanswered(queue) } else { Outcome::Done }
}
