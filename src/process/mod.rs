//! What the library knows about processes: how to identify one, whether this one was forked, and
//! how to start threads that take no signals.
//!
//! | file | purpose |
//! |---|---|
//! | `identity` | names a process so that another process of the host can find it |
//! | `watch` | shows that another process has ended, or is stopped |
//! | `fork` | counts forks, so that a child leaves alone what it inherited |
//! | `descriptors` | how many descriptors the process may have |
//! | `per_process` | values that exist once per process |
//! | `thread` | threads of the library |

mod descriptors;
mod fork;
mod identity;
mod per_process;
mod thread;
mod watch;

pub(crate) use descriptors::descriptor_limit;
pub(crate) use fork::{generation, notice_forks};
pub(crate) use identity::ProcessIdentity;
pub use per_process::PerProcess;
pub(crate) use thread::spawn_thread;
pub(crate) use watch::ProcessWatch;
