//! Finding out why a wait takes long, or to which call a message belongs: the ranks are asked what
//! they do.

use std::time::Duration;

use maypole_algorithms::Rank;

use super::{CommunicatorCore, ControlOutput, ENDED_GRACE, LocalFacts, ProcessState};
use crate::activity::{Activity, RecorderSnapshot};
use crate::frame::ControlFrame;
use crate::report::{DelayReason, Report};
use crate::time::Time;
use crate::tree_shape::ranks_between;
use crate::verdict::Verdict;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A question to another rank that is not answered yet.
#[derive(Debug)]
pub(super) struct Inquiry {
    /// Identifies the question.
    pub(super) token: u32,
    pub(super) purpose: InquiryPurpose,
    /// When the question counts as not answered.
    pub(super) due: Time,
    /// The process of the rank that is asked has ended: its farewell is awaited, not an answer.
    pub(super) is_last: bool,
}

/// Why a rank is asked what it does.
#[derive(Debug)]
pub(super) enum InquiryPurpose {
    /// This rank has waited since `since` in call `sequence`. Each rank of the chain waits for the
    /// next one; the last was asked.
    LongWait { since: Time, sequence: u64, chain: Vec<Rank> },
    /// A message of rank `peer` belongs to another call. The error has the text `fallback` if that
    /// call is not found.
    Mismatch { peer: Rank, fallback: String },
}

impl InquiryPurpose {
    /// The rank that was asked.
    pub(super) fn asked(&self) -> Rank {
        match self {
            Self::LongWait { chain, .. } => chain.last().copied().unwrap_or(0),
            Self::Mismatch { peer, .. } => *peer,
        }
    }
}

impl CommunicatorCore {
    /// Starts to find out why this rank has waited for `peer` since `since`, unless another long
    /// wait is being investigated.
    pub(super) fn investigate(&mut self, peer: Rank, since: Time, facts: &impl LocalFacts) {
        let busy = |inquiry: &Inquiry| matches!(inquiry.purpose, InquiryPurpose::LongWait { .. });
        if peer == self.rank || self.inquiries.iter().any(busy) {
            return;
        }
        // On a device the calls behind the one that waits are queued. Most are one piece of work.
        let behind = facts.device().map_or(0, |it| it.unfinished().saturating_sub(1));
        let sequence = facts.snapshot().sequence.saturating_sub(behind);
        self.ask(InquiryPurpose::LongWait { since, sequence, chain: vec![peer] }, facts);
    }

    /// Asks a rank what it does.
    pub(super) fn ask(&mut self, purpose: InquiryPurpose, facts: &impl LocalFacts) {
        let asked = purpose.asked();
        if asked >= self.nranks || asked == self.rank || self.has_ended {
            return;
        }
        // A process that is stopped or has ended does not answer.
        if facts.process_state(asked).is_some_and(|state| state != ProcessState::Running) {
            return self.unanswered(purpose, false, facts);
        }
        let from = self.rank;
        let token = self.await_answer(purpose, ANSWER_TIMEOUT, false);
        self.pass_on(ControlFrame::Question { token, from, to: asked }, asked, None);
    }

    /// Keeps an inquiry for this time. Returns its token.
    fn await_answer(&mut self, purpose: InquiryPurpose, time: Duration, is_last: bool) -> u32 {
        self.token = self.token.wrapping_add(1);
        let (token, due) = (self.token, self.now + time);
        self.inquiries.push(Inquiry { token, purpose, due, is_last });
        token
    }

    /// Continues an inquiry with the answer of the rank that was asked.
    pub(super) fn answered(
        &mut self,
        purpose: InquiryPurpose,
        answer: &Activity,
        facts: &impl LocalFacts,
    ) {
        let (rank, asked) = (self.rank, purpose.asked());
        let (own, peers_calls) = (facts.snapshot(), &answer.snapshot);
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
                if still_waits(&own, sequence, facts) {
                    self.follow_chain((since, sequence), chain, answer, facts);
                }
            }
        }
    }

    /// Reports what delays the last rank of the chain, or asks the rank that it waits for.
    fn follow_chain(
        &mut self,
        (since, sequence): (Time, u64),
        mut chain: Vec<Rank>,
        answer: &Activity,
        facts: &impl LocalFacts,
    ) {
        let snapshot = &answer.snapshot;
        if let Some(next) = self.next_on_device(&chain, snapshot, sequence, facts) {
            let chain = vec![next];
            return self.ask(InquiryPurpose::LongWait { since, sequence, chain }, facts);
        }
        match decide_next(self.rank, self.nranks, sequence, &chain, answer) {
            ChainDecision::Ask(next) => {
                chain.push(next);
                self.ask(InquiryPurpose::LongWait { since, sequence, chain }, facts);
            }
            ChainDecision::Report(reason) => {
                self.report(since, chain, Some(snapshot), reason, facts);
            }
        }
    }

    /// The next rank to ask for a rank on a device, if the rank that was asked has queued the call
    /// too, and so may wait itself: only the device knows for which rank it waits.
    fn next_on_device(
        &self,
        chain: &[Rank],
        snapshot: &RecorderSnapshot,
        sequence: u64,
        facts: &impl LocalFacts,
    ) -> Option<Rank> {
        facts.device()?;
        let next = (*chain.last()? + 1) % self.nranks;
        (snapshot.sequence >= sequence && next != self.rank).then_some(next)
    }

    /// Ends an inquiry whose rank has not answered. It was the last if the process of that rank has
    /// been known to have ended for some time.
    pub(super) fn unanswered(
        &mut self,
        purpose: InquiryPurpose,
        was_last: bool,
        facts: &impl LocalFacts,
    ) {
        let asked = purpose.asked();
        let state = facts.process_state(asked);
        let left = self.has_left(asked) || facts.has_left_link(asked);
        let own = facts.snapshot();
        if state == Some(ProcessState::Ended) {
            if !left && !was_last {
                // What it sent before it ended may not have been read yet.
                self.await_answer(purpose, ENDED_GRACE, true);
                return;
            }
            if let InquiryPurpose::LongWait { sequence, .. } = purpose
                && !still_waits(&own, sequence, facts)
            {
                return;
            }
            // Nothing more can come from it, whether it has announced that it leaves or not.
            let (rank, seen_by) = (asked, self.rank);
            let dead = Verdict::Dead { rank, seen_by };
            return self.decide(if left { Verdict::Left { rank } } else { dead }, None);
        }
        match purpose {
            InquiryPurpose::Mismatch { peer, fallback } => {
                let what = format!("rank {} is at {}; {fallback}", self.rank, own.last());
                self.decide(Verdict::Mismatch { ranks: [self.rank, peer], what }, None);
            }
            InquiryPurpose::LongWait { since, sequence, chain } => {
                if !still_waits(&own, sequence, facts) {
                    return;
                }
                let stopped =
                    |rank: &Rank| facts.process_state(*rank) == Some(ProcessState::Stopped);
                let reason = match state {
                    _ if left => DelayReason::Left,
                    Some(ProcessState::Stopped) => DelayReason::Stopped,
                    _ => DelayReason::NoAnswer {
                        stopped_on_path: ranks_between(self.rank, asked).into_iter().find(stopped),
                    },
                };
                self.report(since, chain, None, reason, facts);
            }
        }
    }

    /// Reports about the last rank of the chain.
    fn report(
        &mut self,
        since: Time,
        chain: Vec<Rank>,
        peers_calls: Option<&RecorderSnapshot>,
        reason: DelayReason,
        facts: &impl LocalFacts,
    ) {
        let culprit = chain.last().copied().unwrap_or(self.rank);
        let name = facts.process_name(culprit);
        self.outputs.push_back(ControlOutput::Report(Report {
            rank: self.rank,
            call: facts.snapshot().last(),
            waited: self.now.since(since),
            chain,
            host: name.host,
            pid: name.pid,
            their_call: peers_calls.map(RecorderSnapshot::last),
            reason,
        }));
    }

    /// Whether a neighbour has left.
    pub(super) fn has_left(&self, rank: Rank) -> bool {
        self.departures.iter().any(|&(left, _)| left == rank)
    }
}

/// Whether call `sequence` still waits. For the host a call on a device ends when it is queued.
fn still_waits(own: &RecorderSnapshot, sequence: u64, facts: &impl LocalFacts) -> bool {
    match facts.device() {
        Some(device) => !device.is_idle(),
        None => own.sequence == sequence && own.in_call,
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
    answer: &Activity,
) -> ChainDecision {
    let Activity { snapshot, elsewhere } = answer;
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
            let answer = Activity { snapshot, elsewhere: elsewhere.map(str::to_owned) };
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
