//! The bootstrap: how the ranks of a communicator find each other through roots.
//!
//! A root learns where each rank listens, and informs each rank where its parent listens. Rank
//! infos and everything after them go through the control tree. A rank leaves the root as soon as
//! it is connected to its parent, so the root has connections only to ranks that wait for others.
//!
//! | file | purpose |
//! |---|---|
//! | `accepting` | the handshakes at a listener |
//! | `root` | a root |
//! | `joining` | a rank that joins |

pub mod accepting;
pub mod joining;
pub mod root;
