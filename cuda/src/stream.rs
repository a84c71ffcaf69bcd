//! Streams and events, and what a capture records.
//!
//! Streams of the user are never destroyed here. Handle 0 is the legacy default stream, as in the
//! driver's own interface.

use crate::driver::functions::call;
use crate::driver::{CurrentContext, Device, Driver, DriverError};
use crate::memory::DeviceBuffer;
use cudarc::driver::sys::{
    CUevent, CUevent_flags, CUevent_record_flags, CUevent_wait_flags, CUgraphExec, CUresult,
    CUstream, CUstream_flags, CUstreamCaptureMode, CUstreamCaptureStatus,
};
use std::ffi::{c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

const NON_BLOCKING: c_uint = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
const NOT_READY: i32 = CUresult::CUDA_ERROR_NOT_READY as i32;
const CAPTURE_IMPLICIT: i32 = CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT as i32;
const CAPTURE_NONE: c_int = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as c_int;
const CAPTURE_ACTIVE: c_int = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE as c_int;

/// A stream of a device: one that this crate made, or one of the user.
pub struct CudaStream {
    device: Arc<Device>,
    handle: CUstream,
    owned: bool,
}

// SAFETY: the driver locks its streams, so any thread may use any stream.
unsafe impl Send for CudaStream {}
// SAFETY: as for `Send`.
unsafe impl Sync for CudaStream {}

/// Whether what is queued in a stream is recorded into a graph instead of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureStatus {
    /// The work runs.
    None,
    /// The work is recorded. The number of the capture is unique in the process.
    Active(u64),
    /// The capture was invalidated by an earlier call. Every call on the stream fails until the
    /// user ends the capture.
    Invalidated,
}

impl CaptureStatus {
    /// The status of a stream handle of the device whose context is `current`. This is one call of
    /// the driver, and none for the legacy default stream; see [`CudaStream::capture`].
    ///
    /// # Errors
    /// The driver fails.
    ///
    /// # Safety
    /// The stream exists, or is one of the default streams.
    pub unsafe fn of(
        current: &CurrentContext<'_>,
        stream: *mut c_void,
    ) -> Result<Self, DriverError> {
        if (stream as usize) < 2 {
            return Ok(Self::None);
        }
        let (mut status, mut id): (c_int, u64) = (0, 0);
        let driver: &Driver = current;
        match call!(driver, cuStreamGetCaptureInfo(stream.cast(), &mut status, &mut id)) {
            Err(DriverError::Failed { code: CAPTURE_IMPLICIT, .. }) => return Ok(Self::None),
            result => result?,
        }
        Ok(match status {
            CAPTURE_NONE => Self::None,
            CAPTURE_ACTIVE => Self::Active(id),
            _ => Self::Invalidated,
        })
    }
}

const RELAXED: c_int = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as c_int;
const THREAD_LOCAL: c_int = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as c_int;

/// Puts this thread into the relaxed capture mode until it is dropped. The thread may then allocate
/// and synchronise although a stream is being captured. That does not invalidate the capture, and
/// is not recorded.
pub struct RelaxedCapture {
    driver: Arc<Driver>,
    before: c_int,
    /// The mode belongs to one thread, so the value must not be sent to another.
    _thread: PhantomData<*const ()>,
}

impl RelaxedCapture {
    /// Begins the relaxed mode.
    ///
    /// # Errors
    /// The driver is too old to have capture modes.
    pub fn begin(driver: &Arc<Driver>) -> Result<Self, DriverError> {
        let mut before = RELAXED;
        call!(&**driver, cuThreadExchangeStreamCaptureMode(&mut before))?;
        Ok(Self { driver: driver.clone(), before, _thread: PhantomData })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // This call succeeded before, with the same arguments, and does not fail now.
        let _ = call!(&*self.driver, cuThreadExchangeStreamCaptureMode(&mut self.before));
    }
}

impl CudaStream {
    /// Makes a stream of `device` that does not synchronise with the default stream.
    ///
    /// # Errors
    /// The driver fails.
    pub fn new(device: &Arc<Device>) -> Result<Self, DriverError> {
        let mut handle = ptr::null_mut();
        call!(&device.current()?, cuStreamCreate(&mut handle, NON_BLOCKING))?;
        Ok(Self { device: device.clone(), handle, owned: true })
    }

    /// Wraps a stream of the user. Null and 1 are the legacy default stream; 2 is the default
    /// stream of the thread that makes a call.
    ///
    /// # Safety
    /// The handle is one of these, or that of a stream that outlives the result.
    pub unsafe fn foreign(device: &Arc<Device>, handle: *mut c_void) -> Self {
        Self { device: device.clone(), handle: handle.cast(), owned: false }
    }

    /// The handle, a `CUstream`.
    pub fn handle(&self) -> *mut c_void {
        self.handle.cast()
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.handle
    }

    /// The device that the stream was made for or wrapped with.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether the stream belongs to the primary context of its device. A user may pass a stream of
    /// another context.
    ///
    /// # Errors
    /// The driver fails.
    pub fn is_of_primary_context(&self) -> Result<bool, DriverError> {
        // SAFETY: the stream is owned by `self`, or its wrapper guarantees that it outlives `self`.
        unsafe { self.device.owns_stream(&self.device.current()?, self.handle.cast()) }
    }

    /// The number of the stream, which no other stream of the process has or will have, unlike its
    /// handle. `None` if the driver is older than CUDA 12.0.
    ///
    /// # Errors
    /// The driver fails.
    ///
    /// # Safety
    /// The stream exists, or is one of the default streams; `current` is the context of its device.
    pub unsafe fn number_of(
        current: &CurrentContext<'_>,
        stream: *mut c_void,
    ) -> Result<Option<u64>, DriverError> {
        let driver: &Driver = current;
        let mut number = 0;
        match call!(driver, cuStreamGetId(stream.cast(), &mut number)) {
            Err(DriverError::NoFunction { .. }) => Ok(None),
            result => result.map(|()| Some(number)),
        }
    }

    /// Queues a copy of `data` to the start of `to`. The caller may reuse `data` when this returns.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// The buffer is shorter.
    pub fn write(&self, to: &DeviceBuffer, data: &[u8]) -> Result<(), DriverError> {
        assert!(data.len() <= to.bytes(), "{} bytes into a buffer of {}", data.len(), to.bytes());
        let (from, bytes) = (data.as_ptr().cast(), data.len());
        call!(&self.device.current()?, cuMemcpyHtoDAsync_v2(to.address(), from, bytes, self.handle))
    }

    /// Reads the first `bytes` of `from`, after everything queued before has run.
    ///
    /// # Errors
    /// The driver refuses, or earlier work failed.
    ///
    /// # Panics
    /// The buffer is shorter.
    pub fn read(&self, from: &DeviceBuffer, bytes: usize) -> Result<Vec<u8>, DriverError> {
        assert!(bytes <= from.bytes(), "{bytes} bytes of a buffer of {}", from.bytes());
        let mut data = vec![0u8; bytes];
        let to = data.as_mut_ptr().cast();
        let driver = self.device.current()?;
        call!(&driver, cuMemcpyDtoHAsync_v2(to, from.address(), bytes, self.handle))?;
        call!(&driver, cuStreamSynchronize(self.handle))?;
        Ok(data)
    }

    /// As [`read`](Self::read), of the word at `offset` bytes.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// The buffer is shorter.
    pub fn read_word(&self, from: &DeviceBuffer, offset: usize) -> Result<u64, DriverError> {
        assert!(offset + 8 <= from.bytes(), "the word at {offset} of {} bytes", from.bytes());
        let mut data = [0; 8];
        let (to, from) = (data.as_mut_ptr().cast(), from.address() + offset as u64);
        let driver = self.device.current()?;
        call!(&driver, cuMemcpyDtoHAsync_v2(to, from, 8, self.handle))?;
        call!(&driver, cuStreamSynchronize(self.handle))?;
        Ok(u64::from_le_bytes(data))
    }

    /// Queues a copy between two addresses in memory that the driver knows, of any devices.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// Both are valid for `bytes` until the stream has run the copy.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuMemcpyAsync(to, from, bytes, self.handle))
    }

    /// Queues a fill of the first `bytes` of `to` with `value`.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// The buffer is shorter.
    pub fn fill(&self, to: &DeviceBuffer, value: u8, bytes: usize) -> Result<(), DriverError> {
        assert!(bytes <= to.bytes(), "{bytes} bytes of a buffer of {}", to.bytes());
        call!(&self.device.current()?, cuMemsetD8Async(to.address(), value, bytes, self.handle))
    }

    /// Queues a store of `value` at `address`.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// The address is of eight bytes of device or pinned memory, aligned to 8, that stay allocated
    /// until the stream has run this.
    pub unsafe fn write_value(&self, address: u64, value: u64) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWriteValue64_v2(self.handle, address, value, 0))
    }

    /// Makes what is queued later wait until the word at `address` has reached `value`. The
    /// comparison is cyclic: the difference of both, as a signed number, is not negative.
    ///
    /// # Errors
    /// The driver refuses; older drivers do not have this.
    ///
    /// # Safety
    /// As for [`write_value`](Self::write_value).
    pub unsafe fn wait_value(&self, address: u64, value: u64) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWaitValue64_v2(self.handle, address, value, 0))
    }

    /// Queues a call of `function` on a thread of the driver. The function must not call the
    /// driver.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// `argument` is valid for the function when the stream runs it, at every replay too if the
    /// stream is captured. The function does not unwind.
    pub unsafe fn call_host(
        &self,
        function: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuLaunchHostFunc(self.handle, function, argument))
    }

    /// Whether nothing is queued or running.
    ///
    /// # Errors
    /// Earlier work failed.
    pub fn is_idle(&self) -> Result<bool, DriverError> {
        ready(call!(&self.device.current()?, cuStreamQuery(self.handle)))
    }

    /// Waits until nothing is queued or running.
    ///
    /// # Errors
    /// Earlier work failed.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamSynchronize(self.handle))
    }

    /// Makes what is queued later in this stream wait for the last record of `event`, in whatever
    /// stream or process.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn wait(&self, event: &CudaEvent) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWaitEvent(self.handle, event.handle, 0))
    }

    /// Records into the graph that is captured on this stream: each launch of the graph waits here
    /// for the record that is the last one of `event` at the launch.
    ///
    /// # Errors
    /// The stream is not being captured, or the driver refuses.
    pub fn wait_at_launch(&self, event: &CudaEvent) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWaitEvent(self.handle, event.handle, WAIT_EXTERNAL))
    }

    /// Whether the stream is being captured. The legacy default stream never is, and the driver is
    /// not asked about it: that would invalidate captures of other streams.
    ///
    /// # Errors
    /// The driver fails.
    pub fn capture(&self) -> Result<CaptureStatus, DriverError> {
        // SAFETY: the stream is owned by `self`, or its wrapper guarantees that it outlives `self`.
        unsafe { CaptureStatus::of(&self.device.current()?, self.handle.cast()) }
    }

    /// Records everything that is queued from now on until [`end_capture`](Self::end_capture). The
    /// capture restricts this thread only.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn begin_capture(&self) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamBeginCapture_v2(self.handle, THREAD_LOCAL))
    }

    /// Ends the capture. The result can be replayed.
    ///
    /// # Errors
    /// The capture was invalidated, or the driver refuses.
    pub fn end_capture(&self) -> Result<CudaGraph, DriverError> {
        let driver = self.device.current()?;
        let (mut recorded, mut handle) = (ptr::null_mut(), ptr::null_mut());
        call!(&driver, cuStreamEndCapture(self.handle, &mut recorded))?;
        let made = call!(&driver, cuGraphInstantiateWithFlags(&mut handle, recorded, 0));
        // The instantiation has copied it. What cannot be destroyed is leaked.
        let _ = call!(&driver, cuGraphDestroy(recorded));
        made.map(|()| CudaGraph { device: self.device.clone(), handle })
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if self.owned {
            // A failure here comes from earlier work, and the stream has reported it.
            let _ =
                self.device.current().map(|driver| call!(&driver, cuStreamDestroy_v2(self.handle)));
        }
    }
}

/// What a capture recorded. The graph does not own the memory that its operations use.
pub struct CudaGraph {
    device: Arc<Device>,
    handle: CUgraphExec,
}

impl CudaGraph {
    /// Queues everything that was recorded.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Safety
    /// The memory that the operations use stays allocated until the stream has run the graph, and
    /// no other work uses it meanwhile.
    pub unsafe fn launch(&self, stream: &CudaStream) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuGraphLaunch(self.handle, stream.handle))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // As for `CudaStream`.
        let _ = self.device.current().map(|driver| call!(&driver, cuGraphExecDestroy(self.handle)));
    }
}

/// An event: a point in a stream.
pub struct CudaEvent {
    device: Arc<Device>,
    handle: CUevent,
}

// SAFETY: the driver locks its events, so any thread may use any event.
unsafe impl Send for CudaEvent {}
// SAFETY: as for `Send`.
unsafe impl Sync for CudaEvent {}

const DISABLE_TIMING: c_uint = CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
const RECORD_EXTERNAL: c_uint = CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as c_uint;
const WAIT_EXTERNAL: c_uint = CUevent_wait_flags::CU_EVENT_WAIT_EXTERNAL as c_uint;
const INTERPROCESS: c_uint = CUevent_flags::CU_EVENT_INTERPROCESS as c_uint;

impl CudaEvent {
    /// Makes an event that does not measure time.
    ///
    /// # Errors
    /// The driver fails.
    pub fn new(device: &Arc<Device>) -> Result<Self, DriverError> {
        Self::with(device, DISABLE_TIMING)
    }

    /// Makes an event that notes the time when the stream reaches it.
    ///
    /// # Errors
    /// The driver fails.
    pub fn timed(device: &Arc<Device>) -> Result<Self, DriverError> {
        Self::with(device, 0)
    }

    /// Makes an event that other processes can open, see [`ipc`](crate::ipc).
    ///
    /// # Errors
    /// The driver cannot share events.
    pub fn shared(device: &Arc<Device>) -> Result<Self, DriverError> {
        Self::with(device, DISABLE_TIMING | INTERPROCESS)
    }

    fn with(device: &Arc<Device>, flags: c_uint) -> Result<Self, DriverError> {
        let mut handle = ptr::null_mut();
        call!(&device.current()?, cuEventCreate(&mut handle, flags))?;
        Ok(Self::from_handle(device, handle))
    }

    pub(crate) fn from_handle(device: &Arc<Device>, handle: CUevent) -> Self {
        Self { device: device.clone(), handle }
    }

    pub(crate) fn raw(&self) -> CUevent {
        self.handle
    }

    /// Puts the event behind everything queued in `stream` so far.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuEventRecord(self.handle, stream.handle))
    }

    /// Records into the graph that is captured on `stream`: each launch of the graph puts the event
    /// here.
    ///
    /// # Errors
    /// The stream is not being captured, or the driver refuses; before CUDA 11.1 there is no such
    /// function.
    pub fn record_at_launch(&self, stream: &CudaStream) -> Result<(), DriverError> {
        let driver = self.device.current()?;
        call!(&driver, cuEventRecordWithFlags(self.handle, stream.handle, RECORD_EXTERNAL))
    }

    /// Whether the stream has reached the last record of the event, or there was none.
    ///
    /// # Errors
    /// Earlier work failed.
    pub fn is_passed(&self) -> Result<bool, DriverError> {
        ready(call!(&self.device.current()?, cuEventQuery(self.handle)))
    }

    /// Waits until the stream has reached the last record of the event.
    ///
    /// # Errors
    /// Earlier work failed.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuEventSynchronize(self.handle))
    }

    /// The milliseconds from this event to `later`. Both are [`timed`](Self::timed), and their
    /// streams have reached them.
    ///
    /// # Errors
    /// One of them is not timed or not reached.
    pub fn milliseconds_to(&self, later: &Self) -> Result<f32, DriverError> {
        let mut milliseconds = 0.0;
        call!(
            &self.device.current()?,
            cuEventElapsedTime(&mut milliseconds, self.handle, later.handle)
        )?;
        Ok(milliseconds)
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // As for `CudaStream`.
        let _ = self.device.current().map(|driver| call!(&driver, cuEventDestroy_v2(self.handle)));
    }
}

/// Whether a query says that all work has finished.
fn ready(result: Result<(), DriverError>) -> Result<bool, DriverError> {
    match result {
        Ok(()) => Ok(true),
        Err(DriverError::Failed { code: NOT_READY, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
