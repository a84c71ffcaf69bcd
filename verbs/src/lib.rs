//! A binding of libibverbs, the interface of RDMA network adapters, and owners for its objects.
//!
//! The library is loaded at run time by [`Library::load`]. Neither it nor its header is needed to
//! build or to load this crate, and each of its functions is optional: the use of one that is
//! missing is an error with its name. Functions that the C header defines in place (posting work,
//! polling for completions) are here in Rust, through the tables of functions that each context and
//! queue pair has.
//!
//! # Safety contract of the owners
//!
//! [`Context`], [`ProtectionDomain`], [`CompletionChannel`], [`CompletionQueue`],
//! [`SharedReceiveQueue`], [`QueuePair`] and [`MemoryRegion`] each own one object of libibverbs.
//! They keep alive what their object depends on, so that objects are destroyed in an order that
//! libibverbs allows. All may be used by several threads.
//!
//! What they cannot know is memory: the adapter reads and writes registered memory by its address.
//! The caller that registers memory promises that it stays mapped as long as the [`MemoryRegion`]
//! lives. The caller that posts work promises that the memory it names is registered with the same
//! protection domain, or is only read during the call (inline), and accepts that a peer that knows
//! a region's remote key can write to it at any time: such memory is only read by volatile or
//! atomic reads, or when the protocol of the two ends says that the peer leaves it alone.
//!
//! In a child made by fork, dropping an owner does nothing, because the child shares the objects
//! with its parent.

mod completion;
mod context;
mod device;
mod error;
mod library;
mod memory;
mod queue_pair;
pub mod sys;
mod work;

pub use completion::{Completion, CompletionChannel, CompletionQueue, SharedReceiveQueue};
pub use context::{
    AsyncEvent, Context, DeviceLimits, Gid, GidEntry, GidKind, LinkLayer, PortInfo,
    ProtectionDomain,
};
pub use device::Device;
pub use error::{LibraryError, VerbsError};
pub use library::Library;
pub use memory::{MemoryAccess, MemoryRegion};
pub use queue_pair::{
    ConnectionTiming, PathAddress, PeerQueue, QueueCapacity, QueuePair, QueuePairSetup,
};
pub use work::{
    LocalMemory, NO_ANSWER, PostError, RemoteMemory, SendOperation, SendRequest, WORK_FLUSHED,
    describe_status,
};
