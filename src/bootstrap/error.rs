//! The errors of the bootstrap and of exchanges over the control tree: what happened, whose fault
//! it is, what to do.

use std::net::SocketAddr;
use std::time::Duration;

use maypole_control::rank_set::RankSet;
use maypole_control::verdict::Verdict;

/// A failure of the bootstrap or of an exchange over the control tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The fault of the caller: its rank is outside of the communicator.
    #[error(
        "rank {rank} does not exist in a communicator of {nranks} ranks; ranks go from 0 to nranks \
         - 1"
    )]
    NoSuchRank {
        /// The rank given.
        rank: u32,
        /// The number of ranks given.
        nranks: u32,
    },
    /// The fault of the caller: it gives more bytes than an exchange carries.
    #[error(
        "rank {rank} gives {len} bytes to an exchange, which carries at most {most} of each rank; \
         give fewer"
    )]
    TooLong {
        /// The rank of the caller.
        rank: u32,
        /// The number of bytes that it gave.
        len: usize,
        /// The number of bytes that is allowed.
        most: usize,
    },
    /// The fault of the caller: the 128 bytes are not a unique id.
    #[error(
        "not a unique id made by this library ({why}); every rank must pass the 128 bytes exactly \
         as one rank made them"
    )]
    NotAnId {
        /// How this was found.
        why: &'static str,
    },
    /// The fault of the caller: these unique ids cannot be used together.
    #[error(
        "the unique ids of the communicator: {what}; pass as many as there are roots, each of a \
         call of its own, at most one for a rank"
    )]
    Ids {
        /// What is wrong with them.
        what: String,
    },
    /// The fault of the user: a setting of the environment cannot be used.
    #[error("{variable}: {why}")]
    Setting {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// The fault of the user or of the system: this host has none of the addresses at which it was
    /// to listen.
    #[error(
        "this host can listen at none of the addresses {addresses} ({why}); see whether \
         NCCL_COMM_ID, NCCL_SOCKET_IFNAME and NCCL_SOCKET_FAMILY are right here, and whether IPv6 \
         is switched off"
    )]
    NoAddress {
        /// The addresses.
        addresses: String,
        /// Why the last one cannot be used.
        why: String,
    },
    /// Ranks did not join before the deadline.
    #[error(
        "{} of {nranks} ranks did not join within {:.1} s: {ranks}; see whether these processes \
         started, and what they \
         print; MAYPOLE_INIT_TIMEOUT sets the wait", ranks.len(), waited.as_secs_f64()
    )]
    MissingRanks {
        /// The ranks that did not join.
        ranks: RankSet,
        /// Number of ranks of the communicator.
        nranks: u32,
        /// Time since the first rank came.
        waited: Duration,
    },
    /// The fault of a caller: two processes joined with the same rank.
    #[error(
        "rank {rank} is taken: process {pid} on {host} joined with it before; give each process \
         its \
         own rank"
    )]
    DuplicateRank {
        /// The rank number used twice.
        rank: u32,
        /// Host of the process that came first.
        host: String,
        /// Number of the process that came first.
        pid: u32,
    },
    /// The fault of a caller: the root at this address serves another unique id.
    #[error(
        "the root at {address} does not know the secret of rank {rank}'s unique id: the id belongs \
         to another job or run; \
         pass the id of this one"
    )]
    WrongId {
        /// The rank that connected.
        rank: u32,
        /// The address of the root.
        address: SocketAddr,
    },
    /// The fault of a caller: the ranks disagree about the number of ranks.
    #[error(
        "rank {rank} says the communicator has {ours} ranks, those that joined before say \
         {theirs}; pass the same number everywhere"
    )]
    DifferentRankCount {
        /// The rank that differs.
        rank: u32,
        /// The number that this rank gave.
        ours: u32,
        /// The number that the rank that came first gave.
        theirs: u32,
    },
    /// No connection to the bootstrap root could be made.
    #[error(
        "rank {rank} cannot reach the root at {addresses} since {:.1} s (last: {last}); see \
         whether the process that made \
         the unique id still runs, and whether NCCL_SOCKET_IFNAME names a network that all hosts \
         share", waited.as_secs_f64()
    )]
    RootUnreachable {
        /// The rank that tried.
        rank: u32,
        /// The addresses that it tried.
        addresses: String,
        /// How long the rank waited.
        waited: Duration,
        /// Why the last attempt failed.
        last: String,
    },
    /// The root closed the connection before all ranks had joined: its process ended.
    #[error(
        "the root at {address} went away before all ranks joined (seen by rank {rank}); see why \
         the process that made the unique id ended"
    )]
    RootLost {
        /// The rank that noticed it.
        rank: u32,
        /// The address of the root.
        address: SocketAddr,
    },
    /// A joined rank closed its connection: its process ended or gave up.
    #[error(
        "rank {rank} closed its control connection (seen by rank {seen_by}); check why its \
         process ended"
    )]
    PeerLost {
        /// The rank that is gone.
        rank: u32,
        /// The neighbour in the control tree that noticed it.
        seen_by: u32,
    },
    /// A rank failed for a reason of its own.
    #[error("rank {rank} gave up: {why}")]
    PeerFailed {
        /// The rank that failed.
        rank: u32,
        /// The text of its error.
        why: String,
    },
    /// The user of a rank ended the attempt.
    #[error("rank {by} aborted the communicator while it was being made; make a new one")]
    Aborted {
        /// The rank that aborted; possibly this one.
        by: u32,
    },
    /// The deadline of a rank passed while it waited for another rank.
    #[error("rank {rank} waited {:.1} s for rank {waiting_for} {what}; check what that rank \
        does", waited.as_secs_f64())]
    TimedOut {
        /// The rank whose deadline passed.
        rank: u32,
        /// The rank that it waited for.
        waiting_for: u32,
        /// What that rank did not do, as an infinitive.
        what: String,
        /// How long the rank waited.
        waited: Duration,
    },
    /// The fault of a caller: the ranks did not do the same.
    #[error(
        "the ranks disagree about {what}: {ranks} differ from the others; make all ranks do the \
         same"
    )]
    Disagreement {
        /// The subject of the disagreement.
        what: String,
        /// The ranks that differ.
        ranks: RankSet,
    },
    /// An authenticated peer broke the protocol: it has another version of the library, or the
    /// library has a bug. Or what it sent was changed on its way.
    #[error(
        "rank {rank} got a message that breaks the protocol from {peer}: {what}; use the same \
         version of the library on all ranks, and if it is the same, see what changes data on the \
         network between them"
    )]
    Protocol {
        /// The rank that received the message.
        rank: u32,
        /// The sender of the message.
        peer: String,
        /// What is wrong with the message.
        what: &'static str,
    },
    /// The fault of the system: it refused a call.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
}

impl BootstrapError {
    /// The verdict that the other ranks get when `rank` fails with this error.
    pub(crate) fn verdict(&self, rank: u32) -> Verdict {
        match self.clone() {
            Self::MissingRanks { ranks, nranks, waited } => {
                Verdict::MissingRanks { ranks, nranks, waited }
            }
            Self::PeerLost { rank, seen_by } => Verdict::Dead { rank, seen_by },
            Self::PeerFailed { rank, why } => Verdict::Failed { rank, why },
            Self::Aborted { by } => Verdict::Aborted { by },
            Self::TimedOut { rank, waiting_for, what, waited } => {
                Verdict::Timeout { rank, peer: waiting_for, what, waited }
            }
            Self::Disagreement { what, ranks } => Verdict::Disagreement { what, ranks },
            // All others concern this rank alone.
            other => Verdict::Failed { rank, why: other.to_string() },
        }
    }

    /// The error that this verdict is for rank `rank` while it joins.
    pub(crate) fn of(verdict: Verdict, rank: u32) -> Self {
        match verdict {
            Verdict::Dead { rank, seen_by } => Self::PeerLost { rank, seen_by },
            Verdict::Left { rank: left } | Verdict::LeftUnsent { rank: left, .. } => {
                Self::PeerLost { rank: left, seen_by: rank }
            }
            Verdict::Mismatch { ranks, what } => {
                let mut sorted = ranks;
                sorted.sort_unstable();
                Self::Disagreement { what, ranks: RankSet::new(sorted) }
            }
            Verdict::Timeout { rank, peer, what, waited } => {
                Self::TimedOut { rank, waiting_for: peer, what, waited }
            }
            Verdict::Aborted { by } | Verdict::Revoked { by } => Self::Aborted { by },
            Verdict::Failed { rank, why } => Self::PeerFailed { rank, why },
            Verdict::MissingRanks { ranks, nranks, waited } => {
                Self::MissingRanks { ranks, nranks, waited }
            }
            Verdict::DuplicateRank { rank, host, pid } => Self::DuplicateRank { rank, host, pid },
            Verdict::DifferentRankCount { rank, ours, theirs } => {
                Self::DifferentRankCount { rank, ours, theirs }
            }
            Verdict::Disagreement { what, ranks } => Self::Disagreement { what, ranks },
        }
    }

    /// The error of a system call.
    pub(super) fn system(call: &'static str, error: &std::io::Error) -> Self {
        Self::System { call, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}
