//! Reports: what was found out about a long wait. A report is not an error, because a late rank may
//! still come.

use std::fmt;
use std::time::Duration;

use maypole_algorithms::Rank;

/// The cause of a long wait, as far as it was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The rank that waits, which is this one.
    pub rank: Rank,
    /// The call in which it waits: the number and the call in words.
    pub call: String,
    /// How long it has waited.
    pub waited: Duration,
    /// The ranks that wait for each other: from the rank that this one waits for to the rank at
    /// which the search ended.
    pub chain: Vec<Rank>,
    /// The host of the last rank of the chain.
    pub host: String,
    /// The process number of the last rank of the chain.
    pub pid: u32,
    /// The current or last call of the last rank of the chain, if it answered.
    pub their_call: Option<String>,
    /// What delays the last rank of the chain.
    pub reason: DelayReason,
}

/// What delays a rank for which others wait.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DelayReason {
    /// It is outside of the library: its program has not made the call yet.
    NotJoined,
    /// It is in an earlier call and waits for no rank: it computes, or has no processor.
    EarlierCall,
    /// It is in the call and waits for no rank: it computes, or has no processor.
    Working,
    /// It has done its part, and its messages are still on their way.
    SlowLink,
    /// The ranks of the chain wait for each other.
    Cycle,
    /// No connection to the rank that this one waits for could be made yet.
    Unreachable {
        /// Where it was tried, and why that failed.
        dial: String,
    },
    /// Its thread is in a call of another communicator.
    OtherCommunicator {
        /// That call, in words.
        what: String,
    },
    /// Its process is stopped, by a signal or a debugger.
    Stopped,
    /// It has left the communicator.
    Left,
    /// It does not answer.
    NoAnswer {
        /// A rank on the path to it that is stopped and passes no messages on.
        stopped_on_path: Option<Rank>,
    },
}

impl Report {
    /// The rank at which the search ended.
    pub fn culprit(&self) -> Rank {
        self.chain.last().copied().unwrap_or(self.rank)
    }

    /// The report, if the last attempt of this rank to connect to the rank that it waits for has
    /// failed in this way.
    pub fn with_failed_dial(mut self, dial: impl fmt::Display) -> Self {
        if matches!(self.reason, DelayReason::SlowLink | DelayReason::Cycle) {
            self.chain.truncate(1);
            self.reason = DelayReason::Unreachable { dial: dial.to_string() };
        }
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rank {} has waited {:.1} s in {}",
            self.rank,
            self.waited.as_secs_f64(),
            self.call
        )?;
        for (at, rank) in self.chain.iter().enumerate() {
            f.write_str(if at == 0 { " for " } else { ", which waits for " })?;
            write!(f, "rank {rank}")?;
        }
        write!(f, " (host {}, process {}): it {}", self.host, self.pid, self.reason)?;
        match &self.their_call {
            Some(call) => write!(f, "; it is at {call}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for DelayReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJoined => {
                f.write_str("has not joined the call: its program has not made it yet")
            }
            Self::EarlierCall => f.write_str("is busy in an earlier call"),
            Self::Working => f.write_str("is busy in the call"),
            Self::SlowLink => f.write_str("has done its part: the link between them is slow"),
            Self::Cycle => f.write_str("waits for a rank of this chain: the links are slow"),
            Self::Unreachable { dial } => write!(
                f,
                "cannot be reached at {dial}: see routes and firewalls between the two, and \
                 NCCL_SOCKET_IFNAME"
            ),
            Self::OtherCommunicator { what } => {
                write!(f, "is in a call of another communicator: {what}")
            }
            Self::Stopped => f.write_str("is stopped, by a signal or a debugger"),
            Self::Left => f.write_str("has left the communicator"),
            Self::NoAnswer { stopped_on_path: None } => f.write_str("does not answer"),
            Self::NoAnswer { stopped_on_path: Some(rank) } => {
                write!(f, "cannot be asked, because rank {rank} on the path to it is stopped")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_a_sentence() {
        let report = Report {
            rank: 0,
            call: "call 7, all_reduce of 3 int32 sum".into(),
            waited: Duration::from_secs(10),
            chain: vec![2, 5],
            host: "node1".into(),
            pid: 77,
            their_call: Some("call 6, all_gather of 3 int32".into()),
            reason: DelayReason::NotJoined,
        };
        assert_eq!(
            report.to_string(),
            "rank 0 has waited 10.0 s in call 7, all_reduce of 3 int32 sum for rank 2, which \
             waits for rank 5 (host node1, process 77): it has not joined the call: its program \
             has not made it yet; it is at call 6, all_gather of 3 int32"
        );
        assert_eq!(report.culprit(), 5);
        // Rank 0 waits for a connection, but rank 5 has not made the call.
        assert_eq!(report.clone().with_failed_dial("nowhere"), report);
        let cycle = Report { reason: DelayReason::Cycle, chain: vec![2, 0], ..report };
        let text = cycle.with_failed_dial("10.0.0.9:77 (Connection timed out)").to_string();
        assert!(
            text.contains("for rank 2 (host node1, process 77): it cannot be reached"),
            "{text}"
        );
        assert!(text.contains("10.0.0.9:77 (Connection timed out)"), "{text}");
    }
}
