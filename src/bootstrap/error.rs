//! What can go wrong on the way to a communicator, whose fault it is and what to do.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::abort::AbortSignal;
use crate::config::Config;

/// Failure of a bootstrap or of an exchange over the control tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// The caller's rank is not one of the communicator's.
    #[error(
        "rank {rank} does not exist in a communicator of {nranks} ranks; ranks go from 0 to nranks - 1"
    )]
    NoSuchRank {
        /// The rank given.
        rank: u32,
        /// The number of ranks given.
        nranks: u32,
    },
    /// The caller wants to exchange more than an exchange carries.
    #[error(
        "rank {rank} gives {len} bytes to an exchange that carries at most {most} of each rank"
    )]
    TooLong {
        /// The caller.
        rank: u32,
        /// What it gave.
        len: usize,
        /// What is allowed.
        most: usize,
    },
    /// The 128 bytes are not a unique id.
    #[error(
        "not a unique id made by this library ({why}); every rank must pass the 128 bytes exactly as one rank made them"
    )]
    NotAnId {
        /// What shows it.
        why: &'static str,
    },
    /// Several ids do not make a communicator.
    #[error(
        "the unique ids of the communicator: {what}; pass as many as there are roots, each of a call of its own, at most one for a rank"
    )]
    Ids {
        /// What is wrong with them.
        what: String,
    },
    /// A setting of the environment makes it impossible.
    #[error("{variable}: {why}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// Ranks did not come before the deadline.
    #[error(
        "{} of {nranks} ranks did not join within {:.1} s: {ranks}; see whether these processes started, and what they \
         print; MAYPOLE_INIT_TIMEOUT sets the wait", ranks.len(), waited.as_secs_f64()
    )]
    MissingRanks {
        /// Those that did not come.
        ranks: RankSet,
        /// Size of the communicator.
        nranks: u32,
        /// From the first rank's arrival.
        waited: Duration,
    },
    /// Another process has joined with the same rank.
    #[error(
        "rank {rank} is taken: process {pid} on {host} joined with it before; give each process its own rank"
    )]
    DuplicateRank {
        /// The rank number used twice.
        rank: u32,
        /// Host of the first comer.
        host: String,
        /// Process of the first comer.
        pid: u32,
    },
    /// The root of this address serves another unique id.
    #[error(
        "the root at {address} does not know the secret of rank {rank}'s unique id: the id belongs to another job or run"
    )]
    WrongId {
        /// The rank that asked.
        rank: u32,
        /// Who answered.
        address: SocketAddr,
    },
    /// The ranks do not agree on how many they are.
    #[error(
        "rank {rank} says the communicator has {ours} ranks, those that joined before say {theirs}; pass the same number everywhere"
    )]
    WrongWorld {
        /// The rank that says otherwise.
        rank: u32,
        /// What it says.
        ours: u32,
        /// What the first comer said.
        theirs: u32,
    },
    /// No connection to the root could be made.
    #[error(
        "rank {rank} cannot reach the root at {addresses} since {:.1} s (last: {last}); see whether the process that made \
         the unique id still runs, and whether NCCL_SOCKET_IFNAME names a network that all hosts share", waited.as_secs_f64()
    )]
    RootUnreachable {
        /// The rank that tries.
        rank: u32,
        /// Where it tries.
        addresses: String,
        /// How long.
        waited: Duration,
        /// Why the last attempt failed.
        last: String,
    },
    /// The root closed the connection before all ranks had joined.
    #[error(
        "the root at {address} went away before all ranks joined (seen by rank {rank}); see why the process that made the unique id ended"
    )]
    RootLost {
        /// The rank that saw it.
        rank: u32,
        /// Where the root was.
        address: SocketAddr,
    },
    /// A joined rank closed its connection: its process ended or gave up.
    #[error(
        "rank {rank} closed its control connection (seen by rank {seen_by}); see why its process ended"
    )]
    PeerLost {
        /// The rank that is gone.
        rank: u32,
        /// Its neighbour in the control tree.
        seen_by: u32,
    },
    /// A rank gave up for a reason of its own.
    #[error("rank {rank} gave up: {why}")]
    PeerFailed {
        /// That rank.
        rank: u32,
        /// Its error.
        why: String,
    },
    /// A rank's user ended the attempt.
    #[error("rank {by} aborted the communicator while it was being made")]
    Aborted {
        /// That rank; possibly this one.
        by: u32,
    },
    /// A rank's deadline passed while a neighbour kept it waiting.
    #[error("rank {rank} waited {:.1} s for rank {waiting_for} {what}", waited.as_secs_f64())]
    TimedOut {
        /// Whose deadline passed.
        rank: u32,
        /// Who did not do it.
        waiting_for: u32,
        /// What it did not do.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The ranks do different things.
    #[error("the ranks disagree about {what}: {ranks} differ from the others")]
    Disagreement {
        /// About what.
        what: String,
        /// Those that differ.
        ranks: RankSet,
    },
    /// An authenticated peer sends what it should not: a mix of versions, or our bug.
    #[error(
        "rank {rank} got a message that breaks the protocol from {peer}: {what}; do all ranks use the same version of the library?"
    )]
    Protocol {
        /// The receiver.
        rank: u32,
        /// The sender.
        peer: String,
        /// What is wrong with the message.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
}

impl BootstrapError {
    /// What the other ranks are told when `rank` gives up for this reason.
    pub(super) fn verdict(&self, rank: u32) -> Self {
        match self {
            // These mean the same to every rank; all others are this rank's own troubles.
            Self::MissingRanks { .. }
            | Self::PeerLost { .. }
            | Self::PeerFailed { .. }
            | Self::Aborted { .. }
            | Self::TimedOut { .. }
            | Self::Disagreement { .. } => self.clone(),
            own => Self::PeerFailed { rank, why: own.to_string() },
        }
    }

    pub(super) fn system(call: &'static str, error: &std::io::Error) -> Self {
        Self::System { call, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

/// How an attempt to join is bounded.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for the other ranks.
    pub timeout: Duration,
    /// After what time ranks that are missing are named for the first time; again at each doubling of it.
    pub notice: Duration,
    /// By what another thread can end it; also the communicator that comes of it, and those made from that.
    pub abort: Option<AbortSignal>,
    /// Number of the CUDA device whose memory the communicator is for, of those that this process sees; None: host memory. Ranks may differ
    /// in it.
    pub device: Option<i32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Config::get().init_timeout,
            notice: Duration::from_secs(5),
            abort: None,
            device: None,
        }
    }
}

/// Most ranges that a [`RankSet`] lists.
pub(super) const MOST_RANGES: usize = 64;

/// A set of ranks, listed as ranges as far as that stays short, and counted in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSet {
    pub(super) ranges: Vec<(u32, u32)>,
    pub(super) count: u32,
}

impl RankSet {
    /// The set of these ranks, which must ascend.
    pub fn new(ranks: impl IntoIterator<Item = u32>) -> Self {
        let mut set = Self { ranges: Vec::new(), count: 0 };
        for rank in ranks {
            set.push(rank, rank);
        }
        set
    }

    /// Adds the ranks of `range` that are not in `present`. All ascend, and come after those that are in the set.
    pub(super) fn add_missing(
        &mut self,
        present: impl IntoIterator<Item = u32>,
        range: std::ops::Range<u32>,
    ) {
        let mut next = range.start;
        for rank in present {
            if rank > next {
                self.push(next, rank - 1);
            }
            next = rank + 1;
        }
        if next < range.end {
            self.push(next, range.end - 1);
        }
    }

    /// How many ranks.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The ranges that are listed, both ends included.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    fn push(&mut self, first: u32, last: u32) {
        self.count += last - first + 1;
        let room = self.ranges.len() < MOST_RANGES;
        match self.ranges.last_mut() {
            Some(range) if range.1.checked_add(1) == Some(first) => range.1 = last,
            _ if room => self.ranges.push((first, last)),
            _ => {}
        }
    }
}

impl fmt::Display for RankSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.count == 1 { "rank " } else { "ranks " })?;
        let mut listed = 0;
        for (at, &(first, last)) in self.ranges.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            listed += last - first + 1;
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        if listed < self.count { write!(f, " and {} more", self.count - listed) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_like_prose() {
        let missing = |present: &[u32], nranks| {
            let mut set = RankSet::new([]);
            set.add_missing(present.iter().copied(), 0..nranks);
            set
        };
        assert_eq!(missing(&[1, 2, 5], 9).to_string(), "ranks 0, 3-4, 6-8");
        assert_eq!(missing(&[0, 2], 3).to_string(), "rank 1");
        assert!(missing(&[0, 1], 2).is_empty());
        let mut apart = missing(&[1], 2);
        apart.add_missing([], 4..4);
        apart.add_missing([7], 6..9);
        assert_eq!(apart.to_string(), "ranks 0, 6, 8");
        assert_eq!(RankSet::new([3, 4, 9]).to_string(), "ranks 3-4, 9");
        let odd = RankSet::new((0..1000).map(|i| 2 * i));
        assert_eq!((odd.len(), odd.ranges().len()), (1000, MOST_RANGES));
        assert!(odd.to_string().ends_with("and 936 more"));
    }
}
