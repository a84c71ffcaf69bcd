//! Checks of the library as programs use it: `libnccl.so.2`, opened by its path, with device
//! pointers, by one rank, and by two ranks on one GPU.

use crate::elements::{difference, input};
use crate::gpu::{Gpu, Settings};
use crate::report::{Check, Checked, Outcome, output};
use crate::speed;
use maypole_algorithms::{DType, RedOp};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;
use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::{Duration, Instant};

pub(crate) const CHECKS: [Check; 4] = [
    Check { name: "abi-one-rank", seconds: 60, environment: DEVICE, run: one_rank },
    Check { name: "abi-two-ranks", seconds: 90, environment: DEVICE, run: two_ranks },
    Check { name: "abi-graph", seconds: 60, environment: DEVICE, run: graph },
    Check { name: "abi-abort", seconds: 60, environment: DEVICE, run: abort },
];

/// Forces device communicators: a fallback to host memory would hide errors.
pub(crate) const DEVICE: &[(&str, &str)] = &[("MAYPOLE_DEVICE", "cuda")];

pub(crate) type Failure = Box<dyn Error>;
pub(crate) type Handle = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UniqueId(pub(crate) [u8; 128]);

/// Functions of `nccl.h`, by their names.
#[allow(non_snake_case)]
pub(crate) struct Library {
    ncclGetVersion: unsafe extern "C" fn(*mut c_int) -> c_int,
    ncclGetLastError: unsafe extern "C" fn(Handle) -> *const c_char,
    pub(crate) ncclGetUniqueId: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub(crate) ncclCommInitRank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    ncclCommCuDevice: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    ncclCommGetAsyncError: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    ncclCommDestroy: unsafe extern "C" fn(Handle) -> c_int,
    pub(crate) ncclCommAbort: unsafe extern "C" fn(Handle) -> c_int,
    ncclGroupStart: unsafe extern "C" fn() -> c_int,
    ncclGroupEnd: unsafe extern "C" fn() -> c_int,
    pub(crate) ncclAllReduce:
        unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Handle, Handle) -> c_int,
    pub(crate) ncclSend: unsafe extern "C" fn(u64, usize, c_int, c_int, Handle, Handle) -> c_int,
    pub(crate) ncclRecv: unsafe extern "C" fn(u64, usize, c_int, c_int, Handle, Handle) -> c_int,
}

impl Library {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: `name` ends in a zero byte; the library has no initialisers that matter.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            // SAFETY: after a failure dlerror gives a string of this thread.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(format!("{}: {}", path.display(), reason.to_string_lossy()).into());
        }
        macro_rules! functions {
            ($($name:ident)*) => { Self { $($name: {
                let symbol = concat!(stringify!($name), "\0");
                // SAFETY: the library is open, and the symbol ends in a zero byte.
                let address = unsafe { libc::dlsym(library, symbol.as_ptr().cast()) };
                if address.is_null() {
                    return Err(format!("{} has no {}", path.display(), stringify!($name)).into());
                }
                // SAFETY: nccl.h gives the function of this name this signature.
                unsafe { std::mem::transmute_copy(&address) }
            }),* } };
        }
        Ok(functions! {
            ncclGetVersion ncclGetLastError ncclGetUniqueId ncclCommInitRank ncclCommCuDevice
            ncclCommGetAsyncError
            ncclCommDestroy ncclCommAbort ncclGroupStart ncclGroupEnd ncclAllReduce ncclSend
            ncclRecv
        })
    }

    /// An error with the message of the library, unless `code` is ncclSuccess.
    pub(crate) fn check(&self, what: &str, code: c_int) -> Result<(), Failure> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: NULL is allowed, and the string is the library's.
        let words = unsafe { CStr::from_ptr((self.ncclGetLastError)(ptr::null_mut())) };
        Err(format!("{what} gave {code}: {}", words.to_string_lossy()).into())
    }

    pub(crate) fn group(
        &self,
        mut inside: impl FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // SAFETY: it takes nothing.
        self.check("ncclGroupStart", unsafe { (self.ncclGroupStart)() })?;
        let result = inside();
        // SAFETY: likewise.
        let ended = self.check("ncclGroupEnd", unsafe { (self.ncclGroupEnd)() });
        result.and(ended)
    }
}

/// What is said of a stream after [`Ranks::abort`].
pub(crate) const NOT_THROUGH: &str = "the stream is not through 20 s after ncclCommAbort";

/// Communicators of all ranks, in this process.
pub(crate) struct Ranks<'a> {
    pub(crate) library: &'a Library,
    pub(crate) handles: Vec<Handle>,
}

impl<'a> Ranks<'a> {
    pub(crate) fn new(library: &'a Library, nranks: usize) -> Result<Self, Failure> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: a place for an id.
        library.check("ncclGetUniqueId", unsafe { (library.ncclGetUniqueId)(&mut id) })?;
        let mut handles = vec![ptr::null_mut(); nranks];
        library.group(|| {
            for (rank, handle) in handles.iter_mut().enumerate() {
                // SAFETY: the handle's place stays until the group ends.
                let code = unsafe {
                    (library.ncclCommInitRank)(handle, nranks as c_int, id, rank as c_int)
                };
                library.check("ncclCommInitRank", code)?;
            }
            Ok(())
        })?;
        Ok(Self { library, handles })
    }

    /// Queues an all-reduce of all ranks, whose buffers begin at these addresses.
    pub(crate) fn all_reduce(
        &self,
        send: &[u64],
        receive: &[u64],
        count: usize,
        (dtype, op): (DType, RedOp),
        stream: Handle,
    ) -> Result<(), Failure> {
        self.library.group(|| {
            for (rank, handle) in self.handles.iter().enumerate() {
                let (from, to) = (send[rank], receive[rank]);
                // SAFETY: the caller has buffers of `count` elements there, until the stream is
                // through.
                let code = unsafe {
                    (self.library.ncclAllReduce)(
                        from,
                        to,
                        count,
                        dtype as c_int,
                        op as c_int,
                        *handle,
                        stream,
                    )
                };
                self.library.check("ncclAllReduce", code)?;
            }
            Ok(())
        })
    }

    /// Waits for the stream, and checks that no communicator has an error.
    pub(crate) fn wait(&self, stream: &CudaStream) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !stream.is_idle()? {
            self.healthy()?;
            if Instant::now() > deadline {
                return Err("the stream is not through after 20 s".into());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        self.healthy()
    }

    /// Aborts all communicators; returns the milliseconds until the stream is through, or None if
    /// it is not after 20 s.
    pub(crate) fn abort(&self, stream: &CudaStream) -> Result<Option<f64>, Failure> {
        let begin = Instant::now();
        for handle in &self.handles {
            // SAFETY: the handle is one of the library's, and used no more.
            let code = unsafe { (self.library.ncclCommAbort)(*handle) };
            self.library.check("ncclCommAbort", code)?;
        }
        while !stream.is_idle()? {
            if begin.elapsed() > Duration::from_secs(20) {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Some(begin.elapsed().as_secs_f64() * 1e3))
    }

    pub(crate) fn healthy(&self) -> Result<(), Failure> {
        for handle in &self.handles {
            let mut state = 0;
            // SAFETY: the handle is one of the library's.
            let code = unsafe { (self.library.ncclCommGetAsyncError)(*handle, &mut state) };
            self.library.check("ncclCommGetAsyncError", code)?;
            self.library.check("a call on the device", state)?;
        }
        Ok(())
    }

    pub(crate) fn destroy(self) -> Result<(), Failure> {
        self.library.group(|| {
            for handle in &self.handles {
                // SAFETY: the handle is one of the library's, and used no more.
                let code = unsafe { (self.library.ncclCommDestroy)(*handle) };
                self.library.check("ncclCommDestroy", code)?;
            }
            Ok(())
        })
    }
}

/// The operations without a factor of the user.
const OPERATIONS: [RedOp; 5] = [RedOp::Sum, RedOp::Prod, RedOp::Max, RedOp::Min, RedOp::Avg];
/// Elements of each call that is compared with host memory.
const COUNT: usize = 1003;

/// Writes what two ranks of host memory receive, for all types and operations, one behind the
/// other.
pub(crate) fn write_host_bits(settings: &Settings, file: &Path) -> Result<(), Failure> {
    let library = Library::open(settings.library.as_deref().ok_or("no library was given")?)?;
    let ranks = Ranks::new(&library, 2)?;
    let mut all = Vec::new();
    for dtype in DType::ALL {
        for op in OPERATIONS {
            let inputs = [0, 1].map(|rank| input(dtype, 3, rank, COUNT));
            let mut results = [0, 1].map(|_| vec![0u8; inputs[0].len()]);
            let from = inputs.each_ref().map(|bytes| bytes.as_ptr() as u64);
            let to = results.each_mut().map(|bytes| bytes.as_mut_ptr() as u64);
            ranks.all_reduce(&from, &to, COUNT, (dtype, op), ptr::null_mut())?;
            all.extend(results.concat());
        }
    }
    ranks.destroy()?;
    Ok(std::fs::write(file, all)?)
}

/// The same by a process of host memory.
fn host_bits(settings: &Settings) -> Result<Vec<u8>, Failure> {
    let file = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
    let mut command = Command::new(std::env::current_exe()?);
    command.args(settings.arguments()).arg("--host-bits").arg(&file).env("MAYPOLE_DEVICE", "host");
    let (text, how) = output(command, Duration::from_secs(30))?;
    let bits = std::fs::read(&file);
    let _ = std::fs::remove_file(&file); // it may not be there
    bits.map_err(|_| format!("host memory {how}: {text}").into())
}

pub(crate) fn opened(settings: &Settings) -> Result<Option<(Gpu, Library)>, Failure> {
    let Some(path) = &settings.library else { return Ok(None) };
    Ok(Some((Gpu::open()?, Library::open(path)?)))
}

pub(crate) fn no_library() -> Checked {
    Ok(Outcome::skipped("no library was given (--library)"))
}

fn one_rank(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let mut version = 0;
    // SAFETY: a place for a number.
    library.check("ncclGetVersion", unsafe { (library.ncclGetVersion)(&mut version) })?;
    let ranks = Ranks::new(&library, 1)?;
    let mut device = -1;
    // SAFETY: the handle is one of the library's.
    let code = unsafe { (library.ncclCommCuDevice)(ranks.handles[0], &mut device) };
    library.check("ncclCommCuDevice", code)?;
    let stream = CudaStream::new(&gpu.device)?;
    for count in [1, 1000, 1 << 20] {
        let bytes = input(DType::Float32, 1, 0, count);
        let [send, receive] = [
            DeviceBuffer::new(&gpu.device, bytes.len())?,
            DeviceBuffer::new(&gpu.device, bytes.len())?,
        ];
        stream.write(&send, &bytes)?;
        let what = (DType::Float32, RedOp::Sum);
        ranks.all_reduce(&[send.address()], &[receive.address()], count, what, stream.handle())?;
        ranks.wait(&stream)?;
        if let Some(wrong) = difference(&stream.read(&receive, bytes.len())?, &bytes, 4) {
            return Ok(Outcome::failed(format!("{count} elements: {wrong}")));
        }
    }
    ranks.destroy()?;
    Ok(Outcome::passed(format!("version {version}, a communicator of device {device}, 3 sizes"))
        .with("version", version))
}

/// All types and operations have the bits that they have on host memory, and larger calls too.
fn two_ranks(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let host = host_bits(settings)?;
    let ranks = Ranks::new(&library, 2)?;
    let stream = CudaStream::new(&gpu.device)?;
    let mut wrong = Vec::new();
    let mut host = &host[..];
    let mut compared = 0;
    for dtype in DType::ALL {
        let (inputs, bytes) =
            ([0, 1].map(|rank| input(dtype, 3, rank, COUNT)), COUNT * dtype.size());
        for op in OPERATIONS {
            let results = all_reduce(&gpu, &ranks, &stream, &inputs, (dtype, op))?;
            for (rank, found) in results.iter().enumerate() {
                let (wanted, rest) =
                    host.split_at_checked(bytes).ok_or("host memory gave too little")?;
                host = rest;
                compared += 1;
                if let Some(text) = difference(found, wanted, dtype.size()) {
                    wrong.push(format!("{op:?} of {dtype:?}, rank {rank}: {text}"));
                }
            }
        }
    }
    if !wrong.is_empty() {
        let text =
            format!("{} of {compared} differ from host memory\n{}", wrong.len(), wrong.join("\n"));
        return Ok(Outcome::failed(text));
    }
    let sizes = if gpu.simulated { [1, 40_000, 200_000] } else { [1, 300_000, 50_000_001] };
    for count in sizes {
        let inputs = [0, 1].map(|rank| input(DType::Int32, 4, rank, count));
        let wanted = crate::elements::expected(&crate::elements::SUM_I32, &inputs);
        let results = all_reduce(&gpu, &ranks, &stream, &inputs, (DType::Int32, RedOp::Sum))?;
        for (rank, found) in results.iter().enumerate() {
            if let Some(text) = difference(found, &wanted, 4) {
                return Ok(Outcome::failed(format!("{count} elements, rank {rank}: {text}")));
            }
        }
    }
    let outcome = Outcome::passed(format!(
        "12 types by 5 operations have the bits of host memory; up to {} elements",
        sizes[2]
    ));
    let outcome = if gpu.simulated { outcome } else { measured(&gpu, &ranks, outcome)? };
    ranks.destroy()?;
    Ok(outcome)
}

fn all_reduce(
    gpu: &Gpu,
    ranks: &Ranks<'_>,
    stream: &CudaStream,
    inputs: &[Vec<u8>; 2],
    what: (DType, RedOp),
) -> Result<Vec<Vec<u8>>, Failure> {
    let bytes = inputs[0].len();
    let buffers: Result<Vec<DeviceBuffer>, _> =
        (0..4).map(|_| DeviceBuffer::new(&gpu.device, bytes)).collect();
    let buffers = buffers?;
    for (buffer, input) in buffers.iter().zip(inputs) {
        stream.write(buffer, input)?;
    }
    let at: Vec<u64> = buffers.iter().map(DeviceBuffer::address).collect();
    ranks.all_reduce(&at[..2], &at[2..], bytes / what.0.size(), what, stream.handle())?;
    ranks.wait(stream)?;
    buffers[2..].iter().map(|buffer| Ok(stream.read(buffer, bytes)?)).collect()
}

/// The speed with the library's own choice of algorithm, protocol and channels.
fn measured(gpu: &Gpu, ranks: &Ranks<'_>, mut outcome: Outcome) -> Result<Outcome, Failure> {
    let stream = CudaStream::new(&gpu.device)?;
    let mut line = String::from("all-reduce of two ranks:");
    for bytes in [8usize, 1 << 20, 16 << 20, 256 << 20] {
        let buffers: Result<Vec<DeviceBuffer>, _> =
            (0..4).map(|_| DeviceBuffer::new(&gpu.device, bytes)).collect();
        let buffers = buffers?;
        for buffer in &buffers {
            stream.fill(buffer, 0, bytes)?;
        }
        let at: Vec<u64> = buffers.iter().map(DeviceBuffer::address).collect();
        let repeats = if bytes < 1 << 20 { 100 } else { 1 };
        let taken = speed::seconds(&stream, 5, || {
            (0..repeats).try_for_each(|_| {
                let what = (DType::Float32, RedOp::Sum);
                ranks.all_reduce(&at[..2], &at[2..], bytes / 4, what, stream.handle())
            })
        })? / f64::from(repeats);
        ranks.wait(&stream)?;
        let (text, name, figure) = match bytes {
            8 => (format!(" 8 B in {:.2} us", taken * 1e6), "8 B, us".to_owned(), taken * 1e6),
            _ => {
                let speed = bytes as f64 / taken / 1e9;
                (
                    format!(", {} MiB {speed:.1} GB/s", bytes >> 20),
                    format!("{bytes} B, GB/s"),
                    speed,
                )
            }
        };
        line += &text;
        outcome = outcome.with(name, figure);
    }
    let copy = speed::copy_speed(gpu, 256 << 20)?;
    line += &format!("; device copy of 256 MiB {copy:.1} GB/s");
    Ok(outcome.with("device copy, GB/s", copy).and_says(&line))
}

/// A captured group of two ranks, replayed.
fn graph(settings: &Settings) -> Checked {
    const REPLAYS: u32 = 200;
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let ranks = Ranks::new(&library, 2)?;
    let stream = CudaStream::new(&gpu.device)?;
    let count = 5000;
    let buffers: Result<Vec<DeviceBuffer>, _> =
        (0..4).map(|_| DeviceBuffer::new(&gpu.device, count * 4)).collect();
    let buffers = buffers?;
    let inputs = [0, 1].map(|rank| input(DType::Int32, 5, rank, count));
    for (buffer, bytes) in buffers.iter().zip(&inputs) {
        stream.write(buffer, bytes)?;
    }
    stream.synchronize()?;
    let at: Vec<u64> = buffers.iter().map(DeviceBuffer::address).collect();
    stream.begin_capture()?;
    let queued =
        ranks.all_reduce(&at[..2], &at[2..], count, (DType::Int32, RedOp::Sum), stream.handle());
    // SAFETY: both are of `count` elements, and live until the stream is through.
    let copied = unsafe { stream.copy(at[0], at[2], count * 4) };
    let graph = stream.end_capture();
    queued?;
    copied?;
    let graph = graph?;
    for _ in 0..REPLAYS {
        // SAFETY: as above; replays follow each other on one stream.
        unsafe { graph.launch(&stream)? };
    }
    ranks.wait(&stream)?;
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
    let pairs = inputs[0].chunks_exact(4).zip(inputs[1].chunks_exact(4));
    let wanted: Vec<u8> = pairs
        .flat_map(|(a, b)| word(a).wrapping_add(word(b).wrapping_mul(REPLAYS)).to_le_bytes())
        .collect();
    for (rank, output) in buffers[2..].iter().enumerate() {
        if let Some(wrong) = difference(&stream.read(output, count * 4)?, &wanted, 4) {
            return Ok(Outcome::failed(format!("after {REPLAYS} replays, rank {rank}: {wrong}")));
        }
    }
    drop(graph);
    ranks.destroy()?;
    Ok(Outcome::passed(format!("{REPLAYS} replays of a captured group add up")))
}

/// A call that the other rank never makes ends when its communicator is aborted.
fn abort(settings: &Settings) -> Checked {
    let Some((gpu, library)) = opened(settings)? else { return no_library() };
    let ranks = Ranks::new(&library, 2)?;
    let stream = CudaStream::new(&gpu.device)?;
    let buffer = DeviceBuffer::new(&gpu.device, 4096)?;
    stream.fill(&buffer, 0, 4096)?;
    let (at, sum) = (buffer.address(), RedOp::Sum as c_int);
    // SAFETY: the buffer has as many elements, and lives until the stream is through.
    let code = unsafe {
        (library.ncclAllReduce)(
            at,
            at,
            1024,
            DType::Int32 as c_int,
            sum,
            ranks.handles[0],
            stream.handle(),
        )
    };
    library.check("ncclAllReduce", code)?;
    std::thread::sleep(Duration::from_millis(200));
    if stream.is_idle()? {
        return Ok(Outcome::failed("a call that the other rank does not make did not wait for it"));
    }
    let Some(milliseconds) = ranks.abort(&stream)? else {
        return Ok(Outcome::failed(NOT_THROUGH));
    };
    Ok(Outcome::passed(format!(
        "the stream was through {milliseconds:.1} ms after ncclCommAbort was called"
    ))
    .with("milliseconds", milliseconds))
}
