//! Ranks on host memory and on devices of the simulated GPU in one communicator, and calls whose
//! results must have the bits of a run on host memory.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;

use maypole::{Blocks, Call, Collective, Communicator, DType, Error, RedOp, Transfer};
use maypole::{UniqueId, VectorCall};
use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;

/// Builds the simulated GPU; returns the folder, for `LD_LIBRARY_PATH` of later processes.
pub(crate) fn simulated_gpu() -> &'static str {
    static FOLDER: OnceLock<String> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu");
        let built = Command::new(root.join("scripts/simulated-gpu")).arg(&folder).status();
        assert!(built.expect("the script runs").success(), "the simulated GPU is not built");
        folder.to_str().expect("text").to_owned()
    })
}

/// A plan of ranks: processes separated by `;`, and for each the memory of its ranks, separated by
/// `,`: the number of a device, or `h` for host memory.
#[derive(Clone, Debug)]
pub(crate) struct Plan(Vec<Vec<Option<i32>>>);

impl Plan {
    pub(crate) fn parse(text: &str) -> Self {
        let memory = |word: &str| (word != "h").then(|| word.parse().expect("a device"));
        Self(text.split(';').map(|p| p.split(',').map(memory).collect()).collect())
    }

    pub(crate) fn processes(&self) -> u32 {
        self.0.len() as u32
    }

    pub(crate) fn nranks(&self) -> u32 {
        self.0.iter().map(Vec::len).sum::<usize>() as u32
    }

    /// The ranks of a process, with their memory.
    pub(crate) fn of(&self, process: u32) -> Vec<(u32, Option<i32>)> {
        let first = self.0[..process as usize].iter().map(Vec::len).sum::<usize>() as u32;
        (first..).zip(self.0[process as usize].iter().copied()).collect()
    }
}

/// Memory of the host, or of a device.
pub(crate) enum Memory {
    Host,
    /// All allocations are kept: freeing waits for all work of the devices of the process, and so
    /// perhaps for a rank that waits for this one.
    Device {
        device: Arc<Device>,
        stream: CudaStream,
        kept: RefCell<Vec<Arc<DeviceBuffer>>>,
    },
}

/// A buffer in that memory.
pub(crate) enum Held {
    Host(Vec<u64>, usize),
    Device(Arc<DeviceBuffer>),
}

impl Memory {
    pub(crate) fn open(device: Option<i32>) -> Self {
        let Some(ordinal) = device else { return Self::Host };
        static DRIVER: OnceLock<Arc<Driver>> = OnceLock::new();
        let driver = DRIVER.get_or_init(|| {
            Driver::find().expect("a driver that works").expect("the simulated GPU")
        });
        let device = Device::open(driver, ordinal).expect("a device");
        let stream = CudaStream::new(&device).expect("a stream");
        Self::Device { device, stream, kept: RefCell::default() }
    }

    pub(crate) fn stream(&self) -> &CudaStream {
        match self {
            Self::Host => panic!("host memory has no CUDA stream"),
            Self::Device { stream, .. } => stream,
        }
    }

    /// Makes a buffer that contains `bytes`.
    pub(crate) fn hold(&self, bytes: &[u8]) -> Held {
        let mut held = match self {
            Self::Host => Held::Host(vec![0; bytes.len() / 8 + 1], bytes.len()),
            Self::Device { device, kept, .. } => {
                let buffer = DeviceBuffer::new(device, bytes.len()).expect("device memory");
                let buffer = Arc::new(buffer);
                kept.borrow_mut().push(buffer.clone());
                Held::Device(buffer)
            }
        };
        self.write(&mut held, bytes);
        held
    }

    pub(crate) fn write(&self, held: &mut Held, bytes: &[u8]) {
        match (self, held) {
            (Self::Host, Held::Host(words, _)) => {
                // SAFETY: the vector is longer than `bytes`.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        bytes.as_ptr(),
                        words.as_mut_ptr().cast(),
                        bytes.len(),
                    );
                }
            }
            (Self::Device { stream, .. }, Held::Device(buffer)) => {
                stream.write(buffer, bytes).expect("to write");
                stream.synchronize().expect("to write");
            }
            _ => panic!("a buffer of other memory"),
        }
    }

    pub(crate) fn read(&self, held: &Held) -> Vec<u8> {
        match (self, held) {
            (Self::Host, Held::Host(words, bytes)) => {
                words.iter().flat_map(|word| word.to_ne_bytes()).take(*bytes).collect()
            }
            (Self::Device { stream, .. }, Held::Device(buffer)) => {
                stream.read(buffer, buffer.bytes()).expect("to read")
            }
            _ => panic!("a buffer of other memory"),
        }
    }
}

impl Held {
    pub(crate) fn at(&mut self) -> *mut u8 {
        match self {
            Self::Host(words, _) => words.as_mut_ptr().cast(),
            Self::Device(buffer) => buffer.address() as *mut u8,
        }
    }
}

/// Joins a communicator as `rank`, with memory of `device`.
pub(crate) fn join(id: &UniqueId, nranks: u32, rank: u32, device: Option<i32>) -> Communicator {
    let comm = Communicator::builder(id).rank(rank, nranks).device(device).build();
    comm.unwrap_or_else(|error| panic!("init of rank {rank}: {error}"))
}

/// Bytes that rank `rank` contributes to call number `call`: floats and integers that are neither
/// large nor special.
pub(crate) fn input(rank: u32, call: u32, dtype: DType, count: usize) -> Vec<u8> {
    let mut state = u64::from(rank) << 32 | u64::from(call);
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)) >> 40
    };
    let mut bytes = Vec::with_capacity(count * dtype.size());
    for _ in 0..count {
        let number = next() % 20_000;
        match dtype {
            DType::Float32 => bytes.extend((number as f32 / 7.0 - 1000.0).to_ne_bytes()),
            DType::Float64 => bytes.extend((number as f64 / 7.0 - 1000.0).to_ne_bytes()),
            DType::Bfloat16 => {
                bytes.extend(((number as f32 / 7.0).to_bits() >> 16).to_ne_bytes()[..2].iter());
            }
            _ => bytes.extend(number.to_ne_bytes()[..dtype.size()].iter()),
        }
    }
    bytes
}

/// Makes all calls of a rank; returns a hash of all receive buffers.
pub(crate) type Outcome = Vec<u64>;

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, byte| {
        (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Makes all collectives, vector collectives, sends and receives, and barriers, of that many
/// elements.
pub(crate) fn make_calls(
    comm: &mut Communicator,
    memory: &Memory,
    counts: &[usize],
) -> Result<Outcome, Error> {
    let mut outcome = Vec::new();
    let mut number = 0;
    for &count in counts {
        for (dtype, op) in [
            (DType::Float32, RedOp::Sum),
            (DType::Bfloat16, RedOp::Avg),
            (DType::Int64, RedOp::Max),
        ] {
            for collective in Collective::all(1) {
                number += 1;
                outcome.push(even(comm, memory, collective, dtype, op, count, number)?);
            }
        }
        number += 1;
        outcome.push(uneven(comm, memory, count, number)?);
        number += 1;
        outcome.push(around(comm, memory, count, number)?);
        comm.barrier()?;
    }
    Ok(outcome)
}

fn even(
    comm: &mut Communicator,
    memory: &Memory,
    collective: Collective,
    dtype: DType,
    op: RedOp,
    count: usize,
    number: u32,
) -> Result<u64, Error> {
    let (rank, nranks) = (comm.rank(), comm.nranks());
    let elements = |chunks: u32| chunks as usize * count;
    let sent = elements(collective.input_chunks(nranks, 1));
    let received = elements(collective.output_chunks(nranks, 1)) * dtype.size();
    let mut send = memory.hold(&input(rank, number, dtype, sent));
    let mut recv = memory.hold(&vec![0xee; received]);
    let reduction = op.into();
    let call = Call { collective, send: send.at(), recv: recv.at(), count, dtype, reduction };
    // SAFETY: the buffers are as long as the call says and live until it returns.
    unsafe { comm.run(&call)? };
    Ok(hash(&memory.read(&recv)))
}

/// Rank `r` contributes `count + 3 * r` elements, and rank 0 none.
fn uneven(
    comm: &mut Communicator,
    memory: &Memory,
    count: usize,
    number: u32,
) -> Result<u64, Error> {
    let (rank, nranks) = (comm.rank(), comm.nranks());
    let counts: Vec<usize> =
        (0..nranks as usize).map(|r| if r == 0 { 0 } else { count + 3 * r }).collect();
    let displacements: Vec<usize> =
        counts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let mine = counts[rank as usize];
    let all = counts.iter().sum::<usize>();
    let mut send = memory.hold(&input(rank, number, DType::Int32, mine));
    let mut recv = memory.hold(&vec![0xee; 4 * all]);
    let call = VectorCall {
        collective: Collective::AllGather,
        send: send.at(),
        sends: Blocks { counts: &[mine], displacements: &[0] },
        recv: recv.at(),
        recvs: Blocks { counts: &counts, displacements: &displacements },
        dtype: DType::Int32,
        reduction: RedOp::Sum.into(),
    };
    // SAFETY: as in `even`.
    unsafe { comm.run_vector(&call)? };
    Ok(hash(&memory.read(&recv)))
}

/// Sends a message, an empty message and another message to the next rank, and receives the same
/// from the previous rank.
fn around(
    comm: &mut Communicator,
    memory: &Memory,
    count: usize,
    number: u32,
) -> Result<u64, Error> {
    let (rank, nranks) = (comm.rank(), comm.nranks());
    let (next, before) = ((rank + 1) % nranks, (rank + nranks - 1) % nranks);
    let pieces = [4 * count + 1, 0, 5];
    let all = pieces.iter().sum();
    let mut send = memory.hold(&input(rank, number, DType::Uint8, all));
    let mut recv = memory.hold(&vec![0xee; all]);
    let mut transfers = Vec::new();
    let mut at = 0;
    for bytes in pieces {
        let data = send.at().wrapping_add(at).cast_const();
        transfers.push(Transfer::Send { data, bytes, peer: next });
        let data = recv.at().wrapping_add(at);
        transfers.push(Transfer::Receive { data, bytes, peer: before });
        at += bytes;
    }
    // SAFETY: as in `even`.
    unsafe { comm.exchange(&transfers)? };
    Ok(hash(&memory.read(&recv)))
}

/// The results of the same calls by ranks on host memory, as threads of this process.
pub(crate) fn reference(nranks: u32, counts: &'static [usize]) -> Vec<Outcome> {
    let id = UniqueId::create().expect("a unique id");
    let rank = |rank| {
        thread::spawn(move || {
            let mut comm = join(&id, nranks, rank, None);
            make_calls(&mut comm, &Memory::Host, counts).expect("host ranks")
        })
    };
    let ranks: Vec<_> = (0..nranks).map(rank).collect();
    ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
}

/// The handle of a stream for the library.
pub(crate) fn raw(stream: &CudaStream) -> *mut c_void {
    stream.handle()
}
