//! What all RDMA connections of an endpoint share.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::domain::VerbsDomain;
use crate::Rank;
use crate::inbox::{Inbox, InboxLayout};
use crate::sync::{AtomicBool, Ordering};
use crate::tcp::pair::upgrade::UpgradeQueue;

/// How long an endpoint that leaves waits until what it has sent has arrived.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct VerbsShared {
    pub(super) rank: Rank,
    /// The ports that the rank uses. Each path has the number of one.
    pub(super) domains: Vec<Arc<VerbsDomain>>,
    pub(super) layout: InboxLayout,
    pub(super) inbox: Arc<Inbox>,
    /// Wakes the thread behind the connections.
    pub(super) upgrade: Arc<UpgradeQueue>,
    /// Some pair has lost a path, or has messages that wait for one.
    attention: AtomicBool,
    /// When the endpoint no longer waits for what it has sent, once it leaves.
    leave_limit: OnceLock<Instant>,
}

impl VerbsShared {
    pub(super) fn new(
        rank: Rank,
        domains: Vec<Arc<VerbsDomain>>,
        layout: InboxLayout,
        inbox: Arc<Inbox>,
        upgrade: Arc<UpgradeQueue>,
    ) -> Self {
        let attention = AtomicBool::new(false);
        let leave_limit = OnceLock::new();
        Self { rank, domains, layout, inbox, upgrade, attention, leave_limit }
    }

    /// Asks for a look at all pairs in the next poll. Called and answered under one lock.
    pub(super) fn ask_attention(&self) {
        self.attention.store(true, Ordering::Relaxed);
    }

    /// Whether a look was asked for since the last call.
    pub(super) fn take_attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::Relaxed)
    }

    /// The time limit for all peers together.
    pub(super) fn leave_limit(&self) -> Instant {
        *self.leave_limit.get_or_init(|| Instant::now() + LEAVE_TIMEOUT)
    }

    /// The devices and ports, as `mlx5_0:1,mlx5_1:1`.
    pub(super) fn devices(&self) -> String {
        let all: Vec<String> = self.domains.iter().map(|domain| domain.device()).collect();
        all.join(",")
    }
}
