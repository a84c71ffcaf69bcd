//! How long a waiting rank polls before it sleeps.

/// How often a wait polls, with a pause and then with a yield between two polls, before it sleeps.
/// It is fixed per communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpinPolicy {
    /// Polls with a pause instruction between them.
    pub(crate) spins: u32,
    /// Polls with a `sched_yield` between them.
    pub(crate) yields: u32,
}

impl SpinPolicy {
    /// The policy for a node on which `ranks` ranks share `cores` cores. `spins` overrides the
    /// number of spins.
    pub(crate) fn new(ranks: usize, cores: usize, spins: Option<u32>) -> Self {
        // A futex sleep and wake-up costs about 5 us on a quiet host and 50 us on a busy one. Where
        // every rank has a core, a wait spins for that long. Elsewhere the peer needs this core
        // before it can make progress.
        let core_per_rank = ranks <= cores;
        let automatic = if core_per_rank { 4000 } else { 20 };
        Self { spins: spins.unwrap_or(automatic), yields: if core_per_rank { 20 } else { 4 } }
    }
}
