//! Keeps the descriptors of the library off the numbers of the standard streams.
//!
//! A program may have closed its standard streams. The next descriptor that the process opens then
//! gets the number of one of them, and what the program or the library prints is written to it: to
//! the memory of a rank, or to a connection.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Opens `/dev/null` at those of the descriptors 0 to 2 that are closed, for the life of the
/// process, so that what is opened next gets another number. Call it before descriptors are opened
/// that live on.
pub fn occupy_standard_streams() {
    for number in 0..=2 {
        // SAFETY: F_GETFD only asks whether the descriptor is open.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
            continue;
        }
        // The lowest number that is free, this one unless another thread takes it now. A program
        // that this process starts finds the stream closed, as it would without the library.
        let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
        if null.as_raw_fd() <= 2 {
            let _ = null.into_raw_fd();
        }
    }
}
