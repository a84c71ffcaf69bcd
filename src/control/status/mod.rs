//! The communicators of the processes of this host, as the processes report them: what `maypole ps`
//! and the RAS service show.
//!
//! A process with communicators listens at the abstract Unix socket `maypole/PID/START` (`server`),
//! which its service thread serves. The answer is what the flight recorders hold, so that no call
//! becomes slower. A process answers the same user and root only, which the kernel verifies, and
//! only answers of the same user are believed (all, if root asks). Abstract names appear in
//! `/proc/net/unix`, so that no file is left behind, and no process of another network namespace is
//! found.
//!
//! | file | purpose |
//! |---|---|
//! | `codec` | the form of an answer |
//! | `server` | a process answers |
//! | `query` | a process asks all others |

mod codec;
mod query;
mod server;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use maypole_algorithms::Rank;
use maypole_control::call_signature::COLLECTIVES;

pub use query::query;
pub(super) use server::StatusServer;

/// The beginning of every name, as `/proc/net/unix` shows it.
const PREFIX: &str = "@maypole/";
/// Most bytes of an answer. It must fit into the buffer of a socket, so that the service thread
/// never waits.
const MOST_BYTES: usize = 64 << 10;

/// A process of this host that has communicators, or had some a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStatus {
    /// Its process number; 0 if this process cannot see it, because it is in another container.
    pub pid: u32,
    /// The number of its user.
    pub uid: u32,
    /// Its name, as the kernel knows it.
    pub command: String,
    /// Its answer.
    pub answer: StatusAnswer,
}

/// The answer of a process that was asked for its communicators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusAnswer {
    /// Its communicators, and the number of those that did not fit.
    Communicators(Vec<CommunicatorStatus>, u32),
    /// None: the process is stopped, by a signal or a debugger.
    Stopped,
    /// None within the time.
    Silent,
}

/// One communicator, as one of its ranks knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommunicatorStatus {
    /// Identifies the communicator: the same on all of its ranks, and in no other.
    pub key: u64,
    /// The rank that answers.
    pub rank: Rank,
    /// The number of ranks.
    pub nranks: u32,
    /// The number of calls that were begun.
    pub sequence: u64,
    /// Whether the rank waits in that call. A call that never had to wait is not recorded while it
    /// runs.
    pub in_call: bool,
    /// The current or last call, in words.
    pub call: String,
    /// The rank that it waits for.
    pub waits_for: Option<Rank>,
    /// How long it has been in the call since its first long wait.
    pub waited: Option<Duration>,
    /// Why the communicator has ended, if it has.
    pub ended: Option<String>,
    /// The `ncclResult_t` of that, and whether a user aborted or revoked the communicator.
    pub result: (u8, bool),
    /// The number of calls that were begun of each collective, by the code of its signature.
    pub counts: [u64; COLLECTIVES],
    /// The rank whose death has ended the communicator.
    pub dead: Option<RankProcess>,
    /// The ranks of this host, as far as the numbers of processes mean the same to them.
    pub here: Vec<(Rank, u32)>,
}

/// The process of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankProcess {
    /// The rank.
    pub rank: Rank,
    /// The name of its host.
    pub host: String,
    /// The number of its process.
    pub pid: u32,
}

/// The process and user at the other end: of a connection that this process made, those of the
/// listener.
fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut owner = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `owner` is writable for `len` bytes.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut owner).cast(),
            &raw mut len,
        )
    };
    if status == 0 { Ok(owner) } else { Err(io::Error::last_os_error()) }
}
