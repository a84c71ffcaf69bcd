//! The GPU under check, and the checks that it exists and that the embedded kernels load on it.

use crate::report::{Check, Checked, Outcome};
use maypole_cuda::driver::{Device, Driver, LIBRARY};
use maypole_cuda::module::{KernelModule, KernelResources};
use maypole_cuda::{image, launch};
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The settings of the user.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) library: Option<PathBuf>,
    pub(crate) programs: Option<PathBuf>,
}

impl Settings {
    /// The same as arguments of this program.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let named = [("--library", &self.library), ("--programs", &self.programs)];
        let named = named.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
        named.flat_map(|(name, path)| [name.into(), path.into()]).collect()
    }
}

/// The GPU with the loaded kernels, as a communicator uses it.
pub(crate) struct Gpu {
    pub(crate) device: Arc<Device>,
    pub(crate) module: KernelModule,
    pub(crate) simulated: bool,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// The number of blocks that certainly are resident at the same time.
    pub(crate) blocks: u32,
}

impl Gpu {
    pub(crate) fn open() -> Result<Self, Box<dyn Error>> {
        let device = device()?;
        let (module, _) = image::load(&device)?;
        let simulated = is_simulated(&device)?;
        let (threads, blocks) =
            (if simulated { 32 } else { launch::THREADS }, device.multiprocessors()?);
        Ok(Self { device, module, simulated, threads, blocks })
    }
}

pub(crate) fn device() -> Result<Arc<Device>, Box<dyn Error>> {
    let driver = Driver::open(Path::new(LIBRARY))?;
    Ok(Device::open(&driver, 0)?)
}

pub(crate) fn is_simulated(device: &Device) -> Result<bool, Box<dyn Error>> {
    Ok(device.name()?.starts_with("Simulated GPU"))
}

pub(crate) const CHECKS: [Check; 2] = [
    Check { name: "driver", seconds: 30, environment: &[], run: driver },
    Check { name: "images", seconds: 60, environment: &[], run: images },
];

fn driver(_: &Settings) -> Checked {
    let driver = Driver::open(Path::new(LIBRARY))?;
    let device = Device::open(&driver, 0)?;
    let (major, minor) = device.capability()?;
    let (version, (free, total)) = (driver.version(), device.memory()?);
    let (name, blocks) = (device.name()?, device.multiprocessors()?);
    let text = format!(
        "{name}, sm_{major}{minor}, {blocks} multiprocessors, {} of {} MiB free; CUDA {}.{}, {} \
         devices",
        free >> 20,
        total >> 20,
        version / 1000,
        version % 1000 / 10,
        driver.devices()?
    );
    // CU_DEVICE_ATTRIBUTE_COMPUTE_MODE and its values.
    let mode = match device.attribute(20)? {
        0 => "",
        3 => "; compute mode EXCLUSIVE_PROCESS: checks with two processes are not possible",
        _ => "; an unusual compute mode",
    };
    let text = text + mode;
    let kernel = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    Ok(Outcome::passed(text)
        .with("name", name)
        .with("capability", major * 10 + minor)
        .with("cuda", version)
        .with("multiprocessors", blocks)
        .with("kernel_module", kernel.lines().next().unwrap_or("unknown")))
}

/// Every image for the device loads, machine code and PTX, and the kernel is in it.
fn images(_: &Settings) -> Checked {
    let device = device()?;
    let (mut lines, mut outcome) = (Vec::new(), Outcome::passed(""));
    let mut failed = false;
    for (name, bytes) in image::images(device.capability()?) {
        let begin = Instant::now();
        // SAFETY: the images are complete, and compiled from the kernels of this crate.
        let module = unsafe { KernelModule::load(&device, bytes) };
        let loaded = module.and_then(|module| module.kernel(launch::KERNEL_NAME)?.resources());
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        failed |= loaded.is_err();
        lines.push(match loaded {
            Ok(KernelResources { registers, local_bytes }) => format!(
                "{name}: {} bytes loaded in {milliseconds:.0} ms, {registers} registers and \
                 {local_bytes} bytes of local memory a thread",
                bytes.len()
            ),
            Err(error) => format!("{name}: {error}"),
        });
        outcome = outcome.with(format!("{name}, ms"), milliseconds);
    }
    let (_, used) = image::load(&device)?;
    lines.push(format!("a communicator takes {used}"));
    let text = lines.join("\n");
    Ok(match (failed, is_simulated(&device)?) {
        (true, _) => Outcome::failed(text),
        (false, true) => Outcome::needs_gpu("any image gives the kernels compiled by g++ there"),
        (false, false) => outcome.saying(text),
    })
}
