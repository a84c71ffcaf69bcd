//! What can go wrong on a link: what happened, whose fault it is, what to do.

use crate::Rank;

/// An error of a link or of its making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A rank ended the communicator for all. Its log has the cause.
    #[error("rank {by} aborted the communicator (reason {reason}); the log of that rank says why")]
    Aborted {
        /// The rank that did it; possibly this one.
        by: Rank,
        /// What it gave as its reason; the meaning is the library's.
        reason: u32,
    },
    /// The peer's fault: its process ended without leaving the communicator.
    #[error(
        "the process of rank {peer} died while this rank was waiting for it; see its output, then start the job again"
    )]
    PeerDied {
        /// The rank that is gone.
        peer: Rank,
    },
    /// A caller's fault, here or there: the ranks do not agree on what they do.
    #[error(
        "rank {peer} destroyed its communicator while this rank was waiting for it; every rank must make the same calls"
    )]
    PeerLeft {
        /// The rank that is gone.
        peer: Rank,
    },
    /// The memory or the stream shared with a peer holds what no correct peer writes: a stray write of either process, other
    /// settings, or a bug of ours.
    #[error(
        "what this rank shares with rank {peer} is corrupt: {why}; check both processes for stray writes and different settings"
    )]
    Corrupt {
        /// The other end.
        peer: Rank,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The two ends of a new connection did not accept each other.
    #[error(
        "no connection between this rank and rank {peer}: {why}; check that both belong to the same job and run as the same user"
    )]
    Refused {
        /// The other end.
        peer: Rank,
        /// What was found.
        why: &'static str,
    },
    /// The peer did not do its part in time.
    #[error(
        "timeout while {during} with rank {peer}; check that its process is alive and not stopped"
    )]
    Timeout {
        /// The other end.
        peer: Rank,
        /// What was going on.
        during: &'static str,
    },
    /// The caller's fault: a link was asked for before its connection was made.
    #[error("this rank is not connected to rank {peer}; connect first")]
    NotConnected {
        /// The other end.
        peer: Rank,
    },
    /// The caller's fault: an impossible request.
    #[error("wrong use of the transport: {what}")]
    Misuse {
        /// Which rule it breaks.
        what: &'static str,
    },
    /// The system refused something.
    #[error("{call} failed: {}; {hint}", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
        /// What to do about it.
        hint: &'static str,
    },
}

impl LinkError {
    /// The failure of a system call that just set `errno`.
    #[cfg(not(loom))]
    pub(crate) fn last(call: &'static str) -> Self {
        Self::system(call, &std::io::Error::last_os_error())
    }

    /// The failure of a system call, with the advice that fits its number.
    #[cfg(not(loom))]
    pub(crate) fn system(call: &'static str, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let hint = match errno {
            libc::EMFILE => "the process is out of file descriptors: raise its limit (ulimit -n)",
            libc::ENFILE => "the host is out of file descriptors: raise fs.file-max",
            libc::ENOMEM => {
                "memory, address space or mappings are exhausted: check ulimit -v, the cgroup's limit and vm.max_map_count"
            }
            libc::ENOSPC => "memory is exhausted: check the cgroup's limit",
            libc::ECONNREFUSED => {
                "the peer is gone, or in another network namespace of this host (containers must share one)"
            }
            libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH => {
                "the peer's host cannot be reached: check NCCL_SOCKET_IFNAME, routes and firewalls"
            }
            libc::EPERM | libc::EACCES => {
                "a security policy forbids it: check seccomp and the container's profile"
            }
            libc::EAGAIN => {
                "a limit of the system is reached: check ulimit -u and the cgroup's pids.max"
            }
            _ => "this is unexpected: please report it",
        };
        Self::System { call, errno, hint }
    }
}
