//! The choice of memory for a communicator: a CUDA device, or the host.
//!
//! As in NCCL the device is the one that the calling thread has chosen at the call, whatever thread
//! creates the communicator later. A thread that has chosen none gets the first device, as in
//! CUDA's runtime. Runtimes before CUDA 12 choose a device without making its context; the device
//! is asked of them.
//!
//! `MAYPOLE_DEVICE` decides whether there is a choice. `host` asks no driver. `cuda` demands a
//! device that works. `auto` takes a device if there is one; if that device does not work, this is
//! an error for a thread that has chosen the device, as its buffers are in the device's memory. For
//! other threads it is a warning, and the communicator works on host memory.

use std::ffi::c_int;

use maypole::ResultCode;
use maypole::config::{Config, DeviceKind};
use maypole::device;

use crate::boundary::{invalid_argument, keep_error, refuse};

/// On which memory a communicator works.
#[derive(Clone, Copy)]
pub(crate) enum CommMemory {
    /// That of the CUDA device with this number.
    Cuda(c_int),
    /// That of the host. The number is the client's, or -1 if the client gave none.
    Host(c_int),
}

impl CommMemory {
    /// The memory for a communicator that a call of this thread creates.
    pub(crate) fn of_this_thread() -> Result<Self, ResultCode> {
        let device = match (device_count()?, device::current()) {
            (0, _) => None,
            (_, Some(chosen)) => usable_device(chosen)?,
            (count, None) => {
                if count > 1 {
                    log::info!(
                        target: "INIT",
                        "this thread has chosen none of {count} CUDA devices, so it gets device 0; \
                         call cudaSetDevice first, with a runtime before CUDA 12 also cudaFree(0)"
                    );
                }
                usable_device(0)?
            }
        };
        Ok(device.map_or(Self::Host(-1), Self::Cuda))
    }

    /// The memory for a communicator where the client gives the number of the device.
    pub(crate) fn of_device(function: &str, number: c_int) -> Result<Self, ResultCode> {
        let device = match device_count()? {
            0 => None,
            count if u32::try_from(number).is_ok_and(|number| number < count) => {
                usable_device(number)?
            }
            count => {
                return Err(invalid_argument(&format!(
                    "{function}: there is no device {number}; this process sees {count} \
                     (with MAYPOLE_DEVICE=host numbers of devices have no meaning)"
                )));
            }
        };
        Ok(device.map_or(Self::Host(number), Self::Cuda))
    }
}

/// The devices that this process can choose among, in words.
pub(crate) fn describe_devices() -> String {
    match Config::get().device {
        DeviceKind::Host => String::from("on host memory"),
        _ => match device::count() {
            Ok(0) => String::from("on host memory"),
            Ok(count) => format!("on {count} CUDA devices"),
            Err(error) => format!("without CUDA devices ({error})"),
        },
    }
}

/// How many devices this process can choose among.
fn device_count() -> Result<u32, ResultCode> {
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
        // No thread can have chosen a device of a driver that does not work.
        Err(error) => host_memory_instead(error, false).map(|_| 0),
    }
}

/// The device if it works; None for host memory instead.
fn usable_device(number: c_int) -> Result<Option<c_int>, ResultCode> {
    match device::check(number) {
        Ok(()) => Ok(Some(number)),
        Err(error) => host_memory_instead(error, device::current() == Some(number)),
    }
}

/// Whether host memory can replace a device, or a driver, that does not work.
fn host_memory_instead(
    error: maypole::Error,
    chosen_by_thread: bool,
) -> Result<Option<c_int>, ResultCode> {
    if Config::get().device == DeviceKind::Cuda || chosen_by_thread {
        log::warn!("{error}; MAYPOLE_DEVICE=host makes communicators of host memory");
        return Err(keep_error(&error));
    }
    log::warn!("{error}; the communicator works on host memory");
    Ok(None)
}
