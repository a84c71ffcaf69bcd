//! Measurements of what the driver does beside its answers: which of its calls wait for a running
//! kernel, what the ways of launching cost, and how long a step of the interpreter takes. The
//! simulated GPU is set by what comes out here.

use crate::elements::SUM_I32;
use crate::gpu::{Gpu, Settings};
use crate::pair::{Pair, Shape, Way};
use crate::report::{Check, Checked, Outcome, output};
use crate::speed::seconds;
use maypole_cuda::launch::{WRITE_WORD_NAME, WordWrite};
use maypole_cuda::memory::{DeviceBuffer, PinnedBuffer};
use maypole_cuda::module::{KernelModule, OwnedKernel};
use maypole_cuda::stream::{CudaEvent, CudaStream};
use maypole_cuda::{driver::Device, image};
use std::any::Any;
use std::error::Error;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

pub(crate) const CHECKS: [Check; 4] = [
    Check { name: "side-effects", seconds: 60, environment: &[], run: side_effects },
    Check { name: "launches", seconds: 30, environment: &[], run: launches },
    Check { name: "calibration", seconds: 60, environment: &[], run: calibration },
    Check { name: "sanitizer", seconds: 100, environment: &[], run: sanitizer },
];

type Failure = Box<dyn Error>;
/// What a call made, to be kept until the kernel has ended: to free it may wait for the kernel.
type Kept = Box<dyn Any + Send>;
/// A call of the driver, made by another thread beside a running kernel.
type Action = Box<dyn FnOnce(&Arc<Device>) -> Result<Kept, String> + Send>;

/// A call that takes this long waits for the kernel.
const PATIENCE: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(20);

fn module(device: &Arc<Device>) -> Result<KernelModule, Failure> {
    Ok(image::load(device)?.0)
}

/// Queues a kernel that writes one word.
fn launch_word(module: &KernelModule, stream: &CudaStream, to: u64) -> Result<(), Failure> {
    let kernel = module.kernel(WRITE_WORD_NAME)?;
    // SAFETY: the kernel takes a WordWrite, and the caller keeps the word.
    unsafe { kernel.launch(1, 32, stream, &WordWrite { to, value: 1 })? };
    Ok(())
}

fn said<T: Send + 'static, E: ToString>(made: Result<T, E>) -> Result<Kept, String> {
    made.map(|made| Box::new(made) as Kept).map_err(|error| error.to_string())
}

fn freed<T>(made: T) -> Result<Kept, String> {
    drop(made);
    Ok(Box::new(()))
}

/// The calls, with what they need made beforehand.
fn actions(device: &Arc<Device>) -> Result<Vec<(&'static str, Action)>, Failure> {
    let never_used = module(device)?;
    let (used, stream) = (DeviceBuffer::new(device, 4 << 20)?, CudaStream::new(device)?);
    let (buffer, word) = (DeviceBuffer::new(device, 1 << 20)?, DeviceBuffer::new(device, 8)?);
    let (launching, ended) = (CudaStream::new(device)?, CudaStream::new(device)?);
    Ok(vec![
        ("cuMemAlloc of 64 MiB", Box::new(|d: &Arc<Device>| said(DeviceBuffer::new(d, 64 << 20)))),
        ("cuMemHostAlloc of 1 MiB", Box::new(|d| said(PinnedBuffer::new(d, 1 << 20)))),
        ("cuStreamCreate", Box::new(|d| said(CudaStream::new(d)))),
        ("cuStreamDestroy", Box::new(move |_| freed(ended))),
        ("cuEventCreate", Box::new(|d| said(CudaEvent::new(d)))),
        ("loading a module", Box::new(|d| said(module(d)))),
        (
            "the first launch of a kernel",
            Box::new(move |_| {
                let launched = launch_word(&never_used, &launching, word.address());
                said(launched.map(|()| (never_used, launching, word)))
            }),
        ),
        (
            "a copy of 4 MiB from pageable memory",
            Box::new(move |_| {
                let copied = stream.write(&used, &vec![1; used.bytes()]);
                said(copied.map(|()| (used, stream)))
            }),
        ),
        ("cuMemFree", Box::new(move |_| freed(buffer))),
    ])
}

/// For each call: whether it returns while a kernel waits for its peer, and whether another kernel
/// that is launched afterwards runs beside the waiting one.
fn side_effects(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let shape = Shape { lanes: 1, depth: 2, slot_bytes: 4096, ll: false };
    let (mut lines, mut outcome) = (Vec::new(), Outcome::passed(""));
    let helper = Arc::new(module(&gpu.device)?);
    let (word, stream) =
        (DeviceBuffer::new(&gpu.device, 8)?, Arc::new(CudaStream::new(&gpu.device)?));
    launch_word(&helper, &stream, word.address())?;
    stream.synchronize()?;
    for (name, action) in actions(&gpu.device)? {
        let mut pair = Pair::new(&gpu, shape)?;
        let call = pair.prepare(&SUM_I32, 1000)?;
        pair.launch_first(&call)?;
        let (done, returned) = mpsc::channel();
        let (device, helper, to) = (gpu.device.clone(), helper.clone(), word.address());
        let then = stream.clone();
        let thread = std::thread::spawn(move || {
            let kept = action(&device)?;
            // Nobody listens any more if this took too long.
            let _ = done.send(());
            let launched = launch_word(&helper, &then, to).map_err(|error| error.to_string());
            let _ = done.send(());
            launched.map(|()| kept)
        });
        let waits = returned.recv_timeout(PATIENCE).is_err();
        let launched = !waits && returned.recv_timeout(PATIENCE).is_ok();
        let until = Instant::now() + PATIENCE;
        let mut overlaps = false;
        while launched && !overlaps && Instant::now() < until {
            overlaps = stream.is_idle()?;
        }
        pair.abort();
        let kept = thread.join().map_err(|_| "a thread panicked")?;
        pair.wait(LIMIT)?;
        stream.synchronize()?;
        let text = match (&kept, waits, overlaps) {
            (Err(error), ..) => error.clone(),
            (_, true, _) => String::from("WAITS for the kernel"),
            (_, false, true) => String::from("returns; a kernel launched afterwards overlaps"),
            (_, false, false) => String::from("returns; a kernel launched afterwards WAITS"),
        };
        lines.push(format!("{name}: {text}"));
        outcome = outcome.with(name, text);
    }
    Ok(finished(&gpu, outcome, &lines))
}

/// What was measured, which says nothing if the GPU is simulated.
fn finished(gpu: &Gpu, outcome: Outcome, lines: &[String]) -> Outcome {
    match gpu.simulated {
        true => Outcome::needs_gpu(format!("it runs\n{}", lines.join("\n"))),
        false => outcome.saying(lines.join("\n")),
    }
}

/// The time of a launch of a small kernel, one behind the other.
fn launches(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let times = if gpu.simulated { 10 } else { 1000 };
    let (word, stream) = (DeviceBuffer::new(&gpu.device, 8)?, CudaStream::new(&gpu.device)?);
    let module = Arc::new(module(&gpu.device)?);
    let (kernel, owned) =
        (module.kernel(WRITE_WORD_NAME)?, OwnedKernel::new(&module, WRITE_WORD_NAME)?);
    let write = WordWrite { to: word.address(), value: 1 };
    let current = gpu.device.current()?;
    let (mut lines, mut outcome) = (Vec::new(), Outcome::passed(""));
    let extended = match gpu.device.has_memory_domains() {
        true => "extended, in the remote memory domain",
        false => "by the library, without memory domains",
    };
    for name in ["plain", "cooperative", extended] {
        let taken = seconds(&stream, 5, || {
            for _ in 0..times {
                // SAFETY: the kernel takes a WordWrite, and the word outlives the stream's work.
                unsafe {
                    match name {
                        "plain" => kernel.launch(1, 32, &stream, &write)?,
                        "cooperative" => kernel.launch_cooperative(1, 32, &stream, &write)?,
                        _ => owned.launch(&current, (1, 32), stream.handle(), &write)?,
                    }
                }
            }
            Ok(())
        })?;
        let us = taken / f64::from(times) * 1e6;
        lines.push(format!("{name}: {us:.2} us a launch"));
        outcome = outcome.with(format!("{name}, us"), us);
    }
    Ok(finished(&gpu, outcome, &lines))
}

/// The time of a step and the bandwidth of a block, from tiles of two lengths: figures for a cost
/// model of devices.
fn calibration(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let tiles: u64 = if gpu.simulated { 20 } else { 2000 };
    let mut times = [0.0; 2];
    let lengths = [1u64 << 10, 128 << 10];
    for (time, slot_bytes) in times.iter_mut().zip(lengths) {
        let mut pair = Pair::new(&gpu, Shape { lanes: 1, depth: 4, slot_bytes, ll: false })?;
        let call = pair.prepare(&SUM_I32, (tiles * slot_bytes / 4) as usize)?;
        for buffer in &call.inputs {
            pair.streams[0].fill(buffer, 0, buffer.bytes())?;
        }
        *time = seconds(&pair.streams[0], 3, || pair.launch(&call, Way::Together))? / tiles as f64;
        pair.wait(LIMIT)?;
    }
    let per_byte = (times[1] - times[0]) / (lengths[1] - lengths[0]) as f64;
    let step = (times[0] - per_byte * lengths[0] as f64) * 1e6;
    let speed = 1e-9 / per_byte;
    let lines = [format!(
        "a tile of an all-reduce of two ranks: {step:.2} us, and {speed:.1} GB/s by a block"
    )];
    let outcome = Outcome::passed("").with("tile, us", step).with("block, GB/s", speed);
    Ok(finished(&gpu, outcome, &lines))
}

/// The interpreter under NVIDIA's compute-sanitizer, where that is installed.
fn sanitizer(settings: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    if gpu.simulated {
        return Ok(Outcome::needs_gpu("compute-sanitizer does not work on the simulated GPU"));
    }
    drop(gpu);
    let found = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(tool) = found else {
        return Ok(Outcome::skipped("compute-sanitizer is not installed"));
    };
    let mut command = Command::new(tool);
    command.args(["--error-exitcode", "9"]).arg(std::env::current_exe()?);
    command.args(["--one", "interpreter-lines"]).args(settings.arguments());
    let (text, how) = output(command, Duration::from_secs(90))?;
    let last = text.lines().rfind(|line| line.contains("ERROR SUMMARY")).unwrap_or("no summary");
    Ok(match how.as_str() {
        "ended with exit status: 0" => Outcome::passed(last.trim_start_matches('=')),
        _ => Outcome::failed(format!("it {how}\n{text}")),
    })
}
