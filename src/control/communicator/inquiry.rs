//! Finding out why a wait takes long, or to which call a message belongs: the ranks are asked what
//! they do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_transport::error::LinkError;

use super::ServedCommunicator;
use crate::control::flight_recorder::RecorderSnapshot;
use crate::control::message::{ActivityAnswer, ControlMessage};
use crate::control::report::{DelayReason, Report};
use crate::control::verdict::Verdict;
use crate::control::{ControlShared, MOST_REPORTS, PeerInfo};
use crate::process::ProcessState;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A question to another rank that is not answered yet.
pub(super) struct Inquiry {
    /// Identifies the question.
    pub(super) token: u32,
    pub(super) purpose: InquiryPurpose,
    /// When the question counts as not answered.
    pub(super) due: Instant,
}

/// Why a rank is asked what it does.
pub(super) enum InquiryPurpose {
    /// This rank has waited since `since` in call `sequence`. Each rank of the chain waits for the
    /// next one; the last was asked.
    LongWait { since: Instant, sequence: u64, chain: Vec<Rank> },
    /// A message of rank `peer` belongs to another call. The error has the text `fallback` if that
    /// call is not found.
    Mismatch { peer: Rank, fallback: String },
}

impl InquiryPurpose {
    /// The rank that was asked.
    fn asked(&self) -> Rank {
        match self {
            Self::LongWait { chain, .. } => chain.last().copied().unwrap_or(0),
            Self::Mismatch { peer, .. } => *peer,
        }
    }
}

impl ServedCommunicator {
    /// Starts to find out why this rank has waited for `peer` since `since`, unless another long
    /// wait is being investigated.
    pub(super) fn investigate(&mut self, peer: Rank, since: Instant) {
        let busy = |inquiry: &Inquiry| matches!(inquiry.purpose, InquiryPurpose::LongWait { .. });
        if peer == self.shared.rank || self.inquiries.iter().any(busy) {
            return;
        }
        let sequence = self.shared.record.read().sequence.saturating_sub(self.queued_behind());
        self.ask(InquiryPurpose::LongWait { since, sequence, chain: vec![peer] });
    }

    /// Asks a rank what it does.
    pub(super) fn ask(&mut self, purpose: InquiryPurpose) {
        let asked = purpose.asked();
        if asked >= self.shared.nranks || self.shared.final_error().is_some() {
            return;
        }
        // A process that is stopped or has ended does not answer.
        if self.state_of(asked).is_some_and(|state| state != ProcessState::Running) {
            return self.unanswered(purpose);
        }
        self.token = self.token.wrapping_add(1);
        let (token, from) = (self.token, self.shared.rank);
        self.send_to(asked, &ControlMessage::Question { token, from, to: asked }.encode());
        self.inquiries.push(Inquiry { token, purpose, due: Instant::now() + ANSWER_TIMEOUT });
    }

    /// What this rank does. `all` are all communicators of the process.
    pub(super) fn activity(&self, all: &[Arc<ControlShared>]) -> ActivityAnswer {
        let snapshot = self.shared.record.read();
        let same_thread = |other: &&Arc<ControlShared>| {
            other.key != self.shared.key && other.thread == self.shared.thread
        };
        let elsewhere = all.iter().filter(same_thread).find_map(|other| {
            let seen = other.record.read();
            let wait = seen
                .waits_for
                .map_or(String::new(), |peer| format!(", waiting for its rank {peer}"));
            seen.in_call.then(|| format!("{}{wait}", seen.last()))
        });
        ActivityAnswer { elsewhere: elsewhere.filter(|_| !snapshot.in_call), snapshot }
    }

    /// Continues an inquiry with the answer of the rank that was asked.
    pub(super) fn answered(&mut self, purpose: InquiryPurpose, answer: &ActivityAnswer) {
        let (rank, asked) = (self.shared.rank, purpose.asked());
        let (own, peers_calls) = (self.shared.record.read(), &answer.snapshot);
        if let Some(verdict) = Verdict::compare((rank, &own), (asked, peers_calls)) {
            return self.decide(verdict, None);
        }
        match purpose {
            InquiryPurpose::Mismatch { peer, fallback } => {
                let what = format!(
                    "rank {rank} is at {}, rank {peer} at {}; {fallback}",
                    own.last(),
                    peers_calls.last()
                );
                self.decide(Verdict::Mismatch { ranks: [rank, peer], what }, None);
            }
            InquiryPurpose::LongWait { since, sequence, chain } => {
                // The wait may have ended meanwhile.
                if self.still_waits(&own, sequence) {
                    self.follow_chain(since, sequence, chain, answer);
                }
            }
        }
    }

    /// Reports what delays the last rank of the chain, or asks the rank that it waits for.
    fn follow_chain(
        &mut self,
        since: Instant,
        sequence: u64,
        mut chain: Vec<Rank>,
        answer: &ActivityAnswer,
    ) {
        let snapshot = &answer.snapshot;
        if let Some(next) = self.next_on_device(&chain, snapshot, sequence) {
            return self.ask(InquiryPurpose::LongWait { since, sequence, chain: vec![next] });
        }
        match decide_next(self.shared.rank, self.shared.nranks, sequence, &chain, answer) {
            ChainDecision::Ask(next) => {
                chain.push(next);
                self.ask(InquiryPurpose::LongWait { since, sequence, chain });
            }
            ChainDecision::Report(reason) => self.report(since, chain, Some(snapshot), reason),
        }
    }

    /// Ends an inquiry whose rank has not answered.
    pub(super) fn unanswered(&mut self, purpose: InquiryPurpose) {
        let asked = purpose.asked();
        let state = self.state_of(asked);
        let left = self.left.contains(&asked) || self.left_on_link(asked);
        if state == Some(ProcessState::Ended) && !left {
            return self.decide(Verdict::Dead { rank: asked }, None);
        }
        match purpose {
            InquiryPurpose::Mismatch { peer, fallback } => {
                let rank = self.shared.rank;
                let own = self.shared.record.read().last();
                let what = format!("rank {rank} is at {own}; {fallback}");
                self.decide(Verdict::Mismatch { ranks: [rank, peer], what }, None);
            }
            InquiryPurpose::LongWait { since, sequence, chain } => {
                let own = self.shared.record.read();
                if !self.still_waits(&own, sequence) {
                    return;
                }
                let stopped = |rank: &Rank| self.state_of(*rank) == Some(ProcessState::Stopped);
                let reason = match state {
                    _ if left => DelayReason::Left,
                    Some(ProcessState::Stopped) => DelayReason::Stopped,
                    _ => DelayReason::NoAnswer {
                        stopped_on_path: self.tree.ranks_between(asked).into_iter().find(stopped),
                    },
                };
                self.report(since, chain, None, reason);
            }
        }
    }

    /// Logs and keeps a report about the last rank of the chain.
    fn report(
        &self,
        since: Instant,
        chain: Vec<Rank>,
        peers_calls: Option<&RecorderSnapshot>,
        reason: DelayReason,
    ) {
        let own = self.shared.record.read();
        let culprit = chain.last().copied().unwrap_or(self.shared.rank);
        let peer = &self.peers[culprit as usize];
        let report = Report {
            rank: self.shared.rank,
            call: own.last(),
            waited: since.elapsed(),
            chain,
            host: peer.host.clone(),
            pid: peer.process.pid,
            their_call: peers_calls.map(RecorderSnapshot::last),
            reason,
        };
        log::warn!("{report}");
        self.shared.change(|state| {
            if state.reports.len() == MOST_REPORTS {
                state.reports.pop_front();
            }
            state.reports.push_back(report);
        });
    }

    /// The state of the process of a rank, if this process can see it and is not that process.
    fn state_of(&self, rank: Rank) -> Option<ProcessState> {
        let own = &self.peers[self.shared.rank as usize].process;
        let PeerInfo { process, same_host, .. } = self.peers.get(rank as usize)?;
        (*same_host && own.shares_namespace_with(process) && own.pid != process.pid)
            .then(|| process.state())
    }

    /// Whether a connected rank has announced on its link that it leaves.
    fn left_on_link(&self, rank: Rank) -> bool {
        let gone = self.shared.endpoint.upgrade().and_then(|endpoint| endpoint.gone(rank));
        matches!(gone, Some(LinkError::PeerLeft { .. }))
    }
}

/// How the search for the cause of a long wait goes on.
#[derive(Debug, PartialEq, Eq)]
enum ChainDecision {
    /// Ask this rank, for which the last rank of the chain waits.
    Ask(Rank),
    /// Report this cause.
    Report(DelayReason),
}

/// Decides how rank `rank` of `nranks`, which waits in call `sequence`, continues after the last
/// rank of the chain has answered.
fn decide_next(
    rank: Rank,
    nranks: u32,
    sequence: u64,
    chain: &[Rank],
    answer: &ActivityAnswer,
) -> ChainDecision {
    let ActivityAnswer { snapshot, elsewhere } = answer;
    ChainDecision::Report(match (snapshot.in_call, snapshot.waits_for) {
        _ if snapshot.sequence > sequence => DelayReason::SlowLink,
        (true, Some(next)) if next == rank || chain.contains(&next) => DelayReason::Cycle,
        (true, Some(next)) if next < nranks => return ChainDecision::Ask(next),
        (true, _) if snapshot.sequence < sequence => DelayReason::EarlierCall,
        (true, _) => DelayReason::Working,
        (false, _) if snapshot.sequence == sequence => DelayReason::SlowLink,
        (false, _) => match elsewhere {
            Some(what) => DelayReason::OtherCommunicator { what: what.clone() },
            None => DelayReason::NotJoined,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_follows_the_waits_and_ends_at_the_cause() {
        let decide = |sequence, in_call, waits_for, elsewhere: Option<&str>| {
            let snapshot = RecorderSnapshot { sequence, in_call, waits_for, calls: Vec::new() };
            let answer = ActivityAnswer { snapshot, elsewhere: elsewhere.map(str::to_owned) };
            // Rank 0 of 4 waits in call 7 for rank 1, which has answered.
            decide_next(0, 4, 7, &[1], &answer)
        };
        let report = ChainDecision::Report;
        assert_eq!(decide(7, true, Some(3), None), ChainDecision::Ask(3));
        assert_eq!(decide(7, true, Some(0), None), report(DelayReason::Cycle));
        assert_eq!(decide(7, true, Some(1), None), report(DelayReason::Cycle));
        // A rank that does not exist is not asked.
        assert_eq!(decide(7, true, Some(4), None), report(DelayReason::Working));
        assert_eq!(decide(7, true, None, None), report(DelayReason::Working));
        assert_eq!(decide(6, true, None, None), report(DelayReason::EarlierCall));
        assert_eq!(decide(8, false, None, None), report(DelayReason::SlowLink));
        assert_eq!(decide(7, false, None, None), report(DelayReason::SlowLink));
        assert_eq!(decide(6, false, None, None), report(DelayReason::NotJoined));
        let what = String::from("call 3");
        assert_eq!(
            decide(6, false, None, Some("call 3")),
            report(DelayReason::OtherCommunicator { what })
        );
    }
}
