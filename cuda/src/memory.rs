//! Memory that devices use: of the device, pinned memory of the host, and what the driver knows about an address.

use crate::driver::functions::call;
use crate::driver::{Device, Driver, DriverError};
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Device memory. Freed on drop, which waits for all work of the device.
pub struct DeviceBuffer {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl DeviceBuffer {
    /// `bytes` of undefined content; at least one is allocated.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, DriverError> {
        let mut address = 0;
        call!(&device.current()?, cuMemAlloc_v2(&mut address, bytes.max(1)))?;
        Ok(Self { device: device.clone(), address, bytes })
    }

    /// The first byte, as the device sees it; aligned to 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// As many bytes as were asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device that it belongs to.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // A failure here is one of earlier work, which the stream has reported.
        let _ = self.device.current().map(|driver| call!(&driver, cuMemFree_v2(self.address)));
    }
}

/// PORTABLE and DEVICEMAP: for every context, and with an address for the device.
const PORTABLE_MAPPED: u32 = 3;

/// Pinned memory of the host that kernels reach too. Freed on drop.
pub struct PinnedBuffer {
    device: Arc<Device>,
    host: NonNull<c_void>,
    address: u64,
    bytes: usize,
}

// SAFETY: it is memory like any other; who uses it across threads and devices answers for that (`host`).
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `bytes` (at least one) of zeros.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.max(1);
        let driver = device.current()?;
        let mut host = ptr::null_mut();
        call!(&driver, cuMemHostAlloc(&mut host, bytes, PORTABLE_MAPPED))?;
        // SAFETY: the driver has just given that many bytes.
        unsafe { host.write_bytes(0, bytes) };
        let mut address = 0;
        let mapped = call!(&driver, cuMemHostGetDevicePointer_v2(&mut address, host, 0));
        let host = NonNull::new(host).expect("memory that was allocated has an address");
        let pinned = Self { device: device.clone(), host, address, bytes };
        if let Err(error) = mapped {
            // It stays: freeing waits for all work of the device, which may wait for whoever is to hear of this failure.
            std::mem::forget(pinned);
            return Err(error);
        }
        Ok(pinned)
    }

    /// The first byte, as the host sees it; aligned to a page. Kernels may be writing: use atomics, or wait for them.
    pub fn host(&self) -> NonNull<u8> {
        self.host.cast()
    }

    /// The first byte, as devices see it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // As for DeviceBuffer.
        let _ =
            self.device.current().map(|driver| call!(&driver, cuMemFreeHost(self.host.as_ptr())));
    }
}

/// Memory of the user that is pinned while this lives.
pub struct RegisteredMemory {
    device: Arc<Device>,
    host: *mut c_void,
    address: u64,
}

// SAFETY: the driver locks its registrations, and this does not touch the memory.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as above.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// Pins `bytes` at `host`.
    ///
    /// # Safety
    /// The memory stays mapped while this lives.
    pub unsafe fn new(
        device: &Arc<Device>,
        host: *mut c_void,
        bytes: usize,
    ) -> Result<Self, DriverError> {
        let driver = device.current()?;
        call!(&driver, cuMemHostRegister_v2(host, bytes, PORTABLE_MAPPED))?;
        let mut registered = Self { device: device.clone(), host, address: 0 };
        let address = &mut registered.address;
        call!(&driver, cuMemHostGetDevicePointer_v2(address, host, 0))?;
        Ok(registered)
    }

    /// The first byte, as devices see it.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        // As for DeviceBuffer.
        let _ = self.device.current().map(|driver| call!(&driver, cuMemHostUnregister(self.host)));
    }
}

/// What an address is, to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// Memory that the driver does not know: of the host, pageable.
    Pageable,
    /// Pinned memory of the host.
    Pinned,
    /// Memory of a device, its own or imported.
    Device {
        /// Of the device.
        ordinal: i32,
        /// First byte of the allocation that holds the address.
        start: u64,
        /// Of the allocation.
        bytes: usize,
    },
}

const MEMORY_TYPE: c_int = 2;
const DEVICE_ORDINAL: c_int = 9;
const RANGE_START: c_int = 11;
const RANGE_BYTES: c_int = 12;
/// CUDA_ERROR_INVALID_VALUE.
const INVALID_VALUE: i32 = 1;

/// True if `address` is in memory that the driver knows: of a device, or pinned, registered or managed. One call of the driver.
pub fn is_known(driver: &Driver, address: u64) -> Result<bool, DriverError> {
    let mut kind = 0u32;
    let at = ptr::from_mut(&mut kind).cast();
    match call!(driver, cuPointerGetAttribute(at, MEMORY_TYPE, address)) {
        Err(DriverError::Failed { code: INVALID_VALUE, .. }) => Ok(false),
        result => result.map(|()| true),
    }
}

/// Where the byte at `address` lies. Any number may be asked for.
pub fn address_kind(driver: &Driver, address: u64) -> Result<AddressKind, DriverError> {
    let mut kind = 0u32;
    let at = ptr::from_mut(&mut kind).cast();
    match call!(driver, cuPointerGetAttribute(at, MEMORY_TYPE, address)) {
        Err(DriverError::Failed { code: INVALID_VALUE, .. }) => return Ok(AddressKind::Pageable),
        result => result?,
    }
    if kind != 2 {
        return Ok(AddressKind::Pinned);
    }
    let (mut ordinal, mut start, mut bytes) = (0i32, 0u64, 0usize);
    let (a, b, c) =
        (ptr::from_mut(&mut ordinal), ptr::from_mut(&mut start), ptr::from_mut(&mut bytes));
    call!(driver, cuPointerGetAttribute(a.cast(), DEVICE_ORDINAL, address))?;
    call!(driver, cuPointerGetAttribute(b.cast(), RANGE_START, address))?;
    call!(driver, cuPointerGetAttribute(c.cast(), RANGE_BYTES, address))?;
    Ok(AddressKind::Device { ordinal, start, bytes })
}
