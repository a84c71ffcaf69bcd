//! How a rank on a device runs calls of one kind: by a copy, or by a program for the kernel.

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{DType, Operand, Rank, RedOp, Schedule, Step};
use maypole_cuda::encode::{self, ChunkExtent, LinkPort, ProgramBinding};
use maypole_cuda::launch;
use maypole_reduce::{Reduction, scalar};

use crate::call::{Extent, Task};
use crate::channels::FIRST_OF_SCHEDULES;
use crate::device::queue::device_rank::DeviceRank;
use crate::device::queue::program::{EncodedProgram, Program};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::tune::{Choice, Protocol};

/// How a device runs a call.
pub(crate) enum DevicePlan {
    /// By a copy from the send to the receive buffer: there is one rank, and it changes nothing.
    Copy {
        /// The offset in the send buffer, in bytes.
        from: usize,
        /// The offset in the receive buffer, in bytes.
        to: usize,
        /// The number of bytes.
        bytes: usize,
    },
    /// By a program that the kernel runs.
    Run(Program),
}

impl DevicePlan {
    /// Binds a proved schedule for calls like `task` as `choice` says. All messages carry `tag`.
    ///
    /// # Errors
    /// There is no memory left for the program or a link.
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
        let extent = |e: Extent| ChunkExtent { offset: e.start as u64, elements: e.len as u64 };
        let inputs = (0..schedule.input_chunks()).map(|i| extent(geometry.input(me, i)));
        let outputs = (0..schedule.output_chunks()).map(|i| extent(geometry.output(me, i)));
        let (inputs, outputs): (Vec<_>, Vec<_>) = (inputs.collect(), outputs.collect());
        // The channel of sends and receives gets a number that no schedule uses.
        let of_schedules = |port: &LinkPort| LinkPort {
            channel: port.channel.checked_sub(FIRST_OF_SCHEDULES).unwrap_or(Channel::MAX),
            ..*port
        };
        let ports: Vec<LinkPort> = rank.ports.iter().map(of_schedules).collect();
        let binding = ProgramBinding {
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
        let expected = receiving.iter().filter_map(|port| {
            let number = rank.proxied_link(port.peer, port.channel + FIRST_OF_SCHEDULES)?;
            Some((number, messages_per_tile(schedule, me, port) * geometry.tiles))
        });
        let words = encode::encode(schedule, me, &binding)
            .map_err(|error| Error::internal(error.to_string()))?;
        let encoded = EncodedProgram {
            words,
            lanes: schedule.lanes(me),
            scratch_chunks: schedule.scratch,
            expected: expected.collect(),
            tile_bytes: geometry.tile * size,
            operation: launch::operation(task.dtype, reduction.op),
            element_bytes: size as u32,
            protocol: match choice.protocol {
                Protocol::Ll => launch::LL,
                Protocol::Slots => launch::SLOTS,
            },
        };
        Ok(Self::Run(rank.program(encoded)?))
    }
}

/// The messages that rank `me` receives from `link` when its lanes run their steps once.
fn messages_per_tile(schedule: &Schedule, me: Rank, link: &LinkPort) -> u64 {
    let lanes = 0..schedule.lanes(me);
    let steps = lanes.flat_map(|lane| (0..schedule.steps(me, lane)).map(move |step| (lane, step)));
    let operand = Operand::Peer { rank: link.peer, channel: link.channel };
    let messages = |(lane, step)| {
        let step: Step = schedule.step(me, lane, step);
        step.inputs.iter().filter(|input| **input == operand).count() as u64
    };
    steps.map(messages).sum()
}

/// The parameter of an operation for the kernel
/// ([`KernelWork::parameter`](launch::KernelWork::parameter)), and whether it is an address.
pub(crate) fn parameter(dtype: DType, reduction: Reduction, nranks: u32) -> (u64, bool) {
    match reduction.op {
        RedOp::PreMulSum => (reduction.scalar, reduction.resident),
        RedOp::Avg if !dtype.is_float() => (nranks.into(), false),
        _ => (scalar::factor(dtype, reduction, nranks).unwrap_or(0), false),
    }
}
