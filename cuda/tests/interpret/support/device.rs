//! The device under test: the simulated one, built by g++, or a real one if
//! `MAYPOLE_TEST_CUDA_IMAGE` names the compiled kernels.

use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::module::KernelModule;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{env, fs};

/// A device with the kernels, for one test at a time: the blocks of two tests may not be resident
/// at the same time.
pub(crate) struct TestDevice {
    pub(crate) device: Arc<Device>,
    pub(crate) module: KernelModule,
    simulator: Option<PathBuf>,
    _alone: MutexGuard<'static, ()>,
}

pub(crate) fn open() -> TestDevice {
    static ALONE: Mutex<()> = Mutex::new(());
    // A failed test does not leave the device in a bad state.
    let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (library, image, simulator) = match env::var_os("MAYPOLE_TEST_CUDA_IMAGE") {
        Some(image) => (PathBuf::from("libcuda.so.1"), PathBuf::from(image), None),
        None => {
            let built = build();
            let library = built.join("libcuda.so.1");
            (library.clone(), built.join("kernels.so"), Some(library))
        }
    };
    let driver = Driver::open(&library).expect("the driver loads");
    let device = Device::open(&driver, 0).expect("a device");
    let image = fs::read(image).expect("the compiled kernels");
    // SAFETY: the image was compiled from the kernels of this crate, by `build` or as docs/gpu.md
    // says.
    let module = unsafe { KernelModule::load(&device, &image) }.expect("the kernels load");
    let device = TestDevice { device, module, simulator, _alone: alone };
    device.configure(128, 300);
    device
}

impl TestDevice {
    /// True if [`configure`](Self::configure) works.
    pub(crate) fn is_simulated(&self) -> bool {
        self.simulator.is_some()
    }

    /// Sets the number of resident blocks, and the longest random delay of a block in microseconds.
    /// Has no effect on a real device.
    pub(crate) fn configure(&self, blocks: u32, jitter_us: u32) {
        let Some(library) = &self.simulator else { return };
        let library = CString::new(library.as_os_str().as_encoded_bytes()).expect("a path");
        let name: &CStr = c"simDeviceConfigure";
        // SAFETY: both strings end in a zero byte. The library is loaded already, so this only
        // finds it.
        let function =
            unsafe { libc::dlsym(libc::dlopen(library.as_ptr(), libc::RTLD_NOW), name.as_ptr()) };
        assert!(!function.is_null(), "the simulator can be configured");
        // SAFETY: sim/device.cpp defines the function with this signature.
        let configure: extern "C" fn(i32, u32, u32) -> i32 =
            unsafe { std::mem::transmute(function) };
        assert_eq!(configure(0, blocks, jitter_us), 0);
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        self.configure(128, 0);
    }
}

/// Builds the simulator and the kernels, once per content of their sources.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu");
    let script = root.join("../scripts/simulated-gpu");
    let done = Command::new(script).arg(&built).output().expect("bash runs the script");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "the simulated GPU (it needs g++) cannot be built:\n{said}");
    built
}
