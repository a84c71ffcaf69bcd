//! The counterexample that the verifier returns for a schedule that it rejects.

use std::fmt;

use crate::schedule::{Channel, Chunk, Step};
use crate::types::Rank;

/// Why a schedule is not proved: one violation, and the step that shows it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.report())]
pub struct Counterexample {
    /// The schedule, as its `Debug` text.
    pub schedule: String,
    /// The rule that is violated.
    pub violation: Violation,
    /// The step at which it shows, if it shows at a step.
    pub place: Option<StepPlace>,
    /// The placement of the caller's buffers, if it may matter.
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

/// A step in an execution: one firing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlace {
    /// The rank.
    pub rank: Rank,
    /// Its lane.
    pub lane: u32,
    /// The index of the step in the lane.
    pub step: u32,
    /// The tile that it works on.
    pub tile: u32,
    /// 0 for the schedule under proof, 1 for the exchange that follows it.
    pub call: usize,
    /// The step.
    pub content: Step,
}

impl fmt::Display for StepPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, lane, step, tile, call, content } = self;
        let call = if *call == 0 { "" } else { " of the call after it" };
        write!(f, "rank {rank}, lane {lane}, step {step}, tile {tile}{call}: {content}")
    }
}

/// How the caller's send and receive buffers lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferPlacement {
    /// They share no memory.
    OutOfPlace,
    /// They overlap as [`Collective::in_place`](crate::Collective::in_place) says.
    InPlace,
}

impl fmt::Display for BufferPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OutOfPlace => "out of place",
            Self::InPlace => "in place",
        })
    }
}

/// Whether messages are copies or the sender's memory; see [`crate::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageSemantics {
    /// Every message is a copy.
    Buffered,
    /// Every message that may be the sender's own memory is.
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
    /// What it waits for, and on which rank.
    pub reason: String,
}

/// A use of a chunk by a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkAccess {
    /// The step that uses it.
    pub place: StepPlace,
    /// How it is used.
    pub kind: AccessKind,
}

/// How a chunk is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// The step reads it.
    Read,
    /// The step writes it.
    Write,
    /// A message of the step is this memory (rendezvous) until its receiver releases it.
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
    /// The schedule is not well formed.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A message is sent and never received, or received and never sent.
    #[error(
        "link {source_rank} -> {destination}, channel {channel}: {sent} messages are sent \
         in every tile and {received} received"
    )]
    Unbalanced {
        /// The rank that sends.
        source_rank: Rank,
        /// The rank that receives.
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
        /// Each lane waits for the next one, the last for the first.
        cycle: Vec<BlockedLane>,
    },
    /// A chunk is read before anything is written to it.
    #[error("{0} is read before it is written")]
    Undefined(Chunk),
    /// A chunk of the send buffer is read after the output in the same memory was written.
    #[error("{0} is read after it was overwritten in place")]
    Overwritten(Chunk),
    /// Contributions are combined that must not be combined.
    #[error("{0}")]
    Algebra(String),
    /// Two uses of a chunk, at least one of them a write, that can happen in either order.
    #[error("race on {chunk} of rank {rank}; nothing orders these:\n  - {first}\n  - {second}")]
    Race {
        /// The rank whose memory it is.
        rank: Rank,
        /// The chunk, as the second step names it.
        chunk: Chunk,
        /// The use that came first in this execution.
        first: Box<ChunkAccess>,
        /// The other use.
        second: Box<ChunkAccess>,
    },
    /// An output is not what the collective requires.
    #[error("rank {rank} ends with {found} in out{output} (tile {tile}), not with {wanted}")]
    Postcondition {
        /// The rank of the output.
        rank: Rank,
        /// The output chunk.
        output: u32,
        /// The tile.
        tile: u32,
        /// What it holds.
        found: String,
        /// What the collective requires.
        wanted: String,
    },
    /// The same chunk is reduced by different trees, so ranks or tiles may end with different bits.
    #[error(
        "out{output} is reduced by one tree on rank {} in tile {} and by another on rank {} in \
         tile {}:\n  {first_tree}\n  {second_tree}",
        first.0, first.1, second.0, second.1
    )]
    Disagreement {
        /// The output chunk.
        output: u32,
        /// A rank and a tile.
        first: (Rank, u32),
        /// Another rank or tile.
        second: (Rank, u32),
        /// The tree of the first.
        first_tree: String,
        /// The tree of the second.
        second_tree: String,
    },
    /// The schedule declares the canonical class, but a reduction tree is not the canonical one.
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
