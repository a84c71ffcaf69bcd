//! Binding a schedule to a rank's memory and links: the program that the walker runs.

use std::collections::HashSet;

use maypole_algorithms::schedule::{After, InlineVec};
use maypole_algorithms::{Chunk, Operand, Rank, Schedule, Step};
use maypole_transport::link::Lendable;

use crate::call::Extent;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::links::Links;

/// An operand with its place in memory, or the index of its link in [`Links`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BoundOperand {
    /// In the send buffer; the extent is that of the chunk, over all tiles.
    Send(Extent),
    /// In the receive buffer, likewise.
    Recv(Extent),
    /// A scratch chunk.
    Scratch(u32),
    /// The next message of a link.
    Link(u32),
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
    pub(crate) after: InlineVec<After>,
    /// Bit `i`: input `i` is the rank's own contribution.
    pub(crate) own: u8,
    /// Bit `i`: output `i` is not read again by this rank in this call.
    pub(crate) last: u8,
    /// Closes the reduction.
    pub(crate) finish: bool,
    /// This call writes the memory that could be lent again, or does if the buffers are one: then a loan is a wait for its release.
    pub(crate) overwritten: bool,
    /// Its messages are copied even where other memory could be lent: what would have been is left out, see
    /// [`RankProgram::drop_unread_scratch`].
    pub(crate) copies: bool,
}

impl BoundStep {
    /// The local operand whose memory may be lent for this step's messages: a local output, else the only input.
    /// `scaled` says that the operation scales contributions, so that what is sent is not what the send buffer holds.
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
            [place] if !changed => Some(place),
            _ => None,
        }
    }
}

/// What one rank does.
pub(crate) struct RankProgram {
    pub(crate) lanes: Vec<BoundLane>,
    /// Elements of a chunk that one tile covers.
    pub(crate) tile: usize,
    /// Scratch chunks, each one tile long.
    pub(crate) scratch: u32,
}

/// Segments that are run one after the other; a collective has one, a group of sends to one peer one for each.
pub(crate) type BoundLane = Vec<LaneSegment>;

/// Steps that are run once per tile.
pub(crate) struct LaneSegment {
    pub(crate) steps: Vec<BoundStep>,
    pub(crate) tiles: u64,
    /// The hash that each message carries.
    pub(crate) tag: u32,
    /// Of a transfer between two ranks: how many bytes it is of. No other rank knows that before they meet.
    pub(crate) bytes: Option<usize>,
}

impl RankProgram {
    /// Binds `rank`'s steps of `schedule`. `link` opens the link to a peer on a channel and gives its index.
    pub(crate) fn bind(
        schedule: &Schedule,
        geometry: &Geometry,
        tag: u32,
        rank: Rank,
        links: &mut Links,
        mut link: impl FnMut(&mut Links, Rank, u16) -> Result<u32, Error>,
    ) -> Result<Self, Error> {
        let mut lanes = Vec::new();
        for lane in 0..schedule.lanes(rank) {
            let mut steps = Vec::new();
            for step in schedule.lane(rank, lane) {
                steps.push(bound(&step, geometry, rank, &mut |r, c| link(links, r, c))?);
            }
            lanes.push(vec![LaneSegment { steps, tiles: geometry.tiles, tag, bytes: None }]);
        }
        let mut program = Self { lanes, tile: geometry.tile, scratch: schedule.scratch };
        program.mark_last_writes();
        program.mark_overwritten();
        program.drop_unread_scratch(links);
        Ok(program)
    }

    fn steps_mut(&mut self) -> impl Iterator<Item = &mut BoundStep> {
        self.lanes.iter_mut().flatten().flat_map(|segment| &mut segment.steps)
    }

    fn reads(&self) -> HashSet<BoundOperand> {
        let steps = self.lanes.iter().flatten().flat_map(|segment| &segment.steps);
        steps.flat_map(|step| step.inputs.iter().copied()).collect()
    }

    fn mark_last_writes(&mut self) {
        let read = self.reads();
        for step in self.steps_mut() {
            for (i, place) in step.outputs.iter().enumerate() {
                if matches!(place, BoundOperand::Recv(_)) && !read.contains(place) {
                    step.last |= 1 << i;
                }
            }
        }
    }

    fn mark_overwritten(&mut self) {
        let steps = self.lanes.iter().flatten().flat_map(|segment| &segment.steps);
        let written = steps.flat_map(|step| step.outputs.iter().copied());
        let writes: Vec<Extent> = written
            .filter_map(
                |place| if let BoundOperand::Recv(extent) = place { Some(extent) } else { None },
            )
            .collect();
        let times = |lent: Extent| writes.iter().filter(|w| w.overlaps(lent)).count();
        for step in self.steps_mut() {
            step.overwritten = match step.lendable(false) {
                // Once by the step itself.
                Some(BoundOperand::Recv(lent)) => times(lent) > 1,
                Some(BoundOperand::Send(lent)) => times(lent) > 0,
                _ => false,
            };
        }
    }

    /// A scratch chunk that no step reads serves only to be lent; where links copy scratch, it need not be written. But then nothing else
    /// may be lent in its place: the proof is of a step that lends scratch.
    fn drop_unread_scratch(&mut self, links: &Links) {
        let read = self.reads();
        for step in self.steps_mut() {
            let lent = step
                .outputs
                .iter()
                .any(|p| matches!(p, BoundOperand::Link(i) if links.outgoing[*i as usize].slots.lendable() == Lendable::Anything));
            let unread =
                |p: &BoundOperand| matches!(p, BoundOperand::Scratch(_)) && !read.contains(p);
            if let Some(i) = step.outputs.iter().position(unread)
                && !lent
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

fn bound(
    step: &Step,
    geometry: &Geometry,
    rank: Rank,
    link: &mut impl FnMut(Rank, u16) -> Result<u32, Error>,
) -> Result<BoundStep, Error> {
    let mut place = |operand: &Operand| {
        Ok::<_, Error>(match *operand {
            Operand::Local(Chunk::Input(i)) => BoundOperand::Send(geometry.input(rank, i)),
            Operand::Local(Chunk::Output(i)) => BoundOperand::Recv(geometry.output(rank, i)),
            Operand::Local(Chunk::Scratch(i)) => BoundOperand::Scratch(i),
            Operand::Peer { rank: peer, channel } => BoundOperand::Link(link(peer, channel)?),
        })
    };
    let inputs = step.inputs.iter().map(&mut place).collect::<Result<InlineVec<_>, _>>()?;
    let outputs = step.outputs.iter().map(&mut place).collect::<Result<InlineVec<_>, _>>()?;
    let own = own_mask(&step.inputs);
    let after = step.after;
    let finish = step.finish;
    Ok(BoundStep { inputs, outputs, after, own, finish, ..BoundStep::default() })
}

/// Bit `i` is set where input `i` is the rank's own contribution.
pub(crate) fn own_mask(inputs: &[Operand]) -> u8 {
    let own = |o: &Operand| u8::from(matches!(o, Operand::Local(Chunk::Input(_))));
    inputs.iter().enumerate().fold(0, |mask, (i, o)| mask | own(o) << i)
}
