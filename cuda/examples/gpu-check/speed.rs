//! Measurements without assertions: device copies, and all-reduces of two ranks on one device.

use crate::elements::SUM_F32;
use crate::gpu::{Gpu, Settings};
use crate::pair::{Call, Pair, Shape, Way};
use crate::report::{Check, Checked, Outcome};
use maypole_cuda::driver::DriverError;
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::{CudaEvent, CudaStream};
use std::error::Error;
use std::time::Duration;

pub(crate) const CHECKS: [Check; 2] = [
    Check { name: "bandwidth", seconds: 120, environment: &[], run: bandwidth },
    Check { name: "latency", seconds: 60, environment: &[], run: latency },
];

const LIMIT: Duration = Duration::from_secs(30);

/// The seconds, by the device's clock, that the work queued by `queue` takes: the median of `times`
/// runs, after one for warming up.
pub(crate) fn seconds(
    stream: &CudaStream,
    times: usize,
    mut queue: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    let [begin, end] = [CudaEvent::timed(stream.device())?, CudaEvent::timed(stream.device())?];
    let mut taken = Vec::new();
    for _ in 0..=times {
        begin.record(stream)?;
        queue()?;
        end.record(stream)?;
        end.synchronize()?;
        taken.push(f64::from(begin.milliseconds_to(&end)?) / 1e3);
    }
    taken.remove(0);
    taken.sort_by(f64::total_cmp);
    Ok(taken[taken.len() / 2])
}

/// Gigabytes per second that the device copies within its memory: half of what it reads and writes.
pub(crate) fn copy_speed(gpu: &Gpu, bytes: usize) -> Result<f64, Box<dyn Error>> {
    let stream = CudaStream::new(&gpu.device)?;
    let buffers: Result<Vec<DeviceBuffer>, DriverError> =
        (0..2).map(|_| DeviceBuffer::new(&gpu.device, bytes)).collect();
    let buffers = buffers?;
    let taken = seconds(&stream, 5, || {
        // SAFETY: both are that long, and live until the stream is through: `seconds` waits.
        unsafe { stream.copy(buffers[0].address(), buffers[1].address(), bytes)? };
        Ok(())
    })?;
    Ok(bytes as f64 / taken / 1e9)
}

fn filled(pair: &mut Pair<'_>, count: usize) -> Result<Call, Box<dyn Error>> {
    let call = pair.prepare(&SUM_F32, count)?;
    for buffer in &call.inputs {
        pair.streams[0].fill(buffer, 0, buffer.bytes())?;
    }
    pair.streams[0].synchronize()?;
    Ok(call)
}

/// All-reduces of two ranks, with so many blocks for each: the best of them beside the copy.
fn bandwidth(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let sizes: &[usize] =
        if gpu.simulated { &[1 << 20] } else { &[1, 4, 16, 64, 256].map(|m| m << 20) };
    // All blocks of both ranks have to be resident at the same time.
    let most = gpu.blocks / 2;
    let mut blocks = if gpu.simulated { vec![4] } else { vec![8, 16, 32, most] };
    blocks.retain(|lanes| *lanes <= most);
    let mut outcome = Outcome::passed("");
    let mut lines = Vec::new();
    for &bytes in sizes {
        let copy = copy_speed(&gpu, bytes)?;
        let mut best = (0.0, 0, 0);
        for &lanes in &blocks {
            for slot_bytes in [64 << 10, 256 << 10] {
                let shape = Shape { lanes, depth: 4, slot_bytes, ll: false };
                let mut pair = Pair::new(&gpu, shape)?;
                let call = filled(&mut pair, bytes / 4)?;
                let taken = seconds(&pair.streams[0], 5, || pair.launch(&call, Way::Together))?;
                pair.wait(LIMIT)?;
                let speed = bytes as f64 / taken / 1e9;
                outcome = outcome
                    .with(format!("{bytes} B, {lanes} blocks, slots of {slot_bytes}, GB/s"), speed);
                if speed > best.0 {
                    best = (speed, lanes, slot_bytes >> 10);
                }
            }
        }
        outcome = outcome.with(format!("{bytes} B, device copy, GB/s"), copy);
        let (speed, lanes, slot) = best;
        lines.push(format!(
            "{:>3} MiB: {speed:.1} GB/s with {lanes} blocks a rank and slots of {slot} KiB; device \
             copy {copy:.1} GB/s",
            bytes >> 20
        ));
    }
    lines.push(
        "an all-reduce of two ranks on one device moves ten times its size, a copy twice".into(),
    );
    Ok(match gpu.simulated {
        true => Outcome::needs_gpu("it runs; how fast says nothing"),
        false => outcome.saying(lines.join("\n")),
    })
}

/// All-reduces of 8 bytes, one behind the other.
fn latency(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let calls: usize = if gpu.simulated { 20 } else { 1000 };
    let mut outcome = Outcome::passed("");
    let mut lines = Vec::new();
    for in_lines in [false, true] {
        let name = if in_lines { "lines" } else { "slots" };
        let shape = Shape { lanes: 1, depth: 4, slot_bytes: 1024, ll: in_lines };
        let mut pair = Pair::new(&gpu, shape)?;
        let call = filled(&mut pair, 2)?;
        let stream = &pair.streams[0];
        let launches = || (0..calls).try_for_each(|_| pair.launch(&call, Way::Together));
        let queued = seconds(stream, 5, launches)?;
        stream.begin_capture()?;
        launches()?;
        let graph = stream.end_capture()?;
        let replayed = seconds(stream, 5, || {
            // SAFETY: what the graph uses lives until the stream is through: `seconds` waits.
            unsafe { graph.launch(stream)? };
            Ok(())
        })?;
        pair.wait(LIMIT)?;
        let [queued, replayed] = [queued, replayed].map(|taken| taken / calls as f64 * 1e6);
        outcome = outcome
            .with(format!("{name}, stream, us"), queued)
            .with(format!("{name}, graph, us"), replayed);
        lines.push(format!(
            "8 bytes in {name}: {queued:.2} us a call in a stream, {replayed:.2} us in a graph"
        ));
    }
    Ok(match gpu.simulated {
        true => Outcome::needs_gpu("it runs; how fast says nothing"),
        false => outcome.saying(lines.join("\n")),
    })
}
