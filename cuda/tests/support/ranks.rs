//! Ranks on one device: links in its memory, made once, and calls that use them one after the other.

use super::device::TestDevice;
use super::operation::Operation;
use super::scalar::extents;
use maypole_algorithms::{Rank, Schedule};
use maypole_cuda::driver::{Buffer, Device, DriverError, Stream};
use maypole_cuda::encode::{Binding, Port, encode, ports};
use maypole_cuda::launch::{LANE_STATE_BYTES, Launch, LinkEnd};
use std::sync::Arc;
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

/// Far beyond what any test takes; then the ranks are aborted and the test fails.
const WATCHDOG: Duration = Duration::from_secs(30);

/// The size of things.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Elements per block of the collective.
    pub(crate) count: u64,
    /// Elements per tile.
    pub(crate) tile: u32,
    /// Slots per link.
    pub(crate) depth: u32,
    /// Blocks per launch; None is one per lane.
    pub(crate) blocks: Option<u32>,
    /// Threads per block.
    pub(crate) threads: u32,
}

/// A communicator's worth of device memory. It keeps what the calls use: freeing any of it would wait for them.
pub(crate) struct Ranks<'a> {
    ranks: Vec<PerRank>,
    control: Stream,
    abort: Buffer,
    calls: Vec<Buffer>,
    /// Receive buffers, of all ranks for each call.
    results: Vec<Vec<Buffer>>,
    links: Vec<Buffer>,
    device: &'a TestDevice,
}

struct PerRank {
    stream: Stream,
    sending: Vec<Port>,
    receiving: Vec<Port>,
    sending_table: Buffer,
    receiving_table: Buffer,
    /// Lane states, then `departed`.
    lanes: Buffer,
}

/// More than any schedule here has.
const LANES: usize = 16;

impl<'a> Ranks<'a> {
    /// Ranks with all links that `schedules` (of one number of ranks) use, with slots for elements of up to 4 bytes.
    pub(crate) fn new(device: &'a TestDevice, schedules: &[Schedule], shape: Shape) -> Self {
        let nranks = schedules[0].nranks;
        let on = &device.device;
        let slot_bytes = u64::from(shape.tile) * 4;
        let control = Stream::new(on).expect("a stream");
        let mut links = Vec::new();
        let all: Vec<_> = (0..nranks).map(|rank| all_ports(schedules, rank)).collect();
        let mut tables = vec![(Vec::new(), Vec::new()); nranks as usize];
        for (rank, (sending, _)) in all.iter().enumerate() {
            for port in sending {
                let slots = fresh(on, (slot_bytes * u64::from(shape.depth)) as usize);
                let counters = zeroed(&control, on, 4 * 64);
                let [filled, drained, sent, taken] =
                    [0, 1, 2, 3].map(|i| counters.address() + i * 64);
                let end = |position| LinkEnd {
                    slots: slots.address(),
                    filled,
                    drained,
                    position,
                    slot_bytes,
                    depth: shape.depth.into(),
                };
                let back = Port { peer: rank as Rank, channel: port.channel };
                tables[rank].0.push((*port, end(sent)));
                tables[port.peer as usize].1.push((back, end(taken)));
                links.extend([slots, counters]);
            }
        }
        let ranks = tables.into_iter().map(|(sending, receiving)| PerRank {
            stream: Stream::new(on).expect("a stream"),
            sending_table: table(&control, on, &sending),
            receiving_table: table(&control, on, &receiving),
            sending: sending.into_iter().map(|(port, _)| port).collect(),
            receiving: receiving.into_iter().map(|(port, _)| port).collect(),
            lanes: zeroed(&control, on, LANES * LANE_STATE_BYTES + 8),
        });
        let ranks = ranks.collect();
        let abort = zeroed(&control, on, 8);
        control.synchronize().expect("to set up");
        Self { ranks, control, abort, calls: Vec::new(), results: Vec::new(), links, device }
    }

    /// Queues a call on every rank.
    pub(crate) fn call(
        &mut self,
        schedule: &Schedule,
        operation: Operation,
        shape: Shape,
        inputs: &[Vec<u32>],
    ) -> Result<(), DriverError> {
        let on = self.device.device.clone();
        let input_extents = extents(schedule.input_chunks(), schedule.parts, shape.count);
        let output_extents = extents(schedule.output_chunks(), schedule.parts, shape.count);
        let all = input_extents.iter().chain(&output_extents);
        let longest = all.map(|extent| extent.elements).max().unwrap_or(0);
        let outputs = output_extents.iter().map(|e| e.elements).sum::<u64>() as usize;
        let mut results = Vec::new();
        for (rank, mine) in self.ranks.iter().enumerate() {
            let binding = Binding {
                inputs: &input_extents,
                outputs: &output_extents,
                tile: shape.tile,
                tiles: longest.div_ceil(shape.tile.into()) as u32,
                sending: &mine.sending,
                receiving: &mine.receiving,
            };
            let words = encode(schedule, rank as Rank, &binding).expect("a proved schedule");
            let program = bytes(&words, 4);
            let input = bytes(&inputs[rank], operation.size);
            let scratch = (schedule.scratch * shape.tile) as usize * operation.size;
            let [program, input] = [program, input].map(|data| {
                let buffer = fresh(&on, data.len());
                mine.stream.write(&buffer, &data).expect("to write");
                buffer
            });
            let (output, scratch) = (fresh(&on, outputs * operation.size), fresh(&on, scratch));
            let lanes = schedule.lanes(rank as Rank);
            assert!(lanes as usize <= LANES, "{schedule:?} has {lanes} lanes");
            let launch = Launch {
                program: program.address(),
                sending: mine.sending_table.address(),
                receiving: mine.receiving_table.address(),
                input: input.address(),
                output: output.address(),
                scratch: scratch.address(),
                lanes: mine.lanes.address(),
                departed: mine.lanes.address() + (LANES * LANE_STATE_BYTES) as u64,
                abort: self.abort.address(),
                parameter: (operation.parameter)(rank as Rank, schedule.nranks),
            };
            let blocks = shape.blocks.unwrap_or(lanes);
            // SAFETY: the kernels take a Launch; `encode` has checked the program against the bound sizes, and `self` keeps
            // all buffers until the device is through with them.
            unsafe {
                self.device.module.launch(
                    operation.kernel,
                    blocks,
                    shape.threads,
                    &mine.stream,
                    &launch,
                )?;
            }
            self.calls.extend([program, input, scratch]);
            results.push(output);
        }
        self.results.push(results);
        Ok(())
    }

    /// Waits for the ranks, and reads what their receive buffers of the `call`-th call hold.
    pub(crate) fn finish(
        &self,
        call: usize,
        operation: Operation,
        elements: usize,
    ) -> Vec<Vec<u32>> {
        let deadline = Instant::now() + WATCHDOG;
        while !self.is_idle() {
            if Instant::now() > deadline {
                panic!("the ranks are still at it after {WATCHDOG:?}");
            }
            sleep(Duration::from_millis(1));
        }
        let read = |buffer| {
            let data = self.control.read(buffer, elements * operation.size).expect("to read");
            let widen = |bits: &[u8]| {
                bits.iter().rev().fold(0u32, |wide, byte| wide << 8 | u32::from(*byte))
            };
            data.chunks(operation.size).map(widen).collect()
        };
        self.results[call].iter().map(read).collect()
    }

    /// True if no rank has anything queued or running.
    pub(crate) fn is_idle(&self) -> bool {
        self.ranks.iter().all(|rank| rank.stream.is_idle().expect("a stream without error"))
    }

    /// Makes every launch that waits give up.
    pub(crate) fn abort(&self) {
        self.control.write(&self.abort, &1u64.to_le_bytes()).expect("to write");
        self.control.synchronize().expect("to write");
        for rank in &self.ranks {
            rank.stream.synchronize().expect("an aborted launch ends");
        }
    }

    /// How many messages each link has carried.
    pub(crate) fn carried(&self) -> Vec<u64> {
        let counters = self.links.chunks(2).map(|link| &link[1]);
        let words = counters.map(|buffer| {
            let data = self.control.read(buffer, 4 * 64).expect("to read");
            [0, 64, 128, 192].map(|i| u64::from_le_bytes(data[i..i + 8].try_into().expect("8")))
        });
        words
            .map(|four| {
                assert_eq!(four, [four[0]; 4], "all that was sent was taken and released");
                four[0]
            })
            .collect()
    }
}

/// A test that fails must not wait for ranks that never end.
impl Drop for Ranks<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.abort();
        }
    }
}

fn all_ports(schedules: &[Schedule], rank: Rank) -> (Vec<Port>, Vec<Port>) {
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

fn table(stream: &Stream, device: &Arc<Device>, ends: &[(Port, LinkEnd)]) -> Buffer {
    let words = ends.iter().flat_map(|(_, end)| end.words());
    let data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let buffer = fresh(device, data.len());
    stream.write(&buffer, &data).expect("to write");
    buffer
}

fn zeroed(stream: &Stream, device: &Arc<Device>, bytes: usize) -> Buffer {
    let buffer = fresh(device, bytes);
    stream.write(&buffer, &vec![0; bytes]).expect("to write");
    buffer
}

fn fresh(device: &Arc<Device>, bytes: usize) -> Buffer {
    Buffer::new(device, bytes).expect("device memory")
}

/// Elements as they lie in memory: the low `size` bytes of each.
fn bytes(elements: &[u32], size: usize) -> Vec<u8> {
    elements.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(size)).collect()
}
