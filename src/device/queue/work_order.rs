//! The order of a communicator's works. They use the same links and scratch, so each work begins
//! after the one before has finished, whatever streams they are on.
//!
//! Works on one stream run in order anyway. A work on another stream waits, in its own stream, for
//! the word in which the device counts finished works. The earlier stream is not touched: its owner
//! may have destroyed it. Within one capture an event connects the streams, as the graph needs it.
//!
//! The host does not know when a graph is launched. So from the first capture on every work, in a
//! graph or not, waits for an event and then records it: each launch of a graph is ordered with the
//! launches of other graphs and with calls as the host makes them.

use std::ffi::c_void;
use std::time::Duration;

use maypole_cuda::driver::DriverError;
use maypole_cuda::stream::{CudaEvent, CudaStream};

use crate::device::memory::signals::DeviceSignals;
use crate::device::setup::gpu::Gpu;

/// CUDA_ERROR_NOT_SUPPORTED.
const NOT_SUPPORTED: i32 = 801;
/// The handle of the calling thread's default stream: in each thread it is a different stream.
const PER_THREAD: usize = 2;

/// Where works are queued: a stream, and the capture that the stream takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    /// The handle of the stream.
    pub(crate) stream: usize,
    /// The number of the capture, if the stream is being captured.
    pub(crate) capture: Option<u64>,
}

/// Remembers where a communicator's last work was queued.
pub(crate) struct WorkOrder {
    last: Option<StreamPosition>,
    event: CudaEvent,
    /// Recorded behind every work since the first capture.
    with_graphs: CudaEvent,
    /// Whether a work was ever captured, with a driver that can order graphs.
    captured: bool,
}

impl WorkOrder {
    /// Before the first work. `event` is used within captures, `with_graphs` between graphs.
    pub(super) fn new(event: CudaEvent, with_graphs: CudaEvent) -> Self {
        Self { last: None, event, with_graphs, captured: false }
    }

    /// Makes what is queued at `next` from now on begin after all works so far.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// The stream exists.
    pub(crate) unsafe fn follow(
        &mut self,
        gpu: &Gpu,
        signals: &DeviceSignals,
        next: StreamPosition,
    ) -> Result<(), DriverError> {
        let last = self.last.replace(next);
        // Older drivers have no events that the launch of a graph records.
        let external_events = gpu.device.driver().version() >= 11_010;
        let in_new_capture =
            next.capture.is_some() && last.and_then(|last| last.capture) != next.capture;
        if in_new_capture && external_events {
            self.captured = true;
            // SAFETY: the caller keeps `next` alive.
            let stream = unsafe { CudaStream::foreign(&gpu.device, next.stream as *mut c_void) };
            stream.wait_at_launch(&self.with_graphs)?;
        } else if self.captured && next.capture.is_none() {
            // SAFETY: as above.
            let stream = unsafe { CudaStream::foreign(&gpu.device, next.stream as *mut c_void) };
            stream.wait(&self.with_graphs)?;
        }
        if last.is_none() || (last == Some(next) && next.stream != PER_THREAD) {
            return Ok(());
        }
        // SAFETY: the caller keeps `next` alive; the last stream is used only within the capture
        // of `next`, which ends before any of its streams may be destroyed.
        let stream = |handle| unsafe { CudaStream::foreign(&gpu.device, handle as *mut c_void) };
        if let Some(last) = last
            && last.capture.is_some()
            && last.capture == next.capture
        {
            self.event.record(&stream(last.stream))?;
            return stream(next.stream).wait(&self.event);
        }
        if signals.is_idle() {
            return Ok(());
        }
        // SAFETY: the word lives as long as the communicator, which waits for its works when it
        // ends.
        let waits = unsafe {
            let (word, launched) = (signals.finished_address(false), signals.launched());
            stream(next.stream).wait_value(word, launched)
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

    /// Notes that works were launched at `at`, which [`follow`](Self::follow) has prepared.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// The stream exists.
    pub(crate) unsafe fn launched(&self, gpu: &Gpu, at: StreamPosition) -> Result<(), DriverError> {
        if !self.captured {
            return Ok(());
        }
        // SAFETY: the caller keeps the stream alive.
        let stream = unsafe { CudaStream::foreign(&gpu.device, at.stream as *mut c_void) };
        if at.capture.is_none() {
            return self.with_graphs.record(&stream);
        }
        self.with_graphs.record_at_launch(&stream)
    }
}
