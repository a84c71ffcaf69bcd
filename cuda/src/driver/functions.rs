//! The functions of the driver that this crate uses, looked up by their exact names, and the macro
//! that calls them.
//!
//! Each function may be absent: an absent one is an error when it is called, so that an old driver
//! does what it can. libcuda keeps the names of earlier versions, so a name always stands for the
//! same signature. The types of arguments come from cudarc; results are integers, see
//! [`driver`](super).

use cudarc::driver::sys::{
    CUcontext, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUipcEventHandle,
    CUipcMemHandle, CUmodule, CUstream,
};
use std::ffi::{c_char, c_int, c_uint, c_void};

macro_rules! functions {
    ($($name:ident($($argument:ty),*) since $since:literal;)*) => {
        /// The functions that the loaded library has.
        #[allow(non_snake_case)] // the names of the driver
        pub(crate) struct DriverFunctions {
            $(pub(crate) $name: Option<unsafe extern "C" fn($($argument),*) -> c_int>,)*
        }

        /// The first version of the driver with each function, as `cuDriverGetVersion` counts.
        // The names of the driver. Some are called where their absence is no error.
        #[allow(non_upper_case_globals, dead_code)]
        pub(crate) mod since {
            $(pub(crate) const $name: i32 = $since;)*
        }

        impl DriverFunctions {
            /// Looks all functions up.
            ///
            /// # Safety
            /// `library` is an open handle of libcuda, or of a library whose functions of these
            /// names have the same signatures. It is never closed.
            pub(super) unsafe fn load(library: *mut c_void) -> Self {
                Self { $($name: {
                    let symbol = concat!(stringify!($name), "\0");
                    // SAFETY: `library` is open and `symbol` ends in a zero byte.
                    let address = unsafe { libc::dlsym(library, symbol.as_ptr().cast()) };
                    (!address.is_null()).then(|| {
                        // SAFETY: the driver's ABI gives the function of this name this signature.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) -> c_int,
                            >(address)
                        }
                    })
                },)* }
            }
        }
    };
}

/// `CUlaunchConfig`: the shape of a launch, and attributes.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: CUstream,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) count: c_uint,
}

/// `CUlaunchAttribute`, with a value that is an integer.
#[repr(C)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: c_int,
    pub(crate) padding: c_int,
    pub(crate) value: c_int,
    pub(crate) rest: [c_int; 15],
}

const _: () = assert!(size_of::<LaunchConfig>() == 56 && size_of::<LaunchAttribute>() == 72);

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
    cuDevicePrimaryCtxRetain(*mut CUcontext, c_int) since 7000;
    cuDevicePrimaryCtxRelease_v2(c_int) since 11000;
    cuDeviceCanAccessPeer(*mut c_int, c_int, c_int) since 4000;
    cuCtxEnablePeerAccess(CUcontext, c_uint) since 4000;
    cuCtxGetCurrent(*mut CUcontext) since 4000;
    cuCtxPushCurrent_v2(CUcontext) since 4000;
    cuCtxPopCurrent_v2(*mut CUcontext) since 4000;
    cuCtxGetDevice(*mut c_int) since 2000;
    cuMemAlloc_v2(*mut CUdeviceptr, usize) since 3020;
    cuMemFree_v2(CUdeviceptr) since 3020;
    cuMemGetInfo_v2(*mut usize, *mut usize) since 3020;
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint) since 2020;
    cuMemFreeHost(*mut c_void) since 2000;
    cuMemHostRegister_v2(*mut c_void, usize, c_uint) since 6050;
    cuMemHostUnregister(*mut c_void) since 4000;
    cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint) since 3020;
    cuPointerGetAttribute(*mut c_void, c_int, CUdeviceptr) since 4000;
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream) since 3020;
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream) since 3020;
    cuMemcpyAsync(CUdeviceptr, CUdeviceptr, usize, CUstream) since 4000;
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream) since 3020;
    cuStreamCreate(*mut CUstream, c_uint) since 2000;
    cuStreamDestroy_v2(CUstream) since 4000;
    cuStreamQuery(CUstream) since 2000;
    cuStreamSynchronize(CUstream) since 2000;
    cuStreamGetCtx(CUstream, *mut CUcontext) since 9020;
    cuStreamGetId(CUstream, *mut u64) since 12000;
    cuStreamWaitEvent(CUstream, CUevent, c_uint) since 3020;
    cuStreamWriteValue64_v2(CUstream, CUdeviceptr, u64, c_uint) since 11070;
    cuStreamWaitValue64_v2(CUstream, CUdeviceptr, u64, c_uint) since 11070;
    cuLaunchHostFunc(CUstream, unsafe extern "C" fn(*mut c_void), *mut c_void) since 10000;
    cuEventCreate(*mut CUevent, c_uint) since 2000;
    cuEventDestroy_v2(CUevent) since 4000;
    cuEventRecord(CUevent, CUstream) since 2000;
    cuEventRecordWithFlags(CUevent, CUstream, c_uint) since 11010;
    cuEventQuery(CUevent) since 2000;
    cuEventSynchronize(CUevent) since 2000;
    cuEventElapsedTime(*mut f32, CUevent, CUevent) since 2000;
    cuIpcGetMemHandle(*mut CUipcMemHandle, CUdeviceptr) since 4010;
    cuIpcOpenMemHandle_v2(*mut CUdeviceptr, CUipcMemHandle, c_uint) since 11000;
    cuIpcCloseMemHandle(CUdeviceptr) since 4010;
    cuIpcGetEventHandle(*mut CUipcEventHandle, CUevent) since 4010;
    cuIpcOpenEventHandle(*mut CUevent, CUipcEventHandle) since 4010;
    cuModuleLoadData(*mut CUmodule, *const c_void) since 2000;
    cuModuleUnload(CUmodule) since 2000;
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char) since 2000;
    cuFuncGetAttribute(*mut c_int, c_int, CUfunction) since 2020;
    cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
        *mut *mut c_void, *mut *mut c_void
    ) since 4000;
    cuLaunchCooperativeKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
        *mut *mut c_void
    ) since 9000;
    cuLaunchKernelEx(
        *const LaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void
    ) since 11060;
    cuThreadExchangeStreamCaptureMode(*mut c_int) since 10010;
    cuStreamGetCaptureInfo(CUstream, *mut c_int, *mut u64) since 10010;
    cuStreamBeginCapture_v2(CUstream, c_int) since 10010;
    cuStreamEndCapture(CUstream, *mut CUgraph) since 10000;
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, u64) since 11040;
    cuGraphLaunch(CUgraphExec, CUstream) since 10000;
    cuGraphDestroy(CUgraph) since 10000;
    cuGraphExecDestroy(CUgraphExec) since 10000;
}

/// Calls a function of the driver: `call!(driver, function(arguments))`. An error contains the name
/// of the function.
///
/// The caller has to make sure that the arguments are what the driver's ABI requires: that handles
/// are valid, and that pointers are to memory of the stated size which outlives the call.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {
        // A match keeps temporaries of `$driver` alive to its end, so the context stays current.
        match $driver {
            guard => {
                let driver: &$crate::driver::Driver = guard;
                match driver.functions().$name {
                    Some(function) => {
                        // SAFETY: see above: the types of this crate own the handles that they
                        // pass, and pass pointers to memory of the stated sizes.
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
