//! The bootstrap: from a unique id to the control tree of a communicator.
//!
//! ```text
//!  rank A: UniqueId::create -- root thread (rendezvous)
//!                                 ^  Register(rank, where it listens)     every rank, over TCP
//!                                 |  Parent(where the parent listens)     as soon as it is known
//!  rank r: join -- connects to its parent (r-1)/2, accepts 2r+1 and 2r+2 -- Leave to the root
//!                  rank infos go up the tree, all infos come down  the tree stays: ControlTree
//! ```
//!
//! Every connection begins with the handshake of [`maypole_transport::noise`], in which both ends
//! prove that they know the secret of the unique id before they read anything else. Everything
//! after it is encrypted. A stranger is dropped and the job goes on. Every wait has a deadline, and
//! an abort ends it.
//!
//! Each rank has at most three connections, and messages pass 2 log2(n) ranks. A rank sends and
//! receives at most 15 messages until it has a communicator, whatever the number of ranks, and
//! three more with each report of missing ranks. The root receives two messages from each rank and
//! sends it one; several roots divide that. The number of bytes grows with the number of ranks,
//! because every rank learns the rank info of all ranks.
//!
//! After some seconds the root names the missing ranks to all ranks that wait. At the deadline
//! every waiting rank returns [`BootstrapError::MissingRanks`].
//!
//! The frames and the decisions of the control tree are in the crate `maypole_control`. The files
//! here, each of which uses only files above it:
//!
//! | file | purpose |
//! |---|---|
//! | `error` | the errors |
//! | `poll` | sleeping on several descriptors |
//! | `abort`, `options` | ending a wait from another thread; the settings of an attempt |
//! | `interfaces`, `listener_address` | addresses of this host, and of a listener |
//! | `id` | the 128 bytes of a unique id |
//! | `multi_root` | which rank registers at which root |
//! | `frame_stream` | frames over a socket |
//! | `traffic` | counts of connections and messages |
//! | `waiting_roots` | ranks that are missing at one root of a process and wait at another |
//! | `accept`, `dial` | the two sides of the handshake, over sockets |
//! | `probe` | looking whether a rank still listens |
//! | `control_tree` | the connections that stay |
//! | `root`, `create`, `rejoin` | the rendezvous, and what starts it |
//! | `joining`, `join` | how a rank joins |

mod abort;
mod accept;
mod control_tree;
mod create;
mod dial;
mod error;
mod frame_stream;
mod id;
mod interfaces;
mod join;
mod joining;
mod listener_address;
mod multi_root;
mod options;
pub(crate) mod poll;
mod probe;
mod rejoin;
mod root;
mod traffic;
mod waiting_roots;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use abort::AbortSignal;
pub(crate) use abort::{AbortRegistration, Abortable};
pub(crate) use accept::HandshakeAcceptor;
pub use control_tree::ControlTree;
pub(crate) use dial::{DialOutcome, Dialer};
pub use error::BootstrapError;
pub(crate) use frame_stream::SecureStream;
pub use id::{UNIQUE_ID_BYTES, UniqueId};
pub use interfaces::addresses;
pub use join::{CommunicatorKeys, Joined, MOST_INFO_BYTES, join, join_among, join_with};
pub use maypole_control::frame::MOST_ITEM;
pub use maypole_control::rank_set::RankSet;
pub use options::Options;
pub use rejoin::RejoinListener;
pub use traffic::ControlTraffic;
