//! Connecting to a rank of this process.

use crate::error::LinkError;
use crate::inbox::PeerInbox;
use crate::local::listener::{Key, find};

/// The inbox of the rank, which exists as long as its endpoint: nobody needs to answer.
pub(crate) fn connect(key: Key) -> Result<PeerInbox, LinkError> {
    find(key).map(PeerInbox::Local).ok_or(LinkError::PeerLeft { peer: key.1 })
}
