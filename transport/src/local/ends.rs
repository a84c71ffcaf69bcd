//! The ends of links within one process: the protocols of the inbox as they are.

use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::{Inbox, InboxEnds, PeerInbox};
use crate::link::{Incoming, Outgoing};
use crate::peers::PeerConnection;
use crate::segment::{PeerSegment, SegmentId};

/// A connected peer in this process.
#[derive(Debug)]
pub(crate) struct LocalPeer {
    rank: Rank,
    own: Arc<Inbox>,
    inbox: Arc<PeerInbox>,
}

impl LocalPeer {
    /// The peer `rank` with inbox `inbox`, as seen by the rank with inbox `own`.
    pub(crate) fn new(rank: Rank, own: Arc<Inbox>, inbox: PeerInbox) -> Self {
        Self { rank, own, inbox: Arc::new(inbox) }
    }
}

impl PeerConnection for LocalPeer {
    fn abort(&self, by: Rank, reason: u32) {
        self.inbox.header().abort(by, reason);
    }

    fn gone(&self) -> Option<LinkError> {
        self.inbox.header().gone(self.rank)
    }

    fn ring(&self) {
        self.inbox.header().doorbell.ring();
    }

    fn is_reading(&self) -> bool {
        self.inbox.header().is_reading()
    }

    fn is_asleep(&self) -> bool {
        self.inbox.header().is_asleep()
    }

    fn segment(&self, id: SegmentId) -> Option<PeerSegment> {
        PeerSegment::in_same_process(id)
    }

    unsafe fn open(&self, channel: u16) -> (Outgoing, Incoming) {
        // SAFETY: the caller's promise.
        let ends = unsafe { InboxEnds::new(&self.own, &self.inbox, self.rank, channel) };
        let InboxEnds { slot_sender, slot_receiver, ll_sender, ll_receiver } = ends;
        (
            Outgoing { slots: Box::new(slot_sender), ll: Some(ll_sender) },
            Incoming { slots: Box::new(slot_receiver), ll: Some(ll_receiver) },
        )
    }
}
