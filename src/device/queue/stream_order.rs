//! The handle of a user's CUDA stream, and a function that makes streams wait for another.

use std::ffi::c_void;

use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::stream::{CudaEvent, CudaStream};

use crate::error::Error;

/// The user's stream, a `CUstream`: null and 1 are the legacy default stream, 2 is the default
/// stream of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaStreamHandle(pub *mut c_void);

/// Makes what is queued on `later` from now on wait for what is on all of `earlier` now. In a
/// capture this is recorded, and streams that are not yet part of the capture become part of it.
///
/// # Errors
/// The driver refuses.
///
/// # Safety
/// The streams exist and belong to device `ordinal`.
pub unsafe fn order_streams(
    ordinal: i32,
    earlier: &[CudaStreamHandle],
    later: CudaStreamHandle,
) -> Result<(), Error> {
    let Some(driver) = Driver::shared()? else {
        return Err(Error::internal("streams of a device without a driver"));
    };
    let device = Device::open(driver, ordinal)?;
    // SAFETY: the caller keeps the streams alive, so they outlive this call.
    let foreign = |stream: CudaStreamHandle| unsafe { CudaStream::foreign(&device, stream.0) };
    let later = foreign(later);
    for stream in earlier {
        // The event may be destroyed at once: the driver keeps it until the wait is over.
        let event = CudaEvent::new(&device)?;
        event.record(&foreign(*stream))?;
        later.wait(&event)?;
    }
    Ok(())
}
