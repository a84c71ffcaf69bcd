//! What the library says when it is first used, and the functions about logs and secrets.

use std::ffi::{CStr, c_int};
use std::sync::Once;

use maypole::ResultCode;
use maypole::config;
use maypole::internal::logger;

use crate::boundary::{NcclResult, answer, invalid, refuse};
use crate::cuda;
use crate::export::abi;
use crate::layout::{API_MAGIC, NcclEncryptionConfig};

/// `NCCL_ENCRYPTION_MODE_*`
const NO_ENCRYPTION: c_int = 0;
const PRE_SHARED_KEY: c_int = 1;
/// Bytes of a pre-shared key.
const LEAST_KEY: usize = 32;

/// To be called as a communicator begins: once per process the version and the settings are logged, as NCCL does.
pub(crate) fn begin() {
    static ONCE: Once = Once::new();
    logger::install();
    ONCE.call_once(|| {
        let maypole = env!("CARGO_PKG_VERSION");
        logger::version(&format!("NCCL version 2.32.3+maypole{maypole}"));
        log::info!(target: "INIT", "Maypole {maypole} in the place of NCCL 2.32.3, {}, loaded from {}", cuda::seen(), path());
        log::info!(target: "INIT", "Using network Socket");
        config::log_settings();
    });
}

/// Where this library lies.
fn path() -> String {
    let mut found = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address is one of this library, and the result is written to a local variable.
    let status = unsafe { libc::dladdr(path as fn() -> String as *const _, &raw mut found) };
    if status == 0 || found.dli_fname.is_null() {
        return String::from("an unknown place");
    }
    // SAFETY: dladdr found it, and names end in a zero.
    unsafe { CStr::from_ptr(found.dli_fname) }.to_string_lossy().into_owned()
}

abi! {
    /// `ncclResetDebugInit`: deprecated in NCCL; does nothing.
    fn ncclResetDebugInit() {}

    /// `ncclSetEncryption`: mode NONE is what there is; PSK is refused, since nothing would be encrypted. (Connections are authenticated
    /// by the secret in the unique id without being asked.)
    fn ncclSetEncryption(config: *const NcclEncryptionConfig) -> NcclResult {
        answer(|| {
            if config.is_null() {
                return Ok(());
            }
            // SAFETY: the caller's promise; the start first, the rest if it is a whole one.
            let (size, magic) = unsafe { ((&raw const (*config).size).read(), (&raw const (*config).magic).read()) };
            if magic != API_MAGIC || size < size_of::<NcclEncryptionConfig>() {
                return Err(invalid(
                    "ncclSetEncryption: the configuration was not initialised by NCCL_ENCRYPTION_CONFIG_INITIALIZER",
                ));
            }
            // SAFETY: the caller's promise.
            let (mode, key) = unsafe { ((*config).mode, (*config).psk) };
            match mode {
                NO_ENCRYPTION => Ok(()),
                PRE_SHARED_KEY => {
                    // SAFETY: the caller's promise.
                    if key.is_null() || unsafe { CStr::from_ptr(key) }.count_bytes() < LEAST_KEY {
                        return Err(invalid("ncclSetEncryption: a pre-shared key has at least 32 bytes"));
                    }
                    Err(refuse(
                        ResultCode::InvalidUsage,
                        "ncclSetEncryption: this version does not encrypt; connections are authenticated by the unique id",
                    ))
                }
                _ => Err(invalid(&format!("ncclSetEncryption: there is no mode {mode}"))),
            }
        })
    }
}
