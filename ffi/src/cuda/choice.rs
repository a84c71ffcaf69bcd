//! Which device a communicator is for. As in NCCL it is the one that the calling thread has chosen, at the call, whatever thread makes the
//! communicator later; where it has chosen none, the first, as in CUDA's runtime.
//!
//! `MAYPOLE_DEVICE` decides whether there is a choice: `host` asks no driver; `cuda` wants a device, and is an error where there is none that
//! works; `auto` takes a device where there is one. Where there is one that does not work, `auto` is an error for a thread that has chosen
//! it, whose buffers are in its memory, and host memory, with a warning, for others.

use std::ffi::c_int;

use maypole::ResultCode;
use maypole::config::{Config, DeviceKind};
use maypole::device;

use crate::boundary::{failed, invalid, refuse};

/// The device for a communicator that is made by a call of this thread; None: host memory.
pub(crate) fn chosen() -> Result<Option<c_int>, ResultCode> {
    match devices()? {
        0 => Ok(None),
        _ => usable(device::current().unwrap_or(0)),
    }
}

/// The same where the client names the device.
pub(crate) fn listed(function: &str, ordinal: c_int) -> Result<Option<c_int>, ResultCode> {
    match devices()? {
        0 => Ok(None),
        count if u32::try_from(ordinal).is_ok_and(|ordinal| ordinal < count) => usable(ordinal),
        count => Err(invalid(&format!(
            "{function}: there is no device {ordinal}; this process sees {count} (MAYPOLE_DEVICE=host takes numbers without a meaning)"
        ))),
    }
}

/// What there is to choose among, in words.
pub(crate) fn seen() -> String {
    match Config::get().device {
        DeviceKind::Host => String::from("on host memory"),
        _ => match device::count() {
            Ok(0) => String::from("on host memory"),
            Ok(count) => format!("on {count} CUDA devices"),
            Err(error) => format!("without CUDA devices ({error})"),
        },
    }
}

/// How many there are to choose among.
fn devices() -> Result<u32, ResultCode> {
    let kind = Config::get().device;
    if kind == DeviceKind::Host {
        return Ok(0);
    }
    match device::count() {
        Ok(0) if kind == DeviceKind::Cuda => Err(refuse(
            ResultCode::InvalidUsage,
            "MAYPOLE_DEVICE=cuda, but this process sees no CUDA device",
        )),
        Ok(count) => Ok(count),
        // No context can be current with such a driver.
        Err(error) => instead(error, false).map(|_| 0),
    }
}

/// The device, if it can be used; else what is done about it.
fn usable(ordinal: c_int) -> Result<Option<c_int>, ResultCode> {
    match device::check(ordinal) {
        Ok(()) => Ok(Some(ordinal)),
        Err(error) => instead(error, device::current() == Some(ordinal)),
    }
}

/// A device, or the driver, cannot be used.
fn instead(error: maypole::Error, chosen: bool) -> Result<Option<c_int>, ResultCode> {
    if Config::get().device == DeviceKind::Cuda || chosen {
        log::warn!("{error}; MAYPOLE_DEVICE=host makes communicators of host memory");
        return Err(failed(&error));
    }
    log::warn!("{error}; the communicator is of host memory");
    Ok(None)
}
