//! A device in the list of libibverbs, before it is opened.

use std::sync::Arc;

use crate::context::Context;
use crate::error::VerbsError;
use crate::library::{Library, function};
use crate::sys;

/// The list that libibverbs allocated. Its devices are valid as long as it is.
#[derive(Debug)]
pub(crate) struct DeviceList {
    pub(crate) list: *mut *mut sys::ibv_device,
    pub(crate) library: Arc<Library>,
}

// SAFETY: the list is only read until it is freed, and libibverbs may free it on any thread.
unsafe impl Send for DeviceList {}
// SAFETY: as above.
unsafe impl Sync for DeviceList {}

impl Drop for DeviceList {
    fn drop(&mut self) {
        if let Ok(free) = function!(self.library, ibv_free_device_list) {
            // SAFETY: libibverbs has allocated the list, and no device of it is used any more.
            unsafe { free(self.list) };
        }
    }
}

/// An RDMA device of this host.
#[derive(Clone, Debug)]
pub struct Device {
    raw: *mut sys::ibv_device,
    name: String,
    list: Arc<DeviceList>,
}

// SAFETY: a device is only read.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    pub(crate) fn new(raw: *mut sys::ibv_device, name: String, list: Arc<DeviceList>) -> Self {
        Self { raw, name, list }
    }

    /// The name, such as `mlx5_0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens the device for this process.
    ///
    /// # Errors
    /// The device cannot be opened: it is being removed, or its file in `/dev/infiniband` is not
    /// accessible.
    pub fn open(&self) -> Result<Arc<Context>, VerbsError> {
        let open = function!(self.list.library, ibv_open_device)?;
        // SAFETY: the device is in the list, which `self` keeps.
        let raw = unsafe { open(self.raw) };
        Context::new(raw, self.name.clone(), self.list.library.clone())
    }
}
