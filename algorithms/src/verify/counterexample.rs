//! What is wrong with a schedule, for a person to read.

use std::fmt;

use super::memory::BufferPlacement;
use crate::schedule::{Channel, Chunk, Step};
use crate::types::Rank;

/// Why a schedule is not proved: one violation, and the execution of a step that shows it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.report())]
pub struct Counterexample {
    /// The schedule in words.
    pub schedule: String,
    /// What is violated.
    pub violation: Violation,
    /// Where, if it is at a step.
    pub place: Option<StepPlace>,
    /// With which sharing of the caller's buffers, if that may matter.
    pub placement: Option<BufferPlacement>,
}

impl Counterexample {
    fn report(&self) -> String {
        let mut text = format!("{}: {}", self.schedule, self.violation);
        if let Some(place) = &self.place {
            text += &format!("\n  at {place}");
        }
        if let Some(placement) = self.placement {
            text += &format!("\n  buffers: {placement}");
        }
        text
    }
}

/// One execution of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlace {
    /// The rank.
    pub rank: Rank,
    /// Its lane.
    pub lane: u32,
    /// The index of the step in the lane.
    pub step: u32,
    /// The tile it works on.
    pub tile: u32,
    /// 0 for the schedule under proof, 1 for the exchange that follows it.
    pub call: usize,
    /// The step.
    pub text: Step,
}

impl fmt::Display for StepPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, lane, step, tile, call, text } = self;
        let call = if *call == 0 { "" } else { " of the call after it" };
        write!(f, "rank {rank}, lane {lane}, step {step}, tile {tile}{call}: {text}")
    }
}

/// Whether messages are copies or the sender's memory; see [`crate::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageSemantics {
    /// Every message is a copy.
    Buffered,
    /// Every message that can be the sender's own memory is.
    Rendezvous,
}

impl fmt::Display for MessageSemantics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Buffered => "buffered",
            Self::Rendezvous => "rendezvous",
        })
    }
}

/// A lane that cannot go on, and what it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedLane {
    /// The step that cannot fire.
    pub place: StepPlace,
    /// What it waits for, and of whom.
    pub reason: String,
}

/// A use of a chunk by a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkAccess {
    /// Who.
    pub place: StepPlace,
    /// How.
    pub kind: AccessKind,
}

/// How a chunk is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// The step reads it.
    Read,
    /// The step writes it.
    Write,
    /// A message of the step is this memory (rendezvous), until its receiver releases it.
    Lent,
}

impl fmt::Display for ChunkAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            AccessKind::Read => "reads it",
            AccessKind::Write => "writes it",
            AccessKind::Lent => "lends it to a message that may not be released yet",
        };
        write!(f, "{kind}: {}", self.place)
    }
}

/// A rule that a schedule breaks.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Violation {
    /// It is not a schedule at all.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A message would be left over, or waited for in vain.
    #[error(
        "link {source_rank} -> {destination}, channel {channel}: {sent} messages are sent in every tile and {received} received"
    )]
    Unbalanced {
        /// Who sends.
        source_rank: Rank,
        /// Who receives.
        destination: Rank,
        /// The link's channel.
        channel: Channel,
        /// Messages sent per tile.
        sent: u32,
        /// Messages received per tile.
        received: u32,
    },
    /// Lanes wait for each other.
    #[error("deadlock with {} per link, {semantics} messages:{}", credits(*credit), lines(cycle))]
    Deadlock {
        /// The weakest semantics that has it.
        semantics: MessageSemantics,
        /// Credits per link; None if it happens with any number.
        credit: Option<u32>,
        /// Each waits for the next, the last for the first.
        cycle: Vec<BlockedLane>,
    },
    /// A chunk is read that nothing was written to.
    #[error("{0} is read before it is written")]
    Undefined(Chunk),
    /// A chunk of the send buffer is read after the output in the same memory was written.
    #[error("{0} is read after it was overwritten in place")]
    Overwritten(Chunk),
    /// Contributions are combined that must not be.
    #[error("{0}")]
    Algebra(String),
    /// Two uses of a chunk, one of them a write, of which neither is sure to come first.
    #[error("race on {chunk} of rank {rank}; nothing orders these:\n  - {first}\n  - {second}")]
    Race {
        /// Whose memory.
        rank: Rank,
        /// Which chunk, as the second names it.
        chunk: Chunk,
        /// The one that happened to come first.
        first: Box<ChunkAccess>,
        /// The other.
        second: Box<ChunkAccess>,
    },
    /// The collective is not achieved.
    #[error("rank {rank} ends with {found} in out{output} (tile {tile}), not with {wanted}")]
    Postcondition {
        /// Whose output.
        rank: Rank,
        /// The output chunk.
        output: u32,
        /// The tile.
        tile: u32,
        /// What it holds.
        found: String,
        /// What the collective demands.
        wanted: String,
    },
    /// The same chunk is reduced by different trees, so that ranks or tiles may differ in their bits.
    #[error(
        "out{output} is reduced by one tree on rank {} in tile {} and by another on rank {} in tile {}:\n  {first_tree}\n  {second_tree}",
        first.0, first.1, second.0, second.1
    )]
    Disagreement {
        /// The output chunk.
        output: u32,
        /// A rank and a tile.
        first: (Rank, u32),
        /// Another.
        second: (Rank, u32),
        /// The tree of the first.
        first_tree: String,
        /// The tree of the second.
        second_tree: String,
    },
    /// The schedule declares the canonical class, and a tree is another.
    #[error("declared canonical, but out{output} of rank {rank} is reduced by\n  {tree}")]
    NotCanonical {
        /// The rank.
        rank: Rank,
        /// The output chunk.
        output: u32,
        /// Its tree.
        tree: String,
    },
}

fn credits(credit: Option<u32>) -> String {
    credit.map_or("any number of credits".to_owned(), |credit| format!("{credit} credit(s)"))
}

fn lines(cycle: &[BlockedLane]) -> String {
    cycle.iter().map(|b| format!("\n  - {}\n      waits for {}", b.place, b.reason)).collect()
}
