//! Windows: memory of a rank that other ranks write to, registered by `ncclCommWindowRegister`.
//!
//! The table is one for the whole process, because the functions of the device API take a window
//! without a communicator. A child made by fork begins with an empty table, as it has no
//! communicators.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::WindowId;
use maypole::internal::sync::{AtomicUsize, Ordering};
use maypole::stream::PerProcess;

use super::handle::CommHandle;
use crate::boundary::invalid_argument;

/// `ncclWindow_t` as the client holds it: a number in the shape of a pointer, none of which is
/// given twice.
pub(crate) type WindowHandle = *mut c_void;

/// Every window of the process, by the number in its handle.
static WINDOWS: PerProcess<Mutex<HashMap<usize, RegisteredWindow>>> = PerProcess::new();

/// How many windows were ever registered. A child made by fork counts on, so that it gives no
/// handle of its parent again.
static REGISTERED: AtomicUsize = AtomicUsize::new(0);

/// A window, and this rank's memory of it.
#[derive(Clone, Copy)]
pub(crate) struct RegisteredWindow {
    /// The address of this rank's memory, whose provenance was exposed.
    pub(crate) address: usize,
    /// The bytes of this rank's memory.
    pub(crate) size: usize,
    /// The handle of the communicator, as a number.
    owner: usize,
    /// The window within its communicator.
    pub(crate) id: WindowId,
}

/// The windows of one communicator. They end with it.
pub(crate) struct CommWindows {
    owner: usize,
}

/// Adds a window that a communicator has registered.
pub(crate) fn add_window(
    comm: CommHandle,
    buffer: *mut c_void,
    size: usize,
    id: WindowId,
) -> WindowHandle {
    // Relaxed: the numbers only have to differ.
    let number = REGISTERED.fetch_add(1, Ordering::Relaxed) + 1;
    let address = buffer.expose_provenance();
    windows().insert(number, RegisteredWindow { address, size, owner: comm.addr(), id });
    std::ptr::without_provenance_mut(number << 4)
}

/// Refuses a window that the process does not have, and an offset that is not within it.
pub(crate) fn check_offset(window: WindowHandle, offset: usize) -> Result<(), ResultCode> {
    let window =
        find(window).ok_or_else(|| invalid_argument("the window is not one that is registered"))?;
    if offset >= window.size {
        return Err(invalid_argument(&format!(
            "offset {offset} in a window of {} bytes",
            window.size
        )));
    }
    Ok(())
}

impl CommWindows {
    /// No windows yet, for the communicator with that handle.
    pub(super) fn new(comm: CommHandle) -> Self {
        Self { owner: comm.addr() }
    }

    /// A window of this communicator.
    pub(crate) fn find(&self, window: WindowHandle) -> Result<RegisteredWindow, ResultCode> {
        find(window).filter(|window| window.owner == self.owner).ok_or_else(|| {
            invalid_argument("the window is not registered with this communicator, or no longer")
        })
    }

    /// Removes a window of this communicator.
    pub(crate) fn remove(&self, window: WindowHandle) -> Result<RegisteredWindow, ResultCode> {
        let found = self.find(window)?;
        windows().remove(&(window.addr() >> 4));
        Ok(found)
    }
}

impl Drop for CommWindows {
    fn drop(&mut self) {
        windows().retain(|_, window| window.owner != self.owner);
    }
}

fn find(window: WindowHandle) -> Option<RegisteredWindow> {
    let number = window.addr() >> 4;
    windows().get(&number).copied().filter(|_| window.addr() & 0xf == 0)
}

fn windows() -> MutexGuard<'static, HashMap<usize, RegisteredWindow>> {
    WINDOWS.get().lock().unwrap_or_else(PoisonError::into_inner)
}
