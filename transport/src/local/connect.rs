//! Connecting to a rank of this process.

use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::{Inbox, PeerInbox};
use crate::local::listener::{Key, visit};

/// The inbox of rank `peer` of the communicator that `me`, whose inbox is `mine`, is a rank of. Nobody needs to answer.
///
/// # Errors
/// The peer has left, and had not connected to this rank before: so it sent nothing.
pub(crate) fn connect(me: Key, mine: &Arc<Inbox>, peer: Rank) -> Result<PeerInbox, LinkError> {
    visit(me, mine, peer).map(PeerInbox::Local).ok_or(LinkError::PeerLeft { peer })
}
