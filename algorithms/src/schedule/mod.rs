//! The schedule: who does what, in which order, on which pieces of the data. Nothing about bytes,
//! memory, time or protocols.
//!
//! # The parts
//!
//! A [`Step`] folds its inputs (in the stated order, see [`crate::semantics`]) and writes the
//! result to every output. An operand is a [`Chunk`] of this rank's memory or a message of a peer.
//! There are no kinds of steps: a copy has one local input and one local output, a send one local
//! input and a peer output, a receive the reverse, a reduction several inputs, a broadcast several
//! outputs.
//!
//! A *lane* is an ordered list of steps on one rank: a thread block on a GPU, a state machine on
//! the host. Lanes of a rank run side by side; [`Step::after`] names steps of other lanes that come
//! first.
//!
//! A *link* is `(source, destination, channel)`: a first-in-first-out line of messages. On its
//! source it is fed by one lane alone, on its destination it is drained by one lane alone (so a
//! link needs no lock); the two lanes may have different numbers. Messages are matched by their
//! order, not by a label.
//!
//! A *tile* is as much of every chunk as fits a slot of a link. A lane runs its whole list once per
//! tile, one tile after the other, without waiting for other lanes or ranks in between: `after`
//! refers to the same tile. Input and output chunks have other memory in every tile; **scratch
//! chunks are the same memory in every tile** and hold one tile.
//!
//! # What a step means in time
//!
//! A step *fires* when the steps of `after` are done, each input message has arrived, and each link
//! that it sends on has a free credit. Steps of a lane fire in order. Firing reads the inputs,
//! folds, writes the outputs and sends the messages; the messages that it took are then *released*,
//! which gives the credit back to their sender. A link has at least [`Schedule::credit`] credits.
//!
//! Two semantics are allowed to every engine and link, lane by lane and message by message:
//!
//! * **buffered**: a message holds a copy; the chunk it came from is free once the step has fired.
//! * **rendezvous**: a message may be the sender's memory itself: every local chunk among the
//!   outputs of the sending step, or, where it has none, its input if it has just one and that is a
//!   local chunk (and the step changes nothing of it: where the operation scales a contribution or
//!   closes a result, that message is a copy). Such a chunk stays *read* until the message is
//!   released.
//!
//! In either, a step that writes memory still being read by a message *of its own lane* waits for
//! the release before it fires (the engine tracks that; in place an output chunk is the memory of
//! an input chunk). `after` names a step as done when it has fired and the messages it sent by
//! rendezvous are released. Races between lanes are excluded by the schedule and checked by the
//! verifier.
//!
//! A call is over on a rank when all its lanes are through and all its messages that lend memory
//! are released. The next call then starts on the same links and the same scratch, while other
//! ranks may still be in this one.

mod display;

use std::fmt;
use std::sync::Arc;

use crate::types::{Collective, Rank};

/// The largest number of inputs of a step; also of its outputs and of the steps it comes after.
pub const MAX_FAN: usize = 8;

/// Up to [`MAX_FAN`] values in place, without an allocation. It is `Copy` where its values are, so
/// that a [`Step`] is. Pushing one value more panics: generators split longer lists over several
/// steps.
pub type InlineVec<T> = tinyvec::ArrayVec<[T; MAX_FAN]>;

/// The number of a FIFO between an ordered pair of ranks; see the module's text.
pub type Channel = u16;

/// A piece of a rank's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chunk {
    /// Of the send buffer. Read only; what is read of it is the rank's own contribution (scaled by
    /// the rank's factor where the operation has one). Only on ranks from which the collective
    /// takes something.
    Input(u32),
    /// Of the receive buffer. Undefined before it is written (in place it holds the input). Only on
    /// ranks that the collective gives something: elsewhere there may be no receive buffer.
    Output(u32),
    /// Of the schedule's own memory, one tile long. Undefined before it is written.
    Scratch(u32),
}

/// An input or an output of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Memory of this rank.
    Local(Chunk),
    /// The next message from, or to, that rank on that channel.
    Peer {
        /// The other rank.
        rank: Rank,
        /// Which of the links between the two.
        channel: Channel,
    },
}

impl Default for Operand {
    fn default() -> Self {
        Self::Local(Chunk::Input(0))
    }
}

/// A step of another lane of the same rank, in the same tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct After {
    /// The other lane.
    pub lane: u32,
    /// The index of the step in it.
    pub step: u32,
}

/// One pass over memory: fold the inputs, write the result to every output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Step {
    /// What is folded, in the order of the fold; at least one, and no link twice.
    pub inputs: InlineVec<Operand>,
    /// Where the result goes; at least one, and none twice.
    pub outputs: InlineVec<Operand>,
    /// Steps of other lanes that must be done first.
    pub after: InlineVec<After>,
    /// This fold makes a reduction complete: the operation's closing function (integer average's
    /// division) is applied to the result. On exactly one step of every path from contributions to
    /// an output.
    pub finish: bool,
}

impl Step {
    /// A step that folds `inputs` into `outputs`.
    pub fn new(
        inputs: impl IntoIterator<Item = Operand>,
        outputs: impl IntoIterator<Item = Operand>,
    ) -> Self {
        Self {
            inputs: inputs.into_iter().collect(),
            outputs: outputs.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The same, completing a reduction.
    pub fn finishing(mut self) -> Self {
        self.finish = true;
        self
    }

    /// The same, after step `step` of lane `lane`.
    pub fn after(mut self, lane: u32, step: u32) -> Self {
        self.after.push(After { lane, step });
        self
    }
}

/// Shorthand for the operands, used by generators.
pub mod operand {
    use super::{Channel, Chunk, Operand};
    use crate::types::Rank;

    /// Chunk `i` of the send buffer.
    pub const fn input(i: u32) -> Operand {
        Operand::Local(Chunk::Input(i))
    }

    /// Chunk `i` of the receive buffer.
    pub const fn output(i: u32) -> Operand {
        Operand::Local(Chunk::Output(i))
    }

    /// Scratch chunk `i`.
    pub const fn scratch(i: u32) -> Operand {
        Operand::Local(Chunk::Scratch(i))
    }

    /// The next message from or to `rank` on `channel`.
    pub const fn peer(rank: Rank, channel: Channel) -> Operand {
        Operand::Peer { rank, channel }
    }
}

/// The steps of every rank, computed on demand: `step` is O(1) in time (up to a logarithm of the
/// rank count) and no program needs memory that grows with it, except [`Table`].
pub trait Program: Send + Sync {
    /// Number of lanes of `rank`.
    fn lanes(&self, rank: Rank) -> u32;
    /// Number of steps of `lane` of `rank`.
    fn steps(&self, rank: Rank, lane: u32) -> u32;
    /// Step `index` of `lane` of `rank`.
    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step;
}

/// What a schedule promises of the bits of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Every chunk is reduced by the canonical tree: the balanced binary tree over the ranks
    /// `0..n`, padded to a power of two on the right. Bits depend on the ranks alone. Collectives
    /// without a reduction are canonical.
    Canonical,
    /// Some other tree: fixed for this schedule, but it may differ between chunks, sizes and
    /// schedules.
    Fast,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Canonical => "canonical",
            Self::Fast => "fast",
        })
    }
}

/// An algorithm for one collective at one rank count. Cheap to clone.
#[derive(Clone)]
pub struct Schedule {
    /// The algorithm's name, as NCCL_ALGO and `maypole verify` take it.
    pub name: &'static str,
    /// What it achieves.
    pub collective: Collective,
    /// How many ranks take part.
    pub nranks: u32,
    /// Chunks per rank block; see [`Collective`].
    pub parts: u32,
    /// Scratch chunks per rank.
    pub scratch: u32,
    /// The smallest number of credits per link that it needs.
    pub credit: u32,
    /// Its channels are below this: what a communicator sizes its inboxes by.
    pub channels: Channel,
    /// What it declares of its bits; the verifier checks it.
    pub class: Class,
    /// What there is to say of it beyond its name: a hierarchy's components and grouping.
    pub detail: Option<Arc<str>>,
    program: Arc<dyn Program>,
}

impl Schedule {
    /// A schedule of `program` with no scratch, one credit, one channel and class fast; set the
    /// fields that differ.
    pub fn new(
        name: &'static str,
        collective: Collective,
        nranks: u32,
        parts: u32,
        program: impl Program + 'static,
    ) -> Self {
        Self {
            name,
            collective,
            nranks,
            parts,
            scratch: 0,
            credit: 1,
            channels: 1,
            class: Class::Fast,
            detail: None,
            program: Arc::new(program),
        }
    }

    /// The same with `scratch` scratch chunks.
    pub fn with_scratch(mut self, scratch: u32) -> Self {
        self.scratch = scratch;
        self
    }

    /// The same, needing `credit` credits per link.
    pub fn with_credit(mut self, credit: u32) -> Self {
        self.credit = credit;
        self
    }

    /// The same, on that many channels.
    pub fn with_channels(mut self, channels: Channel) -> Self {
        self.channels = channels;
        self
    }

    /// The same, with more to say of it than its name.
    pub fn with_detail(mut self, detail: impl Into<Arc<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same, declaring the canonical class.
    pub fn canonical(mut self) -> Self {
        self.class = Class::Canonical;
        self
    }

    /// Number of lanes of `rank`.
    pub fn lanes(&self, rank: Rank) -> u32 {
        self.program.lanes(rank)
    }

    /// Number of steps of `lane` of `rank`.
    pub fn steps(&self, rank: Rank, lane: u32) -> u32 {
        self.program.steps(rank, lane)
    }

    /// Step `index` of `lane` of `rank`.
    pub fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        self.program.step(rank, lane, index)
    }

    /// The steps of `lane` of `rank`, in order.
    pub fn lane(&self, rank: Rank, lane: u32) -> impl Iterator<Item = Step> + '_ {
        (0..self.steps(rank, lane)).map(move |i| self.step(rank, lane, i))
    }

    /// Input chunks per rank.
    pub fn input_chunks(&self) -> u32 {
        self.collective.input_chunks(self.nranks, self.parts)
    }

    /// Output chunks per rank.
    pub fn output_chunks(&self) -> u32 {
        self.collective.output_chunks(self.nranks, self.parts)
    }

    /// The same schedule with its steps written out, to be changed by hand.
    pub fn to_table(&self) -> Table {
        let lane = |rank, lane| self.lane(rank, lane).collect();
        Table(
            (0..self.nranks)
                .map(|rank| (0..self.lanes(rank)).map(|l| lane(rank, l)).collect())
                .collect(),
        )
    }

    /// The same declarations over other steps.
    pub fn with_program(&self, program: impl Program + 'static) -> Self {
        Self { program: Arc::new(program), ..self.clone() }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, collective, nranks, parts, detail, .. } = self;
        write!(f, "{collective} by {name}")?;
        if let Some(detail) = detail {
            write!(f, " ({detail})")?;
        }
        write!(f, ", {nranks} ranks, {parts} parts")
    }
}

/// Steps written out: `table[rank][lane][step]`. For schedules made by hand or read from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(pub Vec<Vec<Vec<Step>>>);

impl Program for Table {
    fn lanes(&self, rank: Rank) -> u32 {
        self.0[rank as usize].len() as u32
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        self.0[rank as usize][lane as usize].len() as u32
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        self.0[rank as usize][lane as usize][index as usize]
    }
}
