//! Exchanges over the control tree: each rank gives some bytes and gets those of all ranks. Items
//! go up the tree to rank 0, then all items go down.

use maypole_algorithms::Rank;

use super::gathered::{GatheredItems, read_all};
use super::{CommunicatorCore, ControlOutput, LocalFacts};
use crate::frame::{ControlFrame, most_items};
use crate::rank_set::RankSet;
use crate::time::Time;
use crate::tree_shape::parent;
use crate::verdict::Verdict;

/// An exchange in progress.
#[derive(Debug)]
pub(super) struct Exchange {
    started: Time,
    pub(super) deadline: Time,
    gathered: GatheredItems,
    /// The children whose items have not come.
    missing: Vec<Rank>,
    /// Whether the items of the subtree were sent to the parent.
    sent_up: bool,
}

impl CommunicatorCore {
    /// Begins the next exchange.
    pub(super) fn begin_exchange(&mut self, bytes: &[u8], deadline: Time, facts: &impl LocalFacts) {
        self.spread_link_failure(facts);
        if let Some(verdict) = self.verdict.clone() {
            return self.outputs.push_back(ControlOutput::Exchanged(Err(verdict)));
        }
        let above = parent(self.rank);
        self.exchange = Some(Exchange {
            started: self.now,
            deadline,
            gathered: GatheredItems::new(self.rank, self.nranks, bytes),
            missing: self.neighbour_ranks().into_iter().filter(|r| Some(*r) != above).collect(),
            sent_up: false,
        });
        if let Some(&(rank, _)) = self.departures.first() {
            return self.decide(Verdict::Left { rank }, None);
        }
        self.advance_exchange();
    }

    /// Takes the items of a child.
    pub(super) fn receive_up(&mut self, from: Rank, sequence: u32, items: Vec<u8>) {
        match self.neighbour(from) {
            Some(child) if child.up.is_none() => child.up = Some((sequence, items)),
            _ => return self.protocol_error(from, "it sent its part of an exchange twice"),
        }
        self.advance_exchange();
    }

    /// Takes the items of all ranks from the parent, and sends them to the children.
    pub(super) fn receive_down(&mut self, from: Rank, sequence: u32, items: Vec<u8>) {
        let is_due = self.exchange.as_ref().is_some_and(|exchange| exchange.sent_up);
        if !is_due || sequence != self.exchange_number {
            return self.protocol_error(from, "it sent the result of another exchange");
        }
        self.complete_exchange(from, items);
    }

    /// Ends an exchange whose deadline has passed.
    pub(super) fn exchange_tick(&mut self, now: Time) {
        let Some(exchange) = self.exchange.as_ref().filter(|it| it.deadline <= now) else {
            return;
        };
        let what = if exchange.missing.is_empty() { "to pass on" } else { "to give" };
        let peer = exchange.missing.first().copied().or(parent(self.rank)).unwrap_or(self.rank);
        let verdict = Verdict::Timeout {
            rank: self.rank,
            peer,
            what: format!("{what} its part of exchange {}", self.exchange_number),
            waited: self.now.since(exchange.started),
        };
        self.decide(verdict, None);
    }

    /// Collects the items of the children; sends them to the parent when all have come.
    fn advance_exchange(&mut self) {
        let Some(exchange) = &mut self.exchange else { return };
        for neighbour in &mut self.neighbours {
            let rank = neighbour.rank;
            if !exchange.missing.contains(&rank) {
                continue;
            }
            let Some((sequence, items)) = neighbour.up.take() else { continue };
            if sequence != self.exchange_number {
                let ours = self.exchange_number;
                let what = format!("which exchange is next ({sequence} or {ours})");
                let ranks = RankSet::new([rank]);
                return self.decide(Verdict::Disagreement { what, ranks }, None);
            }
            if exchange.gathered.add(&items, rank).is_none() {
                return self.protocol_error(rank, "its part of an exchange is not of its subtree");
            }
            exchange.missing.retain(|&other| other != rank);
        }
        if !exchange.missing.is_empty() || exchange.sent_up {
            return;
        }
        exchange.sent_up = true;
        let items = exchange.gathered.take();
        let Some(above) = parent(self.rank) else { return self.complete_exchange(0, items) };
        if items.len() > most_items(self.nranks) {
            let why = String::from("its exchange has more bytes than a frame carries");
            return self.decide(Verdict::Failed { rank: self.rank, why }, None);
        }
        self.send(above, ControlFrame::Up { sequence: self.exchange_number, items });
    }

    /// Ends the exchange with the items of all ranks.
    fn complete_exchange(&mut self, from: Rank, items: Vec<u8>) {
        let Some(whole) = read_all(&items, self.nranks) else {
            return self.protocol_error(from, "the result of an exchange is not complete");
        };
        let sequence = self.exchange_number;
        self.exchange_number = sequence.wrapping_add(1);
        self.exchange = None;
        let above = parent(self.rank);
        for rank in self.neighbour_ranks().into_iter().filter(|rank| Some(*rank) != above) {
            self.send(rank, ControlFrame::Down { sequence, items: items.clone() });
        }
        self.outputs.push_back(ControlOutput::Exchanged(Ok(whole)));
    }
}
