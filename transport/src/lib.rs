//! Links between ranks: first-in-first-out lines of messages through memory that both ends see.
//!
//! [`link`] is the contract that schedules are run on. Three protocols carry it, each in a file of its own and each with a
//! loom model beside it: [`ll`] (small messages, data and flag in one cache line), [`slots`] (slots, credits,
//! lent memory) and [`doorbell`] (sleeping and waking). They are written over plain words, wherever those live. A fourth,
//! [`device_ring`], is that between a kernel of a device and the host.
//!
//! An [`endpoint::Endpoint`] is one rank's presence: its [`inbox`], the memory that its peers write to, and the
//! connections to them: in [`local`] for ranks that are threads of one process, in [`shm`] for other processes of the host, in
//! [`tcp`] for other hosts. A [`segment`] is memory that processes of the host read in place.
//! `conformance` is the one suite that every link passes, and [`fault`] makes links on which things go wrong.
//!
//! The crate knows ranks, bytes and messages, and never a schedule.

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

/// The tests that every kind of link passes, for this crate and for others.
#[cfg(not(loom))]
#[doc(hidden)]
pub mod conformance;
#[cfg(not(loom))]
pub mod endpoint;
#[cfg(not(loom))]
pub mod fault;
#[cfg(not(loom))]
mod handshake;
#[cfg(not(loom))]
mod host;
#[cfg(not(loom))]
pub mod inbox;
#[cfg(not(loom))]
pub mod local;
#[cfg(not(loom))]
mod memory;
#[cfg(not(loom))]
mod peers;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
pub mod shm;
#[cfg(not(loom))]
pub mod tcp;
#[cfg(not(loom))]
mod thread;

pub use error::LinkError;

/// The number of a rank within its communicator.
pub type Rank = u32;
