//! Links between ranks in different processes of one host: each maps parts of the other's inbox.
//!
//! Inboxes are anonymous files, whose descriptors are passed over a UNIX socket with a random
//! abstract name. Nothing lies in a file system, and nothing outlives the processes. A process that
//! connects must run as the same user and prove that it knows the communicator's secret. The socket
//! then stays open. Its end shows at once that the peer died, and over it the two ranks offer each
//! other segments, memory that is read in place.

pub(crate) mod connect;
pub(crate) mod ends;
pub(crate) mod listener;
pub(crate) mod sharing;
mod socket;
mod stage;
