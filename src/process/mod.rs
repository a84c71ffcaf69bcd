//! What the library knows about processes: how to identify one, whether this one was forked, and
//! how to start threads that take no signals. What the links need too is in
//! `maypole_transport::process`.
//!
//! | file | purpose |
//! |---|---|
//! | `identity` | names a process so that another process of the host can find it |
//! | `watch` | shows that another process has ended, or is stopped |
//! | `descriptors` | how many descriptors the process may have |
//! | `thread` | threads of the library |

mod descriptors;
mod identity;
mod thread;
mod watch;

pub(crate) use descriptors::descriptor_limit;
pub(crate) use identity::ProcessIdentity;
pub use maypole_transport::process::PerProcess;
pub(crate) use maypole_transport::process::{
    LazyValue, generation, notice_forks, occupy_standard_streams,
};
pub(crate) use thread::spawn_thread;
pub(crate) use watch::ProcessWatch;
