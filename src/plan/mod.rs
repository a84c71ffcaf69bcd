//! Plans: proved schedules bound to the memory and links of a communicator. A plan is made on the
//! first call of its kind and kept.

pub(crate) mod bind;
pub(crate) mod compiled;
pub(crate) mod device;
pub(crate) mod proofs;
pub(crate) mod transfers;

use std::collections::HashMap;

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Collective, DType, Rank, RedOp};

use crate::call::{Call, Extents, Task};
use crate::call_signature::CallSignature;
use crate::device::queue::device_rank::DeviceRank;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::links::Links;
use crate::plan::bind::RankProgram;
use crate::plan::compiled::CompiledPlan;
use crate::plan::device::DevicePlan;
use crate::reduce::{FoldKernel, Isa};
use crate::tune::{AlgorithmFilter, Choice, Protocol};

/// The key by which the plan of a collective call is found. Buffers and the factor of a rank are
/// not part of the key: they are bound by each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    collective: Collective,
    count: usize,
    dtype: DType,
    op: RedOp,
}

impl PlanKey {
    #[inline]
    pub(crate) fn new(call: &Call) -> Self {
        let Call { collective, count, dtype, reduction, .. } = *call;
        let op = if collective.reduces() { reduction.op } else { RedOp::Max };
        Self { collective, count, dtype, op }
    }
}

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
        let signature = CallSignature::of(task);
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
            Protocol::Slots => PlanBody::Interpreted(RankProgram::bind(
                schedule, &geometry, tag, rank, links, link,
            )?),
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
        let tag = tag(CallSignature::of(task), choice);
        let body = PlanBody::Device(DevicePlan::new(proved, choice, task, tag, me, rank)?);
        Ok(Self::with_body(body, choice, task, proved.schedule().nranks, isa))
    }

    fn with_body(body: PlanBody, choice: &Choice, task: &Task, nranks: u32, isa: Isa) -> Self {
        let (reduction, signature) = (task.reduction(), CallSignature::of(task));
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

/// The most plans of vector calls that are kept, because their blocks may differ in every call.
const MAX_VECTOR_PLANS: usize = 32;

/// The plans of a communicator.
#[derive(Default)]
pub(crate) struct Plans {
    plans: Vec<Plan>,
    /// The plans of calls that select their algorithms.
    selected: Vec<(PlanKey, AlgorithmFilter, usize)>,
    index: HashMap<PlanKey, usize>,
    /// The plan of the last collective call, which most calls repeat.
    last: Option<(PlanKey, usize)>,
    /// The plans of vector calls, the most recently used first.
    vector: Vec<(VectorPlanKey, usize)>,
    /// The plan of a barrier.
    pub(crate) barrier: Option<usize>,
    /// The plans by a schedule that the caller provided.
    by_schedule: Vec<(Proved, PlanKey, usize)>,
}

#[derive(PartialEq, Eq)]
struct VectorPlanKey {
    collective: Collective,
    dtype: DType,
    op: RedOp,
    extents: Extents,
}

impl Plans {
    /// The number of the plan for `key`, if there is one. If it is the plan of the last call,
    /// nothing is hashed.
    #[inline]
    pub(crate) fn find(&mut self, key: &PlanKey) -> Option<usize> {
        if let Some((last, number)) = &self.last
            && last == key
        {
            return Some(*number);
        }
        let number = *self.index.get(key)?;
        self.last = Some((*key, number));
        Some(number)
    }

    /// The number of the plan for a vector call, if there is one.
    pub(crate) fn find_vector(&mut self, task: &Task) -> Option<usize> {
        let key = VectorPlanKey::new(task);
        let index = self.vector.iter().position(|(known, _)| *known == key)?;
        self.vector[..=index].rotate_right(1);
        Some(self.vector[0].1)
    }

    /// Keeps the plan of all calls with this key; returns its number.
    pub(crate) fn insert(&mut self, key: PlanKey, plan: Plan) -> usize {
        let number = self.add(plan);
        self.index.insert(key, number);
        self.last = Some((key, number));
        number
    }

    /// The number of the plan for calls with this key that allow exactly these algorithms, if there
    /// is one.
    pub(crate) fn find_selected(
        &self,
        key: &PlanKey,
        algorithms: &AlgorithmFilter,
    ) -> Option<usize> {
        self.selected
            .iter()
            .find(|(k, a, _)| k == key && a == algorithms)
            .map(|(_, _, number)| *number)
    }

    /// Keeps the plan of all calls with this key that allow exactly these algorithms; returns its
    /// number.
    pub(crate) fn insert_selected(
        &mut self,
        key: PlanKey,
        algorithms: AlgorithmFilter,
        plan: Plan,
    ) -> usize {
        let number = self.add(plan);
        self.selected.push((key, algorithms, number));
        number
    }

    /// Keeps the plan of vector calls like `task`; returns its number. If there are too many, it
    /// replaces the least recently used one.
    pub(crate) fn insert_vector(&mut self, task: &Task, plan: Plan) -> usize {
        let number = if self.vector.len() < MAX_VECTOR_PLANS {
            self.add(plan)
        } else {
            let (_, number) = self.vector.remove(MAX_VECTOR_PLANS - 1);
            self.plans[number] = plan;
            number
        };
        self.vector.insert(0, (VectorPlanKey::new(task), number));
        number
    }

    /// The number of the plan for calls with this key by `schedule`, if there is one.
    pub(crate) fn find_by_schedule(&self, schedule: &Proved, key: &PlanKey) -> Option<usize> {
        let known = self.by_schedule.iter().find(|(s, k, _)| k == key && s.is_same(schedule));
        known.map(|(_, _, number)| *number)
    }

    /// Keeps the plan of all calls with this key by `schedule`; returns its number.
    pub(crate) fn insert_by_schedule(
        &mut self,
        schedule: Proved,
        key: PlanKey,
        plan: Plan,
    ) -> usize {
        let number = self.add(plan);
        self.by_schedule.push((schedule, key, number));
        number
    }

    /// Keeps a plan that is found by its number alone; returns the number.
    pub(crate) fn add(&mut self, plan: Plan) -> usize {
        self.plans.push(plan);
        self.plans.len() - 1
    }

    #[inline]
    pub(crate) fn get(&self, number: usize) -> &Plan {
        &self.plans[number]
    }
}

impl VectorPlanKey {
    fn new(task: &Task) -> Self {
        let Task { collective, dtype, .. } = *task;
        Self { collective, dtype, op: task.reduction().op, extents: task.extents.clone() }
    }
}
