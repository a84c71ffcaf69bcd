//! What the library logs when a process first uses it.

use std::ffi::CStr;

use maypole::config;
use maypole::internal::sync::{AtomicBool, Ordering};
use maypole::internal::{logger, process};

use crate::cuda;

/// Logs the version and the settings, as NCCL does. Functions that create a communicator call this;
/// only the first call in a process logs.
pub(crate) fn log_once() {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    process::occupy_standard_streams();
    logger::install();
    if !LOGGED.swap(true, Ordering::Relaxed) {
        let maypole = env!("CARGO_PKG_VERSION");
        logger::version(&format!("NCCL version 2.32.3+maypole{maypole}"));
        log::info!(
            target: "INIT",
            "Maypole {maypole} in the place of NCCL 2.32.3, {}, loaded from {}",
            cuda::describe_devices(),
            library_path()
        );
        config::log_settings();
    }
}

/// The path of this library.
fn library_path() -> String {
    let mut found = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address is one of this library, and the result is written to a local variable.
    let status =
        unsafe { libc::dladdr(library_path as fn() -> String as *const _, &raw mut found) };
    if status == 0 || found.dli_fname.is_null() {
        return String::from("an unknown place");
    }
    // SAFETY: dladdr found the name, and its names end in a zero.
    unsafe { CStr::from_ptr(found.dli_fname) }.to_string_lossy().into_owned()
}
