//! The CUDA driver, found at run time: a table of the functions used, and owners of what they make.
//!
//! Nothing links to libcuda. What is missing, the library or a function of it, is an error that names it. Every call first makes
//! the device's primary context current on the calling thread, so all of this may be used from any thread.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

type Handle = *mut c_void;

/// Why the driver did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No driver on this system.
    #[error("cannot load the CUDA driver {}: {reason}", path.display())]
    NoLibrary {
        /// What was looked for.
        path: PathBuf,
        /// As the dynamic linker says it.
        reason: String,
    },
    /// The driver is too old.
    #[error("the CUDA driver has no function {0}")]
    NoFunction(&'static str),
    /// A call failed.
    #[error("{call} failed: {name} ({code})")]
    Failed {
        /// The function.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// CUresult.
        code: i32,
    },
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Functions {
            fn load(library: Handle) -> Result<Self, DriverError> {
                Ok(Self { $($name: {
                    let symbol = concat!(stringify!($name), "\0");
                    // SAFETY: `library` is an open handle and `symbol` ends in a zero byte.
                    let address = unsafe { libc::dlsym(library, symbol.as_ptr().cast()) };
                    if address.is_null() {
                        return Err(DriverError::NoFunction(stringify!($name)));
                    }
                    // SAFETY: the driver's ABI gives the function of this name this signature.
                    unsafe {
                        std::mem::transmute::<Handle, unsafe extern "C" fn($($argument),*) -> c_int>(
                            address,
                        )
                    }
                },)* })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(c_int, *mut *const c_char);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxSetCurrent(Handle);
    cuMemAlloc_v2(*mut u64, usize);
    cuMemFree_v2(u64);
    cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamQuery(Handle);
    cuStreamSynchronize(Handle);
    cuModuleLoadData(*mut Handle, *const c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuLaunchCooperativeKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void
    );
}

const NOT_READY: c_int = 600;
const MULTIPROCESSOR_COUNT: c_int = 16;
const STREAM_NON_BLOCKING: c_uint = 1;

/// The driver, initialised. Never unloaded: it has threads of its own.
pub struct Driver {
    functions: Functions,
}

/// `call!(driver, function(arguments))`: the call, with its name in the error.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let driver: &Driver = $driver;
        // SAFETY: the arguments are what the driver's ABI asks for: handles that their owners here keep alive, and
        // pointers to memory of the stated size that outlives the call.
        let code = unsafe { (driver.functions.$name)($($argument),*) };
        driver.check(stringify!($name), code)
    }};
}

impl Driver {
    /// Loads and initialises `library`: "libcuda.so.1", or the path of a simulated one.
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
        let driver = Self { functions: Functions::load(handle)? };
        call!(&driver, cuInit(0))?;
        Ok(Arc::new(driver))
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == 0 {
            return Ok(());
        }
        let mut name = ptr::null();
        // SAFETY: `name` is a place for a pointer to a string that the driver owns.
        let known = unsafe { (self.functions.cuGetErrorName)(code, &mut name) } == 0;
        let name = if known && !name.is_null() {
            // SAFETY: the driver gave a string that ends in a zero byte.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            "unknown error".to_owned()
        };
        Err(DriverError::Failed { call, name, code })
    }
}

/// A device and its primary context.
pub struct Device {
    driver: Arc<Driver>,
    ordinal: c_int,
    context: Handle,
}

// SAFETY: a primary context may be made current on, and used from, any number of threads.
unsafe impl Send for Device {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for Device {}

impl Device {
    /// Device `ordinal` of those visible.
    pub fn open(driver: &Arc<Driver>, ordinal: i32) -> Result<Arc<Self>, DriverError> {
        let mut device = 0;
        call!(driver, cuDeviceGet(&mut device, ordinal))?;
        let mut context = ptr::null_mut();
        call!(driver, cuDevicePrimaryCtxRetain(&mut context, device))?;
        Ok(Arc::new(Self { driver: driver.clone(), ordinal: device, context }))
    }

    /// Number of multiprocessors: as many blocks of the interpreter are resident for certain.
    pub fn multiprocessors(&self) -> Result<u32, DriverError> {
        let mut count = 0;
        call!(&self.driver, cuDeviceGetAttribute(&mut count, MULTIPROCESSOR_COUNT, self.ordinal))?;
        Ok(count as u32)
    }

    fn current(&self) -> Result<&Driver, DriverError> {
        call!(&self.driver, cuCtxSetCurrent(self.context))?;
        Ok(&self.driver)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A failure leaves a reference to the context: nothing that anyone could act on.
        let _ = call!(&self.driver, cuDevicePrimaryCtxRelease_v2(self.ordinal));
    }
}

/// Device memory. Freed on drop, which waits for all work of the device.
pub struct Buffer {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// `bytes` of undefined content; at least one is allocated.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, DriverError> {
        let mut address = 0;
        call!(device.current()?, cuMemAlloc_v2(&mut address, bytes.max(1)))?;
        Ok(Self { device: device.clone(), address, bytes })
    }

    /// The first byte, as the device sees it; aligned to 256.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A failure here is one of earlier work, which the stream has reported.
        let _ = self.device.current().map(|driver| call!(driver, cuMemFree_v2(self.address)));
    }
}

/// A stream that does not synchronise with the default stream.
pub struct Stream {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: the driver locks its streams; any thread may use any of them.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream of `device`.
    pub fn new(device: &Arc<Device>) -> Result<Self, DriverError> {
        let mut handle = ptr::null_mut();
        call!(device.current()?, cuStreamCreate(&mut handle, STREAM_NON_BLOCKING))?;
        Ok(Self { device: device.clone(), handle })
    }

    /// Queues a copy of `data` to the start of `to`; `data` is free when this returns.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn write(&self, to: &Buffer, data: &[u8]) -> Result<(), DriverError> {
        assert!(data.len() <= to.bytes, "{} bytes into a buffer of {}", data.len(), to.bytes);
        let driver = self.device.current()?;
        let (from, bytes) = (data.as_ptr().cast(), data.len());
        call!(driver, cuMemcpyHtoDAsync_v2(to.address, from, bytes, self.handle))
    }

    /// The first `bytes` of `from` when everything queued before is done.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn read(&self, from: &Buffer, bytes: usize) -> Result<Vec<u8>, DriverError> {
        assert!(bytes <= from.bytes, "{bytes} bytes of a buffer of {}", from.bytes);
        let driver = self.device.current()?;
        let mut data = vec![0u8; bytes];
        let to = data.as_mut_ptr().cast();
        call!(driver, cuMemcpyDtoHAsync_v2(to, from.address, bytes, self.handle))?;
        self.synchronize()?;
        Ok(data)
    }

    /// True if nothing is queued or running.
    pub fn is_idle(&self) -> Result<bool, DriverError> {
        match call!(self.device.current()?, cuStreamQuery(self.handle)) {
            Ok(()) => Ok(true),
            Err(DriverError::Failed { code: NOT_READY, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until nothing is queued or running.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        call!(self.device.current()?, cuStreamSynchronize(self.handle))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // As for Buffer.
        let _ = self.device.current().map(|driver| call!(driver, cuStreamDestroy_v2(self.handle)));
    }
}

/// Kernels, loaded. Outlives what it has launched: unloading waits.
pub struct Module {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: a module's handle may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads `image`: PTX, a cubin, or what the simulated device takes.
    ///
    /// # Safety
    /// The image is whole and made for this crate's kernels: the driver trusts its headers, and runs what is in it.
    pub unsafe fn load(device: &Arc<Device>, image: &[u8]) -> Result<Self, DriverError> {
        let mut image = image.to_vec();
        image.push(0); // the end of PTX
        let mut handle = ptr::null_mut();
        call!(device.current()?, cuModuleLoadData(&mut handle, image.as_ptr().cast()))?;
        Ok(Self { device: device.clone(), handle })
    }

    /// Queues `kernel` with one argument; all blocks are resident together, or the launch is refused.
    ///
    /// # Safety
    /// The kernel takes one `T`, and every address in it is that of memory which is large enough and stays until the stream
    /// is through.
    pub unsafe fn launch<T: Copy>(
        &self,
        kernel: &CStr,
        blocks: u32,
        threads: u32,
        stream: &Stream,
        argument: &T,
    ) -> Result<(), DriverError> {
        let driver = self.device.current()?;
        let mut function = ptr::null_mut();
        call!(driver, cuModuleGetFunction(&mut function, self.handle, kernel.as_ptr()))?;
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        call!(
            driver,
            cuLaunchCooperativeKernel(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.handle,
                arguments.as_mut_ptr(),
            )
        )
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // As for Buffer.
        let _ = self.device.current().map(|driver| call!(driver, cuModuleUnload(self.handle)));
    }
}
