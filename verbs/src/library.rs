//! Loading libibverbs, and its list of devices.

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

use crate::device::{Device, DeviceList};
use crate::error::{LibraryError, VerbsError};
use crate::sys;

/// The name under which the dynamic loader finds libibverbs.
const NAME: &str = "libibverbs.so.1";

/// A loaded libibverbs. It is never unloaded, because its providers do not support that.
pub struct Library {
    pub(crate) functions: sys::IbVerbs,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Library(..)")
    }
}

/// The function of that name, or the error that it is missing.
macro_rules! function {
    ($library:expr, $name:ident) => {
        match &$library.functions.$name {
            Ok(function) => Ok(*function),
            Err(_) => Err($crate::VerbsError::Missing { function: stringify!($name) }),
        }
    };
}
pub(crate) use function;

impl Library {
    /// Loads libibverbs, or the library at `path` in its place.
    ///
    /// # Errors
    /// There is no such library, or it is none.
    pub fn load(path: Option<&Path>) -> Result<Arc<Self>, LibraryError> {
        let name = path.unwrap_or(Path::new(NAME));
        let failed = |why: libloading::Error| LibraryError {
            name: name.display().to_string(),
            why: why.to_string(),
        };
        // SAFETY: loading libibverbs runs its constructors, which only set up its own tables.
        let library = unsafe { libloading::Library::new(name) }.map_err(failed)?;
        // SAFETY: the functions have the types of the header of libibverbs, whose interface is
        // versioned and stays compatible.
        let functions = unsafe { sys::IbVerbs::from_library(library) }.map_err(failed)?;
        Ok(Arc::new(Self { functions }))
    }

    /// The RDMA devices of this host; none is no error.
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
            devices.push(Device::new(device, name, owner.clone()));
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_an_error_with_its_name() {
        let error = Library::load(Some(Path::new("/nowhere/libibverbs.so.1"))).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/libibverbs.so.1 cannot be loaded: "));
    }

    #[test]
    fn a_library_without_the_functions_says_which_one_is_missing() {
        // The C library is everywhere, and has none of them.
        let library = Library::load(Some(Path::new("libc.so.6"))).unwrap();
        let error = library.devices().unwrap_err();
        assert_eq!(error, VerbsError::Missing { function: "ibv_get_device_list" });
    }
}
