//! The error type of links: what happened, whose fault it is, and what to do.

use std::fmt;
use std::net::SocketAddr;

use crate::Rank;

/// An error of a link, or of setting one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A rank aborted the communicator. The log of that rank has the cause.
    #[error("rank {by} aborted the communicator (reason {reason}); the log of that rank says why")]
    Aborted {
        /// The rank that aborted; possibly this one.
        by: Rank,
        /// The reason that it gave. The library above the transport defines the numbers.
        reason: u32,
    },
    /// The peer's fault: its process ended without leaving the communicator.
    #[error(
        "the process of rank {peer} died while this rank was waiting for it; \
         see its output, then start the job again"
    )]
    PeerDied {
        /// The rank whose process died.
        peer: Rank,
    },
    /// A caller's fault, on this rank or on the peer: the ranks do not make the same calls.
    #[error(
        "rank {peer} destroyed its communicator while this rank was waiting for it; \
         every rank must make the same calls"
    )]
    PeerLeft {
        /// The rank that left.
        peer: Rank,
    },
    /// The memory or the stream shared with a peer holds what no correct peer writes. The cause is
    /// a stray write of either process, different settings, or a bug of this library.
    #[error(
        "what this rank shares with rank {peer} is corrupt: {why}; \
         check both processes for stray writes and different settings"
    )]
    Corrupt {
        /// The rank at the other end.
        peer: Rank,
        /// What is wrong.
        why: &'static str,
    },
    /// The two ends of a new connection did not accept each other.
    #[error(
        "no connection between this rank and rank {peer}: {why}; \
         check that both belong to the same job and run as the same user"
    )]
    Refused {
        /// The rank at the other end.
        peer: Rank,
        /// Why the connection was refused.
        why: &'static str,
    },
    /// The peer did not do its part in time.
    #[error(
        "timeout while {during} with rank {peer}{}; check that its process is alive and not \
         stopped", after(.last)
    )]
    Timeout {
        /// The rank at the other end.
        peer: Rank,
        /// What this rank was doing.
        during: &'static str,
        /// The last attempt of this rank to make a TCP connection to the peer.
        last: Option<FailedDial>,
    },
    /// No TCP connection to a peer could be made.
    #[error("rank {peer} cannot be reached at {dial}; {}", hint(.dial.errno))]
    Unreachable {
        /// The rank at the other end.
        peer: Rank,
        /// The last attempt.
        dial: FailedDial,
    },
    /// The RDMA connection to a peer cannot be made, or has failed.
    #[error("RDMA between this rank and rank {peer}: {why}")]
    Rdma {
        /// The rank at the other end.
        peer: Rank,
        /// What failed, on which path, and what to try.
        why: &'static str,
    },
    /// The caller's fault: it opened a link before its connection was made.
    #[error("this rank is not connected to rank {peer}; connect first")]
    NotConnected {
        /// The rank at the other end.
        peer: Rank,
    },
    /// The caller's fault: it broke a rule of the transport.
    #[error("wrong use of the transport: {what}")]
    Misuse {
        /// The rule that was broken.
        what: &'static str,
    },
    /// A system call failed.
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

/// An attempt to make a TCP connection that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedDial {
    /// Where it was tried.
    pub address: SocketAddr,
    /// The error number of the system.
    pub errno: i32,
}

impl fmt::Display for FailedDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, std::io::Error::from_raw_os_error(self.errno))
    }
}

/// The last attempt, for the end of a sentence.
fn after(last: &Option<FailedDial>) -> String {
    last.map_or(String::new(), |dial| format!(", which cannot be reached at {dial}"))
}

impl LinkError {
    /// The failure of the system call `call`, with the advice that fits its error number.
    #[cfg(not(loom))]
    pub(crate) fn system(call: &'static str, error: impl Into<std::io::Error>) -> Self {
        let errno = error.into().raw_os_error().unwrap_or(libc::EIO);
        Self::System { call, errno, hint: hint(errno) }
    }

    /// The failure of a connection to a peer at this address.
    #[cfg(not(loom))]
    pub(crate) fn unreachable(
        peer: Rank,
        address: SocketAddr,
        error: impl Into<std::io::Error>,
    ) -> Self {
        let errno = error.into().raw_os_error().unwrap_or(libc::EIO);
        Self::Unreachable { peer, dial: FailedDial { address, errno } }
    }
}

/// The advice that fits an error number.
fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE => "the process is out of file descriptors: raise its limit (ulimit -n)",
        libc::ENFILE => "the host is out of file descriptors: raise fs.file-max",
        libc::ENOMEM => {
            "memory, address space or mappings are exhausted: \
             check ulimit -v, the cgroup's limit and vm.max_map_count"
        }
        libc::ENOSPC => "memory is exhausted: check the cgroup's limit and vm.overcommit_memory",
        libc::EFBIG => "the limit on the size of files is too low: raise it (ulimit -f)",
        libc::ECONNREFUSED => {
            "the peer is gone, or in another network namespace of this host \
             (containers must share one)"
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
        libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT => {
            "this host has no such address: check NCCL_SOCKET_IFNAME, NCCL_SOCKET_FAMILY and \
             whether IPv6 is switched off"
        }
        _ => "this is unexpected: please report it",
    }
}
