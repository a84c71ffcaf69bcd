//! When each step and each message of an execution in model time is under way: for pictures and for people.

use super::decoded::NONE;
use super::run::Run;
use super::{FlatSchedule, MachineModel};
use crate::schedule::{Channel, Schedule};
use crate::types::Rank;

/// An execution, in seconds since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// In the order of their start.
    pub steps: Vec<StepSpan>,
    /// By tile, then by sender.
    pub messages: Vec<MessageSpan>,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSpan {
    /// Whose it is.
    pub rank: Rank,
    /// The lane of the rank.
    pub lane: u32,
    /// The index in the lane.
    pub index: u32,
    /// The tile.
    pub tile: u32,
    /// When it starts.
    pub start: f64,
    /// When it is over.
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
    /// When its step is over.
    pub depart: f64,
    /// When it is there to the last byte.
    pub arrive: f64,
}

impl Timeline {
    /// When the last step is over.
    pub fn end(&self) -> f64 {
        self.steps.iter().map(|span| span.end).fold(0.0, f64::max)
    }
}

/// The execution of `tiles` tiles of `bytes` bytes a chunk that [`MachineModel::cost`] costs, in full. It needs memory for every step
/// of every tile.
pub fn timeline(machine: &MachineModel, schedule: &Schedule, bytes: usize, tiles: u32) -> Timeline {
    let decoded = FlatSchedule::new(schedule);
    let laid_out = &decoded;
    let under_way = |tile| {
        laid_out.messages.iter().map(move |message| MessageSpan {
            from: message.from,
            to: message.to,
            channel: message.channel,
            lanes: (laid_out.index(message.feeder), laid_out.index(message.drainer)),
            tile,
            depart: f64::NAN,
            arrive: f64::NAN,
        })
    };
    let messages = (0..tiles).flat_map(under_way).collect();
    let mut timeline = Timeline { steps: Vec::new(), messages };
    Run::new(machine, &decoded, bytes, tiles).finish(Some(&mut timeline));
    // What nobody sends or takes is no message.
    timeline.messages.retain(|flight| !flight.depart.is_nan() && flight.lanes.1 != NONE);
    timeline
}
