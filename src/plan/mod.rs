//! Plans: a proved schedule bound to a communicator's memory and links, made on the first call of its kind and kept.

pub(crate) mod bind;
pub(crate) mod exchange;
pub(crate) mod geometry;
pub(crate) mod straight;

use std::collections::HashMap;

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Collective, DType, Rank, RedOp};

use crate::call::Call;
use crate::engine::links::Links;
use crate::error::Error;
use crate::plan::bind::Program;
use crate::plan::geometry::Geometry;
use crate::plan::straight::StraightLine;
use crate::reduce::{Isa, Kernel, Reduction};
use crate::tune::{Choice, Protocol};
use crate::watch::Signature;

/// What a plan depends on. Pointers and a rank's own scalar are bound by the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    collective: Collective,
    count: usize,
    dtype: DType,
    op: RedOp,
}

impl Key {
    pub(crate) fn new(call: &Call) -> Self {
        let Call { collective, count, dtype, .. } = *call;
        Self { collective, count, dtype, op: reduction(call).op }
    }

    /// Whether the call brings a scalar of its own, which the plan's kernel does not know.
    pub(crate) fn brings_scalar(&self) -> bool {
        self.op == RedOp::PreMulSum
    }

    /// A hash of all that must be the same on all ranks, to be carried by every message.
    fn tag(&self, choice: &Choice) -> u32 {
        let Self { collective, count, dtype, op } = *self;
        let text = format!(
            "{collective} {count} {dtype} {op} {} {} {}",
            choice.algorithm, choice.protocol, choice.tile
        );
        // FNV-1a: any hash will do, as long as it is the same in every process and version that can meet.
        text.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
    }
}

/// How a plan is run.
pub(crate) enum Body {
    /// By lines, in one fixed order.
    Straight(StraightLine),
    /// By slots, tile by tile.
    Walk(Program),
}

/// A plan.
pub(crate) struct Plan {
    pub(crate) key: Key,
    pub(crate) body: Body,
    pub(crate) kernel: Kernel,
    /// The kernel scales contributions.
    pub(crate) scaled: bool,
    pub(crate) tag: u32,
    /// What the watch knows such calls by.
    pub(crate) signature: Signature,
    /// Outputs that are not read again are written past the caches.
    pub(crate) stream: bool,
}

/// Calls of at least this many bytes per rank write their results past the caches. Measured between two processes: at 4 MiB streaming costs
/// half of the speed (the next call finds its buffers in the last-level cache), at 8 MiB it gains half, at 32 MiB too.
pub(crate) const STREAM_FROM: usize = 8 << 20;

impl Plan {
    /// Binds a proved schedule for `call` as `choice` says. `link` opens the link to a peer on a channel.
    pub(crate) fn new(
        proved: &Proved,
        choice: &Choice,
        call: &Call,
        rank: Rank,
        isa: Isa,
        links: &mut Links,
        mut link: impl FnMut(&mut Links, Rank, Channel) -> Result<u32, Error>,
    ) -> Result<Self, Error> {
        let schedule = proved.schedule();
        let key = Key::new(call);
        let size = call.dtype.size();
        let geometry = Geometry::new(schedule, call, choice.tile);
        let scaled = scaled(key.op, call.dtype);
        let tag = key.tag(choice);
        let body = match choice.protocol {
            Protocol::Line => Body::Straight(StraightLine::compile(
                schedule,
                &geometry,
                size,
                scaled,
                rank,
                |peer, channel| link(links, peer, channel),
            )?),
            Protocol::Slots => {
                Body::Walk(Program::bind(schedule, geometry, tag, rank, links, link)?)
            }
        };
        let kernel = Kernel::select(call.dtype, reduction(call), schedule.nranks, isa);
        let stream = call.count.saturating_mul(size) >= STREAM_FROM;
        let signature = Signature::of(call);
        Ok(Self { key, body, kernel, scaled, tag, signature, stream })
    }
}

/// How the call combines contributions. Collectives that do not reduce move them as they are, whatever the call says.
fn reduction(call: &Call) -> Reduction {
    if call.collective.reduces() { call.reduction } else { RedOp::Max.into() }
}

/// Whether `op` on `dtype` scales every contribution.
fn scaled(op: RedOp, dtype: DType) -> bool {
    op == RedOp::PreMulSum || (op == RedOp::Avg && dtype.is_float())
}

/// A communicator's plans.
#[derive(Default)]
pub(crate) struct Plans {
    plans: Vec<Plan>,
    index: HashMap<Key, usize>,
    /// The plan of the last call: most calls repeat it.
    last: usize,
}

impl Plans {
    /// The number of the plan for `key`, if there is one. No hash when it is that of the last call.
    #[inline]
    pub(crate) fn find(&mut self, key: &Key) -> Option<usize> {
        if self.plans.get(self.last).is_some_and(|p| p.key == *key) {
            return Some(self.last);
        }
        self.last = *self.index.get(key)?;
        Some(self.last)
    }

    pub(crate) fn insert(&mut self, plan: Plan) -> usize {
        self.last = self.plans.len();
        self.index.insert(plan.key, self.last);
        self.plans.push(plan);
        self.last
    }

    #[inline]
    pub(crate) fn get(&self, number: usize) -> &Plan {
        &self.plans[number]
    }
}
