//! The settings of one attempt to join a communicator.

use std::time::Duration;

use super::abort::AbortSignal;
use crate::config::Config;

/// Settings of one attempt to make a communicator.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for the other ranks.
    pub timeout: Duration,
    /// The time after which missing ranks are first named in the log. They are named again whenever
    /// it has doubled.
    pub notice: Duration,
    /// A signal by which another thread can end the attempt, and later the communicator and its
    /// children.
    pub abort: Option<AbortSignal>,
    /// Number of the CUDA device, among those visible to this process, whose memory the
    /// communicator uses. None for host memory. Ranks may differ in it.
    pub device: Option<i32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Config::get().init_timeout,
            notice: Duration::from_secs(5),
            abort: None,
            device: None,
        }
    }
}
