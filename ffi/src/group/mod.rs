//! Groups: the calls between `ncclGroupStart` and `ncclGroupEnd`, and calls outside of one.
//!
//! In a group the calling thread queues its calls; the outermost end runs them. Of one communicator
//! first the collectives run, in the client's order, then puts and signals, then all sends and
//! receives at once, then waits for signals. So two ranks may put to each other and wait in one
//! group.
//!
//! Different communicators may be ranks that wait for each other, so each runs on its own thread:
//! the first on the calling thread, the others on threads that streams have. Communicators that are
//! created run likewise, except those of one parent, which are created in order. So one thread can
//! be several ranks.
//!
//! On host streams the calls of a communicator are one piece of work. It begins when every stream
//! that they are on has come to it, and every such stream waits for it. Calls on CUDA devices are
//! queued before all others, in one launch, which waits for no rank.
//!
//! Where communicators do not block, creations and calls run after the end of the group has
//! returned `ncclInProgress`.
//!
//! | file | content |
//! |---|---|
//! | `contents` | what the open group of a thread holds |
//! | `comm_calls` | the calls of one communicator |
//! | `run` | runs the contents at the end |
//! | `submit` | runs or queues the calls of the ABI |

mod comm_calls;
mod contents;
mod run;
mod submit;

pub(crate) use contents::{check_blocking, is_open, keep_first_error, queue, start};
pub(crate) use run::{end, predict_and_drop};
pub(crate) use submit::{create, submit};
