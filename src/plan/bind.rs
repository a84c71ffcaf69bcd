//! The binding of a schedule to the memory and links of a rank, for the interpreter.

use std::collections::HashSet;

use maypole_algorithms::schedule::{After, InlineVec};
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Chunk, Operand, Rank, Step};
use maypole_transport::link::Lendable;

use crate::call::Extent;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::links::Links;

/// An operand of a step: an extent of memory, or the index of a link in [`Links`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BoundOperand {
    /// A chunk of the send buffer; the extent covers all tiles.
    Send(Extent),
    /// A chunk of the receive buffer; the extent covers all tiles.
    Recv(Extent),
    /// A scratch chunk.
    Scratch(u32),
    /// The next message of a link.
    Link(u32),
}

impl BoundOperand {
    /// The index of the link, if this is one.
    pub(crate) fn link(&self) -> Option<u32> {
        if let Self::Link(link) = *self { Some(link) } else { None }
    }
}

impl Default for BoundOperand {
    fn default() -> Self {
        Self::Scratch(0)
    }
}

/// A step whose operands are bound.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BoundStep {
    pub(crate) inputs: InlineVec<BoundOperand>,
    pub(crate) outputs: InlineVec<BoundOperand>,
    /// The steps that must be done before.
    pub(crate) after: InlineVec<After>,
    /// Elements of each operand, over all tiles. The length of every message and of the content of
    /// every scratch chunk follows from it.
    pub(crate) len: usize,
    /// Bit `i`: input `i` is the rank's own contribution.
    pub(crate) own: u8,
    /// Bit `i`: output `i` is not read again by this rank in this call.
    pub(crate) last: u8,
    /// Whether the step closes the reduction.
    pub(crate) finish: bool,
    /// Whether this call writes the memory that could be lent once more, at least if the send and
    /// the receive buffer are the same. Then lending it means to wait for its release.
    pub(crate) overwritten: bool,
    /// Whether its messages must be copied: the output that would have been lent was removed, see
    /// [`RankProgram::drop_unread_scratch`].
    pub(crate) copies: bool,
}

impl BoundStep {
    /// The local operand whose memory may be lent for the messages of this step: a local output, or
    /// else the only input. `scaled` says that the operation scales contributions, so that what is
    /// sent is not what the send buffer holds.
    pub(crate) fn lendable(&self, scaled: bool) -> Option<BoundOperand> {
        if self.copies {
            return None;
        }
        let local = |p: &&BoundOperand| !matches!(p, BoundOperand::Link(_));
        if let Some(&output) = self.outputs.iter().find(local) {
            return Some(output);
        }
        let changed = self.finish || (scaled && self.own != 0);
        match *self.inputs {
            [BoundOperand::Link(_)] => None,
            [operand] if !changed => Some(operand),
            _ => None,
        }
    }
}

/// The steps of one rank, bound to memory and links.
pub(crate) struct RankProgram {
    pub(crate) lanes: Vec<BoundLane>,
    /// Elements of a tile.
    pub(crate) tile: usize,
    /// The number of scratch chunks, each one tile long.
    pub(crate) scratch: u32,
    /// The links on which it sends.
    sends: Vec<u32>,
    /// The links on which it receives.
    receives: Vec<u32>,
    /// The messages for which those links have memory at once, see [`SendSlots::set_cycle`].
    ///
    /// [`SendSlots::set_cycle`]: maypole_transport::link::SendSlots::set_cycle
    cycle: u32,
}

/// Bytes through which the messages of all links of a rank cycle during a call, about a
/// second-level cache. Measured between two processes on two cores with 1 MiB of second-level cache
/// each, against 256 KiB: send and receive of 128 KiB take 9.8 us instead of 21.1 and of 2 MiB 104
/// us instead of 296, all-reduce of 128 KiB 9.6 us instead of 19.9 and of 2 MiB 167 us instead of
/// 223. With 2 MiB the all-reduce of 2 MiB takes 239 us. Where a rank sends to three others, 1 MiB
/// for each link makes the all-reduce of 2 MiB take 1.5 times as long as 256 KiB for each.
const CYCLE_BYTES: usize = 1 << 20;

/// The least messages in the cycle of a link, so that the two ends seldom wait for each other.
const MIN_CYCLE: u32 = 4;

/// Segments that run one after the other. A lane of a collective has one segment; the sends to one
/// peer, or the receives from it, are one segment each.
pub(crate) type BoundLane = Vec<LaneSegment>;

/// Steps that run once per tile.
pub(crate) struct LaneSegment {
    pub(crate) steps: Vec<BoundStep>,
    /// How many times the steps run.
    pub(crate) tiles: u64,
    /// The hash that each message carries.
    pub(crate) tag: u32,
    /// The bytes of a transfer between two ranks. Only the two ranks know this number, so their
    /// messages may differ in it.
    pub(crate) bytes: Option<usize>,
    /// Whether this is a transfer by one LL message.
    pub(crate) ll: bool,
}

impl RankProgram {
    /// Binds the steps of `rank` in the schedule that is `proved`. `link` opens the link to a peer
    /// on a channel and returns its index.
    pub(crate) fn bind(
        proved: &Proved,
        geometry: &Geometry,
        tag: u32,
        rank: Rank,
        links: &mut Links,
        mut link: impl FnMut(&mut Links, Rank, u16) -> Result<u32, Error>,
    ) -> Result<Self, Error> {
        let schedule = proved.schedule();
        let mut lanes = Vec::new();
        for lane in 0..schedule.lanes(rank) {
            let mut steps = Vec::new();
            for (index, step) in (0..).zip(schedule.lane(rank, lane)) {
                let origin = proved.origin(rank, lane, index);
                let (from, chunk) = origin.ok_or_else(|| Error::internal("an unproved step"))?;
                let len = geometry.input(from, chunk).len;
                steps.push(bind_step(&step, len, geometry, rank, &mut |r, c| link(links, r, c))?);
            }
            lanes.push(vec![LaneSegment {
                steps,
                tiles: geometry.tiles,
                tag,
                bytes: None,
                ll: false,
            }]);
        }
        let credit = schedule.credit;
        let mut program = Self::new(lanes, geometry.tile, schedule.scratch, credit, links);
        program.mark_last_writes();
        program.mark_overwritten();
        program.drop_unread_scratch(links);
        Ok(program)
    }

    /// A program of bound lanes that needs `credit` messages under way on each link.
    pub(crate) fn new(
        lanes: Vec<BoundLane>,
        tile: usize,
        scratch: u32,
        credit: u32,
        links: &Links,
    ) -> Self {
        let steps = || lanes.iter().flatten().flat_map(|segment| &segment.steps);
        let sends = links_in(steps().flat_map(|step| step.outputs.iter()));
        let receives = links_in(steps().flat_map(|step| step.inputs.iter()));
        let slot = sends.first().map_or(1, |&link| links.outgoing[link as usize].slots.capacity());
        let cycle = (CYCLE_BYTES / slot / sends.len().max(1)) as u32;
        Self { lanes, tile, scratch, sends, receives, cycle: cycle.max(MIN_CYCLE).max(credit) }
    }

    /// Sends what links have put off, and tells the peers of the releases that they wait for.
    pub(crate) fn flush(&self, links: &mut Links) {
        for &link in &self.sends {
            links.outgoing[link as usize].slots.flush();
        }
        for &link in &self.receives {
            links.incoming[link as usize].slots.acknowledge();
        }
    }

    /// Tells the links how much memory each may use.
    pub(crate) fn set_cycles(&self, links: &mut Links) {
        for &link in &self.sends {
            links.outgoing[link as usize].slots.set_cycle(self.cycle);
        }
    }

    fn steps_mut(&mut self) -> impl Iterator<Item = &mut BoundStep> {
        self.lanes.iter_mut().flatten().flat_map(|segment| &mut segment.steps)
    }

    /// The operands that any step reads.
    fn reads(&self) -> HashSet<BoundOperand> {
        let steps = self.lanes.iter().flatten().flat_map(|segment| &segment.steps);
        steps.flat_map(|step| step.inputs.iter().copied()).collect()
    }

    /// Sets [`BoundStep::last`].
    fn mark_last_writes(&mut self) {
        let read = self.reads();
        for step in self.steps_mut() {
            for (i, operand) in step.outputs.iter().enumerate() {
                if matches!(operand, BoundOperand::Recv(_)) && !read.contains(operand) {
                    step.last |= 1 << i;
                }
            }
        }
    }

    /// Sets [`BoundStep::overwritten`].
    fn mark_overwritten(&mut self) {
        let steps = self.lanes.iter().flatten().flat_map(|segment| &segment.steps);
        let written = steps.flat_map(|step| step.outputs.iter().copied());
        let writes: Vec<Extent> =
            written
                .filter_map(|operand| {
                    if let BoundOperand::Recv(extent) = operand { Some(extent) } else { None }
                })
                .collect();
        let write_count = |lent: Extent| writes.iter().filter(|w| w.overlaps(lent)).count();
        for step in self.steps_mut() {
            step.overwritten = match step.lendable(false) {
                // The step itself writes it once.
                Some(BoundOperand::Recv(lent)) => write_count(lent) > 1,
                Some(BoundOperand::Send(lent)) => write_count(lent) > 0,
                _ => false,
            };
        }
    }

    /// Removes scratch outputs that no step reads. They exist only to be lent, so where links copy
    /// scratch they need not be written. But then nothing else may be lent in their operand,
    /// because the proof is about a step that lends scratch.
    fn drop_unread_scratch(&mut self, links: &Links) {
        let read = self.reads();
        for step in self.steps_mut() {
            let lends = |link: u32| links.outgoing[link as usize].slots.lendable();
            let lends_scratch = step.outputs.iter().any(|operand| match *operand {
                BoundOperand::Link(link) => lends(link) == Lendable::Anything,
                _ => false,
            });
            let unread =
                |p: &BoundOperand| matches!(p, BoundOperand::Scratch(_)) && !read.contains(p);
            if let Some(i) = step.outputs.iter().position(unread)
                && !lends_scratch
                && step.outputs.len() > 1
            {
                step.outputs.remove(i);
                step.copies = true;
                let below = step.last & ((1 << i) - 1);
                step.last = below | (step.last >> 1 & !((1 << i) - 1));
            }
        }
    }
}

/// The links among operands, each once.
fn links_in<'a>(operands: impl Iterator<Item = &'a BoundOperand>) -> Vec<u32> {
    let mut links: Vec<u32> = operands.filter_map(BoundOperand::link).collect();
    links.sort_unstable();
    links.dedup();
    links
}

/// Binds the operands of a step, each of which has `len` elements; `link` opens a link and returns
/// its index.
fn bind_step(
    step: &Step,
    len: usize,
    geometry: &Geometry,
    rank: Rank,
    link: &mut impl FnMut(Rank, u16) -> Result<u32, Error>,
) -> Result<BoundStep, Error> {
    let mut bind = |operand: &Operand| {
        Ok::<_, Error>(match *operand {
            Operand::Local(Chunk::Input(i)) => BoundOperand::Send(geometry.input(rank, i)),
            Operand::Local(Chunk::Output(i)) => BoundOperand::Recv(geometry.output(rank, i)),
            Operand::Local(Chunk::Scratch(i)) => BoundOperand::Scratch(i),
            Operand::Peer { rank: peer, channel } => BoundOperand::Link(link(peer, channel)?),
        })
    };
    let inputs = step.inputs.iter().map(&mut bind).collect::<Result<InlineVec<_>, _>>()?;
    let outputs = step.outputs.iter().map(&mut bind).collect::<Result<InlineVec<_>, _>>()?;
    let fits = |operand: &BoundOperand| match *operand {
        BoundOperand::Send(extent) | BoundOperand::Recv(extent) => extent.len == len,
        BoundOperand::Scratch(_) | BoundOperand::Link(_) => true,
    };
    if !inputs.iter().chain(&outputs).all(fits) {
        return Err(Error::internal("the operands of a step differ in length"));
    }
    let own = own_mask(&step.inputs);
    let after = step.after;
    let finish = step.finish;
    Ok(BoundStep { inputs, outputs, after, len, own, finish, ..BoundStep::default() })
}

/// A mask in which bit `i` says that input `i` is the rank's own contribution.
pub(crate) fn own_mask(inputs: &[Operand]) -> u8 {
    let own = |o: &Operand| u8::from(matches!(o, Operand::Local(Chunk::Input(_))));
    inputs.iter().enumerate().fold(0, |mask, (i, o)| mask | own(o) << i)
}
