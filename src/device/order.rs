//! The order of a communicator's works: they use the same links and scratch, so each begins when the one before is over, whatever streams
//! they are on.
//!
//! On one stream that is so by itself. A work on another one waits, in its stream, for the word in which the device counts those
//! that are over; the first stream is not touched, which its owner may have destroyed. Within one capture an event leads from stream to
//! stream, as the graph needs it.

use std::ffi::c_void;
use std::time::Duration;

use maypole_cuda::driver::{DriverError, Stream};
use maypole_cuda::stream::Event;

use super::gpu::Gpu;
use super::signals::Signals;

/// CUDA_ERROR_NOT_SUPPORTED.
const NOT_SUPPORTED: i32 = 801;
/// The default stream of the calling thread: another one in each.
const PER_THREAD: usize = 2;

/// Where works are queued: a stream, and the capture of which it is a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Where {
    pub(crate) stream: usize,
    pub(crate) capture: Option<u64>,
}

/// Where a communicator's last work was queued.
pub(crate) struct Order {
    last: Option<Where>,
    event: Event,
}

impl Order {
    /// Of no work yet. `event` is for captures.
    pub(crate) fn new(event: Event) -> Self {
        Self { last: None, event }
    }

    /// What is queued at `now` from here on begins after all works so far.
    ///
    /// # Safety
    /// The stream is alive.
    pub(crate) unsafe fn follow(
        &mut self,
        gpu: &Gpu,
        signals: &Signals,
        now: Where,
    ) -> Result<(), DriverError> {
        let last = self.last.replace(now);
        if last.is_none() || (last == Some(now) && now.stream != PER_THREAD) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let stream = |handle| unsafe { Stream::foreign(&gpu.device, handle as *mut c_void) };
        if let Some(last) = last
            && last.capture.is_some()
            && last.capture == now.capture
        {
            self.event.record(&stream(last.stream))?;
            return stream(now.stream).wait(&self.event);
        }
        if signals.is_idle() {
            return Ok(());
        }
        // SAFETY: the word lives as long as the communicator, which waits for its works at its end.
        let waits = unsafe {
            let (word, launched) = (signals.finished_address(false), signals.launched());
            stream(now.stream).wait_value(word, launched)
        };
        match waits {
            Err(DriverError::NoFunction { .. })
            | Err(DriverError::Failed { code: NOT_SUPPORTED, .. }) => {
                while !signals.is_idle() && !signals.is_aborted() {
                    std::thread::sleep(Duration::from_micros(20));
                }
                Ok(())
            }
            result => result,
        }
    }
}
