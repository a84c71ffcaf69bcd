//! Ranks in other processes of the host: each maps what it needs of the other's inbox.
//!
//! The inboxes are anonymous files, passed over a UNIX socket with a random abstract name: nothing lies in a file
//! system, nothing outlives the processes. Whoever connects must run as the same user and prove that it knows the
//! communicator's secret. The socket then stays open: its end is how a peer's death is noticed at once, and over it they offer each
//! other segments, memory that is read in place.

pub(crate) mod connect;
pub(crate) mod ends;
pub(crate) mod listener;
pub(crate) mod sharing;
mod socket;
