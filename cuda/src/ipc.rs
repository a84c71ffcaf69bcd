//! Device memory and events of other processes on the same host.
//!
//! A handle is 64 bytes that travel by any way. A process cannot open its own.

use crate::driver::functions::{IpcHandle, call};
use crate::driver::{Device, DriverError};
use crate::memory::{AddressKind, DeviceBuffer, address_kind};
use crate::stream::CudaEvent;
use std::ptr;
use std::sync::Arc;

/// CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: the only flag that the driver takes.
const LAZY_PEER_ACCESS: u32 = 1;

/// Names device memory to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryHandle {
    /// Opaque; of the whole allocation.
    pub bytes: [u8; 64],
    /// Where the exported address lies in the allocation: the driver's handle does not tell.
    pub offset: u64,
}

/// A handle for the memory at `address`, which is in an allocation of `device` and stays allocated while others have it open.
pub fn export(device: &Device, address: u64) -> Result<MemoryHandle, DriverError> {
    let driver = device.current()?;
    let mut handle = IpcHandle([0; 64]);
    call!(&driver, cuIpcGetMemHandle(&mut handle, address))?;
    let offset = match address_kind(&driver, address)? {
        AddressKind::Device { start, .. } => address - start,
        AddressKind::Pageable | AddressKind::Pinned => 0,
    };
    Ok(MemoryHandle { bytes: handle.0, offset })
}

/// As [`export`], of a buffer from its start.
pub fn export_buffer(buffer: &DeviceBuffer) -> Result<MemoryHandle, DriverError> {
    export(buffer.device(), buffer.address())
}

/// Memory of another process, open in this one. Closed on drop, which waits for all work of the device.
pub struct Imported {
    device: Arc<Device>,
    start: u64,
    offset: u64,
}

impl Imported {
    /// Opens what another process has exported; kernels of `device` will use it.
    pub fn open(device: &Arc<Device>, handle: &MemoryHandle) -> Result<Self, DriverError> {
        let mut start = 0;
        call!(
            &device.current()?,
            cuIpcOpenMemHandle_v2(&mut start, IpcHandle(handle.bytes), LAZY_PEER_ACCESS)
        )?;
        Ok(Self { device: device.clone(), start, offset: handle.offset })
    }

    /// The exported address, as kernels of the device see it here.
    pub fn address(&self) -> u64 {
        self.start + self.offset
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        // A failure here is one of earlier work, which the stream has reported.
        let _ = self.device.current().map(|driver| call!(&driver, cuIpcCloseMemHandle(self.start)));
    }
}

/// Names an event to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventHandle {
    /// Opaque.
    pub bytes: [u8; 64],
}

/// A handle for `event`, which was made with [`CudaEvent::shared`] on `device`.
pub fn export_event(device: &Device, event: &CudaEvent) -> Result<EventHandle, DriverError> {
    let mut handle = IpcHandle([0; 64]);
    call!(&device.current()?, cuIpcGetEventHandle(&mut handle, event.handle()))?;
    Ok(EventHandle { bytes: handle.0 })
}

/// Opens an event of another process.
pub fn open_event(device: &Arc<Device>, handle: &EventHandle) -> Result<CudaEvent, DriverError> {
    let mut event = ptr::null_mut();
    call!(&device.current()?, cuIpcOpenEventHandle(&mut event, IpcHandle(handle.bytes)))?;
    Ok(CudaEvent::of(device, event))
}
