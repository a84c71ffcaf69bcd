//! Links between ranks in threads of one process: inboxes are shared directly, and any memory can
//! be lent.

pub(crate) mod connect;
pub(crate) mod ends;
pub(crate) mod listener;
