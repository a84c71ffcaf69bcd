//! The schedule: which rank does what, in which order, on which parts of the data. It says nothing
//! of bytes, memory, time or protocols.
//!
//! # The parts
//!
//! A [`Step`] folds its inputs (in the order that [`crate::semantics`] states) and writes the
//! result to every output. An operand is a [`Chunk`] of this rank's memory or a message from or to
//! a peer. There are no kinds of steps: a copy has one local input and one local output, a send has
//! one local input and a peer as output, a receive the reverse, a reduction has several inputs, a
//! broadcast several outputs.
//!
//! A *lane* is an ordered list of steps on one rank: a thread block on a GPU, a state machine on
//! the host. The lanes of a rank run concurrently; [`Step::after`] names steps of other lanes that
//! must be done first.
//!
//! A *link* is `(source, destination, channel)`: a first-in-first-out queue of messages. Exactly
//! one lane of the source sends on it and exactly one lane of the destination receives from it, so
//! it needs no lock; the two lanes may have different numbers. Messages are matched by their order,
//! not by a label.
//!
//! A *tile* is as much of every chunk as fits a slot of a link. A lane runs its whole list once per
//! tile, one tile after the other, and does not wait for other lanes or ranks in between; `after`
//! refers to the same tile. Input and output chunks are other memory in every tile. **Scratch
//! chunks are the same memory in every tile** and hold one tile.
//!
//! # When a step runs
//!
//! A step *fires* when the steps of `after` are done, each input message has arrived, and each link
//! on which it sends has a free credit. The steps of a lane fire in order. Firing reads the inputs,
//! folds, writes the outputs and sends the messages. The messages that it received are then
//! *released*, which returns the credit to their sender. A link has at least [`Schedule::credit`]
//! credits.
//!
//! An engine and a link may treat each message in one of two ways:
//!
//! * **buffered**: the message is a copy; the chunk that it came from is free once the step has
//!   fired.
//! * **rendezvous**: the message may be the sender's memory itself. Which memory: every local chunk
//!   among the outputs of the sending step; or, if it has none, its input, if it has only one and
//!   that is a local chunk. (The input only if the step does not change it: where the operation
//!   scales a contribution or finishes a result, the message is a copy.) That memory counts as
//!   *read* until the message is released; we say that it is *lent*.
//!
//! In both cases, a step that writes memory which *its own lane* has lent waits for the release
//! before it fires; the engine keeps track of that. (In place, an output chunk is the memory of an
//! input chunk.) A step that `after` names is done when it has fired and what it lent is released.
//! Between different lanes of a rank, a schedule must exclude races; the verifier checks that.
//!
//! A call is over on a rank when all its lanes have finished and all messages that lend its memory
//! are released. The next call then starts on the same links and the same scratch, while other
//! ranks may still be in this call.

mod display;
mod renamed;

use std::fmt;
use std::sync::Arc;

use crate::types::{Collective, Rank};

/// The largest number of inputs of a step; also of its outputs and of the steps it comes after.
pub const MAX_FAN: usize = 8;

/// Up to [`MAX_FAN`] values in place, without an allocation. It is `Copy` where its values are, so
/// that a [`Step`] is. Pushing one value more panics: generators split longer lists over several
/// steps.
pub type InlineVec<T> = tinyvec::ArrayVec<[T; MAX_FAN]>;

/// The number that distinguishes the links from one rank to another; see the module documentation.
pub type Channel = u16;

/// A part of a rank's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chunk {
    /// A chunk of the send buffer. It is read only. What is read of it is the rank's own
    /// contribution, scaled by the rank's factor where the operation has one. Exists only on ranks
    /// from which the collective takes something.
    Input(u32),
    /// A chunk of the receive buffer. Undefined before it is written; in place it holds the input.
    /// Exists only on ranks to which the collective gives something: elsewhere there may be no
    /// receive buffer.
    Output(u32),
    /// A chunk of scratch, one tile long. Undefined before it is written.
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
        /// Which of the links between the two ranks.
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
    /// The operands that are folded, in the order of the fold; at least one, and no link twice.
    pub inputs: InlineVec<Operand>,
    /// The operands to which the result is written; at least one, and none twice.
    pub outputs: InlineVec<Operand>,
    /// Steps of other lanes that must be done first.
    pub after: InlineVec<After>,
    /// The fold completes a reduction: the operation's closing function (the division of an integer
    /// average) is applied to the result. Set on exactly one step of every path from a contribution
    /// to an output.
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

    /// The same step, completing a reduction.
    pub fn finishing(mut self) -> Self {
        self.finish = true;
        self
    }

    /// The same step, after step `step` of lane `lane`.
    pub fn after(mut self, lane: u32, step: u32) -> Self {
        self.after.push(After { lane, step });
        self
    }
}

/// Short constructors of operands, for generators.
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

/// The steps of every rank, computed on demand. `step` takes O(1) time, up to a logarithm of the
/// rank count, and no program but [`StepTable`] needs memory that grows with the rank count.
pub trait Program: Send + Sync {
    /// Number of lanes of `rank`.
    fn lanes(&self, rank: Rank) -> u32;
    /// Number of steps of `lane` of `rank`.
    fn steps(&self, rank: Rank, lane: u32) -> u32;
    /// Step `index` of `lane` of `rank`.
    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step;
}

/// What a schedule guarantees about the bits of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Every chunk is reduced by the canonical tree: the balanced binary tree over the ranks
    /// `0..n`, padded to a power of two on the right. The bits depend on the ranks alone.
    /// Collectives without a reduction are canonical.
    Canonical,
    /// Another tree: fixed for this schedule, but it may differ between chunks, sizes and
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
    /// The collective that it carries out.
    pub collective: Collective,
    /// How many ranks take part.
    pub nranks: u32,
    /// Chunks per rank block; see [`Collective`].
    pub parts: u32,
    /// Scratch chunks per rank.
    pub scratch: u32,
    /// The smallest number of credits per link that it needs.
    pub credit: u32,
    /// The number of channels: all channel numbers are smaller. Communicators size their inboxes by
    /// it.
    pub channels: Channel,
    /// The class that it declares; the verifier checks it.
    pub class: Class,
    /// A description in addition to the name: the components and grouping of a hierarchy.
    pub detail: Option<Arc<str>>,
    program: Arc<dyn Program>,
}

impl Schedule {
    /// A schedule of `program` with no scratch, one credit, one channel and class fast. Change what
    /// differs with the `with_` methods and [`Self::canonical`].
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

    /// The same schedule with `scratch` scratch chunks.
    pub fn with_scratch(mut self, scratch: u32) -> Self {
        self.scratch = scratch;
        self
    }

    /// The same schedule, which needs `credit` credits per link.
    pub fn with_credit(mut self, credit: u32) -> Self {
        self.credit = credit;
        self
    }

    /// The same schedule, with this number of channels.
    pub fn with_channels(mut self, channels: Channel) -> Self {
        self.channels = channels;
        self
    }

    /// The same schedule with a description in addition to its name.
    pub fn with_detail(mut self, detail: impl Into<Arc<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same schedule, declaring the canonical class.
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

    /// The steps of the schedule as a table, which can be changed by hand.
    pub fn to_table(&self) -> StepTable {
        let lane = |rank, lane| self.lane(rank, lane).collect();
        StepTable(
            (0..self.nranks)
                .map(|rank| (0..self.lanes(rank)).map(|l| lane(rank, l)).collect())
                .collect(),
        )
    }

    /// A schedule with the same declarations and other steps.
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

/// Steps in a table, `table[rank][lane][step]`, for schedules that are made by hand or read from a
/// file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepTable(pub Vec<Vec<Vec<Step>>>);

impl Program for StepTable {
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
