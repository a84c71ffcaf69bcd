//! Checks of the interpreter kernel: right results with all ways of launching, also in graphs, and
//! its end when it is aborted.

use crate::elements::{OPERATIONS, Operation, SUM_I32, difference, expected, input};
use crate::gpu::{Gpu, Settings};
use crate::pair::{Pair, Shape, Way};
use crate::report::{Check, Checked, Outcome};
use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const CHECKS: [Check; 6] = [
    Check { name: "interpreter-slots", seconds: 60, environment: &[], run: slots },
    Check { name: "interpreter-lines", seconds: 60, environment: &[], run: lines },
    Check { name: "launch-apart", seconds: 30, environment: &[], run: apart },
    Check {
        name: "one-connection",
        seconds: 30,
        environment: &[("CUDA_DEVICE_MAX_CONNECTIONS", "1")],
        run: one_connection,
    },
    Check { name: "graph", seconds: 60, environment: &[], run: graph },
    Check { name: "abort", seconds: 30, environment: &[], run: abort },
];

const LIMIT: Duration = Duration::from_secs(20);

/// Runs one all-reduce and compares all bits.
pub(crate) fn right(
    pair: &mut Pair<'_>,
    operation: &Operation,
    count: usize,
    seed: u64,
    way: Way,
) -> Result<(), Box<dyn Error>> {
    let inputs = [0, 1].map(|rank| input(operation.dtype, seed, rank, count));
    let call = pair.prepare(operation, count)?;
    for (buffer, bytes) in call.inputs.iter().zip(&inputs) {
        pair.streams[0].write(buffer, bytes)?;
    }
    pair.streams[0].synchronize()?;
    pair.launch(&call, way)?;
    pair.wait(LIMIT)?;
    let wanted = expected(operation, &inputs);
    for (rank, output) in call.outputs.iter().enumerate() {
        let found = pair.streams[0].read(output, wanted.len())?;
        if let Some(wrong) = difference(&found, &wanted, operation.dtype.size()) {
            let Operation { dtype, op, .. } = operation;
            return Err(format!("{op:?} of {count} {dtype:?}, rank {rank}: {wrong}").into());
        }
    }
    Ok(())
}

fn slots(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let largest = if gpu.simulated { 100_000 } else { 5_000_001 };
    let mut calls = 0;
    for lanes in [1, 4, 16.min(gpu.blocks / 2)] {
        let shape = Shape { lanes, depth: 3, slot_bytes: 4096, ll: false };
        let mut pair = Pair::new(&gpu, shape)?;
        for operation in &OPERATIONS {
            for count in [0, 1, 3, 1000, 4099, largest] {
                calls += 1;
                right(&mut pair, operation, count, calls, Way::Together)?;
            }
        }
    }
    Ok(Outcome::passed(format!(
        "{calls} all-reduces of two ranks, {} operations, up to {largest} elements, 1 to 16 blocks \
         a rank",
        OPERATIONS.len()
    )))
}

fn lines(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let (mut calls, mut messages) = (0, 0);
    for (lanes, bytes) in [(1, 16), (1, 1024), (4, 4096)] {
        let shape = Shape { lanes, depth: 3, slot_bytes: bytes, ll: true };
        let mut pair = Pair::new(&gpu, shape)?;
        for operation in &OPERATIONS {
            for count in [0, 1, 2, 3, 100, 4099] {
                calls += 1;
                right(&mut pair, operation, count, calls, Way::Together)?;
            }
        }
        let (all, slots) = pair.carried()?;
        if slots != 0 || all == 0 {
            return Err(format!("{slots} of {all} messages went through slots").into());
        }
        messages += all;
    }
    Ok(Outcome::passed(format!("{calls} all-reduces, {messages} messages, all in lines")))
}

const SHAPE: Shape = Shape { lanes: 4, depth: 2, slot_bytes: 4096, ll: false };

/// Ranks of one device that are launched separately, like those of several processes.
fn apart(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let mut pair = Pair::new(&gpu, SHAPE)?;
    for seed in 0..100 {
        right(&mut pair, &SUM_I32, 50_000, seed, Way::Apart)?;
    }
    // The library does not launch cooperatively, so this is no failure of it.
    let overlap = match right(&mut pair, &SUM_I32, 50_000, 100, Way::ApartCooperative) {
        Ok(()) => String::from("two cooperative launches overlap"),
        Err(error) => format!("two cooperative launches do not overlap: {error}"),
    };
    Ok(Outcome::passed("100 all-reduces by two launches on two streams").and_says(&overlap))
}

/// All streams share one hardware queue.
fn one_connection(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let mut pair = Pair::new(&gpu, SHAPE)?;
    for seed in 0..50 {
        right(&mut pair, &SUM_I32, 20_000, seed, Way::Together)?;
    }
    // Calls queued one behind the other, and work of the user between them.
    let (a, b) = (pair.prepare(&SUM_I32, 20_000)?, pair.prepare(&SUM_I32, 20_000)?);
    for buffer in a.inputs.iter().chain(&b.inputs) {
        pair.streams[0].fill(buffer, 1, buffer.bytes())?;
    }
    for _ in 0..100 {
        for call in [&a, &b] {
            pair.launch(call, Way::Together)?;
            let (to, from) = (call.inputs[0].address(), call.outputs[0].address());
            // SAFETY: both are of the same call, and live until the streams are through.
            unsafe { pair.streams[0].copy(to, from, call.inputs[0].bytes())? };
            pair.streams[1].fill(&call.inputs[1], 1, 64)?;
        }
    }
    pair.wait(LIMIT)?;
    let found = pair.streams[0].read(&a.outputs[1], 20_000 * 4)?;
    let wanted = (0x0101_0101u32.wrapping_mul(101)).to_le_bytes().repeat(20_000);
    match difference(&found, &wanted, 4) {
        Some(wrong) => Ok(Outcome::failed(wrong)),
        None => Ok(Outcome::passed(
            "250 all-reduces with CUDA_DEVICE_MAX_CONNECTIONS=1, in one launch each",
        )),
    }
}

/// A captured call, and a copy of its result to its input: every replay adds rank 1's input once
/// more.
fn graph(_: &Settings) -> Checked {
    const REPLAYS: u32 = 1000;
    let gpu = Gpu::open()?;
    let mut pair = Pair::new(&gpu, SHAPE)?;
    let count = 10_000;
    let call = pair.prepare(&SUM_I32, count)?;
    let inputs = [0, 1].map(|rank| input(SUM_I32.dtype, 7, rank, count));
    let stream = &pair.streams[0];
    for (buffer, bytes) in call.inputs.iter().zip(&inputs) {
        stream.write(buffer, bytes)?;
    }
    stream.synchronize()?;
    stream.begin_capture()?;
    pair.launch(&call, Way::Together)?;
    // SAFETY: the buffers are of the same length, and live until the stream is through.
    unsafe { stream.copy(call.inputs[0].address(), call.outputs[0].address(), count * 4)? };
    let graph = stream.end_capture()?;
    for _ in 0..REPLAYS {
        // SAFETY: as above; replays follow each other on one stream.
        unsafe { graph.launch(stream)? };
    }
    pair.wait(LIMIT)?;
    let words = |bytes: &[u8]| -> Vec<u32> {
        let words = bytes.chunks_exact(4);
        words.map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()
    };
    let sums = words(&inputs[0]).into_iter().zip(words(&inputs[1]));
    let wanted: Vec<u8> =
        sums.flat_map(|(a, b)| b.wrapping_mul(REPLAYS).wrapping_add(a).to_le_bytes()).collect();
    for (rank, output) in call.outputs.iter().enumerate() {
        if let Some(wrong) = difference(&stream.read(output, count * 4)?, &wanted, 4) {
            return Ok(Outcome::failed(format!("after {REPLAYS} replays, rank {rank}: {wrong}")));
        }
    }
    if pair.finished() != [u64::from(REPLAYS); 2] {
        return Ok(Outcome::failed(format!("{:?} works are finished", pair.finished())));
    }
    Ok(Outcome::passed(format!("{REPLAYS} replays of a captured all-reduce add up")))
}

/// A rank whose peer never makes the call waits until it is aborted, and then ends; so does a later
/// launch.
fn abort(_: &Settings) -> Checked {
    let gpu = Gpu::open()?;
    let mut pair = Pair::new(&gpu, SHAPE)?;
    let call = pair.prepare(&SUM_I32, 1000)?;
    pair.launch_first(&call)?;
    sleep(Duration::from_millis(200));
    if pair.is_idle()? {
        return Ok(Outcome::failed("a rank without its peer did not wait for it"));
    }
    let begin = Instant::now();
    pair.abort();
    pair.wait(LIMIT)?;
    let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
    pair.launch_first(&call)?;
    pair.wait(LIMIT)?;
    Ok(Outcome::passed(format!(
        "a kernel that never ends by itself ended {milliseconds:.1} ms after the abort, and the \
         next one at once"
    ))
    .with("milliseconds", milliseconds))
}
