//! `ncclResetDebugInit` and its internal form, which do nothing, and `ncclSetEncryption`, which
//! accepts no key.

use std::ffi::{CStr, c_int};

use maypole::ResultCode;

use super::macros::abi;
use crate::boundary::{NcclResult, guarded, invalid_argument, refuse};
use crate::layout::{API_MAGIC, NcclEncryptionConfig, read_header};

/// `NCCL_ENCRYPTION_MODE_NONE`
const NO_ENCRYPTION: c_int = 0;
/// `NCCL_ENCRYPTION_MODE_PSK`
const PRE_SHARED_KEY: c_int = 1;
/// The least bytes of a pre-shared key.
const SHORTEST_KEY: usize = 32;

abi! {
    /// `ncclResetDebugInit`: deprecated in NCCL; does nothing.
    fn ncclResetDebugInit() {}

    /// `ncclSetEncryption`: only mode NONE is supported. Mode PSK is refused, as nothing would be
    /// encrypted. (Connections are always authenticated by the secret in the unique id.)
    fn ncclSetEncryption(config: *const NcclEncryptionConfig) -> NcclResult {
        guarded(|| {
            if config.is_null() {
                return Ok(());
            }
            // SAFETY: the client promised that `config` is readable for its header.
            let (size, magic) = unsafe { read_header(config) };
            if magic != API_MAGIC || size < size_of::<NcclEncryptionConfig>() {
                return Err(invalid_argument(
                    "ncclSetEncryption: the configuration was not initialised by \
                     NCCL_ENCRYPTION_CONFIG_INITIALIZER",
                ));
            }
            // SAFETY: the client promised that `config` is as long as its size says.
            let (mode, key) = unsafe { ((*config).mode, (*config).psk) };
            match mode {
                NO_ENCRYPTION => Ok(()),
                PRE_SHARED_KEY => {
                    // SAFETY: the client promised a key that ends in a zero.
                    let too_short = key.is_null()
                        || unsafe { CStr::from_ptr(key) }.count_bytes() < SHORTEST_KEY;
                    if too_short {
                        return Err(invalid_argument(
                            "ncclSetEncryption: a pre-shared key has at least 32 bytes",
                        ));
                    }
                    Err(refuse(
                        ResultCode::InvalidUsage,
                        "ncclSetEncryption: this version does not encrypt; connections are \
                         authenticated by the unique id",
                    ))
                }
                _ => Err(invalid_argument(&format!("ncclSetEncryption: there is no mode {mode}"))),
            }
        })
    }
}

/// `ncclResetDebugInitInternal`, which NCCL exports without a declaration and without a pnccl
/// alias: does nothing.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name is NCCL's")]
extern "C" fn ncclResetDebugInitInternal() {}
