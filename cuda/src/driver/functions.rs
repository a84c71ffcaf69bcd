//! The functions of the driver that this crate uses, looked up by their exact names, and the calls through them.
//!
//! Each is there or not: what is missing is an error when it is called, so that an old driver does what it can. libcuda keeps the
//! names of earlier versions, so a name stands for one signature for ever.

use super::Handle;
use std::ffi::{c_char, c_int, c_uint, c_void};

macro_rules! functions {
    ($($name:ident($($argument:ty),*) since $since:literal;)*) => {
        /// What the loaded library has.
        #[allow(non_snake_case)]
        pub(crate) struct Functions {
            $(pub(crate) $name: Option<unsafe extern "C" fn($($argument),*) -> c_int>,)*
        }

        /// First version of the driver with a function, as `cuDriverGetVersion` counts.
        #[allow(non_upper_case_globals, dead_code)] // some are called where a missing one is no error
        pub(crate) mod since {
            $(pub(crate) const $name: i32 = $since;)*
        }

        impl Functions {
            /// # Safety
            /// `library` is an open handle of libcuda or a look-alike.
            pub(super) unsafe fn load(library: Handle) -> Self {
                Self { $($name: {
                    let symbol = concat!(stringify!($name), "\0");
                    // SAFETY: `library` is open and `symbol` ends in a zero byte.
                    let address = unsafe { libc::dlsym(library, symbol.as_ptr().cast()) };
                    (!address.is_null()).then(|| {
                        // SAFETY: the driver's ABI gives the function of this name this signature.
                        unsafe {
                            std::mem::transmute::<Handle, unsafe extern "C" fn($($argument),*) -> c_int>(
                                address,
                            )
                        }
                    })
                },)* }
            }
        }
    };
}

/// A structure of 64 bytes that is passed by value: a handle for another process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct IpcHandle(pub(crate) [u8; 64]);

functions! {
    cuInit(c_uint) since 2000;
    cuDriverGetVersion(*mut c_int) since 2020;
    cuGetErrorName(c_int, *mut *const c_char) since 6000;
    cuGetErrorString(c_int, *mut *const c_char) since 6000;
    cuDeviceGet(*mut c_int, c_int) since 2000;
    cuDeviceGetCount(*mut c_int) since 2000;
    cuDeviceGetName(*mut c_char, c_int, c_int) since 2000;
    cuDeviceGetAttribute(*mut c_int, c_int, c_int) since 2000;
    cuDeviceGetPCIBusId(*mut c_char, c_int, c_int) since 4010;
    cuDeviceGetUuid(*mut [u8; 16], c_int) since 9020;
    cuDeviceGetUuid_v2(*mut [u8; 16], c_int) since 11040;
    cuDevicePrimaryCtxRetain(*mut Handle, c_int) since 7000;
    cuDevicePrimaryCtxRelease_v2(c_int) since 11000;
    cuDeviceCanAccessPeer(*mut c_int, c_int, c_int) since 4000;
    cuCtxEnablePeerAccess(Handle, c_uint) since 4000;
    cuCtxGetCurrent(*mut Handle) since 4000;
    cuCtxPushCurrent_v2(Handle) since 4000;
    cuCtxPopCurrent_v2(*mut Handle) since 4000;
    cuCtxGetDevice(*mut c_int) since 2000;
    cuMemAlloc_v2(*mut u64, usize) since 3020;
    cuMemFree_v2(u64) since 3020;
    cuMemGetInfo_v2(*mut usize, *mut usize) since 3020;
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint) since 2020;
    cuMemFreeHost(*mut c_void) since 2000;
    cuMemHostRegister_v2(*mut c_void, usize, c_uint) since 6050;
    cuMemHostUnregister(*mut c_void) since 4000;
    cuMemHostGetDevicePointer_v2(*mut u64, *mut c_void, c_uint) since 3020;
    cuPointerGetAttribute(*mut c_void, c_int, u64) since 4000;
    cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle) since 3020;
    cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle) since 3020;
    cuMemcpyAsync(u64, u64, usize, Handle) since 4000;
    cuMemsetD8Async(u64, u8, usize, Handle) since 3020;
    cuStreamCreate(*mut Handle, c_uint) since 2000;
    cuStreamDestroy_v2(Handle) since 4000;
    cuStreamQuery(Handle) since 2000;
    cuStreamSynchronize(Handle) since 2000;
    cuStreamGetCtx(Handle, *mut Handle) since 9020;
    cuStreamWaitEvent(Handle, Handle, c_uint) since 3020;
    cuStreamWriteValue64_v2(Handle, u64, u64, c_uint) since 11070;
    cuStreamWaitValue64_v2(Handle, u64, u64, c_uint) since 11070;
    cuLaunchHostFunc(Handle, unsafe extern "C" fn(*mut c_void), *mut c_void) since 10000;
    cuEventCreate(*mut Handle, c_uint) since 2000;
    cuEventDestroy_v2(Handle) since 4000;
    cuEventRecord(Handle, Handle) since 2000;
    cuEventQuery(Handle) since 2000;
    cuEventSynchronize(Handle) since 2000;
    cuEventElapsedTime(*mut f32, Handle, Handle) since 2000;
    cuIpcGetMemHandle(*mut IpcHandle, u64) since 4010;
    cuIpcOpenMemHandle_v2(*mut u64, IpcHandle, c_uint) since 11000;
    cuIpcCloseMemHandle(u64) since 4010;
    cuIpcGetEventHandle(*mut IpcHandle, Handle) since 4010;
    cuIpcOpenEventHandle(*mut Handle, IpcHandle) since 4010;
    cuModuleLoadData(*mut Handle, *const c_void) since 2000;
    cuModuleUnload(Handle) since 2000;
    cuModuleGetFunction(*mut Handle, Handle, *const c_char) since 2000;
    cuLaunchKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    ) since 4000;
    cuLaunchCooperativeKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void
    ) since 9000;
    cuThreadExchangeStreamCaptureMode(*mut c_int) since 10010;
    cuStreamGetCaptureInfo(Handle, *mut c_int, *mut u64) since 10010;
    cuStreamBeginCapture_v2(Handle, c_int) since 10010;
    cuStreamEndCapture(Handle, *mut Handle) since 10000;
    cuGraphInstantiateWithFlags(*mut Handle, Handle, u64) since 11040;
    cuGraphLaunch(Handle, Handle) since 10000;
    cuGraphDestroy(Handle) since 10000;
    cuGraphExecDestroy(Handle) since 10000;
}

/// `call!(driver, function(arguments))`: the call, with its name in the error.
///
/// Whoever writes it answers for the arguments: that they are what the driver's ABI asks for, that handles are alive, and that
/// pointers are to memory of the stated size which outlives the call.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {
        // A match, so that what `driver` borrows from lives to its end: the context stays current.
        match $driver {
            guard => {
                let driver: &$crate::driver::Driver = guard;
                match driver.functions().$name {
                    Some(function) => {
                        // SAFETY: see the macro: the owners here keep handles alive and pass pointers of the stated sizes.
                        let code = unsafe { function($($argument),*) };
                        driver.check(stringify!($name), code)
                    }
                    None => {
                        let since = $crate::driver::functions::since::$name;
                        Err(driver.missing(stringify!($name), since))
                    }
                }
            }
        }
    };
}
pub(crate) use call;
