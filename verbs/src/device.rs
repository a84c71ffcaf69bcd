//! The list of devices of libibverbs, and a device in it before it is opened.

use std::ffi::CStr;
use std::sync::Arc;

use crate::context::Context;
use crate::error::VerbsError;
use crate::library::{Library, function};
use crate::sys;

/// The list that libibverbs allocated. Its devices are valid as long as it is.
#[derive(Debug)]
struct DeviceList {
    list: *mut *mut sys::ibv_device,
    library: Arc<Library>,
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

impl Library {
    /// The RDMA devices of this host. An empty list is not an error.
    ///
    /// # Errors
    /// The system call fails. Where the kernel has no RDMA support, the list is empty.
    pub fn devices(self: &Arc<Self>) -> Result<Vec<Device>, VerbsError> {
        let get = function!(self, ibv_get_device_list)?;
        let name_of = function!(self, ibv_get_device_name)?;
        let mut count = 0;
        // SAFETY: `count` is writable.
        let list = unsafe { get(&raw mut count) };
        if list.is_null() {
            let error = VerbsError::last("ibv_get_device_list");
            return match error.errno() {
                Some(libc::ENOSYS | libc::ENOENT | libc::ENODEV) => Ok(Vec::new()),
                _ => Err(error),
            };
        }
        let owner = Arc::new(DeviceList { list, library: self.clone() });
        let mut devices = Vec::new();
        for index in 0..count.max(0) as usize {
            // SAFETY: the list has `count` devices, which are valid until it is freed; names end in
            // a zero.
            let (device, name) = unsafe {
                let device = *list.add(index);
                (device, CStr::from_ptr(name_of(device)).to_string_lossy().into_owned())
            };
            devices.push(Device { raw: device, name, list: owner.clone() });
        }
        Ok(devices)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_the_functions_says_which_one_is_missing() {
        // The C library is everywhere, and has none of them.
        let library = Library::load(Some(std::path::Path::new("libc.so.6"))).unwrap();
        let error = library.devices().unwrap_err();
        assert_eq!(error, VerbsError::Missing { function: "ibv_get_device_list" });
    }
}
