//! Streams, of this crate and of the user, and events.
//!
//! What the user owns is never destroyed here. Handle 0 is the legacy default stream, as in the driver's own interface.

use crate::driver::functions::call;
use crate::driver::{CurrentContext, Device, Driver, DriverError, Handle};
use crate::memory::DeviceBuffer;
use std::ffi::{c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

const NON_BLOCKING: c_uint = 1;
/// CUDA_ERROR_NOT_READY.
const NOT_READY: i32 = 600;
/// CUDA_ERROR_STREAM_CAPTURE_IMPLICIT.
const CAPTURE_IMPLICIT: i32 = 906;

/// A stream.
pub struct CudaStream {
    device: Arc<Device>,
    handle: Handle,
    owned: bool,
}

// SAFETY: the driver locks its streams; any thread may use any of them.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

/// Whether what is queued in a stream is recorded into a graph instead of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureStatus {
    /// It runs.
    None,
    /// It is recorded, in the capture with this number, unique in the process.
    Active(u64),
    /// It was, until something spoiled the capture: every call fails until the user ends it.
    Invalidated,
}

impl CaptureStatus {
    /// As [`CudaStream::capture`], of a handle whose device is `current`: one call of the driver, none for the legacy default stream.
    ///
    /// # Safety
    /// The stream is alive, or one of the default streams.
    pub unsafe fn of(
        current: &CurrentContext<'_>,
        stream: *mut c_void,
    ) -> Result<Self, DriverError> {
        if (stream as usize) < 2 {
            return Ok(Self::None);
        }
        let (mut status, mut id): (c_int, u64) = (0, 0);
        let driver: &Driver = current;
        match call!(driver, cuStreamGetCaptureInfo(stream, &mut status, &mut id)) {
            Err(DriverError::Failed { code: CAPTURE_IMPLICIT, .. }) => return Ok(Self::None),
            result => result?,
        }
        Ok(match status {
            0 => Self::None,
            1 => Self::Active(id),
            _ => Self::Invalidated,
        })
    }
}

/// CU_STREAM_CAPTURE_MODE_RELAXED.
const RELAXED: c_int = 2;

/// While this lives, this thread may allocate and synchronise though a stream is being captured, and spoils no capture by it; what it does
/// is not recorded.
pub struct RelaxedCapture {
    driver: Arc<Driver>,
    before: c_int,
    /// It is of one thread.
    _thread: PhantomData<*const ()>,
}

impl RelaxedCapture {
    /// From now on.
    pub fn begin(driver: &Arc<Driver>) -> Result<Self, DriverError> {
        let mut before = RELAXED;
        call!(&**driver, cuThreadExchangeStreamCaptureMode(&mut before))?;
        Ok(Self { driver: driver.clone(), before, _thread: PhantomData })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // It cannot fail where it has not failed before.
        let _ = call!(&*self.driver, cuThreadExchangeStreamCaptureMode(&mut self.before));
    }
}

impl CudaStream {
    /// A new stream of `device`, which does not synchronise with the default stream.
    pub fn new(device: &Arc<Device>) -> Result<Self, DriverError> {
        let mut handle = ptr::null_mut();
        call!(&device.current()?, cuStreamCreate(&mut handle, NON_BLOCKING))?;
        Ok(Self { device: device.clone(), handle, owned: true })
    }

    /// The user's stream: null and 1 are the legacy default stream, 2 is that of the calling thread, at each call.
    ///
    /// # Safety
    /// The handle is one of those, or of a stream that outlives this.
    pub unsafe fn foreign(device: &Arc<Device>, handle: *mut c_void) -> Self {
        Self { device: device.clone(), handle, owned: false }
    }

    /// The handle, for calls of the driver.
    pub fn handle(&self) -> *mut c_void {
        self.handle
    }

    /// The device that it was made for or wrapped with.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// True if the stream belongs to the primary context of its device: a user may hand over a stream of another.
    pub fn belongs(&self) -> Result<bool, DriverError> {
        let mut context = ptr::null_mut();
        call!(&self.device.current()?, cuStreamGetCtx(self.handle, &mut context))?;
        Ok(self.device.has(context))
    }

    /// Queues a copy of `data` to the start of `to`; `data` is free when this returns.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn write(&self, to: &DeviceBuffer, data: &[u8]) -> Result<(), DriverError> {
        assert!(data.len() <= to.bytes(), "{} bytes into a buffer of {}", data.len(), to.bytes());
        let (from, bytes) = (data.as_ptr().cast(), data.len());
        call!(&self.device.current()?, cuMemcpyHtoDAsync_v2(to.address(), from, bytes, self.handle))
    }

    /// The first `bytes` of `from` when everything queued before is done.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn read(&self, from: &DeviceBuffer, bytes: usize) -> Result<Vec<u8>, DriverError> {
        assert!(bytes <= from.bytes(), "{bytes} bytes of a buffer of {}", from.bytes());
        let mut data = vec![0u8; bytes];
        let to = data.as_mut_ptr().cast();
        let driver = self.device.current()?;
        call!(&driver, cuMemcpyDtoHAsync_v2(to, from.address(), bytes, self.handle))?;
        call!(&driver, cuStreamSynchronize(self.handle))?;
        Ok(data)
    }

    /// Queues a copy between any two places that the driver knows, of any devices.
    ///
    /// # Safety
    /// Both hold `bytes`, and stay until the stream is through.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuMemcpyAsync(to, from, bytes, self.handle))
    }

    /// Queues `value` into the first `bytes` of `to`.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn fill(&self, to: &DeviceBuffer, value: u8, bytes: usize) -> Result<(), DriverError> {
        assert!(bytes <= to.bytes(), "{bytes} bytes of a buffer of {}", to.bytes());
        call!(&self.device.current()?, cuMemsetD8Async(to.address(), value, bytes, self.handle))
    }

    /// Queues a store of `value` at `address`.
    ///
    /// # Safety
    /// Eight bytes of device or pinned memory, aligned to 8, which stay until the stream is through.
    pub unsafe fn write_value(&self, address: u64, value: u64) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWriteValue64_v2(self.handle, address, value, 0))
    }

    /// What is queued later waits until the word at `address` has reached `value`, counting round.
    ///
    /// # Safety
    /// As for [`write_value`](Self::write_value).
    pub unsafe fn wait_value(&self, address: u64, value: u64) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWaitValue64_v2(self.handle, address, value, 0))
    }

    /// Queues a call of `function` on a thread of the driver; it must not call the driver.
    ///
    /// # Safety
    /// `argument` is what the function takes, at each replay too where the stream is captured; the function does not unwind.
    pub unsafe fn call_host(
        &self,
        function: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuLaunchHostFunc(self.handle, function, argument))
    }

    /// True if nothing is queued or running.
    pub fn is_idle(&self) -> Result<bool, DriverError> {
        ready(call!(&self.device.current()?, cuStreamQuery(self.handle)))
    }

    /// Waits until nothing is queued or running.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamSynchronize(self.handle))
    }

    /// What is queued later in this stream waits for the last record of `event`, here or in another stream or process.
    pub fn wait(&self, event: &CudaEvent) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamWaitEvent(self.handle, event.handle, 0))
    }

    /// Whether the stream is being captured. The legacy default stream is not, and asking for it spoils captures of others: so it is
    /// not asked for.
    pub fn capture(&self) -> Result<CaptureStatus, DriverError> {
        // SAFETY: whoever made or wrapped the stream keeps it alive.
        unsafe { CaptureStatus::of(&self.device.current()?, self.handle) }
    }

    /// From here to [`end_capture`](Self::end_capture) everything queued is recorded; other threads may do what they like.
    pub fn begin_capture(&self) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuStreamBeginCapture_v2(self.handle, 1))
    }

    /// What was recorded, ready to be replayed.
    pub fn end_capture(&self) -> Result<CudaGraph, DriverError> {
        let driver = self.device.current()?;
        let (mut recorded, mut handle) = (ptr::null_mut(), ptr::null_mut());
        call!(&driver, cuStreamEndCapture(self.handle, &mut recorded))?;
        let made = call!(&driver, cuGraphInstantiateWithFlags(&mut handle, recorded, 0));
        // Instantiation has copied it; what cannot be destroyed stays.
        let _ = call!(&driver, cuGraphDestroy(recorded));
        made.map(|()| CudaGraph { device: self.device.clone(), handle })
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if self.owned {
            // A failure here is one of earlier work, which the stream has reported.
            let _ =
                self.device.current().map(|driver| call!(&driver, cuStreamDestroy_v2(self.handle)));
        }
    }
}

/// What a capture recorded. It does not own the memory that its operations use.
pub struct CudaGraph {
    device: Arc<Device>,
    handle: Handle,
}

impl CudaGraph {
    /// Queues everything that was recorded.
    ///
    /// # Safety
    /// The memory that the operations use stays until the stream is through, and no other work uses it meanwhile.
    pub unsafe fn launch(&self, stream: &CudaStream) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuGraphLaunch(self.handle, stream.handle))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // As for CudaStream.
        let _ = self.device.current().map(|driver| call!(&driver, cuGraphExecDestroy(self.handle)));
    }
}

/// A point in a stream.
pub struct CudaEvent {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: the driver locks its events; any thread may use any of them.
unsafe impl Send for CudaEvent {}
// SAFETY: as above.
unsafe impl Sync for CudaEvent {}

const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;

impl CudaEvent {
    /// One that takes no time.
    pub fn new(device: &Arc<Device>) -> Result<Self, DriverError> {
        Self::with(device, DISABLE_TIMING)
    }

    /// One that notes when it is passed.
    pub fn timed(device: &Arc<Device>) -> Result<Self, DriverError> {
        Self::with(device, 0)
    }

    /// One that other processes can open (`ipc`).
    pub fn shared(device: &Arc<Device>) -> Result<Self, DriverError> {
        Self::with(device, DISABLE_TIMING | INTERPROCESS)
    }

    fn with(device: &Arc<Device>, flags: c_uint) -> Result<Self, DriverError> {
        let mut handle = ptr::null_mut();
        call!(&device.current()?, cuEventCreate(&mut handle, flags))?;
        Ok(Self::of(device, handle))
    }

    pub(crate) fn of(device: &Arc<Device>, handle: Handle) -> Self {
        Self { device: device.clone(), handle }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    /// Puts the event behind everything queued in `stream` so far.
    pub fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuEventRecord(self.handle, stream.handle))
    }

    /// True if its last record has been passed, or there was none.
    pub fn is_passed(&self) -> Result<bool, DriverError> {
        ready(call!(&self.device.current()?, cuEventQuery(self.handle)))
    }

    /// Waits until its last record has been passed.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        call!(&self.device.current()?, cuEventSynchronize(self.handle))
    }

    /// Milliseconds from this to `later`, both [`timed`](Self::timed) and passed.
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
        // As for CudaStream.
        let _ = self.device.current().map(|driver| call!(&driver, cuEventDestroy_v2(self.handle)));
    }
}

fn ready(result: Result<(), DriverError>) -> Result<bool, DriverError> {
    match result {
        Ok(()) => Ok(true),
        Err(DriverError::Failed { code: NOT_READY, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
