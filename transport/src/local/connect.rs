//! Connecting to a rank of this process.

use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::{Inbox, PeerInbox};
use crate::local::listener::{LocalRankKey, find_and_visit};

/// Finds the inbox of rank `peer` of the communicator of rank `rank`, whose inbox is `own`. The
/// peer needs to do nothing.
///
/// # Errors
/// The peer has left without having connected to this rank, so it has sent nothing.
pub(crate) fn connect(
    rank: LocalRankKey,
    own: &Arc<Inbox>,
    peer: Rank,
) -> Result<PeerInbox, LinkError> {
    find_and_visit(rank, own, peer).map(PeerInbox::Local).ok_or(LinkError::PeerLeft { peer })
}
