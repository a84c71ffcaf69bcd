//! From a unique id to a communicator's control tree.
//!
//! ```text
//!  rank A: UniqueId::create ── root thread (rendezvous)
//!                                 ^  Register(rank, where I listen)          every rank, over TCP
//!                                 |  Parent(where your parent listens)       as soon as that is known
//!  rank r: join ── dials parent (r-1)/2, is dialed by 2r+1 and 2r+2 ── Leave to the root
//!                  cards go up the tree, all cards come down                 the tree stays: ControlTree
//! ```
//!
//! Every connection begins with a handshake in which both ends prove that they know the secret of the unique id, before
//! anything else is parsed; a stranger is dropped and the job goes on. Every wait has a deadline, and an abort ends it. Each rank has at most
//! three connections; messages go 2 log2(n) deep. A rank sends and receives at most 15 messages until it has a
//! communicator, whatever the number of ranks, and three more with each report of missing ranks; the root receives two of
//! each rank and sends it one; several roots, of several ids, share that. Bytes grow with the number of ranks,
//! as every rank learns every card. After some seconds the root names the ranks that are missing, to all
//! that wait; at the deadline every waiting rank returns [`BootstrapError::MissingRanks`].
//!
//! | file | idea |
//! |---|---|
//! | `id` | the 128 bytes |
//! | `abort` | ending a wait from another thread |
//! | `address` | interfaces and where a listener can be reached |
//! | `secret`, `hello` | proofs, and the handshake made of them |
//! | `accept`, `dial` | the two ends of a handshake, over sockets |
//! | `wire`, `stream` | frames, and frames over a socket |
//! | `rejoin` | where ranks of a damaged communicator meet again |
//! | `multi_root` | several ids, and so several roots, for many ranks |
//! | `root`, `join`, `tree` | the rendezvous, a rank's way in, what it leads to |
//! | `traffic` | what that cost |

mod abort;
mod accept;
mod address;
mod dial;
mod error;
mod hello;
mod id;
mod join;
mod multi_root;
mod rejoin;
mod root;
mod secret;
pub(crate) mod stream;
mod traffic;
mod tree;
mod wire;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use abort::AbortSignal;
pub(crate) use abort::{AbortRegistration, Abortable};
pub use address::addresses;
pub use error::{BootstrapError, Options, RankSet};
pub use id::{UNIQUE_ID_BYTES, UniqueId};
pub use join::{CommunicatorKeys, Joined, MOST_CARD, join, join_among, join_with};
pub use rejoin::RejoinListener;
pub(crate) use secret::random;
pub use traffic::ControlTraffic;
pub use tree::{ControlTree, MOST_ITEM};
pub(crate) use tree::{Exchange, Heard};
pub(crate) use wire::{Take, put_text};
