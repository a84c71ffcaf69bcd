//! Memory that devices use: device memory, pinned host memory, and what kind of memory an address
//! is in.

use crate::driver::functions::call;
use crate::driver::{Device, Driver, DriverError};
use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CUdeviceptr, CUmemorytype,
    CUpointer_attribute, CUresult,
};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Device memory. It is freed on drop, which waits for all work of the device.
pub struct DeviceBuffer {
    device: Arc<Device>,
    address: CUdeviceptr,
    bytes: usize,
    /// The allocation that this is a piece of. None for a whole allocation.
    whole: Option<Arc<Self>>,
}

impl DeviceBuffer {
    /// Allocates `bytes` (at least one) of undefined content.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, DriverError> {
        let mut address = 0;
        call!(&device.current()?, cuMemAlloc_v2(&mut address, bytes.max(1)))?;
        Ok(Self { device: device.clone(), address, bytes, whole: None })
    }

    /// The `bytes` bytes from `offset` on, a multiple of 256, of an allocation. It is freed when
    /// all its pieces are dropped.
    ///
    /// # Panics
    /// If the allocation is shorter.
    pub(crate) fn piece(whole: &Arc<Self>, offset: usize, bytes: usize) -> Self {
        assert!(offset.is_multiple_of(256) && offset + bytes <= whole.bytes, "a piece lies within");
        let address = whole.address + offset as u64;
        Self { device: whole.device.clone(), address, bytes, whole: Some(whole.clone()) }
    }

    /// Whether this is an allocation of its own, which other processes can open.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.is_none()
    }

    /// The address of the first byte, as the device sees it; a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of bytes that were requested.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device that the memory belongs to.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if !self.is_whole() {
            return;
        }
        // A failure here comes from earlier work, and the stream has reported it.
        let _ = self.device.current().map(|driver| call!(&driver, cuMemFree_v2(self.address)));
    }
}

/// Pinned for every context, and with an address for the device. `cuMemHostRegister` uses the same
/// values.
const PORTABLE_MAPPED: c_uint = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;

/// Pinned host memory, which kernels reach too. It is freed on drop.
pub struct PinnedBuffer {
    device: Arc<Device>,
    host: NonNull<c_void>,
    address: u64,
    bytes: usize,
    /// The allocation that this is a piece of. None for a whole allocation.
    whole: Option<Arc<Self>>,
}

// SAFETY: this type does not access the memory. Users of `host` have to synchronise their accesses.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as for `Send`.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `bytes` (at least one) of zeros.
    ///
    /// # Errors
    /// There is no memory left that can be pinned.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.max(1);
        let driver = device.current()?;
        let mut host = ptr::null_mut();
        call!(&driver, cuMemHostAlloc(&mut host, bytes, PORTABLE_MAPPED))?;
        // SAFETY: the driver has just allocated that many bytes.
        unsafe { host.write_bytes(0, bytes) };
        let mut address = 0;
        let mapped = call!(&driver, cuMemHostGetDevicePointer_v2(&mut address, host, 0));
        let host = NonNull::new(host).expect("memory that was allocated has an address");
        let pinned = Self { device: device.clone(), host, address, bytes, whole: None };
        if let Err(error) = mapped {
            // The memory is leaked: freeing it would wait for all work of the device, and that work
            // may wait for a rank that has to learn of this failure first.
            std::mem::forget(pinned);
            return Err(error);
        }
        Ok(pinned)
    }

    /// The `bytes` bytes from `offset` on, a multiple of 4096, of an allocation. It is freed when
    /// all its pieces are dropped.
    ///
    /// # Panics
    /// If the allocation is shorter.
    pub(crate) fn piece(whole: &Arc<Self>, offset: usize, bytes: usize) -> Self {
        assert!(
            offset.is_multiple_of(4096) && offset + bytes <= whole.bytes,
            "a piece lies within"
        );
        // SAFETY: the piece lies within the allocation.
        let host = unsafe { whole.host.byte_add(offset) };
        let address = whole.address + offset as u64;
        Self { device: whole.device.clone(), host, address, bytes, whole: Some(whole.clone()) }
    }

    /// The address of the first byte for the host, the start of a page. Kernels may write at any
    /// time, so use atomics or wait for the kernels.
    pub fn host(&self) -> NonNull<u8> {
        self.host.cast()
    }

    /// The address of the first byte for devices.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.whole.is_some() {
            return;
        }
        // As for `DeviceBuffer`.
        let _ =
            self.device.current().map(|driver| call!(&driver, cuMemFreeHost(self.host.as_ptr())));
    }
}

/// Host memory of the user that is pinned until the value is dropped.
pub struct RegisteredMemory {
    device: Arc<Device>,
    host: *mut c_void,
    address: u64,
}

// SAFETY: the driver locks its registrations, and this type does not access the memory.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// Pins `bytes` at `host`.
    ///
    /// # Errors
    /// The memory cannot be pinned, for example because it already is.
    ///
    /// # Safety
    /// The memory stays mapped until the value is dropped.
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

    /// The address of the first byte for devices.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        // As for `DeviceBuffer`.
        let _ = self.device.current().map(|driver| call!(&driver, cuMemHostUnregister(self.host)));
    }
}

/// The kind of memory that an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// Pageable host memory, or no memory: the driver does not know the address.
    Pageable,
    /// Pinned host memory.
    Pinned,
    /// Device memory, allocated by this process or imported.
    Device {
        /// The number of the device.
        ordinal: i32,
        /// The first byte of the allocation that contains the address.
        start: u64,
        /// The number of bytes of the allocation.
        bytes: usize,
    },
}

const MEMORY_TYPE: c_int = CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as c_int;
const DEVICE_ORDINAL: c_int = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as c_int;
const RANGE_START: c_int = CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR as c_int;
const RANGE_BYTES: c_int = CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE as c_int;
const INVALID_VALUE: i32 = CUresult::CUDA_ERROR_INVALID_VALUE as i32;

/// Whether `address` is in memory that the driver knows: device memory, or host memory that is
/// pinned, registered or managed. This is one call of the driver.
///
/// # Errors
/// The driver fails.
pub fn is_known(driver: &Driver, address: u64) -> Result<bool, DriverError> {
    let mut kind = 0u32;
    let at = ptr::from_mut(&mut kind).cast();
    match call!(driver, cuPointerGetAttribute(at, MEMORY_TYPE, address)) {
        Err(DriverError::Failed { code: INVALID_VALUE, .. }) => Ok(false),
        result => result.map(|()| true),
    }
}

/// The kind of memory that the byte at `address` is in. Any number may be passed.
///
/// # Errors
/// The driver fails.
pub fn address_kind(driver: &Driver, address: u64) -> Result<AddressKind, DriverError> {
    let mut kind = 0u32;
    let at = ptr::from_mut(&mut kind).cast();
    match call!(driver, cuPointerGetAttribute(at, MEMORY_TYPE, address)) {
        Err(DriverError::Failed { code: INVALID_VALUE, .. }) => return Ok(AddressKind::Pageable),
        result => result?,
    }
    if kind != CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
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
