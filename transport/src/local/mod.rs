//! Ranks that are threads of one process: a peer's inbox is shared as it is, and messages may be lent.

pub(crate) mod connect;
pub(crate) mod listener;
