//! The times of all steps and messages of an execution in model time, for pictures.

use crate::schedule::Channel;
use crate::types::Rank;

/// The times of an execution, in seconds since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// In the order of their start.
    pub steps: Vec<StepSpan>,
    /// By tile, then by sender.
    pub messages: Vec<MessageSpan>,
}

/// One execution of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSpan {
    /// The rank of the step.
    pub rank: Rank,
    /// The lane of the rank.
    pub lane: u32,
    /// The index in the lane.
    pub index: u32,
    /// The tile.
    pub tile: u32,
    /// The time at which it starts.
    pub start: f64,
    /// The time at which it ends.
    pub end: f64,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MessageSpan {
    /// The sender.
    pub from: Rank,
    /// The receiver.
    pub to: Rank,
    /// The channel.
    pub channel: Channel,
    /// The sender's lane, and the receiver's.
    pub lanes: (u32, u32),
    /// The tile.
    pub tile: u32,
    /// The time at which the step that sends it ends.
    pub depart: f64,
    /// The time at which its last byte has arrived.
    pub arrive: f64,
}

impl Timeline {
    /// The time at which the last step ends.
    pub fn end(&self) -> f64 {
        self.steps.iter().map(|span| span.end).fold(0.0, f64::max)
    }
}
