//! Comparing the calls of neighbours. Where no rank waits for a message that differs, no tag is
//! ever compared, so the ranks compare the numbers and hashes of their calls over the control tree:
//! each rank sends its parent now and then what it has called, and each rank tells its neighbours
//! when it leaves. The tree is connected, so two ranks that differ are told apart on some edge
//! between them.
//!
//! The hash after a call depends on all calls up to it: it differs from the first call on in which
//! two ranks differ. A call that runs is not compared, because it may still be refused.

use maypole_algorithms::Rank;

use super::inquiry::InquiryPurpose;
use super::{CommunicatorCore, LocalFacts, Neighbour};
use crate::activity::{HistoryPoint, RecorderSnapshot};
use crate::frame::ControlFrame;
use crate::tree_shape::parent;
use crate::verdict::Verdict;

impl CommunicatorCore {
    /// Compares what neighbours have sent, and sends the parent what this rank has called.
    pub(super) fn compare_histories(&mut self, facts: &impl LocalFacts) {
        if self.verdict.is_some() {
            return;
        }
        let own = facts.snapshot();
        let kept = |it: &Neighbour| Some((it.rank, it.history?));
        let histories: Vec<_> = self.neighbours.iter().filter_map(kept).collect();
        for (rank, point) in histories {
            self.compare_history(rank, point, &own, facts);
        }
        self.compare_departures_with(&own);
        let (ended, above) = (own.ended(), parent(self.rank));
        if self.verdict.is_none()
            && ended > self.compared
            && let Some(hash) = own.history(ended)
            && let Some(above) = above.filter(|&rank| self.neighbour(rank).is_some())
        {
            self.compared = ended;
            self.send(above, ControlFrame::History(HistoryPoint { sequence: ended, hash }));
        }
    }

    /// A neighbour has made these calls.
    pub(super) fn receive_history(
        &mut self,
        from: Rank,
        point: HistoryPoint,
        facts: &impl LocalFacts,
    ) {
        if self.verdict.is_none() {
            self.compare_history(from, point, &facts.snapshot(), facts);
        }
    }

    /// Compares the calls of a neighbour, or keeps them until this rank has made as many.
    fn compare_history(
        &mut self,
        rank: Rank,
        point: HistoryPoint,
        own: &RecorderSnapshot,
        facts: &impl LocalFacts,
    ) {
        let waits = point.sequence > own.ended();
        if let Some(neighbour) = self.neighbour(rank) {
            neighbour.history = waits.then_some(point);
        }
        if !waits && own.history(point.sequence).is_some_and(|hash| hash != point.hash) {
            let fallback = self.difference(rank, point, own);
            self.ask(InquiryPurpose::Mismatch { peer: rank, fallback }, facts);
        }
    }

    /// Compares the calls of neighbours that have left.
    pub(super) fn compare_departures(&mut self, facts: &impl LocalFacts) {
        self.compare_departures_with(&facts.snapshot());
    }

    fn compare_departures_with(&mut self, own: &RecorderSnapshot) {
        // After a failure ranks stop at different calls.
        if self.verdict.is_some() {
            return;
        }
        let known = self.departures.iter().filter_map(|&(rank, point)| Some((rank, point?)));
        let known: Vec<_> = known.collect();
        for (rank, point) in known {
            self.compare_departure(rank, point, own);
        }
    }

    fn compare_departure(&mut self, rank: Rank, point: HistoryPoint, own: &RecorderSnapshot) {
        let ended = own.ended();
        let what = if ended > point.sequence {
            let (next, last) = (own.describe(point.sequence + 1), point.sequence);
            format!("rank {rank} left after call {last}, and rank {} has made {next}", self.rank)
        } else if own.history(point.sequence).is_some_and(|hash| hash != point.hash) {
            self.difference(rank, point, own)
        } else {
            return;
        };
        let mut ranks = [self.rank, rank];
        ranks.sort_unstable();
        self.decide(Verdict::Mismatch { ranks, what }, None);
    }

    /// What is known of the first call in which a rank differs.
    fn difference(&self, rank: Rank, point: HistoryPoint, own: &RecorderSnapshot) -> String {
        let (first, last) = (own.calls.first().map_or(0, |it| it.sequence), point.sequence);
        format!(
            "in call {last} or before it, ranks {} and {rank} make different calls; rank {} is at \
             {}, and keeps its calls from {first} on",
            self.rank,
            self.rank,
            own.last()
        )
    }
}

impl RecorderSnapshot {
    /// The number of the last call that has ended.
    pub(super) fn ended(&self) -> u64 {
        self.sequence.saturating_sub(u64::from(self.in_call))
    }
}
