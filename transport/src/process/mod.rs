//! What every part of the library must know of its process: whether a fork made it, and that its
//! descriptors may not take the numbers of the standard streams.
//!
//! | file | purpose |
//! |---|---|
//! | `fork` | counts forks, so that a child leaves alone what it inherited |
//! | `lazy_value` | values that are made at their first use, without a lock |
//! | `per_process` | values that exist once per process |
//! | `standard_streams` | keeps descriptors of the library off the numbers 0 to 2 |

mod fork;
mod lazy_value;
mod per_process;
mod standard_streams;

pub use fork::{generation, notice_forks};
pub use lazy_value::LazyValue;
pub use per_process::PerProcess;
pub use standard_streams::occupy_standard_streams;
