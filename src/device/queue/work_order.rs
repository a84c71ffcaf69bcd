//! The order of a communicator's works. They use the same links and scratch, so each work begins
//! after the one before has finished, whatever streams they are on.
//!
//! Works on one stream run in order anyway. A work on another stream waits, in its own stream, for
//! the word in which the device counts finished works. The earlier stream is not touched: its owner
//! may have destroyed it. A later stream may then have the same handle, so streams are compared by
//! their numbers; where the driver gives none, each work waits. Within one capture an event
//! connects the streams, as the graph needs it. Where streams cannot wait for a word, each work
//! waits for an event that is recorded behind the work before.
//!
//! The host does not know when a graph is launched. So from the first capture on every work, in a
//! graph or not, waits for an event and then records it: each launch of a graph is ordered with the
//! launches of other graphs and with calls as the host makes them.

use std::ffi::c_void;

use maypole_cuda::driver::{CurrentContext, DriverError};
use maypole_cuda::stream::{CudaEvent, CudaStream};

use crate::device::memory::signals::DeviceSignals;
use crate::device::setup::gpu::Gpu;

/// The handles below this are the legacy default stream, which is never destroyed.
const NOT_LEGACY: usize = 2;

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
    /// Where it was queued, and the number of that stream, if it is known.
    last: Option<(StreamPosition, Option<u64>)>,
    event: CudaEvent,
    /// Recorded behind every work since the first capture, or from the beginning if `by_event`.
    behind: CudaEvent,
    /// Whether a work was ever captured, with a driver that can order graphs.
    captured: bool,
    /// Whether streams cannot wait for a word.
    by_event: bool,
}

impl WorkOrder {
    /// Before the first work.
    ///
    /// # Errors
    /// The driver cannot make events.
    pub(super) fn new(gpu: &Gpu) -> Result<Self, DriverError> {
        let (event, behind) = (CudaEvent::new(&gpu.device)?, CudaEvent::new(&gpu.device)?);
        Ok(Self { last: None, event, behind, captured: false, by_event: !gpu.has_stream_waits })
    }

    /// The handle of the stream of the last work.
    pub(crate) fn last_stream(&self) -> Option<usize> {
        self.last.map(|(last, _)| last.stream)
    }

    /// Makes what is queued at `next` from now on begin after all works so far.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// The stream exists. `current` is the context of the device.
    pub(crate) unsafe fn follow(
        &mut self,
        current: &CurrentContext<'_>,
        gpu: &Gpu,
        signals: &DeviceSignals,
        next: StreamPosition,
    ) -> Result<(), DriverError> {
        let number = match next {
            StreamPosition { capture: None, stream: NOT_LEGACY.. } => {
                // SAFETY: the caller's promise.
                unsafe { CudaStream::number_of(current, next.stream as *mut c_void)? }
            }
            // A stream that is destroyed ends its capture.
            StreamPosition { capture: Some(capture), .. } => Some(capture),
            StreamPosition { .. } => Some(0),
        };
        let (last, last_number) = self.last.replace((next, number)).unzip();
        // Older drivers have no events that the launch of a graph records.
        let external_events = gpu.device.driver().version() >= 11_010;
        let in_new_capture =
            next.capture.is_some() && last.and_then(|last| last.capture) != next.capture;
        if in_new_capture && external_events {
            self.captured = true;
            // SAFETY: the caller keeps `next` alive.
            let stream = unsafe { CudaStream::foreign(&gpu.device, next.stream as *mut c_void) };
            stream.wait_at_launch(&self.behind)?;
        } else if (self.captured || self.by_event) && next.capture.is_none() {
            // SAFETY: as above.
            let stream = unsafe { CudaStream::foreign(&gpu.device, next.stream as *mut c_void) };
            stream.wait(&self.behind)?;
        }
        let same_stream = last == Some(next) && number.is_some() && last_number == Some(number);
        if last.is_none() || same_stream {
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
        if self.by_event || signals.is_idle() {
            return Ok(());
        }
        // SAFETY: the word lives as long as the communicator, which waits for its works when it
        // ends.
        unsafe {
            let (word, launched) = (signals.finished_address(false), signals.launched());
            stream(next.stream).wait_value(word, launched)
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
        // SAFETY: the caller keeps the stream alive.
        let stream = || unsafe { CudaStream::foreign(&gpu.device, at.stream as *mut c_void) };
        match at.capture {
            Some(_) if self.captured => self.behind.record_at_launch(&stream()),
            None if self.captured || self.by_event => self.behind.record(&stream()),
            _ => Ok(()),
        }
    }
}
