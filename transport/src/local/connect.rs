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
/// The peer has left without having connected to this rank, so it has sent nothing; or
/// memory is exhausted.
pub(crate) fn connect(
    rank: LocalRankKey,
    own: &Arc<Inbox>,
    peer: Rank,
) -> Result<PeerInbox, LinkError> {
    let inbox = find_and_visit(rank, own, peer).ok_or(LinkError::PeerLeft { peer })?;
    own.prepare_region(peer)?;
    inbox.prepare_region(rank.1)?;
    Ok(PeerInbox::Local(inbox))
}
