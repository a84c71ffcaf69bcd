//! What a rank can look up without waiting: its own calls, its links, and the processes of its
//! host.

use std::time::Duration;

use maypole_algorithms::Rank;

use crate::activity::{Activity, RecorderSnapshot};
use crate::verdict::Verdict;

/// What a visible process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs, or may run.
    Running,
    /// It is stopped, by a signal or a debugger.
    Stopped,
    /// It has ended.
    Ended,
}

/// Counts of the pieces of work that a rank has on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceProgress {
    /// Pieces of work that were queued.
    pub launched: u64,
    /// Pieces of work that have ended.
    pub finished: u64,
}

/// How a process is named in reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessName {
    /// The name of its host.
    pub host: String,
    /// Its number.
    pub pid: u32,
}

/// Times of the control plane.
#[derive(Clone, Copy, Debug)]
pub struct ControlTiming {
    /// After how long a wait is investigated.
    pub report: Duration,
    /// After how long a wait is an error.
    pub timeout: Option<Duration>,
    /// How often ranks compare their calls.
    pub compare: Duration,
}

/// What a rank can look up without waiting.
pub trait LocalFacts {
    /// The calls of this rank.
    fn snapshot(&self) -> RecorderSnapshot;

    /// What this rank does, for a rank that asks.
    fn activity(&self) -> Activity;

    /// The state of the process of a rank, if this process can see it and is not that process.
    fn process_state(&self, rank: Rank) -> Option<ProcessState>;

    /// How the process of a rank is named.
    fn process_name(&self, rank: Rank) -> ProcessName;

    /// The failure that this rank knows from its links.
    fn link_failure(&self) -> Option<Verdict>;

    /// Whether a connected rank has announced on its link that it leaves.
    fn has_left_link(&self, rank: Rank) -> bool;

    /// The work on the device of this rank, if it has one.
    fn device(&self) -> Option<DeviceProgress>;
}

impl Default for ControlTiming {
    /// Nothing is investigated, timed out or compared.
    fn default() -> Self {
        Self { report: Duration::MAX, timeout: None, compare: Duration::MAX }
    }
}

impl DeviceProgress {
    /// Whether all work has ended.
    pub const fn is_idle(self) -> bool {
        self.finished >= self.launched
    }

    /// The pieces of work that have not ended.
    pub const fn unfinished(self) -> u64 {
        self.launched.saturating_sub(self.finished)
    }
}
