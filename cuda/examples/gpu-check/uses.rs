//! Checks of the library in less frequent uses: calls that alternate between streams, calls beside
//! replays of a graph, an abort amid small messages, a rank on host memory, and a process that
//! leaves without an end of its communicators. Also the memory that a communicator takes, and
//! speeds of other types and of sends.

use crate::abi::{
    DEVICE, Failure, Handle, Library, NOT_THROUGH, Ranks, UniqueId, no_library, opened,
};
use crate::elements::{SUM_I32, difference, expected, input};
use crate::gpu::{Gpu, Settings};
use crate::report::{Check, Checked, Outcome, output};
use crate::speed;
use maypole_algorithms::{DType, RedOp};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;
use std::ffi::c_int;
use std::process::Command;
use std::ptr;
use std::time::Duration;

pub(crate) const CHECKS: [Check; 7] = [
    Check { name: "abi-streams", seconds: 40, environment: DEVICE, run: streams },
    Check { name: "abi-beside-replays", seconds: 40, environment: DEVICE, run: beside_replays },
    Check { name: "abi-abort-lines", seconds: 40, environment: DEVICE, run: abort_lines },
    Check { name: "abi-host-rank", seconds: 40, environment: DEVICE, run: host_rank },
    Check { name: "abi-leave", seconds: 40, environment: DEVICE, run: leave },
    Check { name: "abi-memory", seconds: 40, environment: DEVICE, run: memory },
    Check { name: "abi-types", seconds: 60, environment: DEVICE, run: types },
];

const SUM: (DType, RedOp) = (DType::Int32, RedOp::Sum);
const COUNT: usize = 20_000;

/// Four buffers of `bytes`: what two ranks send, and what they receive.
fn buffers(gpu: &Gpu, bytes: usize) -> Result<Vec<DeviceBuffer>, Failure> {
    (0..4).map(|_| Ok(DeviceBuffer::new(&gpu.device, bytes)?)).collect()
}

/// Buffers of `COUNT` integers, with contents, and the sum of both ranks.
fn filled(
    gpu: &Gpu,
    stream: &CudaStream,
    seed: u64,
) -> Result<(Vec<DeviceBuffer>, Vec<u8>), Failure> {
    let buffers = buffers(gpu, 4 * COUNT)?;
    let inputs = [0, 1].map(|rank| input(DType::Int32, seed, rank, COUNT));
    for (buffer, bytes) in buffers.iter().zip(&inputs) {
        stream.write(buffer, bytes)?;
    }
    stream.synchronize()?;
    Ok((buffers, expected(&SUM_I32, &inputs)))
}

fn addresses(buffers: &[DeviceBuffer]) -> Vec<u64> {
    buffers.iter().map(DeviceBuffer::address).collect()
}

/// The first difference between what both ranks have received and `wanted`.
fn wrong(
    stream: &CudaStream,
    received: &[DeviceBuffer],
    wanted: &[u8],
) -> Result<Option<String>, Failure> {
    for (rank, buffer) in received.iter().enumerate() {
        if let Some(text) = difference(&stream.read(buffer, wanted.len())?, wanted, 4) {
            return Ok(Some(format!("rank {rank}: {text}")));
        }
    }
    Ok(None)
}

/// Each call reads what the one before has written, on another stream. Only the communicator orders
/// them.
fn streams(settings: &Settings) -> Checked {
    const CALLS: u32 = 100;
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let ranks = Ranks::new(&library, 2)?;
    let streams = [CudaStream::new(&gpu.device)?, CudaStream::new(&gpu.device)?];
    let (buffers, sum) = filled(&gpu, &streams[0], 6)?;
    let at = addresses(&buffers);
    for call in 0..CALLS {
        let (from, to) = if call % 2 == 0 { (&at[..2], &at[2..]) } else { (&at[2..], &at[..2]) };
        ranks.all_reduce(from, to, COUNT, SUM, streams[call as usize % 2].handle())?;
    }
    streams.iter().try_for_each(|stream| ranks.wait(stream))?;
    // The first call makes both ranks equal, and each later one doubles.
    let doubled = |word: &[u8]| {
        let word = u32::from_le_bytes(word.try_into().expect("4 bytes"));
        word.wrapping_mul(1u32.checked_shl(CALLS - 1).unwrap_or(0)).to_le_bytes()
    };
    let wanted: Vec<u8> = sum.chunks_exact(4).flat_map(doubled).collect();
    let wrong = wrong(&streams[0], &buffers[..2], &wanted)?;
    ranks.destroy()?;
    Ok(match wrong {
        Some(text) => Outcome::failed(text),
        None => Outcome::passed(format!("{CALLS} calls on two streams in turn")),
    })
}

/// Replays of a graph on one stream, and calls on another, each with buffers of its own.
fn beside_replays(settings: &Settings) -> Checked {
    const TURNS: u32 = 100;
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let ranks = Ranks::new(&library, 2)?;
    let streams = [CudaStream::new(&gpu.device)?, CudaStream::new(&gpu.device)?];
    let (captured, captured_sum) = filled(&gpu, &streams[0], 7)?;
    let (eager, eager_sum) = filled(&gpu, &streams[0], 8)?;
    let (of_graph, of_calls) = (addresses(&captured), addresses(&eager));
    streams[0].begin_capture()?;
    let queued = ranks.all_reduce(&of_graph[..2], &of_graph[2..], COUNT, SUM, streams[0].handle());
    let graph = streams[0].end_capture();
    queued?;
    let graph = graph?;
    for _ in 0..TURNS {
        // SAFETY: the buffers live until the streams are through; replays write the same.
        unsafe { graph.launch(&streams[0])? };
        ranks.all_reduce(&of_calls[..2], &of_calls[2..], COUNT, SUM, streams[1].handle())?;
    }
    streams.iter().try_for_each(|stream| ranks.wait(stream))?;
    let wrong = match wrong(&streams[0], &captured[2..], &captured_sum)? {
        Some(text) => Some(text),
        None => wrong(&streams[0], &eager[2..], &eager_sum)?,
    };
    drop(graph);
    ranks.destroy()?;
    Ok(match wrong {
        Some(text) => Outcome::failed(text),
        None => Outcome::passed(format!("{TURNS} replays, and as many calls on another stream")),
    })
}

/// Many small calls are queued when their communicators are aborted.
fn abort_lines(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let ranks = Ranks::new(&library, 2)?;
    let stream = CudaStream::new(&gpu.device)?;
    let buffers = buffers(&gpu, 8)?;
    let at = addresses(&buffers);
    let calls = if gpu.simulated { 100 } else { 2000 };
    for _ in 0..calls {
        ranks.all_reduce(&at[..2], &at[2..], 2, SUM, stream.handle())?;
    }
    if ranks.abort(&stream)?.is_none() {
        return Ok(Outcome::failed(NOT_THROUGH));
    }
    // The device and new communicators still work.
    let again = Ranks::new(&library, 2)?;
    again.all_reduce(&at[..2], &at[2..], 2, SUM, stream.handle())?;
    again.wait(&stream)?;
    again.destroy()?;
    Ok(Outcome::passed(format!("an abort amid {calls} calls of 8 bytes; new communicators work")))
}

/// Starts this program as another process of the check.
fn start_other(settings: &Settings, what: &str, device: &str) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(settings.arguments()).args(["--other", what]).env("MAYPOLE_DEVICE", device);
    Ok(command)
}

/// What the other process of a check does: `host ID` or `leave`.
pub(crate) fn other_process(settings: &Settings, what: &str) -> Result<(), Failure> {
    match what.strip_prefix("host ") {
        Some(id) => rank_on_host(settings, id),
        None => leave_without_end(settings),
    }
}

/// One rank of two, by its own process.
fn one_of_two(library: &Library, id: UniqueId, rank: c_int) -> Result<Ranks<'_>, Failure> {
    let mut handle: Handle = ptr::null_mut();
    // SAFETY: a place for a handle.
    let code = unsafe { (library.ncclCommInitRank)(&mut handle, 2, id, rank) };
    library.check("ncclCommInitRank", code)?;
    Ok(Ranks { library, handles: vec![handle] })
}

fn rank_on_host(settings: &Settings, id: &str) -> Result<(), Failure> {
    let library = Library::open(settings.library.as_deref().ok_or("no library was given")?)?;
    let digits = id.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair)?, 16).map_err(Into::into);
    let bytes: Result<Vec<u8>, Failure> = digits.map(byte).collect();
    let id = UniqueId(bytes?.try_into().map_err(|_| "an id has 128 bytes")?);
    let ranks = one_of_two(&library, id, 1)?;
    let inputs = [0, 1].map(|rank| input(DType::Int32, 9, rank, COUNT));
    let mut result = vec![0u8; inputs[1].len()];
    let (from, to) = (inputs[1].as_ptr() as u64, result.as_mut_ptr() as u64);
    ranks.all_reduce(&[from], &[to], COUNT, SUM, ptr::null_mut())?;
    ranks.destroy()?;
    match difference(&result, &expected(&SUM_I32, &inputs), 4) {
        Some(text) => Err(format!("the rank on host memory: {text}").into()),
        None => Ok(()),
    }
}

/// A rank on the GPU and one on host memory, which exchange messages through the proxy.
fn host_rank(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let mut id = UniqueId([0; 128]);
    // SAFETY: a place for an id.
    library.check("ncclGetUniqueId", unsafe { (library.ncclGetUniqueId)(&mut id) })?;
    let digits: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let command = start_other(settings, &format!("host {digits}"), "host")?;
    let other = std::thread::spawn(move || {
        output(command, Duration::from_secs(30)).map_err(|error| error.to_string())
    });
    let ranks = one_of_two(&library, id, 0)?;
    let stream = CudaStream::new(&gpu.device)?;
    let (buffers, sum) = filled(&gpu, &stream, 9)?;
    let at = addresses(&buffers);
    ranks.all_reduce(&at[..1], &at[2..3], COUNT, SUM, stream.handle())?;
    ranks.wait(&stream)?;
    let wrong = wrong(&stream, &buffers[2..3], &sum)?;
    ranks.destroy()?;
    let (text, how) = other.join().map_err(|_| "a thread panicked")??;
    Ok(match wrong {
        Some(text) => Outcome::failed(text),
        None if how != "ended with exit status: 0" => {
            Outcome::failed(format!("the process on host memory {how}\n{text}"))
        }
        None => Outcome::passed(format!("an all-reduce of {COUNT} elements with a host process")),
    })
}

/// Queues calls and leaves.
fn leave_without_end(settings: &Settings) -> Result<(), Failure> {
    let (gpu, library) = opened(settings)?.ok_or("no library was given")?;
    let ranks = std::mem::ManuallyDrop::new(Ranks::new(&library, 2)?);
    let stream = std::mem::ManuallyDrop::new(CudaStream::new(&gpu.device)?);
    let buffers = std::mem::ManuallyDrop::new(buffers(&gpu, 4 * COUNT)?);
    let at = addresses(&buffers);
    for _ in 0..20 {
        ranks.all_reduce(&at[..2], &at[2..], COUNT, SUM, stream.handle())?;
    }
    Ok(())
}

/// A process that ends while calls are queued, without ncclCommDestroy.
fn leave(settings: &Settings) -> Checked {
    if settings.library.is_none() {
        return no_library();
    }
    let (text, how) = output(start_other(settings, "leave", "cuda")?, Duration::from_secs(30))?;
    Ok(match how.as_str() {
        "ended with exit status: 0" => Outcome::passed("a process left with 20 calls queued"),
        _ => Outcome::failed(format!("a process that leaves {how}\n{text}")),
    })
}

/// The device memory that communicators take.
fn memory(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let free = || -> Result<i64, Failure> { Ok(gpu.device.memory()?.0 as i64 >> 10) };
    let before = free()?;
    let ranks = Ranks::new(&library, 2)?;
    let two = before - free()?;
    let more = Ranks::new(&library, 2)?;
    let four = before - free()?;
    more.destroy()?;
    ranks.destroy()?;
    let after = before - free()?;
    Ok(Outcome::passed(format!(
        "{} MiB for the kernels and two ranks, {} MiB for two more; {} MiB are left after the end",
        two >> 10,
        (four - two) >> 10,
        after >> 10
    ))
    .with("two ranks, KiB", two)
    .with("two more, KiB", four - two)
    .with("after the end, KiB", after))
}

/// Speeds of all-reduces of small types, and of a send and a receive.
fn types(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let ranks = Ranks::new(&library, 2)?;
    let stream = CudaStream::new(&gpu.device)?;
    let bytes: usize = if gpu.simulated { 64 << 10 } else { 64 << 20 };
    let buffers = buffers(&gpu, bytes)?;
    for buffer in &buffers {
        stream.fill(buffer, 0, bytes)?;
    }
    let at = addresses(&buffers);
    let (mut lines, mut outcome) = (Vec::new(), Outcome::passed(""));
    let mut measured = |name: String, queue: &dyn Fn() -> Result<(), Failure>| {
        let speed = bytes as f64 / speed::seconds(&stream, 5, queue)? / 1e9;
        ranks.wait(&stream)?;
        lines.push(format!("{name}: {speed:.1} GB/s"));
        outcome = outcome.clone().with(format!("{name}, GB/s"), speed);
        Ok::<(), Failure>(())
    };
    for dtype in [DType::Float32, DType::Float16, DType::Bfloat16, DType::Float8E4M3] {
        let (what, count) = ((dtype, RedOp::Sum), bytes / dtype.size());
        let call = || ranks.all_reduce(&at[..2], &at[2..], count, what, stream.handle());
        measured(format!("all-reduce of {dtype:?}"), &call)?;
    }
    measured(String::from("send and receive"), &|| {
        library.group(|| {
            // SAFETY: the buffers hold so many bytes and live until the stream is through.
            let codes = unsafe {
                [
                    (library.ncclSend)(at[0], bytes, 0, 1, ranks.handles[0], stream.handle()),
                    (library.ncclRecv)(at[3], bytes, 0, 0, ranks.handles[1], stream.handle()),
                ]
            };
            codes.into_iter().try_for_each(|code| library.check("ncclSend or ncclRecv", code))
        })
    })?;
    ranks.destroy()?;
    Ok(match gpu.simulated {
        true => Outcome::needs_gpu("it runs; how fast says nothing"),
        false => outcome.saying(lines.join("\n")),
    })
}
