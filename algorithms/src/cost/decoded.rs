//! A schedule laid out flat, with the two ends of every message found, so that executing it in model time needs no look-ups.

use crate::schedule::{Channel, Operand, Schedule};
use crate::types::Rank;

pub(super) const NONE: u32 = u32::MAX;

/// A schedule made ready to be costed any number of times. Lanes are numbered through all ranks, steps through all lanes,
/// messages through all links.
pub struct FlatSchedule {
    pub(super) nranks: u32,
    pub(super) lanes: Vec<Lane>,
    pub(super) steps: Vec<Step>,
    /// By step: the messages that it takes, then those that it sends.
    ends: Vec<u32>,
    /// By step: the steps that it comes after.
    after: Vec<u32>,
    pub(super) messages: Vec<Message>,
}

pub(super) struct Lane {
    pub(super) rank: Rank,
    /// Its number on the rank.
    pub(super) index: u32,
    pub(super) first: u32,
    pub(super) steps: u32,
}

pub(super) struct Step {
    first_end: u32,
    first_after: u32,
    taken: u8,
    sent: u8,
    afters: u8,
    /// Inputs and outputs.
    pub(super) operands: u8,
    /// Some `after` names it.
    pub(super) named: bool,
}

/// A message of a tile.
#[derive(Clone, Copy)]
pub(super) struct Message {
    pub(super) from: Rank,
    pub(super) to: Rank,
    pub(super) channel: Channel,
    /// The lane that sends it.
    pub(super) feeder: u32,
    /// The lane that takes it, [`NONE`] if none does.
    pub(super) drainer: u32,
}

/// One end of a message as its step names it, until the message is found.
#[derive(Clone, Copy)]
struct End {
    rank: Rank,
    peer: Rank,
    channel: Channel,
    sent: bool,
    lane: u32,
}

impl FlatSchedule {
    /// Asks `schedule` for every step once.
    pub fn new(schedule: &Schedule) -> Self {
        let mut decoded = Self {
            nranks: schedule.nranks,
            lanes: Vec::new(),
            steps: Vec::new(),
            ends: Vec::new(),
            after: Vec::new(),
            messages: Vec::new(),
        };
        let mut ends = Vec::new();
        for rank in 0..schedule.nranks {
            decoded.add_rank(schedule, rank, &mut ends);
        }
        decoded.pair(&ends);
        decoded
    }

    fn add_rank(&mut self, schedule: &Schedule, rank: Rank, ends: &mut Vec<End>) {
        let (first_lane, mut first) = (self.lanes.len(), self.steps.len() as u32);
        for index in 0..schedule.lanes(rank) {
            let steps = schedule.steps(rank, index);
            self.lanes.push(Lane { rank, index, first, steps });
            first += steps;
        }
        let first_after = self.after.len();
        for lane in first_lane..self.lanes.len() {
            for step in schedule.lane(rank, self.lanes[lane].index) {
                let (first_end, lane) = (ends.len() as u32, lane as u32);
                let mut add = |operands: &[Operand], sent| {
                    let before = ends.len();
                    ends.extend(operands.iter().filter_map(|operand| match *operand {
                        Operand::Peer { rank: peer, channel } => {
                            Some(End { rank, peer, channel, sent, lane })
                        }
                        Operand::Local(_) => None,
                    }));
                    (ends.len() - before) as u8
                };
                let (taken, sent) = (add(&step.inputs, false), add(&step.outputs, true));
                self.steps.push(Step {
                    first_end,
                    first_after: self.after.len() as u32,
                    taken,
                    sent,
                    afters: step.after.len() as u8,
                    operands: (step.inputs.len() + step.outputs.len()) as u8,
                    named: false,
                });
                let number = |lane: u32| self.lanes[first_lane + lane as usize].first;
                self.after.extend(step.after.iter().map(|after| number(after.lane) + after.step));
            }
        }
        for &named in &self.after[first_after..] {
            self.steps[named as usize].named = true;
        }
    }

    /// Numbers the messages and finds out who takes them. Links are looked up in a row by peer and channel: one row at a time,
    /// first for each source, then for each destination.
    fn pair(&mut self, ends: &[End]) {
        let channels = ends.iter().map(|end| usize::from(end.channel) + 1).max().unwrap_or(0);
        let place = |end: &End| end.peer as usize * channels + usize::from(end.channel);
        let mut row = vec![NONE; self.nranks as usize * channels];
        // Per link its first message, and how many were named so far.
        let mut links: Vec<(u32, u32)> = Vec::new();
        self.ends = vec![NONE; ends.len()];
        let mut into: Vec<Vec<(usize, u32)>> = vec![Vec::new(); self.nranks as usize];
        for own in ends.chunk_by(|a, b| a.rank == b.rank) {
            let first = links.len();
            for end in own.iter().filter(|end| end.sent) {
                let link = &mut row[place(end)];
                if *link == NONE {
                    *link = links.len() as u32;
                    let back = end.rank as usize * channels + usize::from(end.channel);
                    into[end.peer as usize].push((back, *link));
                    links.push((0, 0));
                }
                links[*link as usize].1 += 1;
            }
            let mut next = self.messages.len() as u32;
            for link in &mut links[first..] {
                (link.0, next, link.1) = (next, next + link.1, 0);
            }
            let from = end_rank(own);
            let nothing = Message { from, to: 0, channel: 0, feeder: NONE, drainer: NONE };
            self.messages.resize(next as usize, nothing);
            let start = offset(ends, own);
            for (at, end) in (start..).zip(own).filter(|(_, end)| end.sent) {
                let number = take(&mut links[row[place(end)] as usize]);
                let message = &mut self.messages[number as usize];
                (message.to, message.channel) = (end.peer, end.channel);
                message.feeder = end.lane;
                self.ends[at] = number;
            }
            own.iter().filter(|end| end.sent).for_each(|end| row[place(end)] = NONE);
        }
        // What was sent on each link; from now on counted again from its start.
        let sent: Vec<u32> = links.iter().map(|link| link.1).collect();
        links.iter_mut().for_each(|link| link.1 = 0);
        for own in ends.chunk_by(|a, b| a.rank == b.rank) {
            let into = &into[end_rank(own) as usize];
            into.iter().for_each(|&(place, link)| row[place] = link);
            let start = offset(ends, own);
            for (at, end) in (start..).zip(own).filter(|(_, end)| !end.sent) {
                let link = row[place(end)];
                // A message that nobody sends never comes.
                if link != NONE && links[link as usize].1 < sent[link as usize] {
                    let number = take(&mut links[link as usize]);
                    self.messages[number as usize].drainer = end.lane;
                    self.ends[at] = number;
                }
            }
            into.iter().for_each(|&(place, _)| row[place] = NONE);
        }
    }

    /// The number of `lane` on its rank; [`NONE`] of no lane.
    pub(super) fn index(&self, lane: u32) -> u32 {
        self.lanes.get(lane as usize).map_or(NONE, |lane| lane.index)
    }

    /// The messages that a step takes; [`NONE`] is one that nobody sends.
    pub(super) fn taken(&self, step: &Step) -> &[u32] {
        &self.ends[step.first_end as usize..][..step.taken.into()]
    }

    /// The messages that a step sends.
    pub(super) fn sent(&self, step: &Step) -> &[u32] {
        &self.ends[step.first_end as usize + usize::from(step.taken)..][..step.sent.into()]
    }

    /// The steps that a step comes after.
    pub(super) fn after(&self, step: &Step) -> &[u32] {
        &self.after[step.first_after as usize..][..step.afters.into()]
    }
}

fn end_rank(own: &[End]) -> Rank {
    own[0].rank
}

/// Where `own`, a part of `ends`, begins.
fn offset(ends: &[End], own: &[End]) -> usize {
    let starts = ends.partition_point(|end| end.rank < own[0].rank);
    debug_assert!(std::ptr::eq(&ends[starts], &own[0]));
    starts
}

/// The next message of a link.
fn take(link: &mut (u32, u32)) -> u32 {
    link.1 += 1;
    link.0 + link.1 - 1
}
