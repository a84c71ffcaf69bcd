//! Sharing of device memory and events between processes of one host.
//!
//! A handle is 64 bytes that processes may exchange by any means. A process cannot open its own
//! handles.

use crate::driver::functions::call;
use crate::driver::{Device, DriverError};
use crate::memory::{AddressKind, DeviceBuffer, address_kind};
use crate::stream::CudaEvent;
use cudarc::driver::sys::{CUipcEventHandle, CUipcMem_flags, CUipcMemHandle};
use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;

/// The only flag that the driver accepts.
const LAZY_PEER_ACCESS: u32 = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;

/// A handle by which another process opens device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryHandle {
    /// The driver's handle, which is of the whole allocation.
    pub bytes: [u8; 64],
    /// The offset of the exported address in the allocation, which the driver's handle does not
    /// contain.
    pub offset: u64,
}

/// Makes a handle for the memory at `address`, which is in an allocation of `device`. The caller
/// keeps it allocated while other processes have it open.
///
/// # Errors
/// The driver cannot share the memory.
pub fn export(device: &Device, address: u64) -> Result<MemoryHandle, DriverError> {
    let driver = device.current()?;
    let mut handle = CUipcMemHandle { reserved: [0; 64] };
    call!(&driver, cuIpcGetMemHandle(&mut handle, address))?;
    let offset = match address_kind(&driver, address)? {
        AddressKind::Device { start, .. } => address - start,
        AddressKind::Pageable | AddressKind::Pinned => 0,
    };
    Ok(MemoryHandle { bytes: to_bytes(handle.reserved), offset })
}

/// Makes a handle for a buffer.
///
/// # Errors
/// The driver cannot share the memory.
pub fn export_buffer(buffer: &DeviceBuffer) -> Result<MemoryHandle, DriverError> {
    export(buffer.device(), buffer.address())
}

/// Device memory of another process, open in this process. It is closed on drop, which waits for
/// all work of the device.
pub struct Imported {
    device: Arc<Device>,
    start: u64,
    offset: u64,
}

impl Imported {
    /// Opens memory that another process has exported, for use by kernels of `device`.
    ///
    /// # Errors
    /// The driver cannot open it, for example because the other process has ended.
    pub fn open(device: &Arc<Device>, handle: &MemoryHandle) -> Result<Self, DriverError> {
        let mut start = 0;
        call!(
            &device.current()?,
            cuIpcOpenMemHandle_v2(
                &mut start,
                CUipcMemHandle { reserved: from_bytes(handle.bytes) },
                LAZY_PEER_ACCESS
            )
        )?;
        Ok(Self { device: device.clone(), start, offset: handle.offset })
    }

    /// The exported address, as kernels of the device see it in this process.
    pub fn address(&self) -> u64 {
        self.start + self.offset
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        // A failure here comes from earlier work, and the stream has reported it.
        let _ = self.device.current().map(|driver| call!(&driver, cuIpcCloseMemHandle(self.start)));
    }
}

/// A handle by which another process opens an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventHandle {
    /// The driver's handle.
    pub bytes: [u8; 64],
}

/// Makes a handle for `event`, which was made with [`CudaEvent::shared`] on `device`.
///
/// # Errors
/// The driver cannot share the event.
pub fn export_event(device: &Device, event: &CudaEvent) -> Result<EventHandle, DriverError> {
    let mut handle = CUipcEventHandle { reserved: [0; 64] };
    call!(&device.current()?, cuIpcGetEventHandle(&mut handle, event.raw()))?;
    Ok(EventHandle { bytes: to_bytes(handle.reserved) })
}

/// Opens an event of another process.
///
/// # Errors
/// The driver cannot open it.
pub fn open_event(device: &Arc<Device>, handle: &EventHandle) -> Result<CudaEvent, DriverError> {
    let mut event = ptr::null_mut();
    let handle = CUipcEventHandle { reserved: from_bytes(handle.bytes) };
    call!(&device.current()?, cuIpcOpenEventHandle(&mut event, handle))?;
    Ok(CudaEvent::from_handle(device, event))
}

fn to_bytes(chars: [c_char; 64]) -> [u8; 64] {
    chars.map(|c| c as u8)
}

fn from_bytes(bytes: [u8; 64]) -> [c_char; 64] {
    bytes.map(|b| b as c_char)
}
