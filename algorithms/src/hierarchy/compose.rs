//! Schedules made of schedules: each component is embedded with its ranks, chunks, lanes, channels
//! and scratch renumbered.
//!
//! A [`ComponentLayout`] says which components a rank takes part in: its *slots*, in an order in
//! which a component comes after those that it follows. A component is a schedule for some
//! collective over some of the ranks. Its steps are taken as they are and only names change, so
//! what was proved of it still holds:
//!
//! * its lanes are separate lanes, so that tile `t + 1` of an early component overlaps tile `t` of
//!   a late one;
//! * where a component follows others, its first steps on a rank are `after` the last steps of
//!   those. Waits lead from later components to earlier ones and from later tiles to earlier ones,
//!   never back, so components that do not deadlock by themselves do not deadlock together;
//! * a component runs its program several times per tile, on other chunks each time, as if these
//!   were more tiles;
//! * where its input is the memory of its output it runs in place: a copy of a chunk onto itself is
//!   left out.
//!
//! Values that pass between two components in *scratch* are in the same memory in every tile. The
//! component that writes them ends its tile with *guards*: steps that wait until the readers are
//! done with the tile. A step needs an input and an output, so a guard reads a chunk of the send
//! buffer and writes a chunk of scratch that no step reads.
//!
//! A step names at most eight others in `after`. Where more lanes must be waited for, a lane of
//! *gates* waits for eight at a time. A gate too must read something that no step writes at that
//! time. If each chunk of the component were written by more than eight lanes there would be no
//! such chunk, and the proof would fail.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::schedule::MAX_FAN;
use crate::schedule::{After, Channel, Chunk, InlineVec, Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// The components of each rank, and the names of their ranks and chunks in the whole schedule.
pub(super) trait ComponentLayout: Send + Sync {
    /// Slots per rank, the same number on all ranks.
    fn slots(&self) -> u32;
    /// The component of `rank` in `slot`; None if there is none.
    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>>;
    /// The rank that is `member` of the component in `slot` of `rank`.
    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank;
    /// The chunk of the whole schedule that is `chunk` of the component in `slot` of `rank`.
    fn chunk(&self, rank: Rank, slot: u32, chunk: ComponentChunk) -> Chunk;
}

/// A chunk of a component's input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ComponentChunk {
    /// It belongs to the component's input, else to its output.
    pub(super) is_input: bool,
    /// The member whose block it belongs to: the rank's own where there is no other. 0 where there
    /// are no blocks.
    pub(super) block: u32,
    /// The part of the block, counted through all runs of the component in a tile.
    pub(super) part: u32,
}

/// A component, as one of its ranks takes part in it.
#[derive(Clone)]
pub(super) struct RankComponent<'a> {
    /// The schedule of the component.
    pub(super) schedule: &'a Schedule,
    /// The rank's number in it.
    pub(super) member: u32,
    /// How many times it runs its program in a tile.
    pub(super) repeats: u32,
    /// Its first scratch chunk.
    pub(super) scratch: u32,
    /// Its first channel.
    pub(super) channel: Channel,
    /// Its finishing steps finish the reduction of the whole schedule.
    pub(super) finishes: bool,
    /// Its input is the memory of its output, by the rules of its collective.
    pub(super) in_place: bool,
    /// The slots of this rank that it follows.
    pub(super) follows: [Range<u32>; 2],
    /// What its last steps of a tile wait for.
    pub(super) guard: Option<TileGuard>,
}

/// The guards of a component; see the module documentation.
#[derive(Clone)]
pub(super) struct TileGuard {
    /// The slots of this rank that read what the component writes to scratch.
    pub(super) until: Range<u32>,
    /// A chunk of the send buffer that can be read when those slots are done.
    pub(super) read: Chunk,
    /// The first of the scratch chunks that guards write, one for each lane.
    pub(super) write: u32,
}

/// What the composed schedule has to declare.
#[derive(Default)]
pub(super) struct ScheduleNeeds {
    /// Scratch chunks: those of the components, the values between them, and the guards'.
    pub(super) scratch: u32,
    /// The number of channels.
    pub(super) channels: Channel,
    /// The largest number of credits that a component needs.
    pub(super) credit: u32,
    /// An upper bound of the number of lanes that a component can have to wait for.
    pub(super) lanes: u32,
}

impl ScheduleNeeds {
    /// Adds scratch chunks; returns the first of them.
    pub(super) fn reserve_scratch(&mut self, chunks: u32) -> u32 {
        self.scratch += chunks;
        self.scratch - chunks
    }
}

/// The schedule that `layout` makes of components.
pub(super) fn compose(
    name: &'static str,
    collective: Collective,
    (nranks, parts): (u32, u32),
    layout: impl ComponentLayout + 'static,
    needs: &ScheduleNeeds,
) -> Schedule {
    let gates = if needs.lanes > MAX_FAN as u32 { layout.slots() } else { 0 };
    let program = Composition { layout, gates: needs.scratch };
    Schedule::new(name, collective, nranks, parts, program)
        .with_scratch(needs.scratch + gates)
        .with_channels(needs.channels.max(1))
        .with_credit(needs.credit.max(1))
}

struct Composition<L> {
    layout: L,
    /// The first of the scratch chunks that gates write, one for each slot.
    gates: u32,
}

/// A component of a rank, with the numbers of its lanes.
struct PlacedComponent<'a> {
    slot: u32,
    component: RankComponent<'a>,
    /// The number of its first lane.
    first: u32,
    /// How many lanes the component has; the lane of gates is one more.
    lanes: u32,
    /// What its first steps wait for.
    starts: InlineVec<After>,
    /// What its gates wait for; empty if there are none.
    gates: Vec<After>,
}

impl PlacedComponent<'_> {
    fn own_step(&self, lane: u32, index: u32) -> Step {
        self.component.schedule.step(self.component.member, lane, index)
    }

    /// How many steps at the start of `lane` are left out because they copy a chunk onto itself.
    fn skipped(&self, lane: u32) -> u32 {
        let RankComponent { schedule, member, in_place, .. } = self.component;
        let first = || self.own_step(lane, 0);
        let skips = in_place
            && schedule.steps(member, lane) > 0
            && first().outputs.len() == 1
            && self.copied_onto_itself(&first()).is_some();
        u32::from(skips)
    }

    /// The index of the output that is the memory of the step's only input and does not change.
    fn copied_onto_itself(&self, step: &Step) -> Option<usize> {
        let RankComponent { schedule: Schedule { collective, nranks, parts, .. }, member, .. } =
            self.component;
        let [Operand::Local(Chunk::Input(input))] = *step.inputs else { return None };
        let same = |operand: &Operand| match *operand {
            Operand::Local(Chunk::Output(output)) => {
                collective.in_place(*nranks, *parts, member, output) == Some(input)
            }
            _ => false,
        };
        step.outputs.iter().position(same).filter(|_| self.component.in_place && !step.finish)
    }

    /// Steps of `lane` in one run of the component.
    fn steps_per_run(&self, lane: u32) -> u32 {
        self.component.schedule.steps(self.component.member, lane) - self.skipped(lane)
    }

    /// Steps of `lane` in one tile, without guards.
    fn steps_per_tile(&self, lane: u32) -> u32 {
        self.steps_per_run(lane) * self.component.repeats
    }

    /// Whether `lane` writes the component's output.
    fn writes(&self, lane: u32) -> bool {
        let RankComponent { schedule, member, .. } = self.component;
        let output = |o: &Operand| matches!(o, Operand::Local(Chunk::Output(_)));
        schedule.lane(member, lane).any(|step| step.outputs.iter().any(output))
    }

    /// The last steps of the lanes.
    fn last_steps(&self) -> impl Iterator<Item = After> + '_ {
        (0..self.lanes).filter_map(|lane| {
            let step = self.steps_per_tile(lane).checked_sub(1)?;
            Some(After { lane: self.first + lane, step })
        })
    }

    /// The steps whose messages may be memory of the component's input or output.
    fn lending_steps(&self) -> impl Iterator<Item = After> + '_ {
        (0..self.lanes).flat_map(move |lane| {
            let (per_run, skipped) = (self.steps_per_run(lane), self.skipped(lane));
            (0..self.steps_per_tile(lane)).filter_map(move |step| {
                let lends = lends(&self.own_step(lane, step % per_run + skipped));
                lends.then_some(After { lane: self.first + lane, step })
            })
        })
    }
}

/// Whether a message of the step may be memory other than scratch.
fn lends(step: &Step) -> bool {
    let sends = step.outputs.iter().any(|o| matches!(o, Operand::Peer { .. }));
    let local = |o: &Operand| matches!(o, Operand::Local(Chunk::Input(_) | Chunk::Output(_)));
    sends && (step.outputs.iter().any(local) || step.inputs.len() == 1 && local(&step.inputs[0]))
}

/// Group number `index` of eight, which one step can wait for.
fn eight_of(all: &[After], index: u32) -> InlineVec<After> {
    all.chunks(MAX_FAN).nth(index as usize).into_iter().flatten().copied().collect()
}

impl<L: ComponentLayout> Composition<L> {
    fn components(&self, rank: Rank) -> Vec<PlacedComponent<'_>> {
        let (mut components, mut first) = (Vec::new(), 0);
        for slot in 0..self.layout.slots() {
            let Some(component) = self.layout.component(rank, slot) else { continue };
            let mut gates = Vec::new();
            for range in component.follows.clone() {
                self.collect_last_steps(&components, range, &mut gates);
            }
            let lanes = component.schedule.lanes(component.member);
            let starts = if gates.len() > MAX_FAN {
                let step = gates.len().div_ceil(MAX_FAN) as u32 - 1;
                [After { lane: first + lanes, step }].into_iter().collect()
            } else {
                gates.drain(..).collect()
            };
            let placed = PlacedComponent { slot, component, first, lanes, starts, gates };
            first += lanes + u32::from(!placed.gates.is_empty());
            components.push(placed);
        }
        components
    }

    /// Adds the last steps of the components in `slots`; for one without steps, those of the
    /// components that it follows.
    fn collect_last_steps(
        &self,
        components: &[PlacedComponent<'_>],
        slots: Range<u32>,
        found: &mut Vec<After>,
    ) {
        for placed in components.iter().filter(|placed| slots.contains(&placed.slot)) {
            let before = found.len();
            found.extend(placed.last_steps());
            if found.len() == before {
                for range in placed.component.follows.clone() {
                    self.collect_last_steps(components, range, found);
                }
            }
        }
    }

    /// What the guards of a component wait for.
    fn awaited(&self, components: &[PlacedComponent<'_>], guard: &TileGuard) -> Vec<After> {
        let readers = components.iter().filter(|placed| guard.until.contains(&placed.slot));
        let mut awaited: Vec<_> =
            readers.flat_map(|placed| placed.last_steps().chain(placed.lending_steps())).collect();
        awaited.sort_unstable_by_key(|after| (after.lane, after.step));
        awaited.dedup();
        awaited
    }

    fn steps_of(&self, components: &[PlacedComponent<'_>], lane: u32) -> u32 {
        let placed = component_of(components, lane);
        let local = lane - placed.first;
        if local == placed.lanes {
            return placed.gates.len().div_ceil(MAX_FAN) as u32;
        }
        match &placed.component.guard {
            Some(guard) if placed.steps_per_tile(local) > 0 && placed.writes(local) => {
                let guards = self.awaited(components, guard).len().div_ceil(MAX_FAN) as u32;
                placed.steps_per_tile(local) + guards
            }
            _ => placed.steps_per_tile(local),
        }
    }

    fn step_of(
        &self,
        rank: Rank,
        components: &[PlacedComponent<'_>],
        lane: u32,
        index: u32,
    ) -> Step {
        let placed = component_of(components, lane);
        let local = lane - placed.first;
        if local == placed.lanes {
            return self.gate(rank, components, placed, index);
        }
        if let Some(i) = index.checked_sub(placed.steps_per_tile(local)) {
            let guard = placed.component.guard.as_ref().expect("only guards follow the program");
            let cell = Operand::Local(Chunk::Scratch(guard.write + local));
            let mut step = Step::new([Operand::Local(guard.read)], [cell]);
            step.after = eight_of(&self.awaited(components, guard), i);
            return step;
        }
        let per_run = placed.steps_per_run(local);
        self.embed(rank, placed, local, (index / per_run, index % per_run))
    }

    /// Step `at` of a lane of a component in run number `repeat`, in the names of the whole
    /// schedule.
    fn embed(
        &self,
        rank: Rank,
        placed: &PlacedComponent<'_>,
        lane: u32,
        (repeat, at): (u32, u32),
    ) -> Step {
        let PlacedComponent { component, slot, first, .. } = placed;
        let own = placed.own_step(lane, at + placed.skipped(lane));
        let operand = |operand: &Operand| match *operand {
            Operand::Local(Chunk::Scratch(i)) => {
                Operand::Local(Chunk::Scratch(component.scratch + i))
            }
            Operand::Local(chunk) => {
                Operand::Local(self.layout.chunk(rank, *slot, component.chunk(chunk, repeat)))
            }
            Operand::Peer { rank: member, channel } => Operand::Peer {
                rank: self.layout.member(rank, *slot, member),
                channel: component.channel + channel,
            },
        };
        let mut outputs = own.outputs;
        if outputs.len() > 1
            && let Some(same) = placed.copied_onto_itself(&own)
        {
            outputs.remove(same);
        }
        let mut step = Step::new(own.inputs.iter().map(operand), outputs.iter().map(operand));
        step.finish = own.finish && component.finishes;
        for after in &own.after {
            if let Some(index) = after.step.checked_sub(placed.skipped(after.lane)) {
                let index = repeat * placed.steps_per_run(after.lane) + index;
                step.after.push(After { lane: first + after.lane, step: index });
            }
        }
        // A step that waits for another lane of its component waits for the start through that
        // lane.
        if (repeat, at) == (0, 0) && step.after.is_empty() {
            step.after = placed.starts;
        }
        step
    }

    /// A step that waits for eight of the lanes that the component follows. It must read something:
    /// the first gate reads what no step writes once those eight are done, the others what the
    /// first gate wrote.
    fn gate(
        &self,
        rank: Rank,
        components: &[PlacedComponent<'_>],
        placed: &PlacedComponent<'_>,
        index: u32,
    ) -> Step {
        let cell = Operand::Local(Chunk::Scratch(self.gates + placed.slot));
        let (settled, lanes) = self.settled_chunk(rank, components, &placed.gates);
        let from = if index == 0 { settled.map_or(cell, Operand::Local) } else { cell };
        let mut step = Step::new([from], [cell]);
        step.after = eight_of(&lanes, index);
        step
    }

    /// A chunk that as few as possible of the `awaited` lanes write, and `awaited` with those lanes
    /// first. If they write no chunk, one that they read.
    fn settled_chunk(
        &self,
        rank: Rank,
        components: &[PlacedComponent<'_>],
        awaited: &[After],
    ) -> (Option<Chunk>, Vec<After>) {
        let (mut writers, mut read) = (BTreeMap::<Chunk, Vec<u32>>::new(), None);
        for &After { lane, .. } in awaited {
            let placed = component_of(components, lane);
            let local = lane - placed.first;
            let (per_run, skipped) = (placed.steps_per_run(local), placed.skipped(local));
            let named = |operand: &Operand, repeat| match *operand {
                Operand::Local(chunk @ (Chunk::Input(_) | Chunk::Output(_))) => Some(
                    self.layout.chunk(rank, placed.slot, placed.component.chunk(chunk, repeat)),
                ),
                _ => None,
            };
            for index in 0..placed.steps_per_tile(local) {
                let (own, repeat) =
                    (placed.own_step(local, index % per_run + skipped), index / per_run);
                for chunk in own.outputs.iter().filter_map(|o| named(o, repeat)) {
                    let lanes = writers.entry(chunk).or_default();
                    if lanes.last() != Some(&lane) {
                        lanes.push(lane);
                    }
                }
                read = read.or_else(|| own.inputs.iter().find_map(|o| named(o, repeat)));
            }
        }
        let Some((&chunk, first)) = writers.iter().min_by_key(|(_, lanes)| lanes.len()) else {
            return (read, awaited.to_vec());
        };
        let (mut lanes, others): (Vec<_>, Vec<_>) =
            awaited.iter().copied().partition(|after| first.contains(&after.lane));
        lanes.extend(others);
        (Some(chunk), lanes)
    }
}

/// The component that `lane` belongs to.
fn component_of<'a, 'b>(
    components: &'a [PlacedComponent<'b>],
    lane: u32,
) -> &'a PlacedComponent<'b> {
    let index = components.partition_point(|placed| placed.first <= lane);
    // Of components with equal first lanes, only the last has lanes.
    &components[index - 1]
}

impl RankComponent<'_> {
    /// A chunk of the component in run number `repeat`, by block and part.
    fn chunk(&self, chunk: Chunk, repeat: u32) -> ComponentChunk {
        let Schedule { collective, parts, .. } = *self.schedule;
        use Collective::{AllGather, AllToAll, Gather, ReduceScatter, Scatter};
        let (is_input, index) = match chunk {
            Chunk::Input(i) => (true, i),
            Chunk::Output(i) | Chunk::Scratch(i) => (false, i),
        };
        let block = match (collective, is_input) {
            (ReduceScatter | Scatter { .. } | AllToAll, true)
            | (AllGather | Gather { .. } | AllToAll, false) => index / parts,
            (ReduceScatter | Scatter { .. }, false) | (AllGather | Gather { .. }, true) => {
                self.member
            }
            _ => 0,
        };
        ComponentChunk { is_input, block, part: repeat * parts + index % parts }
    }
}

impl<L: ComponentLayout> Program for Composition<L> {
    fn lanes(&self, rank: Rank) -> u32 {
        let components = self.components(rank);
        components
            .last()
            .map_or(0, |placed| placed.first + placed.lanes + u32::from(!placed.gates.is_empty()))
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        self.steps_of(&self.components(rank), lane)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        self.step_of(rank, &self.components(rank), lane, index)
    }
}
