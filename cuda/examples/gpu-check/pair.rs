//! Two ranks on one device with links between them, and their all-reduces, as communicators do it
//! but without communicators.

// The words are shared with kernels, not with threads that loom could check; this crate has no
// facade for atomics.
#![allow(clippy::disallowed_types)]

use crate::elements::Operation;
use crate::gpu::Gpu;
use maypole_algorithms::Collective;
use maypole_algorithms::schedule::operand::{input, output, peer, scratch};
use maypole_algorithms::schedule::{Schedule, Step, StepTable};
use maypole_algorithms::verify::prove;
use maypole_cuda::driver::DriverError;
use maypole_cuda::encode::{ChunkExtent, LinkPort, ProgramBinding, encode};
use maypole_cuda::launch::{
    self, DEPARTED_BYTES, KERNEL_NAME, KernelError, KernelLaunch, KernelWork, LANE_STATE_BYTES, LL,
    LinkEnd, SLOTS,
};
use maypole_cuda::memory::{DeviceBuffer, PinnedBuffer};
use maypole_cuda::module::ModuleKernel;
use maypole_cuda::stream::CudaStream;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

type Failure = Box<dyn Error>;

/// Bytes from one counter to the next, so that they share no cache line.
const LINE: u64 = 128;

/// The sizes of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Lanes, which are channels and blocks too, of each rank.
    pub(crate) lanes: u32,
    /// Credits of each link.
    pub(crate) depth: u64,
    /// Bytes of a slot; a multiple of 16.
    pub(crate) slot_bytes: u64,
    /// Whether small messages travel as LL messages.
    pub(crate) ll: bool,
}

/// How the two are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By one cooperative launch.
    Together,
    /// By two launches on two streams.
    Apart,
    /// By two cooperative launches on two streams.
    ApartCooperative,
}

/// Two ranks.
pub(crate) struct Pair<'a> {
    pub(crate) gpu: &'a Gpu,
    kernel: ModuleKernel<'a>,
    pub(crate) streams: [CudaStream; 2],
    shape: Shape,
    schedule: Schedule,
    /// The abort word; then for each rank the words for errors and finished works.
    pinned: PinnedBuffer,
    /// Sending and receiving, of each rank.
    tables: [[DeviceBuffer; 2]; 2],
    departed: [DeviceBuffer; 2],
    /// Of all links of one rank's sending: filled, drained, sent, taken for each lane.
    counters: [DeviceBuffer; 2],
    _rings: Vec<DeviceBuffer>,
    calls: u32,
}

/// A call of both ranks, ready to be launched any number of times, one after the other.
pub(crate) struct Call {
    pub(crate) inputs: [DeviceBuffer; 2],
    pub(crate) outputs: [DeviceBuffer; 2],
    works: [KernelWork; 2],
    _programs: Vec<DeviceBuffer>,
}

/// Every lane sends its part of the input to the other rank and folds what comes from there.
fn schedule(lanes: u32) -> Result<Schedule, Failure> {
    let lane = |rank: u32, lane: u32| {
        let other = peer(1 - rank, lane as u16);
        // To scratch too, for links that lend memory; `encode` drops what nobody reads, so there is
        // none here.
        let send = Step::new([input(lane)], [scratch(lane), other]);
        let fold = if rank == 0 { [input(lane), other] } else { [other, input(lane)] };
        vec![send, Step::new(fold, [output(lane)]).finishing()]
    };
    let table = StepTable((0..2).map(|rank| (0..lanes).map(|l| lane(rank, l)).collect()).collect());
    let schedule = Schedule::new("exchange", Collective::AllReduce, 2, lanes, table)
        .with_scratch(lanes)
        .with_channels(lanes as u16)
        .canonical();
    Ok(prove(schedule).map_err(|example| example.to_string())?.schedule().clone())
}

impl<'a> Pair<'a> {
    pub(crate) fn new(gpu: &'a Gpu, shape: Shape) -> Result<Self, Failure> {
        let device = &gpu.device;
        let stream = CudaStream::new(device)?;
        let links = u64::from(shape.lanes);
        let zeroed = |bytes: u64| -> Result<DeviceBuffer, DriverError> {
            let buffer = DeviceBuffer::new(device, bytes as usize)?;
            stream.fill(&buffer, 0, bytes as usize)?;
            Ok(buffer)
        };
        // An LL line for what fits a slot: 32 bits of data per word of 64, and two words before
        // them.
        let ll_words = if shape.ll { (shape.slot_bytes / 4 + 2).next_multiple_of(2) } else { 0 };
        let (mut ends, mut rings, mut counters) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let slots = zeroed(links * shape.depth * shape.slot_bytes)?;
            let heads = zeroed(links * shape.depth * 8)?;
            let ll = zeroed(links * shape.depth * ll_words * 8)?;
            let counts = zeroed(links * 4 * LINE)?;
            let end = |link: u64, position: u64| {
                let counter = |i| counts.address() + (4 * link + i) * LINE;
                LinkEnd {
                    slots: slots.address() + link * shape.depth * shape.slot_bytes,
                    heads: heads.address() + link * shape.depth * 8,
                    ll: if shape.ll { ll.address() + link * shape.depth * ll_words * 8 } else { 0 },
                    filled: counter(0),
                    drained: counter(1),
                    position: counter(position),
                    slot_bytes: shape.slot_bytes,
                    depth: shape.depth,
                    ll_words,
                }
            };
            let words = |position| -> Vec<u8> {
                let ends = (0..links).flat_map(|link| end(link, position).words());
                ends.flat_map(u64::to_le_bytes).collect()
            };
            ends.push([2, 3].map(words));
            rings.extend([slots, heads, ll]);
            counters.push(counts);
        }
        let table = |words: &[u8]| -> Result<DeviceBuffer, DriverError> {
            let buffer = DeviceBuffer::new(device, words.len())?;
            stream.write(&buffer, words)?;
            Ok(buffer)
        };
        // Links of `ends[r]` lead from rank r to the other.
        let tables = [
            [table(&ends[0][0])?, table(&ends[1][1])?],
            [table(&ends[1][0])?, table(&ends[0][1])?],
        ];
        let departed = [zeroed(DEPARTED_BYTES as u64)?, zeroed(DEPARTED_BYTES as u64)?];
        stream.synchronize()?;
        let [first, second] = [counters.remove(0), counters.remove(0)];
        Ok(Self {
            gpu,
            kernel: gpu.module.kernel(KERNEL_NAME)?,
            streams: [stream, CudaStream::new(device)?],
            shape,
            schedule: schedule(shape.lanes)?,
            pinned: PinnedBuffer::new(device, 5 * 8)?,
            tables,
            departed,
            counters: [first, second],
            _rings: rings,
            calls: 0,
        })
    }

    /// Prepares a call of `count` elements; what is in the inputs is for the caller to write.
    pub(crate) fn prepare(&mut self, operation: &Operation, count: usize) -> Result<Call, Failure> {
        let (device, size) = (&self.gpu.device, operation.dtype.size());
        let part = (count as u64).div_ceil(self.shape.lanes.into());
        let extents: Vec<ChunkExtent> = (0..u64::from(self.shape.lanes))
            .map(|i| {
                let offset = (i * part).min(count as u64);
                ChunkExtent { offset, elements: part.min(count as u64 - offset) }
            })
            .collect();
        let tile = self.shape.slot_bytes / size as u64;
        self.calls += 1;
        let buffer = || DeviceBuffer::new(device, count * size);
        let (inputs, outputs) = ([buffer()?, buffer()?], [buffer()?, buffer()?]);
        let (mut works, mut programs) = ([KernelWork::default(); 2], Vec::new());
        for rank in 0..2 {
            let ports: Vec<LinkPort> = (0..self.shape.lanes)
                .map(|channel| LinkPort { peer: 1 - rank, channel: channel as u16 })
                .collect();
            let binding = ProgramBinding {
                inputs: &extents,
                outputs: &extents,
                tile: tile as u32,
                tiles: part.div_ceil(tile),
                tag: 0x5eed,
                sending: &ports,
                receiving: &ports,
            };
            let words = encode(&self.schedule, rank, &binding)?;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let program = DeviceBuffer::new(device, bytes.len())?;
            let lanes = DeviceBuffer::new(device, self.shape.lanes as usize * LANE_STATE_BYTES)?;
            let stream = &self.streams[0];
            stream.write(&program, &bytes)?;
            stream.fill(&lanes, 0, lanes.bytes())?;
            stream.synchronize()?;
            let me = rank as usize;
            works[me] = KernelWork {
                program: program.address(),
                sending: self.tables[me][0].address(),
                receiving: self.tables[me][1].address(),
                input: inputs[me].address(),
                output: outputs[me].address(),
                lanes: lanes.address(),
                departed: self.departed[me].address(),
                abort: self.pinned.address(),
                error: self.pinned.address() + 8 + 16 * me as u64,
                finished: self.pinned.address() + 16 + 16 * me as u64,
                parameter: operation.parameter[me],
                operation: launch::operation(operation.dtype, operation.op),
                tag: self.calls,
                first_block: 0,
                blocks: self.shape.lanes,
                protocol: if self.shape.ll { LL } else { SLOTS },
                element: size as u32,
                ..KernelWork::default()
            };
            programs.extend([program, lanes]);
        }
        Ok(Call { inputs, outputs, works, _programs: programs })
    }

    /// Queues the call, of both ranks.
    pub(crate) fn launch(&self, call: &Call, way: Way) -> Result<(), Failure> {
        if way == Way::Together {
            let [mut first, mut second] = call.works;
            (first.first_block, second.first_block) = (0, first.blocks);
            return self.one(&KernelLaunch::new(&[first, second]), &self.streams[0], true);
        }
        for (work, stream) in call.works.iter().zip(&self.streams) {
            self.one(&KernelLaunch::new(&[*work]), stream, way == Way::ApartCooperative)?;
        }
        Ok(())
    }

    /// Queues the part of rank 0 alone.
    pub(crate) fn launch_first(&self, call: &Call) -> Result<(), Failure> {
        self.one(&KernelLaunch::new(&call.works[..1]), &self.streams[0], true)
    }

    fn one(
        &self,
        launch: &KernelLaunch,
        stream: &CudaStream,
        together: bool,
    ) -> Result<(), Failure> {
        let (blocks, threads) = (launch.blocks(), self.gpu.threads);
        // SAFETY: the kernel takes a KernelLaunch. The program was encoded for these tables and
        // buffers, which the caller keeps until the streams have run.
        unsafe {
            match together {
                true => self.kernel.launch_cooperative(blocks, threads, stream, launch)?,
                false => self.kernel.launch(blocks, threads, stream, launch)?,
            }
        }
        Ok(())
    }

    /// Waits for both streams. After `limit` the ranks are aborted, and that is the error.
    pub(crate) fn wait(&self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        while !self.is_idle()? {
            if Instant::now() > deadline {
                self.word(0).store(1, Ordering::Release);
                return Err(format!("the ranks are still at it after {limit:?}").into());
            }
            sleep(Duration::from_micros(50));
        }
        for rank in 0..2 {
            if let Some(trouble) =
                KernelError::from_word(self.word(1 + 2 * rank).load(Ordering::Acquire))
            {
                return Err(format!("the kernel of rank {rank} reports {trouble:?}").into());
            }
        }
        Ok(())
    }

    /// Neither has anything queued or running.
    pub(crate) fn is_idle(&self) -> Result<bool, Failure> {
        Ok(self.streams[0].is_idle()? && self.streams[1].is_idle()?)
    }

    /// Aborts all works.
    pub(crate) fn abort(&self) {
        self.word(0).store(1, Ordering::Release);
    }

    /// The number of finished works of each rank.
    pub(crate) fn finished(&self) -> [u64; 2] {
        [2, 4].map(|index| self.word(index).load(Ordering::Acquire))
    }

    /// How many messages the links have carried in all, and how many of them in slots.
    pub(crate) fn carried(&self) -> Result<(u64, u64), Failure> {
        let (mut all, mut slots) = (0, 0);
        for counters in &self.counters {
            let bytes = self.streams[0].read(counters, counters.bytes())?;
            for link in bytes.chunks_exact(4 * LINE as usize) {
                let [filled, drained, sent, taken] = [0, 1, 2, 3].map(|i| {
                    let at = i * LINE as usize;
                    u64::from_le_bytes(link[at..at + 8].try_into().expect("8 bytes"))
                });
                if sent != taken || drained != taken {
                    return Err(format!(
                        "{sent} messages were sent on a link, {taken} taken, {drained} released"
                    )
                    .into());
                }
                all += sent;
                slots += filled;
            }
        }
        Ok((all, slots))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(8 * index < self.pinned.bytes());
        // SAFETY: the word is within the memory, which lives as long as `self`, and both sides
        // access it atomically.
        unsafe { AtomicU64::from_ptr(self.pinned.host().as_ptr().cast::<u64>().add(index)) }
    }
}

/// Aborts kernels that would never end, since freeing memory waits for them.
impl Drop for Pair<'_> {
    fn drop(&mut self) {
        if panicking() || !self.is_idle().unwrap_or(true) {
            self.abort();
        }
    }
}
