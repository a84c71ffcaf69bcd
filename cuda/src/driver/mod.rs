//! The CUDA driver, opened at run time, and the safe interface to its devices.
//!
//! Nothing links to libcuda: `libcuda.so.1` is opened when a driver is asked for, and only this
//! module opens it. Constants, handles and structures come from `cudarc::driver::sys`, the
//! bindings that are generated from NVIDIA's header. The table of functions (`functions.rs`) is
//! our own, because calls through cudarc would give up three guarantees:
//!
//! * cudarc panics where libcuda or a function is missing ("Missing symbol", "Unable to
//!   dynamically load"). Here a missing library or function is an error, and an old driver does
//!   what it can.
//! * cudarc opens libcuda itself, by fixed names. Here the tests open a simulated device by path,
//!   beside or instead of a real driver.
//! * cudarc declares results as `CUresult`, a Rust enum of the codes of one CUDA version. A code
//!   of a newer driver would be an invalid value, which is undefined behaviour. Here a result is
//!   an integer until it has been compared.
//!
//! [`Device`] makes its context current for a call and restores the previous context afterwards.
//! Everything here may be used from any thread.

mod context;
mod error;
pub(crate) mod functions;
pub mod runtime;

pub use context::{CurrentContext, Device};
pub use error::DriverError;

use cudarc::driver::sys::CUresult;
use functions::{DriverFunctions, call};
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use crate::once::MadeOnce;

/// The file name of the driver's library.
pub const LIBRARY: &str = "libcuda.so.1";

const NO_DEVICE: i32 = CUresult::CUDA_ERROR_NO_DEVICE as i32;

/// The driver, initialised. It is never unloaded, because it has threads of its own.
pub struct Driver {
    functions: DriverFunctions,
    version: i32,
}

impl Driver {
    /// Opens the system's driver. `None` if there is none, or no device that this process may see.
    ///
    /// # Errors
    /// The driver is there but cannot be initialised.
    pub fn find() -> Result<Option<Arc<Self>>, DriverError> {
        match Self::open(Path::new(LIBRARY)) {
            Ok(driver) => Ok(Some(driver)),
            Err(DriverError::NoLibrary { .. } | DriverError::Failed { code: NO_DEVICE, .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The system's driver as [`find`](Self::find) opens it, at most once per process.
    ///
    /// # Errors
    /// What `find` returned the first time.
    pub fn shared() -> Result<Option<&'static Arc<Self>>, DriverError> {
        static SHARED: MadeOnce<Result<Option<Arc<Driver>>, DriverError>> = MadeOnce::new();
        extern "C" fn find() {
            SHARED.set(Driver::find());
        }
        match SHARED.get_or_make(find) {
            Some(Ok(driver)) => Ok(driver.as_ref()),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// Opens and initialises `library`: [`LIBRARY`], or the path of a simulated driver.
    ///
    /// # Errors
    /// The library cannot be loaded or initialised.
    pub fn open(library: &Path) -> Result<Arc<Self>, DriverError> {
        let missing = |reason| DriverError::NoLibrary { path: library.to_owned(), reason };
        let name = CString::new(library.as_os_str().as_encoded_bytes())
            .map_err(|_| missing("the path contains a zero byte".to_owned()))?;
        // SAFETY: `name` ends in a zero byte, and the initialisers of libcuda may run in any
        // process.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failure dlerror returns a string that lives until the next call of a
            // dl* function on this thread.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(missing(reason.to_string_lossy().into_owned()));
        }
        // SAFETY: `handle` has just been opened and is never closed.
        let functions = unsafe { DriverFunctions::load(handle) };
        let mut driver = Self { functions, version: 0 };
        let mut version = 0;
        // This call is allowed before cuInit. A driver that cannot tell counts as version 0.
        if call!(&driver, cuDriverGetVersion(&mut version)).is_ok() {
            driver.version = version;
        }
        call!(&driver, cuInit(0))?;
        Ok(Arc::new(driver))
    }

    /// The newest CUDA version that the driver supports: 12030 means 12.3.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// The number of devices that this process may see.
    ///
    /// # Errors
    /// The driver fails.
    pub fn devices(&self) -> Result<i32, DriverError> {
        let mut count = 0;
        call!(self, cuDeviceGetCount(&mut count))?;
        Ok(count)
    }

    pub(crate) fn functions(&self) -> &DriverFunctions {
        &self.functions
    }

    /// The error of a call to a function that the driver does not have.
    pub(crate) fn missing(&self, function: &'static str, since: i32) -> DriverError {
        DriverError::NoFunction { function, since, version: self.version }
    }

    /// The result of function `call`, which returned `code`.
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
        // SAFETY: the function writes to `text` the address of a string that the driver owns.
        let known = function.is_some_and(|function| unsafe { function(code, &mut text) } == 0);
        if !known || text.is_null() {
            return otherwise.to_owned();
        }
        // SAFETY: the driver returned a string that ends in a zero byte.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
