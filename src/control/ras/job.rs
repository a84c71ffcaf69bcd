//! What is known of the communicators of a host, put together from the answers of its processes.

use std::collections::BTreeMap;

use maypole_algorithms::Rank;

use crate::control::status::{CommunicatorStatus, ProcessStatus, RankProcess, StatusAnswer};

/// What is known of the communicators of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// The address of the host.
    pub(super) host: String,
    /// The communicators, the largest first.
    pub(super) communicators: Vec<JobCommunicator>,
    /// The processes that answered.
    pub(super) processes: usize,
    /// The processes that did not answer in time.
    pub(super) timeouts: usize,
}

/// A communicator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobCommunicator {
    pub(super) key: u64,
    pub(super) nranks: u32,
    /// The ranks that answered, by number.
    pub(super) ranks: Vec<JobRank>,
    /// The ranks of this host that did not, and ranks of any host that are known to be dead.
    pub(super) missing: Vec<MissingRank>,
}

/// A rank that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobRank {
    pub(super) pid: u32,
    pub(super) status: CommunicatorStatus,
}

/// A rank that did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MissingRank {
    pub(super) process: RankProcess,
    pub(super) why: Why,
}

/// Why a rank did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its process has ended.
    Dead,
    /// Its process is stopped by a signal or a debugger.
    Stopped,
    /// Its process did not answer in time.
    Silent,
    /// Its process has left the communicator.
    Left,
}

impl Why {
    /// The reason in words that follow the name of a rank.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Dead => "its process has ended",
            Self::Stopped => "is stopped by a signal or a debugger",
            Self::Silent => "did not answer in time",
            Self::Left => "has left the communicator",
        }
    }
}

impl Job {
    /// Puts the answers together. `is_running` says whether a process of this host runs.
    pub(super) fn new(
        host: String,
        found: &[ProcessStatus],
        is_running: impl Fn(u32) -> bool,
    ) -> Self {
        let mut by_key: BTreeMap<u64, Vec<JobRank>> = BTreeMap::new();
        for process in found {
            if let StatusAnswer::Communicators(all, _) = &process.answer {
                for status in all {
                    let rank = JobRank { pid: process.pid, status: status.clone() };
                    by_key.entry(status.key).or_default().push(rank);
                }
            }
        }
        let why = |pid| match found.iter().find(|process| process.pid == pid) {
            Some(ProcessStatus { answer: StatusAnswer::Stopped, .. }) => Why::Stopped,
            Some(ProcessStatus { answer: StatusAnswer::Silent, .. }) => Why::Silent,
            Some(_) => Why::Left,
            None if is_running(pid) => Why::Left,
            None => Why::Dead,
        };
        let mut communicators: Vec<JobCommunicator> = by_key
            .into_iter()
            .map(|(key, mut ranks)| {
                ranks.sort_by_key(|it| it.status.rank);
                let missing = missing(&host, &ranks, why);
                JobCommunicator { key, nranks: ranks[0].status.nranks, ranks, missing }
            })
            .collect();
        communicators.sort_by_key(|it| (std::cmp::Reverse(it.nranks), it.key));
        let answered = |it: &&ProcessStatus| matches!(it.answer, StatusAnswer::Communicators(..));
        let processes = found.iter().filter(answered).count();
        Self { host, communicators, processes, timeouts: found.len() - processes }
    }
}

/// The ranks of which others know and that did not answer.
fn missing(host: &str, ranks: &[JobRank], why: impl Fn(u32) -> Why) -> Vec<MissingRank> {
    let mut missing: BTreeMap<Rank, MissingRank> = BTreeMap::new();
    for status in ranks.iter().map(|it| &it.status) {
        for &(rank, pid) in &status.here {
            missing.entry(rank).or_insert_with(|| MissingRank {
                process: RankProcess { rank, host: host.to_owned(), pid },
                why: why(pid),
            });
        }
    }
    for status in ranks.iter().map(|it| &it.status) {
        if let Some(dead) = &status.dead {
            let other = MissingRank { process: dead.clone(), why: Why::Dead };
            missing.entry(dead.rank).or_insert(other).why = Why::Dead;
        }
        missing.remove(&status.rank);
    }
    missing.into_values().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rank `rank` of three, of which 0 and 1 are on this host.
    pub(in crate::control::ras) fn status(rank: Rank) -> CommunicatorStatus {
        CommunicatorStatus {
            key: 0xabc,
            rank,
            nranks: 3,
            sequence: 7,
            in_call: true,
            call: "call 7, all_reduce of 3 int32 sum".into(),
            waits_for: Some(2),
            waited: Some(std::time::Duration::from_millis(1500)),
            ended: None,
            result: (0, false),
            counts: [5, 0, 1, 1, 0, 0, 0, 0],
            dead: None,
            here: vec![(0, 10), (1, 11)],
        }
    }

    pub(in crate::control::ras) fn process(pid: u32, answer: StatusAnswer) -> ProcessStatus {
        ProcessStatus { pid, uid: 5, command: "train".into(), answer }
    }

    pub(in crate::control::ras) fn answered(pid: u32, it: CommunicatorStatus) -> ProcessStatus {
        process(pid, StatusAnswer::Communicators(vec![it], 0))
    }

    fn why(found: &[ProcessStatus], is_running: bool) -> Vec<(Rank, Why)> {
        let job = Job::new("h".into(), found, |_| is_running);
        let missing = &job.communicators[0].missing;
        missing.iter().map(|it| (it.process.rank, it.why)).collect()
    }

    #[test]
    fn a_rank_of_another_host_is_missing_only_if_it_is_known_to_be_dead() {
        let both = [answered(10, status(0)), answered(11, status(1))];
        assert_eq!(why(&both, true), []);
        let process = RankProcess { rank: 2, host: "other".into(), pid: 12 };
        let knows = CommunicatorStatus { dead: Some(process.clone()), ..status(0) };
        let job = Job::new("h".into(), &[answered(10, knows), answered(11, status(1))], |_| true);
        let missing = MissingRank { process, why: Why::Dead };
        assert_eq!(job.communicators[0].missing, [missing]);
    }

    #[test]
    fn why_a_rank_of_this_host_is_missing() {
        let one = answered(10, status(0));
        assert_eq!(why(std::slice::from_ref(&one), true), [(1, Why::Left)]);
        assert_eq!(why(std::slice::from_ref(&one), false), [(1, Why::Dead)]);
        let with = |answer| why(&[one.clone(), process(11, answer)], true);
        assert_eq!(with(StatusAnswer::Stopped), [(1, Why::Stopped)]);
        assert_eq!(with(StatusAnswer::Silent), [(1, Why::Silent)]);
        assert_eq!(with(StatusAnswer::Communicators(Vec::new(), 0)), [(1, Why::Left)]);
    }

    #[test]
    fn the_largest_communicator_is_the_first() {
        let small = CommunicatorStatus { key: 1, nranks: 2, ..status(0) };
        let found = [answered(10, small), answered(11, status(1))];
        let job = Job::new("h".into(), &found, |_| true);
        assert_eq!(job.communicators.iter().map(|it| it.nranks).collect::<Vec<_>>(), [3, 2]);
        assert_eq!((job.processes, job.timeouts), (2, 0));
    }
}
