//! The device under test: the simulated one, built here by g++, or a real one where `MAYPOLE_TEST_CUDA_IMAGE` names the compiled
//! kernels.

use maypole_cuda::driver::{Device, Driver, Module};
use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{env, fs};

const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-g",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fPIC",
    "-shared",
    "-pthread",
    "-ffp-contract=off",
];

/// A device, the kernels, and the right to use it: worlds of two tests might not be resident together.
pub(crate) struct TestDevice {
    pub(crate) device: Arc<Device>,
    pub(crate) module: Module,
    simulator: Option<PathBuf>,
    _alone: MutexGuard<'static, ()>,
}

pub(crate) fn open() -> TestDevice {
    static ALONE: Mutex<()> = Mutex::new(());
    // A failed test has left nothing behind but its message.
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
    // SAFETY: the image was compiled from this crate's kernels, by `build` or as docs/gpu.md says.
    let module = unsafe { Module::load(&device, &image) }.expect("the kernels load");
    let device = TestDevice { device, module, simulator, _alone: alone };
    device.configure(128, 300);
    device
}

impl TestDevice {
    /// True if [`configure`](Self::configure) works.
    pub(crate) fn is_simulated(&self) -> bool {
        self.simulator.is_some()
    }

    /// How many blocks are resident at once, and how far, in microseconds, a block may fall behind by chance. Without effect
    /// on a real device.
    pub(crate) fn configure(&self, blocks: u32, jitter_us: u32) {
        let Some(library) = &self.simulator else { return };
        let library = CString::new(library.as_os_str().as_encoded_bytes()).expect("a path");
        let name: &CStr = c"simDeviceConfigure";
        // SAFETY: both strings end in a zero byte; the library is loaded, so this only finds it again.
        let function =
            unsafe { libc::dlsym(libc::dlopen(library.as_ptr(), libc::RTLD_NOW), name.as_ptr()) };
        assert!(!function.is_null(), "the simulator can be configured");
        // SAFETY: sim/driver.cpp gives the function this signature.
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

/// Compiles the simulator and the kernels, once for each content of their sources.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut hasher = DefaultHasher::new();
    FLAGS.hash(&mut hasher);
    for folder in ["sim", "kernels"] {
        let mut files: Vec<_> = fs::read_dir(root.join(folder))
            .expect("the sources")
            .map(|entry| entry.expect("a directory entry").path())
            .collect();
        files.sort();
        files.iter().for_each(|file| fs::read(file).expect("a source").hash(&mut hasher));
    }
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sim-{:x}", hasher.finish()));
    if !built.exists() {
        let fresh = built.with_extension(std::process::id().to_string());
        fs::create_dir_all(&fresh).expect("a folder to build in");
        let driver = fresh.join("libcuda.so.1");
        let sources = ["block", "driver", "memory"].map(|s| root.join(format!("sim/{s}.cpp")));
        compile(
            Command::new("g++").arg("-Wl,-soname,libcuda.so.1").args(sources).arg("-ldl"),
            &driver,
        );
        let kernels = root.join("kernels/interpret.cu");
        let args = ["-x", "c++"];
        compile(
            Command::new("g++").args(args).arg(kernels).args(["-x", "none"]).arg(&driver),
            &fresh.join("kernels.so"),
        );
        // Another process may have been faster; then its work is as good.
        if fs::rename(&fresh, &built).is_err() {
            assert!(built.exists(), "cannot move {} into place", fresh.display());
            fs::remove_dir_all(&fresh).expect("to remove what is not needed");
        }
    }
    built
}

fn compile(command: &mut Command, output: &Path) {
    let done = command.args(FLAGS).arg("-o").arg(output).output();
    let done = done.expect("g++ is needed to build the simulated device");
    assert!(done.status.success(), "g++ failed:\n{}", String::from_utf8_lossy(&done.stderr));
}
