//! The device that a thread has chosen in a CUDA runtime of its program.
//!
//! Until CUDA 12.0, `cudaSetDevice` only noted the number of the device for the thread; the context
//! was made by the first call that needed it. So the driver does not know of such a choice, and the
//! runtime has to be asked. That is possible for a runtime that is a shared library. A runtime that
//! is linked statically into a program has no names; what such a program chooses is known as soon
//! as it has a context, for example after `cudaMalloc`.

use std::ffi::{CStr, c_int, c_void};

/// The file names of runtimes that choose without making a context.
const LIBRARIES: [&CStr; 2] = [c"libcudart.so.11.0", c"libcudart.so.10.2"];

/// The device that this thread has chosen in a runtime that the process has loaded, by its number
/// there, which is that of the driver. It is 0 if the thread has chosen none. `None` if there is no
/// such runtime.
pub fn chosen_device() -> Option<i32> {
    let function = LIBRARIES.iter().find_map(|name| {
        // SAFETY: the name ends in a zero byte. RTLD_NOLOAD only finds what is loaded.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        let library = std::ptr::NonNull::new(library)?;
        // SAFETY: the library is loaded, and the name ends in a zero byte. The handle is not
        // closed, so the function stays where it is.
        let function = unsafe { libc::dlsym(library.as_ptr(), c"cudaGetDevice".as_ptr()) };
        (!function.is_null()).then_some(function)
    })?;
    let mut device: c_int = 0;
    // SAFETY: the runtime gives the function of this name this signature; it writes the number.
    let failed = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(function)(
            &raw mut device,
        )
    };
    (failed == 0).then_some(device)
}
