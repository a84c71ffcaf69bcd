//! Order between streams of a user.

use maypole_cuda::driver::Device;
use maypole_cuda::stream::{Event, Stream};

use super::detect::driver;
use super::queue::CudaStream;
use crate::error::Error;

/// What is queued on `later` from now on waits for what is on all of `earlier` now. In a capture it is recorded, and brings streams that
/// are not part of it into it.
///
/// # Errors
/// What the driver says.
///
/// # Safety
/// Streams are alive, and of device `ordinal`.
pub unsafe fn join(ordinal: i32, earlier: &[CudaStream], later: CudaStream) -> Result<(), Error> {
    let Some(driver) = driver()? else {
        return Err(Error::internal("streams of a device without a driver"));
    };
    let device = Device::open(driver, ordinal)?;
    // SAFETY: the caller's promise; they outlive this call.
    let foreign = |stream: CudaStream| unsafe { Stream::foreign(&device, stream.0) };
    let later = foreign(later);
    for stream in earlier {
        // The driver keeps it until the wait is over, however soon it is destroyed.
        let event = Event::new(&device)?;
        event.record(&foreign(*stream))?;
        later.wait(&event)?;
    }
    Ok(())
}
