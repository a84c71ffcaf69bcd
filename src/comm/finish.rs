//! Peace before the end of a communicator.

use std::time::Duration;

use super::Communicator;
use crate::error::Error;

impl Communicator {
    /// Returns when everything that was queued on streams of its device is over; on host memory at once, as calls are when they return.
    /// Replays of graphs are not waited for.
    ///
    /// # Errors
    /// What has ended the communicator, or the device.
    pub fn finish(&self) -> Result<(), Error> {
        let Some(rank) = &self.device else { return Ok(()) };
        let mut pause = Duration::from_micros(20);
        while !rank.signals.is_idle() {
            if let Some(error) = self.async_error() {
                return Err(error);
            }
            rank.signals.query_device()?;
            // Nobody wakes this thread.
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(5));
        }
        Ok(())
    }
}
