//! Configurations that clients pass, of communicators and of single collectives.
//!
//! A configuration begins with its size, a magic number and the version of NCCL that the client was
//! compiled for. Clients of older versions have fewer fields.

mod collective;
mod communicator;

use maypole::ResultCode;

use crate::boundary::invalid_argument;
use crate::layout::{API_MAGIC, read_header};

pub(crate) use collective::read_algorithms;
pub(crate) use communicator::{CommSettings, read_settings};

/// Copies the fields that the client's configuration has over those of `ours`.
///
/// `least` is the size of the smallest configuration that any version of NCCL had, in bytes.
///
/// # Safety
/// `T` begins with `size: usize`, `magic: c_uint` and `version: c_uint`, and any bytes are a valid
/// `T`. `config` is readable for 16 bytes and, if these are the start of a configuration, for as
/// many bytes as its size says.
unsafe fn copy_known_fields<T>(
    config: *const T,
    ours: &mut T,
    least: usize,
    initializer: &str,
) -> Result<(), ResultCode> {
    // SAFETY: `config` is readable for the 16 bytes of the header, as the caller promises.
    let (size, magic) = unsafe { read_header(config) };
    if magic != API_MAGIC {
        return Err(invalid_argument(&format!(
            "the configuration was not initialised by {initializer}"
        )));
    }
    if size < least {
        return Err(invalid_argument(&format!(
            "a configuration of {size} bytes is smaller than that of any version of NCCL"
        )));
    }
    // SAFETY: `config` is readable for `size` bytes, as the caller promises, and `ours` is at least
    // as long as what is copied; any bytes are a valid `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(
            config.cast::<u8>(),
            std::ptr::from_mut(ours).cast::<u8>(),
            size.min(size_of::<T>()),
        );
    }
    Ok(())
}

/// Refuses the value of a field.
fn wrong_field(field: &str, value: i32, expected: &str) -> ResultCode {
    invalid_argument(&format!("the configuration's {field} is {value}; it must be {expected}"))
}
