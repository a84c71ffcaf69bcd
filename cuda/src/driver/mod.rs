//! The CUDA driver, found at run time.
//!
//! Nothing links to libcuda: `libcuda.so.1` is opened when a driver is asked for, and this is the only module that knows how. The table of
//! functions (`functions.rs`) is our own, by exact names, each there or not. A crate like cudarc was looked at: it panics where the library
//! or a function is missing, fixes one version of the driver per build, and two thirds of what is used here exist only in its raw layer.
//!
//! [`Device`] makes its context current for a call where it is not, and restores what was. All of this may be used from any thread.

mod context;
mod error;
pub(crate) mod functions;
mod module;

pub use crate::memory::DeviceBuffer;
pub use crate::stream::CudaStream;
pub use context::{CurrentContext, Device};
pub use error::DriverError;
pub use module::{Kernel, KernelModule, OwnedKernel};

use functions::{Functions, call};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, OnceLock};

/// What the driver calls a handle: a pointer that only it looks behind.
pub(crate) type Handle = *mut c_void;

/// The name that the driver is found by.
pub const LIBRARY: &str = "libcuda.so.1";

/// CUDA_ERROR_NO_DEVICE.
const NO_DEVICE: i32 = 100;

/// The driver, initialised. Never unloaded: it has threads of its own.
pub struct Driver {
    functions: Functions,
    version: i32,
}

impl Driver {
    /// The system's driver; None where there is none, or no device that this process may see.
    pub fn find() -> Result<Option<Arc<Self>>, DriverError> {
        match Self::open(Path::new(LIBRARY)) {
            Ok(driver) => Ok(Some(driver)),
            Err(DriverError::NoLibrary { .. } | DriverError::Failed { code: NO_DEVICE, .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`find`](Self::find), looked up once per process.
    pub fn shared() -> Result<Option<&'static Arc<Self>>, DriverError> {
        static SHARED: OnceLock<Result<Option<Arc<Driver>>, DriverError>> = OnceLock::new();
        match SHARED.get_or_init(Self::find) {
            Ok(driver) => Ok(driver.as_ref()),
            Err(error) => Err(error.clone()),
        }
    }

    /// Loads and initialises `library`: [`LIBRARY`], or the path of a simulated one.
    pub fn open(library: &Path) -> Result<Arc<Self>, DriverError> {
        let missing = |reason| DriverError::NoLibrary { path: library.to_owned(), reason };
        let name = CString::new(library.as_os_str().as_encoded_bytes())
            .map_err(|_| missing("a path with a zero byte".to_owned()))?;
        // SAFETY: `name` ends in a zero byte; libcuda's initialisers are meant to run in any process.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failure dlerror gives a string that lives until this thread's next call of dl*.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(missing(reason.to_string_lossy().into_owned()));
        }
        // SAFETY: the handle has just been opened and is never closed.
        let mut driver = Self { functions: unsafe { Functions::load(handle) }, version: 0 };
        let mut version = 0;
        // Allowed before cuInit; a driver that cannot tell has version 0.
        if call!(&driver, cuDriverGetVersion(&mut version)).is_ok() {
            driver.version = version;
        }
        call!(&driver, cuInit(0))?;
        Ok(Arc::new(driver))
    }

    /// The newest CUDA that the driver knows: 12030 is 12.3.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Devices that this process may see.
    pub fn devices(&self) -> Result<i32, DriverError> {
        let mut count = 0;
        call!(self, cuDeviceGetCount(&mut count))?;
        Ok(count)
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.functions
    }

    pub(crate) fn missing(&self, function: &'static str, since: i32) -> DriverError {
        DriverError::NoFunction { function, since, version: self.version }
    }

    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == 0 {
            return Ok(());
        }
        let name = self.describe(self.functions.cuGetErrorName, code, "unknown error");
        let text = self.describe(self.functions.cuGetErrorString, code, "no description");
        Err(DriverError::Failed { call, name, text, code })
    }

    fn describe(
        &self,
        function: Option<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>,
        code: c_int,
        otherwise: &str,
    ) -> String {
        let mut text = ptr::null();
        // SAFETY: `text` is a place for a pointer to a string that the driver owns.
        let known = function.is_some_and(|function| unsafe { function(code, &mut text) } == 0);
        if !known || text.is_null() {
            return otherwise.to_owned();
        }
        // SAFETY: the driver gave a string that ends in a zero byte.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
