//! Which of the ranks that share the cores of a rank are asleep, so that a waiting rank knows
//! whether somebody else needs its core.

use std::sync::{Arc, OnceLock};

use crate::Rank;
use crate::peers::PeerConnection;

/// The other ranks that may run on the cores of a rank.
#[derive(Debug)]
pub(crate) struct CoreSharers {
    /// Each rank, and its connection once there is one.
    peers: Vec<(Rank, OnceLock<Arc<dyn PeerConnection>>)>,
    /// The number of cores that all of them have together with this rank.
    cores: usize,
}

impl CoreSharers {
    /// The ranks `peers` share `cores` cores with this rank.
    pub(crate) fn new(peers: impl Iterator<Item = Rank>, cores: usize) -> Self {
        Self { peers: peers.map(|peer| (peer, OnceLock::new())).collect(), cores }
    }

    /// Notes the connection to `peer`, if that shares the cores.
    pub(crate) fn connected(&self, peer: Rank, connection: &Arc<dyn PeerConnection>) {
        if let Some((_, slot)) = self.peers.iter().find(|(rank, _)| *rank == peer) {
            // A peer connects once.
            let _ = slot.set(connection.clone());
        }
    }

    /// Whether the ranks that are not known to sleep, this one included, have a core each.
    pub(crate) fn leave_a_core(&self) -> bool {
        let is_asleep = |slot: &OnceLock<Arc<dyn PeerConnection>>| {
            slot.get().is_some_and(|connection| connection.is_asleep())
        };
        // Usually the first of them is awake, so that few are looked at.
        let awake = self.peers.iter().filter(|(_, slot)| !is_asleep(slot));
        awake.take(self.cores).count() < self.cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LinkError;
    use crate::link::{Incoming, Outgoing};
    use crate::sync::{AtomicBool, Ordering};

    #[derive(Debug, Default)]
    struct SleepyPeer(AtomicBool);

    impl PeerConnection for SleepyPeer {
        fn abort(&self, _by: Rank, _reason: u32) {}

        fn gone(&self) -> Option<LinkError> {
            None
        }

        fn is_asleep(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        unsafe fn open(&self, _channel: u16) -> (Outgoing, Incoming) {
            unreachable!("the tests open no links")
        }
    }

    #[test]
    fn a_core_is_left_once_enough_of_the_others_sleep() {
        let sharers = CoreSharers::new([1, 4, 5].into_iter(), 2);
        assert!(!sharers.leave_a_core(), "ranks without a connection count as awake");
        let peers = [(); 3].map(|()| Arc::new(SleepyPeer::default()));
        for (rank, peer) in [1, 4, 5].into_iter().zip(&peers) {
            sharers.connected(rank, &(peer.clone() as Arc<dyn PeerConnection>));
        }
        sharers.connected(2, &(peers[0].clone() as Arc<dyn PeerConnection>));
        let sleeps = |index: usize, asleep| peers[index].0.store(asleep, Ordering::Relaxed);
        assert!(!sharers.leave_a_core());
        sleeps(0, true);
        assert!(!sharers.leave_a_core(), "two others are awake on two cores");
        sleeps(2, true);
        assert!(sharers.leave_a_core());
        sleeps(0, false);
        assert!(!sharers.leave_a_core());
        assert!(CoreSharers::new([].into_iter(), 1).leave_a_core());
    }
}
