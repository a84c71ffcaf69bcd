//! Ranks on one device, with links in its memory, and calls that use these links one after the
//! other.

// The words are shared with kernels, not with threads that loom could check; this crate has no
// facade for atomics.
#![allow(clippy::disallowed_types)]

use super::device::TestDevice;
use super::operation::Operation;
use super::scalar::extents;
use maypole_algorithms::{Rank, Schedule};
use maypole_cuda::driver::{Device, DriverError};
use maypole_cuda::encode::{LinkPort, ProgramBinding, encode, ports};
use maypole_cuda::launch::{
    DEPARTED_BYTES, KERNEL_NAME, KernelError, KernelLaunch, KernelWork, LANE_STATE_BYTES, LinkEnd,
};
use maypole_cuda::memory::{DeviceBuffer, PinnedBuffer};
use maypole_cuda::stream::CudaStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

/// A time limit far beyond what any test takes: then the ranks are aborted and the test fails.
const WATCHDOG: Duration = Duration::from_secs(30);

/// The sizes of a call, and how it is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Elements per block of the collective.
    pub(crate) count: u64,
    /// Elements per tile.
    pub(crate) tile: u32,
    /// Slots per link.
    pub(crate) depth: u32,
    /// Blocks per work; `None` means one per lane.
    pub(crate) blocks: Option<u32>,
    /// Threads per block.
    pub(crate) threads: u32,
    /// [`KernelWork::protocol`].
    pub(crate) protocol: u32,
    /// Elements by which send and receive buffers are misaligned.
    pub(crate) askew: u64,
    /// Whether all ranks share one launch.
    pub(crate) together: bool,
    /// The number of messages that the links have carried already.
    pub(crate) carried: u64,
}

/// The device memory of a communicator. It keeps everything that the calls use, because freeing any
/// of it would wait for them.
pub(crate) struct Ranks<'a> {
    ranks: Vec<PerRank>,
    control: CudaStream,
    /// The abort word of all ranks; then for each rank the words for errors and finished works.
    pinned: PinnedBuffer,
    calls: Vec<DeviceBuffer>,
    /// The works of each rank that are not launched.
    works: Vec<Vec<KernelWork>>,
    /// The offset of each receive buffer in its memory.
    shapes: Vec<(u64, Operation)>,
    /// The receive buffers of all ranks, for each call.
    results: Vec<Vec<DeviceBuffer>>,
    links: Vec<DeviceBuffer>,
    device: &'a TestDevice,
    carried: u64,
}

struct PerRank {
    stream: CudaStream,
    sending: Vec<LinkPort>,
    receiving: Vec<LinkPort>,
    sending_table: DeviceBuffer,
    receiving_table: DeviceBuffer,
    /// The lane states, then `departed`.
    lanes: DeviceBuffer,
    queued: u64,
}

const TAG: u32 = 0x5eed;

/// More lanes than any schedule here has.
const LANES: usize = 16;

impl<'a> Ranks<'a> {
    /// Makes ranks with all links that `schedules`, all of one number of ranks, use, with slots for
    /// elements of up to 8 bytes.
    pub(crate) fn new(device: &'a TestDevice, schedules: &[Schedule], shape: Shape) -> Self {
        let nranks = schedules[0].nranks;
        let on = &device.device;
        let slot_bytes = (u64::from(shape.tile) * 8).next_multiple_of(16);
        let control = CudaStream::new(on).expect("a stream");
        let mut links = Vec::new();
        let all: Vec<_> = (0..nranks).map(|rank| all_ports(schedules, rank)).collect();
        let mut tables = vec![(Vec::new(), Vec::new()); nranks as usize];
        for (rank, (sending, _)) in all.iter().enumerate() {
            for port in sending {
                let slots = fresh(on, (slot_bytes * u64::from(shape.depth)) as usize);
                let heads = fresh(on, shape.depth as usize * 8);
                let counters = zeroed(&control, on, 4 * 64);
                let word = shape.carried.to_le_bytes();
                let all: Vec<u8> = word.iter().copied().cycle().take(4 * 64).collect();
                control.write(&counters, &all).expect("to write");
                let words = slot_bytes / 4 + 2;
                let stale = stale_words(shape, words);
                let ll = fresh(on, stale.len());
                control.write(&ll, &stale).expect("to write");
                let [filled, drained, sent, taken] =
                    [0, 1, 2, 3].map(|i| counters.address() + i * 64);
                let end = |position| LinkEnd {
                    slots: slots.address(),
                    heads: heads.address(),
                    ll: ll.address(),
                    filled,
                    drained,
                    position,
                    slot_bytes,
                    depth: shape.depth.into(),
                    ll_words: words,
                };
                let back = LinkPort { peer: rank as Rank, channel: port.channel };
                tables[rank].0.push((*port, end(sent)));
                tables[port.peer as usize].1.push((back, end(taken)));
                links.extend([slots, heads, ll, counters]);
            }
        }
        let ranks = tables.into_iter().map(|(sending, receiving)| PerRank {
            stream: CudaStream::new(on).expect("a stream"),
            sending_table: table(&control, on, &sending),
            receiving_table: table(&control, on, &receiving),
            sending: sending.into_iter().map(|(port, _)| port).collect(),
            receiving: receiving.into_iter().map(|(port, _)| port).collect(),
            lanes: zeroed(&control, on, LANES * LANE_STATE_BYTES + DEPARTED_BYTES),
            queued: 0,
        });
        let ranks = ranks.collect();
        let pinned = PinnedBuffer::new(on, 8 + 16 * nranks as usize).expect("pinned memory");
        control.synchronize().expect("to set up");
        Self {
            ranks,
            control,
            pinned,
            calls: Vec::new(),
            works: vec![Vec::new(); nranks as usize],
            shapes: Vec::new(),
            results: Vec::new(),
            links,
            device,
            carried: shape.carried,
        }
    }

    /// Makes a work of a call for every rank, to be [launched](Self::launch) together with the
    /// works of earlier calls.
    pub(crate) fn call(
        &mut self,
        schedule: &Schedule,
        operation: Operation,
        shape: Shape,
        inputs: &[Vec<u64>],
    ) {
        let on = self.device.device.clone();
        let size = operation.size();
        let input_extents = extents(schedule.input_chunks(), schedule.parts, shape.count);
        let output_extents = extents(schedule.output_chunks(), schedule.parts, shape.count);
        let all = input_extents.iter().chain(&output_extents);
        let longest = all.map(|extent| extent.elements).max().unwrap_or(0);
        let outputs = output_extents.iter().map(|e| e.elements).sum::<u64>() as usize;
        let askew = shape.askew as usize * size;
        let mut results = Vec::new();
        let mut first_block = 0;
        for (rank, mine) in self.ranks.iter().enumerate() {
            let binding = ProgramBinding {
                inputs: &input_extents,
                outputs: &output_extents,
                tile: shape.tile,
                tiles: longest.div_ceil(shape.tile.into()),
                tag: TAG,
                sending: &mine.sending,
                receiving: &mine.receiving,
            };
            let words = encode(schedule, rank as Rank, &binding).expect("a proved schedule");
            let program: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut input = vec![0; askew];
            input.extend(bytes(&inputs[rank], size));
            let scratch = (schedule.scratch * shape.tile) as usize * size;
            let [program, input] = [program, input].map(|data| {
                let buffer = fresh(&on, data.len());
                self.control.write(&buffer, &data).expect("to write");
                buffer
            });
            let (output, scratch) = (fresh(&on, askew + outputs * size), fresh(&on, scratch));
            let lengths = fresh(&on, schedule.scratch as usize * 4);
            let lanes = schedule.lanes(rank as Rank);
            assert!(lanes as usize <= LANES, "{schedule:?} has {lanes} lanes");
            let pinned = self.pinned.address() + 8 + 16 * rank as u64;
            let work = KernelWork {
                program: program.address(),
                sending: mine.sending_table.address(),
                receiving: mine.receiving_table.address(),
                input: input.address() + askew as u64,
                output: output.address() + askew as u64,
                scratch: scratch.address(),
                scratch_lengths: lengths.address(),
                lanes: mine.lanes.address(),
                departed: mine.lanes.address() + (LANES * LANE_STATE_BYTES) as u64,
                abort: self.pinned.address(),
                error: pinned,
                finished: pinned + 8,
                parameter: operation.parameter(rank as Rank, schedule.nranks),
                operation: operation.code(),
                tag: self.results.len() as u32,
                first_block,
                blocks: shape.blocks.unwrap_or(lanes),
                protocol: shape.protocol,
                element: size as u32,
            };
            if shape.together {
                first_block += work.blocks;
            }
            self.works[rank].push(work);
            self.calls.extend([program, input, scratch, lengths]);
            results.push(output);
        }
        self.results.push(results);
        self.shapes.push((askew as u64, operation));
    }

    /// The works of the next launch, so that a test can change them.
    pub(crate) fn works(&mut self, rank: usize) -> &mut [KernelWork] {
        &mut self.works[rank]
    }

    /// Launches all calls: each rank on its own stream, or all in one launch.
    pub(crate) fn launch(&mut self, shape: Shape) -> Result<(), DriverError> {
        self.control.synchronize().expect("to write");
        let mut works: Vec<Vec<KernelWork>> = self.works.iter_mut().map(std::mem::take).collect();
        for (mine, works) in self.ranks.iter_mut().zip(&works) {
            mine.queued += works.len() as u64;
        }
        if shape.together {
            works = vec![works.concat()];
        }
        for (mine, works) in self.ranks.iter().zip(works) {
            let launch = KernelLaunch::new(&works);
            let blocks = launch.blocks();
            let (kernel, stream) = (self.device.module.kernel(KERNEL_NAME)?, &mine.stream);
            // SAFETY: the kernel takes a KernelLaunch. `encode` has checked the programs against
            // the sizes to which they are bound, and `self` keeps all buffers until the device is
            // done.
            unsafe { kernel.launch(blocks, shape.threads, stream, &launch)? };
        }
        Ok(())
    }

    /// Waits until no rank has anything queued or running.
    pub(crate) fn wait(&self) {
        let deadline = Instant::now() + WATCHDOG;
        while !self.is_idle() {
            if Instant::now() > deadline {
                panic!("the ranks are still at it after {WATCHDOG:?}");
            }
            sleep(Duration::from_millis(1));
        }
        for (rank, mine) in self.ranks.iter().enumerate() {
            let finished = self.word(2 + 2 * rank).load(Ordering::Acquire);
            assert_eq!(finished, mine.queued, "rank {rank} counts its works, aborted ones too");
        }
    }

    /// Waits for the ranks, and reads their receive buffers of call number `call`.
    pub(crate) fn finish(&self, call: usize, elements: usize) -> Vec<Vec<u64>> {
        self.wait();
        let (askew, operation) = self.shapes[call];
        let size = operation.size();
        let read = |(rank, buffer)| {
            assert_eq!(self.trouble(rank), None);
            let bytes = askew as usize + elements * size;
            let data = self.control.read(buffer, bytes).expect("to read");
            let widen =
                |bits: &[u8]| bits.iter().rev().fold(0, |wide, byte| wide << 8 | u64::from(*byte));
            data[askew as usize..].chunks(size).map(widen).collect()
        };
        self.results[call].iter().enumerate().map(read).collect()
    }

    /// Whether no rank has anything queued or running.
    pub(crate) fn is_idle(&self) -> bool {
        self.ranks.iter().all(|rank| rank.stream.is_idle().expect("a stream without error"))
    }

    /// Aborts all launches.
    pub(crate) fn abort(&self) {
        self.word(0).store(1, Ordering::Release);
        for rank in &self.ranks {
            rank.stream.synchronize().expect("an aborted launch ends");
        }
    }

    /// The error that the rank's kernels have reported.
    pub(crate) fn trouble(&self, rank: usize) -> Option<KernelError> {
        KernelError::from_word(self.word(1 + 2 * rank).load(Ordering::Acquire))
    }

    /// A pinned word.
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(8 * index < self.pinned.bytes());
        // SAFETY: the word is within the memory, which lives as long as `self`, and both sides
        // access it atomically.
        unsafe { AtomicU64::from_ptr(self.pinned.host().as_ptr().cast::<u64>().add(index)) }
    }

    /// The number of messages that each link has carried.
    pub(crate) fn carried(&self) -> Vec<u64> {
        let counters = self.links.chunks(4).map(|link| &link[3]);
        let words = counters.map(|buffer| {
            let data = self.control.read(buffer, 4 * 64).expect("to read");
            [0, 64, 128, 192].map(|i| u64::from_le_bytes(data[i..i + 8].try_into().expect("8")))
        });
        words
            .map(|[filled, drained, sent, taken]| {
                assert_eq!([drained, taken], [sent; 2], "all that was sent was taken and released");
                assert!(filled <= sent, "messages in lines are counted later");
                sent - self.carried
            })
            .collect()
    }
}

impl Ranks<'_> {
    /// The number of words in LL rings that look like words of messages that are not sent yet.
    pub(crate) fn stale(&self) -> usize {
        let stale = self.links.chunks(4).map(|link| {
            let sent = self.control.read(&link[3], 136).expect("to read");
            let sent = u64::from_le_bytes(sent[128..].try_into().expect("8")) as u32;
            let words = self.control.read(&link[2], link[2].bytes()).expect("to read");
            let flags = words.chunks(8).map(|w| u32::from_le_bytes(w[4..].try_into().expect("4")));
            flags.filter(|flag| flag.wrapping_sub(sent) as i32 > 0).count()
        });
        stale.sum()
    }
}

/// The possible content of an LL ring after that many messages: words from 2^32 messages ago, which
/// have the flags of the next messages. A new ring is zero.
fn stale_words(shape: Shape, words: u64) -> Vec<u8> {
    let depth = u64::from(shape.depth);
    let word = |i: u64| {
        let place = i / words;
        let past_window = (shape.carried >> 31 << 31) + (1 << 31) + depth;
        let next = (past_window..past_window + depth).find(|n| n % depth == place);
        let flag = if shape.carried == 0 { 0 } else { next.map_or(0, |n| n as u32 + 1) };
        u64::from(flag) << 32
    };
    (0..depth * words).flat_map(|i| word(i).to_le_bytes()).collect()
}

/// A failing test must not wait for ranks that never end.
impl Drop for Ranks<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.abort();
        }
    }
}

fn all_ports(schedules: &[Schedule], rank: Rank) -> (Vec<LinkPort>, Vec<LinkPort>) {
    let (mut sending, mut receiving) = (Vec::new(), Vec::new());
    for schedule in schedules {
        let (out, into) = ports(schedule, rank);
        sending.extend(out);
        receiving.extend(into);
    }
    for list in [&mut sending, &mut receiving] {
        list.sort_unstable();
        list.dedup();
    }
    (sending, receiving)
}

fn table(stream: &CudaStream, device: &Arc<Device>, ends: &[(LinkPort, LinkEnd)]) -> DeviceBuffer {
    let words = ends.iter().flat_map(|(_, end)| end.words());
    let data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let buffer = fresh(device, data.len());
    stream.write(&buffer, &data).expect("to write");
    buffer
}

fn zeroed(stream: &CudaStream, device: &Arc<Device>, bytes: usize) -> DeviceBuffer {
    let buffer = fresh(device, bytes);
    stream.write(&buffer, &vec![0; bytes]).expect("to write");
    buffer
}

fn fresh(device: &Arc<Device>, bytes: usize) -> DeviceBuffer {
    DeviceBuffer::new(device, bytes).expect("device memory")
}

/// The bytes of elements in memory: the low `size` bytes of each.
fn bytes(elements: &[u64], size: usize) -> Vec<u8> {
    elements.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(size)).collect()
}
