//! Links between ranks: first-in-first-out channels for messages, in one process, over shared
//! memory, over RDMA and over TCP.
//!
//! [`link`] is the contract on which schedules run. Three protocols implement it. Each has a file
//! and a loom model of its own, and works on plain words, wherever these lie:
//!
//! * [`ll`]: small messages, with data and flag in one cache line;
//! * [`slots`]: slots, credits and lent memory;
//! * [`doorbell`]: sleeping and waking.
//!
//! A fourth protocol, [`device_ring`], connects a kernel on a device with the host.
//!
//! An [`endpoint::Endpoint`] is one rank's side of all its links. It owns the rank's [`inbox`], the
//! memory that peers write to, and the connections to the peers: [`local`] for ranks in threads of
//! one process, [`shm`] for other processes of the host, [`verbs`] for other hosts with RDMA
//! devices, [`tcp`] for all others. A [`segment`] is
//! memory that processes of one host read in place. `conformance` is the test suite that every kind
//! of link passes, and [`fault`] makes links on which failures are injected.
//!
//! The crate knows ranks, bytes and messages. It does not know schedules.

#[cfg(not(loom))]
mod address;
mod copy;
pub mod device_ring;
pub mod doorbell;
pub mod error;
pub mod handle_state;
pub mod link;
pub mod ll;
pub mod rank_header;
pub mod sequence_ring;
pub mod signal_words;
pub mod slots;
pub mod sync;

#[cfg(not(loom))]
pub mod closed_in_child;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod conformance;
#[cfg(not(loom))]
mod credentials;
#[cfg(not(loom))]
pub mod endpoint;
#[cfg(not(loom))]
pub mod fault;
#[cfg(not(loom))]
pub mod host;
#[cfg(not(loom))]
pub mod inbox;
#[cfg(not(loom))]
pub mod local;
#[cfg(not(loom))]
mod memory;
#[cfg(not(loom))]
pub mod net;
#[cfg(not(loom))]
pub mod noise;
#[cfg(not(loom))]
mod peers;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod process;
#[cfg(not(loom))]
mod random;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
pub mod shm;
#[cfg(not(loom))]
pub mod strangers;
#[cfg(not(loom))]
pub mod tcp;
#[cfg(not(loom))]
mod thread;
#[cfg(not(loom))]
pub mod verbs;
#[cfg(not(loom))]
mod wake_event;

pub use error::LinkError;

/// The number of a rank within its communicator.
pub type Rank = u32;

/// Position of a message on its link, counted from 1.
pub type Sequence = u64;
