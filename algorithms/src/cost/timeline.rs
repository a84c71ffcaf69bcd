//! The times of all steps and messages of an execution in model time, for pictures.

use super::MachineModel;
use super::run::ModelRun;
use crate::flat::{FlatSchedule, NONE};
use crate::schedule::{Channel, Schedule};
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

/// The execution that [`MachineModel::cost`] costs, with the time of every step and message:
/// `tiles` tiles of `bytes` bytes per chunk. It needs memory for every step of every tile.
pub fn timeline(machine: &MachineModel, schedule: &Schedule, bytes: usize, tiles: u32) -> Timeline {
    let flat = FlatSchedule::new(schedule);
    let index = |lane: u32| flat.lanes.get(lane as usize).map_or(NONE, |lane| lane.index);
    let mut messages = Vec::with_capacity(tiles as usize * flat.messages as usize);
    for tile in 0..tiles {
        for link in &flat.links {
            let lanes = (index(link.feeder), index(link.drainer));
            messages.extend((0..link.sent).map(|ordinal| MessageSpan {
                from: link.source,
                to: link.destination,
                channel: link.channel,
                lanes: if ordinal < link.received { lanes } else { (lanes.0, NONE) },
                tile,
                depart: f64::NAN,
                arrive: f64::NAN,
            }));
        }
    }
    let mut timeline = Timeline { steps: Vec::new(), messages };
    ModelRun::new(machine, &flat, bytes, tiles).finish(Some(&mut timeline));
    // A message that is not sent, or that no step receives, has no arrow.
    timeline.messages.retain(|span| !span.depart.is_nan() && span.lanes.1 != NONE);
    timeline
}
