//! A rank's program in device memory, and what it takes to run it: the device's form of a plan.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{DType, Operand, Rank, RedOp, Schedule, Step};
use maypole_cuda::driver::{DriverError, Stream};
use maypole_cuda::encode::{self, Binding, Extent, Port};
use maypole_cuda::launch::{self, DEPARTED_BYTES, LANE_STATE_BYTES, Work};
use maypole_cuda::stream::Relaxed;

use super::order::Where;
use super::rank::DeviceRank;
use super::store::{Block, Store};
use crate::call::Task;
use crate::channels::FIRST_OF_SCHEDULES;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::reduce::{Reduction, scalar};
use crate::tune::{Choice, Protocol};

/// Parts of a block and of scratch memory begin on multiples of this.
const ALIGN: usize = 256;

/// How a device runs a call.
pub(crate) enum DevicePlan {
    /// There is but one rank, and nothing is changed: bytes from the send to the receive buffer.
    Copy {
        /// First byte, in the send buffer.
        from: usize,
        /// First byte, in the receive buffer.
        to: usize,
        /// How many.
        bytes: usize,
    },
    /// The kernel runs a program.
    Run(Program),
}

/// Words for the kernel, in device memory or on their way there.
pub(crate) struct Program {
    store: Arc<Store>,
    /// Until it is dropped.
    block: Option<Block>,
    /// Of the program, and of all that it takes to the device: zeros for the states of the lanes follow it.
    lanes_at: usize,
    bytes: usize,
    pub(crate) lanes: u32,
    scratch: u32,
    tile_bytes: usize,
    operation: u32,
    element: u32,
    protocol: u32,
    /// See [`Encoded::takes`].
    takes: Vec<(usize, u64)>,
    /// It is on the device, or before whatever is queued now.
    uploaded: Cell<bool>,
    /// Number of the last work that uses it.
    last: Cell<u64>,
    /// A graph uses it.
    captured: Cell<bool>,
}

/// What a program is run on.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) send: u64,
    pub(crate) recv: u64,
    /// See [`parameter`].
    pub(crate) parameter: (u64, bool),
    /// A hash of all calls so far.
    pub(crate) history: u32,
}

/// The words of a program, and what else the kernel is told of it.
pub(super) struct Encoded {
    pub(super) words: Vec<u32>,
    pub(super) lanes: u32,
    pub(super) scratch: u32,
    pub(super) tile_bytes: usize,
    pub(super) operation: u32,
    pub(super) element: u32,
    pub(super) protocol: u32,
    /// Numbers of links through the proxy, and of the messages that the program takes from them.
    pub(super) takes: Vec<(usize, u64)>,
}

impl DevicePlan {
    /// Binds a proved schedule for calls like `task` as `choice` says. All messages carry `tag`.
    pub(crate) fn new(
        proved: &Proved,
        choice: &Choice,
        task: &Task,
        tag: u32,
        me: Rank,
        rank: &mut DeviceRank,
    ) -> Result<Self, Error> {
        let (schedule, size) = (proved.schedule(), task.dtype.size());
        let geometry = Geometry::new(schedule, task, choice.tile);
        let reduction = task.reduction();
        if schedule.nranks == 1 && reduction.op != RedOp::PreMulSum {
            let (from, to) =
                (geometry.input(0, 0).start * size, geometry.output(0, 0).start * size);
            return Ok(Self::Copy { from, to, bytes: task.extents.block(0).len * size });
        }
        let extent =
            |e: crate::call::Extent| Extent { offset: e.start as u64, elements: e.len as u64 };
        let inputs = (0..schedule.input_chunks()).map(|i| extent(geometry.input(me, i)));
        let outputs = (0..schedule.output_chunks()).map(|i| extent(geometry.output(me, i)));
        let (inputs, outputs): (Vec<_>, Vec<_>) = (inputs.collect(), outputs.collect());
        // Those of schedules begin behind that of sends and receives, which no schedule names.
        let beyond = |port: &Port| Port {
            channel: port.channel.checked_sub(FIRST_OF_SCHEDULES).unwrap_or(Channel::MAX),
            ..*port
        };
        let ports: Vec<Port> = rank.ports.iter().map(beyond).collect();
        let binding = Binding {
            inputs: &inputs,
            outputs: &outputs,
            tile: geometry.tile as u32,
            tiles: geometry.tiles,
            tag,
            sending: &ports,
            receiving: &ports,
        };
        let (sending, receiving) = encode::ports(schedule, me);
        for port in sending.iter().chain(&receiving) {
            rank.open_link(port.peer, port.channel + FIRST_OF_SCHEDULES)?;
        }
        let takes = receiving.iter().filter_map(|port| {
            let number = rank.carried(port.peer, port.channel + FIRST_OF_SCHEDULES)?;
            Some((number, takes(schedule, me, port) * geometry.tiles))
        });
        let words = encode::encode(schedule, me, &binding)
            .map_err(|error| Error::internal(error.to_string()))?;
        let encoded = Encoded {
            words,
            lanes: schedule.lanes(me),
            scratch: schedule.scratch,
            takes: takes.collect(),
            tile_bytes: geometry.tile * size,
            operation: launch::operation(task.dtype, reduction.op),
            element: size as u32,
            protocol: match choice.protocol {
                Protocol::Ll => launch::LINES,
                Protocol::Slots => launch::SLOTS,
            },
        };
        Ok(Self::Run(Program::new(encoded, rank)?))
    }
}

impl Program {
    pub(super) fn new(encoded: Encoded, rank: &DeviceRank) -> Result<Self, Error> {
        let Encoded { words, lanes, scratch, tile_bytes, operation, element, protocol, takes } =
            encoded;
        let lanes_at = size_of_val(&words[..]).next_multiple_of(ALIGN);
        let bytes = lanes_at + lanes as usize * LANE_STATE_BYTES;
        let _relaxed = Relaxed::begin(rank.gpu.device.driver())?;
        let block = rank.store.take(bytes, rank.signals.finished())?;
        let host = block.staging.host().as_ptr();
        // SAFETY: the block has as many bytes, on the host too, and nobody uses it but this; what the device once read from there it has.
        unsafe {
            host.write_bytes(0, bytes);
            host.copy_from_nonoverlapping(words.as_ptr().cast(), size_of_val(&words[..]));
        }
        Ok(Self {
            store: rank.store.clone(),
            block: Some(block),
            lanes_at,
            bytes,
            lanes,
            scratch,
            tile_bytes,
            operation,
            element,
            protocol,
            takes,
            uploaded: Cell::new(false),
            last: Cell::new(0),
            captured: Cell::new(false),
        })
    }

    /// The work that runs the program, as number `number` of those that are launched; its blocks are for the launch to give. Puts the program on
    /// its way, if need be.
    ///
    /// # Safety
    /// The stream of `at` is alive.
    pub(crate) unsafe fn work(
        &self,
        rank: &mut DeviceRank,
        operands: Operands,
        at: Where,
        number: u64,
    ) -> Result<Work, DriverError> {
        let captured = at.capture.is_some();
        let lengths = (self.scratch as usize * size_of::<u32>()).next_multiple_of(ALIGN);
        let tiles = self.scratch as usize * self.tile_bytes;
        let scratch =
            if self.scratch == 0 { 0 } else { rank.scratch.prepare(&rank.gpu, lengths + tiles)? };
        let block = self.block.as_ref().expect("until it is dropped");
        if !self.uploaded.get() {
            // SAFETY: the caller's promise; the block is `bytes` long.
            unsafe { upload(block, self.bytes, rank, at)? };
            self.uploaded.set(true);
        }
        match &rank.proxy {
            Some(proxy) if captured => proxy.captured(),
            Some(proxy) => proxy.expect(&self.takes),
            None => {}
        }
        if captured {
            self.captured.set(true);
        } else {
            self.last.set(number);
        }
        let program = block.memory.address();
        let (parameter, is_address) = operands.parameter;
        Ok(Work {
            program,
            sending: rank.sending(),
            receiving: rank.receiving(),
            input: operands.send,
            output: operands.recv,
            scratch: scratch + lengths as u64,
            scratch_lengths: scratch,
            lanes: program + self.lanes_at as u64,
            departed: rank.departed(captured),
            abort: rank.signals.abort_address(),
            trouble: rank.signals.trouble_address(),
            finished: rank.signals.finished_address(captured),
            parameter,
            operation: self.operation | if is_address { launch::ADDRESS } else { 0 },
            tag: operands.history,
            first_block: 0,
            blocks: 0,
            protocol: self.protocol,
            element: self.element,
        })
    }
}

/// Copies a program to the device: before what is queued in the stream, or now where that is not to be a part of a graph.
unsafe fn upload(
    block: &Block,
    bytes: usize,
    rank: &DeviceRank,
    at: Where,
) -> Result<(), DriverError> {
    let (to, from) = (block.memory.address(), block.staging.address());
    if at.capture.is_none() {
        // SAFETY: the caller's promise.
        let stream = unsafe { Stream::foreign(&rank.gpu.device, at.stream as *mut c_void) };
        // SAFETY: both are `bytes` long, and stay until the works that use the program are through.
        return unsafe { stream.copy(to, from, bytes) };
    }
    let _relaxed = Relaxed::begin(rank.gpu.device.driver())?;
    // SAFETY: as above.
    unsafe { rank.stream.copy(to, from, bytes)? };
    rank.stream.synchronize()
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            if self.captured.get() {
                self.store.keep(block);
            } else {
                self.store.give(block, self.last.get());
            }
        }
    }
}

/// Messages that rank `me` takes from a link in one pass of its lanes.
fn takes(schedule: &Schedule, me: Rank, from: &Port) -> u64 {
    let lanes = 0..schedule.lanes(me);
    let steps = lanes.flat_map(|lane| (0..schedule.steps(me, lane)).map(move |step| (lane, step)));
    let operand = Operand::Peer { rank: from.peer, channel: from.channel };
    let of = |(lane, step)| {
        let step: Step = schedule.step(me, lane, step);
        step.inputs.iter().filter(|input| **input == operand).count() as u64
    };
    steps.map(of).sum()
}

/// What the kernel needs to know of an operation, and whether that is an address.
pub(crate) fn parameter(dtype: DType, reduction: Reduction, nranks: u32) -> (u64, bool) {
    match reduction.op {
        RedOp::PreMulSum => (reduction.scalar, reduction.resident),
        RedOp::Avg if !dtype.is_float() => (nranks.into(), false),
        _ => (scalar::factor(dtype, reduction, nranks).unwrap_or(0), false),
    }
}

const _: () = assert!(DEPARTED_BYTES <= ALIGN);
