//! Waits for the work on a communicator's device, before the communicator ends.

use std::time::Duration;

use super::Communicator;
use crate::error::Error;

impl Communicator {
    /// Returns when all work that was queued on streams of the device is over. On host memory it
    /// returns at once: calls are over when they return. It does not wait for replays of graphs.
    ///
    /// # Errors
    /// What has ended the communicator, or an error of the device.
    pub fn finish(&self) -> Result<(), Error> {
        let Some(rank) = &self.device else { return Ok(()) };
        let mut pause = Duration::from_micros(20);
        while !rank.signals.is_idle() {
            if let Some(error) = self.async_error() {
                return Err(error);
            }
            rank.signals.query_device()?;
            // No event wakes this thread.
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(5));
        }
        Ok(())
    }
}
