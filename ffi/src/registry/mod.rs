//! The registry of communicators: from the handles that clients hold to what belongs to each.
//!
//! A handle is a number in the shape of a pointer: the index of an entry in a table and a
//! generation. A handle that was destroyed, or that never was one, is refused, and nothing is read
//! through it. A live one is found without a hash, an allocation or a lock, by one uncontended
//! exchange.
//!
//! One thread at a time uses a communicator. With a [`CommGuard`] it may look at the communicator
//! and queue calls, while earlier calls on host streams wait or run on other threads. Everything
//! else needs an [`ExclusiveComm`], which waits until no queued call is left.
//!
//! A handle exists before its communicator, so that another thread can ask about it, or abort it,
//! during its creation. Entries are never freed; the next communicator gets the next generation.
//!
//! | file | content |
//! |---|---|
//! | `handle` | the handle as a number |
//! | `entry` | the table, its entries, and the status that all threads may read |
//! | `access` | the use of a communicator by one thread |
//! | `reservation` | an entry whose communicator is being created |
//! | `query` | what every thread may ask at any time |
//! | `abort` | abort, interrupt, and the end of an entry |
//! | `stream_call` | calls that are queued on host streams |
//! | `deferred` | calls that run after the function has returned `ncclInProgress` |
//! | `operators`, `buffers`, `windows` | what clients create on a communicator |

mod abort;
mod access;
mod buffers;
mod deferred;
mod entry;
mod handle;
mod operators;
mod query;
mod reservation;
mod stream_call;
#[cfg(test)]
mod tests;
mod windows;

pub(crate) use abort::{abort, interrupt_and_wait, remove, wait_until_unused};
pub(crate) use access::{CallContext, CommGuard, ExclusiveComm, acquire, acquire_exclusive};
pub(crate) use entry::{CommStage, is_inherited};
pub(crate) use handle::CommHandle;
pub(crate) use operators::{ReductionOperator, premultiply, read_factor};
pub(crate) use query::{
    async_result, check_ready, device, identity, is_blocking, is_on_device, is_used,
};
pub(crate) use reservation::{Reservation, reserve};
pub(crate) use stream_call::queue_on_streams;
pub(crate) use windows::{WindowHandle, add_window, check_offset};
