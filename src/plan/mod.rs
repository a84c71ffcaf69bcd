//! Plans: proved schedules bound to the memory and links of a communicator. A plan is made on the
//! first call of its kind and kept, as long as it is one of those that were used last.

pub(crate) mod bind;
pub(crate) mod compiled;
pub(crate) mod device;
mod plans;
pub(crate) mod proofs;
pub(crate) mod transfers;

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Collective, DType, Rank, RedOp};
use maypole_reduce::{FoldKernel, Isa};

use crate::call::Task;
use crate::call_signature::{CallSignature, signature_of};
use crate::device::queue::device_rank::DeviceRank;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::links::Links;
use crate::plan::bind::RankProgram;
use crate::plan::compiled::CompiledPlan;
use crate::plan::device::DevicePlan;
use crate::tune::{Choice, Protocol};

#[cfg(test)]
pub(crate) use plans::{MAX_BROADCASTS, MAX_KEPT_PLANS, MAX_VECTOR_PLANS};
pub(crate) use plans::{PlanKey, Plans};

/// The form of a plan, by the engine that runs it.
pub(crate) enum PlanBody {
    /// For LL messages, as a straight sequence of steps.
    Compiled(CompiledPlan),
    /// For slots and lent memory, step by step and tile by tile.
    Interpreted(RankProgram),
    /// For a stream of a CUDA device.
    Device(DevicePlan),
}

/// A plan, with what all calls of its kind share.
pub(crate) struct Plan {
    pub(crate) body: PlanBody,
    pub(crate) kernel: FoldKernel,
    /// Each call needs a check: it has a factor that the plan's kernel does not know, or its
    /// send buffer must be copied if the call is in place.
    pub(crate) needs_check: bool,
    /// The kernel scales contributions.
    pub(crate) scaled: bool,
    /// The hash that the messages of such calls carry.
    pub(crate) tag: u32,
    /// The signature by which the control plane knows such calls.
    pub(crate) signature: CallSignature,
    /// Outputs that are not read again are written past the caches.
    pub(crate) non_temporal: bool,
}

/// Calls of at least this many bytes per rank write their results past the caches. Measured between
/// two processes: at 4 MiB non-temporal stores cost half of the speed, because the next call finds
/// its buffers in the last-level cache; at 8 MiB and at 32 MiB they gain half.
pub(crate) const NON_TEMPORAL_BYTES: usize = 8 << 20;

impl Plan {
    /// Binds a proved schedule for `task` as `choice` says. `link` opens the link to a peer on a
    /// channel and returns its index in [`Links`].
    pub(crate) fn new(
        proved: &Proved,
        choice: &Choice,
        task: &Task,
        rank: Rank,
        isa: Isa,
        links: &mut Links,
        mut link: impl FnMut(&mut Links, Rank, Channel) -> Result<u32, Error>,
    ) -> Result<Self, Error> {
        let schedule = proved.schedule();
        let (size, reduction) = (task.dtype.size(), task.reduction());
        let geometry = Geometry::new(schedule, task, choice.tile);
        let scaled = scaled(reduction.op, task.dtype);
        let signature = signature_of(task);
        let tag = tag(signature, choice);
        let body = match choice.protocol {
            Protocol::Ll => PlanBody::Compiled(CompiledPlan::compile(
                schedule,
                &geometry,
                size,
                scaled,
                rank,
                |peer, channel| link(links, peer, channel),
            )?),
            Protocol::Slots => {
                PlanBody::Interpreted(RankProgram::bind(proved, &geometry, tag, rank, links, link)?)
            }
        };
        Ok(Self::with_body(body, choice, task, schedule.nranks, isa))
    }

    /// As [`new`](Self::new), for a rank on a CUDA device.
    pub(crate) fn on_device(
        proved: &Proved,
        choice: &Choice,
        task: &Task,
        me: Rank,
        isa: Isa,
        rank: &mut DeviceRank,
    ) -> Result<Self, Error> {
        let tag = tag(signature_of(task), choice);
        let body = PlanBody::Device(DevicePlan::new(proved, choice, task, tag, me, rank)?);
        Ok(Self::with_body(body, choice, task, proved.schedule().nranks, isa))
    }

    fn with_body(body: PlanBody, choice: &Choice, task: &Task, nranks: u32, isa: Isa) -> Self {
        let (reduction, signature) = (task.reduction(), signature_of(task));
        let (scaled, tag) = (scaled(reduction.op, task.dtype), tag(signature, choice));
        let kernel = FoldKernel::select(task.dtype, reduction, nranks, isa);
        let needs_check =
            reduction.op == RedOp::PreMulSum || task.collective == Collective::AllToAll;
        let non_temporal = task.bytes() >= NON_TEMPORAL_BYTES;
        Self { body, kernel, needs_check, scaled, tag, signature, non_temporal }
    }
}

/// The hash that every message carries, of everything that must be equal on all ranks.
fn tag(signature: CallSignature, choice: &Choice) -> u32 {
    let Choice { algorithm, protocol, tile, .. } = choice;
    let text = format!("{:x} {:x} {algorithm} {protocol} {tile}", signature.what, signature.count);
    // FNV-1a. Any hash would do that is the same in every process and version that can communicate.
    text.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// Whether `op` on `dtype` scales every contribution.
fn scaled(op: RedOp, dtype: DType) -> bool {
    op == RedOp::PreMulSum || (op == RedOp::Avg && dtype.is_float())
}
