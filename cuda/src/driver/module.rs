//! Kernels: loaded from an image, and launched.

use super::functions::call;
use super::{CudaStream, CurrentContext, Device, DriverError, Handle};
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

/// Kernels, loaded. Outlives what it has launched: unloading waits.
pub struct KernelModule {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: a module's handle may be used from any thread.
unsafe impl Send for KernelModule {}
// SAFETY: as above.
unsafe impl Sync for KernelModule {}

impl KernelModule {
    /// Loads `image`: PTX, a cubin, a fatbin, or what the simulated device takes.
    ///
    /// # Safety
    /// The image is whole and made for this crate's kernels: the driver trusts its headers, and runs what is in it.
    pub unsafe fn load(device: &Arc<Device>, image: &[u8]) -> Result<Self, DriverError> {
        let mut image = image.to_vec();
        image.push(0); // the end of PTX
        let mut handle = ptr::null_mut();
        call!(&device.current()?, cuModuleLoadData(&mut handle, image.as_ptr().cast()))?;
        Ok(Self { device: device.clone(), handle })
    }

    /// The kernel of this name, to be launched often.
    pub fn kernel(&self, name: &CStr) -> Result<Kernel<'_>, DriverError> {
        let mut handle = ptr::null_mut();
        call!(
            &self.device.current()?,
            cuModuleGetFunction(&mut handle, self.handle, name.as_ptr())
        )?;
        Ok(Kernel { module: self, handle })
    }

    /// [`Kernel::launch_together`] of the kernel of this name.
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
        // SAFETY: the caller's.
        unsafe { self.kernel(kernel)?.launch_together(blocks, threads, stream, argument) }
    }
}

impl Drop for KernelModule {
    fn drop(&mut self) {
        // A failure here is one of earlier work, which the stream has reported.
        let _ = self.device.current().map(|driver| call!(&driver, cuModuleUnload(self.handle)));
    }
}

/// A kernel of a module.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    module: &'a KernelModule,
    handle: Handle,
}

// SAFETY: a function's handle may be used from any thread.
unsafe impl Send for Kernel<'_> {}
// SAFETY: as above.
unsafe impl Sync for Kernel<'_> {}

impl Kernel<'_> {
    /// Queues the kernel with one argument; blocks start as there is room.
    ///
    /// # Safety
    /// The kernel takes one `T`, and every address in it is that of memory which is large enough and stays until the stream
    /// is through; `stream` is one of the module's device.
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
        let stream = stream.handle();
        call!(
            &driver,
            cuLaunchKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at, none)
        )
    }

    /// As [`launch`](Self::launch), but all blocks are resident together, or the launch is refused.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn launch_together<T: Copy>(
        &self,
        blocks: u32,
        threads: u32,
        stream: &CudaStream,
        argument: &T,
    ) -> Result<(), DriverError> {
        let driver = self.module.device.current()?;
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let at = arguments.as_mut_ptr();
        let stream = stream.handle();
        call!(
            &driver,
            cuLaunchCooperativeKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at)
        )
    }
}

/// A kernel that keeps its module.
pub struct OwnedKernel {
    handle: Handle,
    _module: KernelModule,
}

// SAFETY: a function's handle may be used from any thread.
unsafe impl Send for OwnedKernel {}
// SAFETY: as above.
unsafe impl Sync for OwnedKernel {}

impl OwnedKernel {
    /// The kernel of this name.
    pub fn new(module: KernelModule, kernel: &CStr) -> Result<Self, DriverError> {
        let handle = module.kernel(kernel)?.handle;
        Ok(Self { handle, _module: module })
    }

    /// Queues the kernel with one argument, by one call of the driver. `together`: all blocks are resident together, or the launch is
    /// refused; else blocks start as there is room.
    ///
    /// # Safety
    /// As for [`Kernel::launch`]; the module's device is `current`.
    pub unsafe fn launch<T: Copy>(
        &self,
        current: &CurrentContext<'_>,
        together: bool,
        (blocks, threads): (u32, u32),
        stream: *mut c_void,
        argument: &T,
    ) -> Result<(), DriverError> {
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let (at, none) = (arguments.as_mut_ptr(), ptr::null_mut());
        let driver: &super::Driver = current;
        if together {
            return call!(
                driver,
                cuLaunchCooperativeKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at)
            );
        }
        call!(driver, cuLaunchKernel(self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, at, none))
    }
}
