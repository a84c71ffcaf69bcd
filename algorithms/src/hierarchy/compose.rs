//! Schedules made of schedules: each component is embedded with its ranks, chunks, lanes, channels and scratch renumbered.
//!
//! A [`Layout`] says which components a rank is in: its *slots*, in an order such that a component comes after those
//! that it follows. A component is a schedule for some collective over some of the ranks. Its steps are taken as they are; only names
//! change, so what was proved of it goes on to hold:
//!
//! * its lanes are lanes of their own, so that tile `t + 1` of an early component overlaps tile `t` of a late one;
//! * what starts on a rank, of a component that follows others, is `after` the last steps of those. Waits lead from later
//!   components to earlier ones and from later tiles to earlier ones, never back, so components that do not deadlock by themselves
//!   do not deadlock together;
//! * a component runs its program several times a tile, on other chunks each time, as if these were more tiles;
//! * where its input is the memory of its output, it runs in place: a copy of a chunk onto itself is left out.
//!
//! What is between two components in *scratch* is the same memory in every tile. The component that writes it closes its tile
//! with *guards*, steps that wait until its readers are done with the tile. A step has an input and an output; a guard
//! reads a chunk of the send buffer and writes a chunk of scratch that nobody reads.
//!
//! A step names at most eight others in `after`. Where more lanes must be waited for, a lane of *gates* waits for them by eights. A gate
//! too must read something that nobody writes at the time; if each chunk of the component were written by more than eight lanes there
//! would be nothing, and the proof would fail.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::schedule::MAX_FAN;
use crate::schedule::{After, Channel, Chunk, InlineVec, Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Which components each rank is in, and what their ranks and chunks are called outside of them.
pub(super) trait Layout: Send + Sync {
    /// Slots per rank, the same number on all.
    fn slots(&self) -> u32;
    /// What `rank` does in `slot`; None if nothing.
    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>>;
    /// The rank that is `member` of the component in `slot` of `rank`.
    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank;
    /// What the component in `slot` of `rank` calls that chunk of its input or output.
    fn chunk(&self, rank: Rank, slot: u32, at: At) -> Chunk;
}

/// A chunk of a component's input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// Of its input, else of its output.
    pub(super) input: bool,
    /// Whose block, as the component counts its ranks: the own one where there is but that. 0 where there are no blocks.
    pub(super) block: u32,
    /// Which part of the block, counted through all the times that the component runs in a tile.
    pub(super) part: u32,
}

/// A component as one rank sees it.
#[derive(Clone)]
pub(super) struct Part<'a> {
    /// The component.
    pub(super) schedule: &'a Schedule,
    /// The rank's number in it.
    pub(super) me: u32,
    /// How many times it runs its program in a tile.
    pub(super) repeats: u32,
    /// Its first scratch chunk.
    pub(super) scratch: u32,
    /// Its first channel.
    pub(super) channel: Channel,
    /// Its reductions are the whole ones: its finishing steps finish.
    pub(super) finishes: bool,
    /// Its input is where its output is, by the rules of its collective.
    pub(super) in_place: bool,
    /// The slots of this rank that it follows.
    pub(super) follows: [Range<u32>; 2],
    /// What it waits for before the next tile.
    pub(super) guard: Option<Guard>,
}

/// See the module's text.
#[derive(Clone)]
pub(super) struct Guard {
    /// The slots of this rank that read what the component wrote to scratch.
    pub(super) until: Range<u32>,
    /// A chunk that can be read once they are through, of the send buffer.
    pub(super) read: Chunk,
    /// The scratch chunks that guards write, one for each lane.
    pub(super) write: u32,
}

/// What a composition needs of a schedule's declarations.
#[derive(Default)]
pub(super) struct Needs {
    /// Scratch chunks of the components, the values between them, and guards.
    pub(super) scratch: u32,
    /// Channels.
    pub(super) channels: Channel,
    /// Credits: the most that a component needs.
    pub(super) credit: u32,
    /// At least as many lanes as a component can have to wait for.
    pub(super) lanes: u32,
}

impl Needs {
    /// Room for that many more scratch chunks; returns the first.
    pub(super) fn room(&mut self, chunks: u32) -> u32 {
        self.scratch += chunks;
        self.scratch - chunks
    }
}

/// The schedule `named` that `layout` makes of components.
pub(super) fn compose(
    name: &'static str,
    collective: Collective,
    (nranks, parts): (u32, u32),
    layout: impl Layout + 'static,
    needs: &Needs,
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

/// A component on a rank, with its place among the rank's lanes.
struct Seat<'a> {
    slot: u32,
    part: Part<'a>,
    /// The first of its lanes.
    first: u32,
    /// How many lanes the component has; the gates are one more.
    lanes: u32,
    /// What its first steps wait for.
    starts: InlineVec<After>,
    /// What its gates wait for.
    gates: Vec<After>,
}

impl Seat<'_> {
    fn own_step(&self, lane: u32, index: u32) -> Step {
        self.part.schedule.step(self.part.me, lane, index)
    }

    /// How many steps at the start of `lane` are left out: a copy of a chunk onto itself.
    fn skipped(&self, lane: u32) -> u32 {
        let Part { schedule, me, in_place, .. } = self.part;
        let first = || self.own_step(lane, 0);
        let skips = in_place
            && schedule.steps(me, lane) > 0
            && first().outputs.len() == 1
            && self.copied_onto_itself(&first()).is_some();
        u32::from(skips)
    }

    /// Which output of the step is the memory of its only input, and stays as it is.
    fn copied_onto_itself(&self, step: &Step) -> Option<usize> {
        let Part { schedule: Schedule { collective, nranks, parts, .. }, me, .. } = self.part;
        let [Operand::Local(Chunk::Input(input))] = *step.inputs else { return None };
        let same = |operand: &Operand| match *operand {
            Operand::Local(Chunk::Output(output)) => {
                collective.in_place(*nranks, *parts, me, output) == Some(input)
            }
            _ => false,
        };
        step.outputs.iter().position(same).filter(|_| self.part.in_place && !step.finish)
    }

    /// Steps of `lane` each time that it runs.
    fn each(&self, lane: u32) -> u32 {
        self.part.schedule.steps(self.part.me, lane) - self.skipped(lane)
    }

    /// Steps of `lane` in a tile, without guards.
    fn length(&self, lane: u32) -> u32 {
        self.each(lane) * self.part.repeats
    }

    /// Whether `lane` writes the component's output.
    fn writes(&self, lane: u32) -> bool {
        let Part { schedule, me, .. } = self.part;
        let output = |o: &Operand| matches!(o, Operand::Local(Chunk::Output(_)));
        schedule.lane(me, lane).any(|step| step.outputs.iter().any(output))
    }

    /// The last steps of the lanes.
    fn last(&self) -> impl Iterator<Item = After> + '_ {
        (0..self.lanes).filter_map(|lane| {
            let step = self.length(lane).checked_sub(1)?;
            Some(After { lane: self.first + lane, step })
        })
    }

    /// The steps whose messages may be input or output of the component.
    fn lending(&self) -> impl Iterator<Item = After> + '_ {
        (0..self.lanes).flat_map(move |lane| {
            let (each, skipped) = (self.each(lane), self.skipped(lane));
            (0..self.length(lane)).filter_map(move |step| {
                let lends = lends(&self.own_step(lane, step % each + skipped));
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

/// The `index`th group of what one step can wait for.
fn group(all: &[After], index: u32) -> InlineVec<After> {
    all.chunks(MAX_FAN).nth(index as usize).into_iter().flatten().copied().collect()
}

impl<L: Layout> Composition<L> {
    fn seats(&self, rank: Rank) -> Vec<Seat<'_>> {
        let (mut seats, mut first) = (Vec::new(), 0);
        for slot in 0..self.layout.slots() {
            let Some(part) = self.layout.part(rank, slot) else { continue };
            let mut gates = Vec::new();
            for range in part.follows.clone() {
                self.last_steps(&seats, range, &mut gates);
            }
            let lanes = part.schedule.lanes(part.me);
            let starts = if gates.len() > MAX_FAN {
                let step = gates.len().div_ceil(MAX_FAN) as u32 - 1;
                [After { lane: first + lanes, step }].into_iter().collect()
            } else {
                gates.drain(..).collect()
            };
            let seat = Seat { slot, part, first, lanes, starts, gates };
            first += lanes + u32::from(!seat.gates.is_empty());
            seats.push(seat);
        }
        seats
    }

    /// The last steps of the components in `slots`, or of those that they follow where they have no steps.
    fn last_steps(&self, seats: &[Seat<'_>], slots: Range<u32>, found: &mut Vec<After>) {
        for seat in seats.iter().filter(|seat| slots.contains(&seat.slot)) {
            let before = found.len();
            found.extend(seat.last());
            if found.len() == before {
                for range in seat.part.follows.clone() {
                    self.last_steps(seats, range, found);
                }
            }
        }
    }

    /// What the guards of a seat wait for.
    fn awaited(&self, seats: &[Seat<'_>], guard: &Guard) -> Vec<After> {
        let readers = seats.iter().filter(|seat| guard.until.contains(&seat.slot));
        let mut awaited: Vec<_> =
            readers.flat_map(|seat| seat.last().chain(seat.lending())).collect();
        awaited.sort_unstable_by_key(|after| (after.lane, after.step));
        awaited.dedup();
        awaited
    }

    fn steps_of(&self, seats: &[Seat<'_>], lane: u32) -> u32 {
        let seat = seat_of(seats, lane);
        let local = lane - seat.first;
        if local == seat.lanes {
            return seat.gates.len().div_ceil(MAX_FAN) as u32;
        }
        match &seat.part.guard {
            Some(guard) if seat.length(local) > 0 && seat.writes(local) => {
                let guards = self.awaited(seats, guard).len().div_ceil(MAX_FAN) as u32;
                seat.length(local) + guards
            }
            _ => seat.length(local),
        }
    }

    fn step_of(&self, rank: Rank, seats: &[Seat<'_>], lane: u32, index: u32) -> Step {
        let seat = seat_of(seats, lane);
        let local = lane - seat.first;
        if local == seat.lanes {
            return self.gate(rank, seats, seat, index);
        }
        if let Some(i) = index.checked_sub(seat.length(local)) {
            let guard = seat.part.guard.as_ref().expect("nothing but guards follows the program");
            let cell = Operand::Local(Chunk::Scratch(guard.write + local));
            let mut step = Step::new([Operand::Local(guard.read)], [cell]);
            step.after = group(&self.awaited(seats, guard), i);
            return step;
        }
        let each = seat.each(local);
        self.embed(rank, seat, local, (index / each, index % each))
    }

    /// Step `at` of a lane of a component, the `repeat`th time that it runs, in the names of the whole.
    fn embed(&self, rank: Rank, seat: &Seat<'_>, lane: u32, (repeat, at): (u32, u32)) -> Step {
        let Seat { part, slot, first, .. } = seat;
        let own = seat.own_step(lane, at + seat.skipped(lane));
        let operand = |operand: &Operand| match *operand {
            Operand::Local(Chunk::Scratch(i)) => Operand::Local(Chunk::Scratch(part.scratch + i)),
            Operand::Local(chunk) => {
                Operand::Local(self.layout.chunk(rank, *slot, part.at(chunk, repeat)))
            }
            Operand::Peer { rank: member, channel } => Operand::Peer {
                rank: self.layout.member(rank, *slot, member),
                channel: part.channel + channel,
            },
        };
        let mut outputs = own.outputs;
        if outputs.len() > 1
            && let Some(same) = seat.copied_onto_itself(&own)
        {
            outputs.remove(same);
        }
        let mut step = Step::new(own.inputs.iter().map(operand), outputs.iter().map(operand));
        step.finish = own.finish && part.finishes;
        for after in &own.after {
            if let Some(index) = after.step.checked_sub(seat.skipped(after.lane)) {
                let index = repeat * seat.each(after.lane) + index;
                step.after.push(After { lane: first + after.lane, step: index });
            }
        }
        // One that waits for another lane of its component waits for what that waited for.
        if (repeat, at) == (0, 0) && step.after.is_empty() {
            step.after = seat.starts;
        }
        step
    }

    /// Waits for eight of the lanes that the component follows. It must read something: the first gate what nobody writes any more
    /// once those eight are through, the others what the first wrote.
    fn gate(&self, rank: Rank, seats: &[Seat<'_>], seat: &Seat<'_>, index: u32) -> Step {
        let cell = Operand::Local(Chunk::Scratch(self.gates + seat.slot));
        let (settled, lanes) = self.settled(rank, seats, &seat.gates);
        let from = if index == 0 { settled.map_or(cell, Operand::Local) } else { cell };
        let mut step = Step::new([from], [cell]);
        step.after = group(&lanes, index);
        step
    }

    /// `awaited` with the lanes first that write some chunk, as few as possible, and that chunk; if they write none, one that
    /// they read.
    fn settled(
        &self,
        rank: Rank,
        seats: &[Seat<'_>],
        awaited: &[After],
    ) -> (Option<Chunk>, Vec<After>) {
        let (mut writers, mut read) = (BTreeMap::<Chunk, Vec<u32>>::new(), None);
        for &After { lane, .. } in awaited {
            let seat = seat_of(seats, lane);
            let local = lane - seat.first;
            let (each, skipped) = (seat.each(local), seat.skipped(local));
            let named = |operand: &Operand, repeat| match *operand {
                Operand::Local(chunk @ (Chunk::Input(_) | Chunk::Output(_))) => {
                    Some(self.layout.chunk(rank, seat.slot, seat.part.at(chunk, repeat)))
                }
                _ => None,
            };
            for index in 0..seat.length(local) {
                let (own, repeat) = (seat.own_step(local, index % each + skipped), index / each);
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

/// The seat that `lane` belongs to.
fn seat_of<'a, 'b>(seats: &'a [Seat<'b>], lane: u32) -> &'a Seat<'b> {
    let index = seats.partition_point(|seat| seat.first <= lane);
    // Of seats with equal first lanes, all but the last have none.
    &seats[index - 1]
}

impl Part<'_> {
    /// The chunk by block and part.
    fn at(&self, chunk: Chunk, repeat: u32) -> At {
        let Schedule { collective, parts, .. } = *self.schedule;
        use Collective::{AllGather, AllToAll, Gather, ReduceScatter, Scatter};
        let (input, index) = match chunk {
            Chunk::Input(i) => (true, i),
            Chunk::Output(i) | Chunk::Scratch(i) => (false, i),
        };
        let block = match (collective, input) {
            (ReduceScatter | Scatter { .. } | AllToAll, true)
            | (AllGather | Gather { .. } | AllToAll, false) => index / parts,
            (ReduceScatter | Scatter { .. }, false) | (AllGather | Gather { .. }, true) => self.me,
            _ => 0,
        };
        At { input, block, part: repeat * parts + index % parts }
    }
}

impl<L: Layout> Program for Composition<L> {
    fn lanes(&self, rank: Rank) -> u32 {
        let seats = self.seats(rank);
        seats.last().map_or(0, |seat| seat.first + seat.lanes + u32::from(!seat.gates.is_empty()))
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        self.steps_of(&self.seats(rank), lane)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        self.step_of(rank, &self.seats(rank), lane, index)
    }
}
