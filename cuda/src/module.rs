//! Kernels: loaded from an image, and launched.

use crate::driver::functions::{LaunchAttribute, LaunchConfig, call};
use crate::driver::{CurrentContext, Device, Driver, DriverError};
use crate::stream::CudaStream;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};
use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::Arc;

/// Loaded kernels. Unloading them, on drop, waits for all work of the device.
pub struct KernelModule {
    device: Arc<Device>,
    handle: CUmodule,
}

// SAFETY: the handle of a module may be used from any thread.
unsafe impl Send for KernelModule {}
// SAFETY: as for `Send`.
unsafe impl Sync for KernelModule {}

impl KernelModule {
    /// Loads `image`: PTX, a cubin, a fatbin, or an image for the simulated device.
    ///
    /// # Errors
    /// The driver refuses the image.
    ///
    /// # Safety
    /// The image is complete and contains kernels of this crate: the driver trusts its headers and
    /// runs its code.
    pub unsafe fn load(device: &Arc<Device>, image: &[u8]) -> Result<Self, DriverError> {
        let mut image = image.to_vec();
        image.push(0); // PTX ends in a zero byte.
        let mut handle = ptr::null_mut();
        call!(&device.current()?, cuModuleLoadData(&mut handle, image.as_ptr().cast()))?;
        Ok(Self { device: device.clone(), handle })
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// There is no such kernel.
    pub fn kernel(&self, name: &CStr) -> Result<ModuleKernel<'_>, DriverError> {
        let mut handle = ptr::null_mut();
        call!(
            &self.device.current()?,
            cuModuleGetFunction(&mut handle, self.handle, name.as_ptr())
        )?;
        Ok(ModuleKernel { module: self, handle })
    }

    /// Queues the kernel of that name, see [`ModuleKernel::launch_cooperative`].
    ///
    /// # Errors
    /// As there; or there is no such kernel.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn launch<T: Copy>(
        &self,
        kernel: &CStr,
        blocks: u32,
        threads: u32,
        stream: &CudaStream,
        argument: &T,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller guarantees what `launch_cooperative` requires.
        unsafe { self.kernel(kernel)?.launch_cooperative(blocks, threads, stream, argument) }
    }
}

impl Drop for KernelModule {
    fn drop(&mut self) {
        // A failure here comes from earlier work, and the stream has reported it.
        let _ = self.device.current().map(|driver| call!(&driver, cuModuleUnload(self.handle)));
    }
}

/// A kernel of a module, borrowed from it.
#[derive(Clone, Copy)]
pub struct ModuleKernel<'a> {
    module: &'a KernelModule,
    handle: CUfunction,
}

// SAFETY: the handle of a kernel may be used from any thread.
unsafe impl Send for ModuleKernel<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for ModuleKernel<'_> {}

impl ModuleKernel<'_> {
    /// Queues the kernel with one argument. Blocks start as the device has room for them.
    ///
    /// # Errors
    /// The driver refuses the launch.
    ///
    /// # Safety
    /// The kernel takes one `T`. Every address in it is of memory that is large enough and stays
    /// allocated until the stream has run the kernel. `stream` belongs to the module's device.
    pub unsafe fn launch<T: Copy>(
        &self,
        blocks: u32,
        threads: u32,
        stream: &CudaStream,
        argument: &T,
    ) -> Result<(), DriverError> {
        let driver = self.module.device.current()?;
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let (at, none) = (arguments.as_mut_ptr(), ptr::null_mut());
        let stream = stream.raw();
        call!(
            &driver,
            cuLaunchKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at, none)
        )
    }

    /// As [`launch`](Self::launch), but all blocks are resident at the same time.
    ///
    /// # Errors
    /// The driver refuses the launch, for example because the device cannot hold all blocks.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn launch_cooperative<T: Copy>(
        &self,
        blocks: u32,
        threads: u32,
        stream: &CudaStream,
        argument: &T,
    ) -> Result<(), DriverError> {
        let driver = self.module.device.current()?;
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let at = arguments.as_mut_ptr();
        let stream = stream.raw();
        call!(
            &driver,
            cuLaunchCooperativeKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at)
        )
    }
}

/// What a kernel needs, as the driver compiled or loaded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelResources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of memory for what does not fit the registers of a thread.
    pub local_bytes: u32,
}

impl ModuleKernel<'_> {
    /// What the kernel needs. The driver loads the kernel for this. A driver that loads kernels
    /// when they are first used (`CUDA_MODULE_LOADING=LAZY`, the default from CUDA 12.2 on) would
    /// otherwise do so at the first launch, and might then wait for other kernels.
    ///
    /// # Errors
    /// The driver cannot load it.
    pub fn resources(&self) -> Result<KernelResources, DriverError> {
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES as LOCAL, CU_FUNC_ATTRIBUTE_NUM_REGS as REGISTERS,
        };
        let driver = self.module.device.current()?;
        let mut values = [0; 2];
        for (value, attribute) in values.iter_mut().zip([REGISTERS, LOCAL]) {
            call!(&driver, cuFuncGetAttribute(value, attribute as c_int, self.handle))?;
        }
        let [registers, local_bytes] = values.map(|value| value as u32);
        Ok(KernelResources { registers, local_bytes })
    }
}

/// CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN with the value CU_LAUNCH_MEM_SYNC_DOMAIN_REMOTE, which came
/// with CUDA 12.0.
const REMOTE_DOMAIN: LaunchAttribute =
    LaunchAttribute { id: 10, padding: 0, value: 1, rest: [0; 15] };

/// A kernel together with its module.
pub struct OwnedKernel {
    handle: CUfunction,
    /// Whether to launch in the memory synchronisation domain for writes to other devices.
    remote_domain: bool,
    _module: Arc<KernelModule>,
}

// SAFETY: the handle of a kernel may be used from any thread.
unsafe impl Send for OwnedKernel {}
// SAFETY: as for `Send`.
unsafe impl Sync for OwnedKernel {}

impl OwnedKernel {
    /// The kernel of that name, loaded on the device.
    ///
    /// # Errors
    /// There is no such kernel, or it cannot be loaded.
    pub fn new(module: &Arc<KernelModule>, kernel: &CStr) -> Result<Self, DriverError> {
        let (kernel, device) = (module.kernel(kernel)?, &module.device);
        match kernel.resources() {
            Ok(_) | Err(DriverError::NoFunction { .. }) => {}
            Err(error) => return Err(error),
        }
        let remote_domain = device.has_memory_domains();
        Ok(Self { handle: kernel.handle, remote_domain, _module: module.clone() })
    }

    /// Queues the kernel with one argument, by one call of the driver. Blocks start as the device
    /// has room for them. A device that has memory synchronisation domains runs the kernel in the
    /// one for writes to other devices, so that these do not delay the fences of other kernels.
    ///
    /// # Errors
    /// The driver refuses the launch.
    ///
    /// # Safety
    /// As for [`ModuleKernel::launch`]; `current` is the context of the module's device.
    pub unsafe fn launch<T: Copy>(
        &self,
        current: &CurrentContext<'_>,
        (blocks, threads): (u32, u32),
        stream: *mut c_void,
        argument: &T,
    ) -> Result<(), DriverError> {
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let (at, none) = (arguments.as_mut_ptr(), ptr::null_mut());
        let driver: &Driver = current;
        let stream = stream.cast();
        if self.remote_domain {
            let config = LaunchConfig {
                grid: [blocks, 1, 1],
                block: [threads, 1, 1],
                shared_bytes: 0,
                stream,
                attributes: &REMOTE_DOMAIN,
                count: 1,
            };
            return call!(driver, cuLaunchKernelEx(&config, self.handle, at, none));
        }
        call!(driver, cuLaunchKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at, none))
    }
}
