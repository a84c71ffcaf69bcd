//! One execution in model time, event by event in the order of time, so that whoever comes first to a core or a port has it first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::decoded::{self, FlatSchedule, NONE, Step};
use super::timeline::{StepSpan, Timeline};
use super::{LinkCost, MachineModel};

/// What happens at a point in time. Events of one time happen in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A message comes to the port where it leaves: tile, message.
    Leave(u32, u32),
    /// Its first byte comes to the port where it enters.
    Enter(u32, u32),
    /// A lane is ready for its next step.
    Step(u32),
}

/// Where a lane is.
#[derive(Clone)]
struct Progress {
    tile: u32,
    /// The next step, numbered through all lanes.
    step: u32,
    /// When the last one was over.
    free: f64,
    wait: Wait,
}

#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// There is an event for it, or it stands in line for the core, or it is through.
    Nothing,
    /// For a message.
    Message(u32),
    /// For a step of another lane of the rank.
    Step(u32),
}

/// A rank's core, where its lanes share one.
#[derive(Clone, Default)]
struct Core {
    free: f64,
    /// The lane that has an event for when the core is free.
    next: Option<u32>,
    /// The lanes behind it.
    line: VecDeque<u32>,
}

/// When each way of a port is free.
#[derive(Clone, Copy, Default)]
struct Port {
    out: f64,
    into: f64,
}

pub(super) struct Run<'a> {
    machine: &'a MachineModel,
    decoded: &'a FlatSchedule,
    tiles: u32,
    bytes: f64,
    durations: Vec<f64>,
    lanes: Vec<Progress>,
    /// Per rank the first of its lanes.
    first_lane: Vec<u32>,
    cores: Vec<Core>,
    /// The ports of the ranks, then of the nodes.
    ports: Vec<Port>,
    /// By tile and step, not a number before it is over.
    ends: Vec<f64>,
    /// By tile and message, not a number before its arrival is known.
    arrivals: Vec<f64>,
    events: BinaryHeap<Reverse<(Time, Event)>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        machine: &'a MachineModel,
        decoded: &'a FlatSchedule,
        bytes: usize,
        tiles: u32,
    ) -> Self {
        let nodes = machine.network.as_ref().map_or(0, |network| {
            let ranks = network.grouping.nranks();
            assert_eq!(ranks, decoded.nranks, "the machine's grouping is of other ranks");
            network.grouping.nodes()
        });
        let lane = |lane: &decoded::Lane| {
            let tile = if lane.steps == 0 { tiles } else { 0 };
            Progress { tile, step: lane.first, free: 0.0, wait: Wait::Nothing }
        };
        let mut run = Self {
            machine,
            decoded,
            tiles,
            bytes: bytes as f64,
            durations: Vec::new(),
            lanes: decoded.lanes.iter().map(lane).collect(),
            first_lane: Vec::with_capacity(decoded.nranks as usize + 1),
            cores: vec![Core::default(); decoded.nranks as usize],
            ports: vec![Port::default(); (decoded.nranks + nodes) as usize],
            ends: vec![f64::NAN; tiles as usize * decoded.steps.len()],
            arrivals: vec![f64::NAN; tiles as usize * decoded.messages.len()],
            events: BinaryHeap::with_capacity(decoded.lanes.len()),
        };
        run.durations = decoded.steps.iter().map(|step| run.duration(step)).collect();
        for (number, lane) in decoded.lanes.iter().enumerate() {
            if lane.index == 0 {
                run.first_lane.resize(lane.rank as usize + 1, number as u32);
            }
        }
        run.first_lane.resize(decoded.nranks as usize + 1, decoded.lanes.len() as u32);
        run
    }

    /// Executes; returns when the last step of each tile was over. What waits for something that never comes is left out.
    pub(super) fn finish(mut self, mut timeline: Option<&mut Timeline>) -> Vec<f64> {
        for lane in 0..self.lanes.len() as u32 {
            self.consider(lane);
        }
        while let Some(Reverse((Time(now), event))) = self.events.pop() {
            match event {
                Event::Step(lane) => {
                    if self.has_core(lane, now) {
                        self.fire(lane, now, &mut timeline);
                    }
                }
                Event::Leave(tile, message) => {
                    let (link, out, _) = self.way(message);
                    let depart = now.max(self.ports[out].out);
                    self.ports[out].out = depart + self.bytes * link.byte;
                    self.push(depart + link.latency, Event::Enter(tile, message));
                }
                Event::Enter(tile, message) => {
                    let (link, _, into) = self.way(message);
                    let arrival = now.max(self.ports[into].into) + self.bytes * link.byte;
                    self.ports[into].into = arrival;
                    self.arrive(tile, message, arrival, &mut timeline);
                }
            }
        }
        let steps = self.decoded.steps.len().max(1);
        self.ends.chunks(steps).map(|tile| tile.iter().copied().fold(0.0, f64::max)).collect()
    }

    fn duration(&self, step: &Step) -> f64 {
        let MachineModel { step: fixed, operand, byte, ranks_per_core, .. } = *self.machine;
        let ends = self.decoded.taken(step).iter().chain(self.decoded.sent(step));
        let messages: f64 = match self.machine.network {
            None => ends.count() as f64 * self.machine.link.message,
            Some(_) => ends.filter(|m| **m != NONE).map(|&m| self.way(m).0.message).sum(),
        };
        let operands = f64::from(step.operands);
        ranks_per_core * (fixed + operands * operand + operands * self.bytes * byte + messages)
    }

    /// What a message costs, and the ports where it leaves and enters.
    fn way(&self, message: u32) -> (LinkCost, usize, usize) {
        let message = &self.decoded.messages[message as usize];
        match &self.machine.network {
            Some(network) if !network.grouping.same_node(message.from, message.to) => {
                let port = |rank| (self.decoded.nranks + network.grouping.node(rank)) as usize;
                (network.link, port(message.from), port(message.to))
            }
            _ => (self.machine.link, message.from as usize, message.to as usize),
        }
    }

    /// The place of a message among those of all tiles.
    fn place(&self, tile: u32, message: u32) -> usize {
        tile as usize * self.decoded.messages.len() + message as usize
    }

    fn push(&mut self, at: f64, event: Event) {
        self.events.push(Reverse((Time(at), event)));
    }

    /// Makes an event of the next step of `lane`, or notes what the lane waits for.
    fn consider(&mut self, lane: u32) {
        let Progress { tile, step, free, .. } = self.lanes[lane as usize];
        if tile == self.tiles {
            return;
        }
        let decoded = self.decoded;
        let mut ready = free;
        let text = &decoded.steps[step as usize];
        let ends = tile as usize * decoded.steps.len();
        for &after in decoded.after(text) {
            let end = self.ends[ends + after as usize];
            if end.is_nan() {
                self.lanes[lane as usize].wait = Wait::Step(after);
                return;
            }
            ready = ready.max(end);
        }
        for &message in decoded.taken(text) {
            let arrival = match message {
                NONE => f64::NAN,
                message => self.arrivals[self.place(tile, message)],
            };
            if arrival.is_nan() {
                self.lanes[lane as usize].wait = Wait::Message(message);
                return;
            }
            ready = ready.max(arrival);
        }
        self.lanes[lane as usize].wait = Wait::Nothing;
        self.push(ready, Event::Step(lane));
    }

    /// Whether the lane may have its core now; else it stands in line for it.
    fn has_core(&mut self, lane: u32, now: f64) -> bool {
        if !self.machine.lanes_share_a_core {
            return true;
        }
        let core = &mut self.cores[self.decoded.lanes[lane as usize].rank as usize];
        if core.next == Some(lane) {
            core.next = None;
        }
        if core.free <= now {
            return true;
        }
        if core.next.is_some() {
            core.line.push_back(lane);
        } else {
            core.next = Some(lane);
            let free = core.free;
            self.push(free, Event::Step(lane));
        }
        false
    }

    fn fire(&mut self, lane: u32, start: f64, timeline: &mut Option<&mut Timeline>) {
        let decoded = self.decoded;
        let Progress { tile, step, .. } = self.lanes[lane as usize];
        let decoded::Lane { rank, index, first, steps } = decoded.lanes[lane as usize];
        let end = start + self.durations[step as usize];
        if let Some(timeline) = timeline {
            timeline.steps.push(StepSpan {
                rank,
                lane: index,
                index: step - first,
                tile,
                start,
                end,
            });
        }
        let progress = &mut self.lanes[lane as usize];
        progress.free = end;
        progress.step += 1;
        if progress.step == first + steps {
            (progress.step, progress.tile) = (first, tile + 1);
        }
        if self.machine.lanes_share_a_core {
            let core = &mut self.cores[rank as usize];
            core.free = end;
            if core.next.is_none()
                && let Some(next) = core.line.pop_front()
            {
                core.next = Some(next);
                self.push(end, Event::Step(next));
            }
        }
        self.ends[tile as usize * decoded.steps.len() + step as usize] = end;
        let text = &decoded.steps[step as usize];
        for &message in decoded.sent(text) {
            if let Some(timeline) = timeline {
                timeline.messages[self.place(tile, message)].depart = end;
            }
            let (link, ..) = self.way(message);
            if link.byte == 0.0 {
                self.arrive(tile, message, end + link.latency, timeline);
            } else {
                self.push(end, Event::Leave(tile, message));
            }
        }
        if text.named {
            for other in self.first_lane[rank as usize]..self.first_lane[rank as usize + 1] {
                if self.lanes[other as usize].wait == Wait::Step(step) {
                    self.consider(other);
                }
            }
        }
        self.consider(lane);
    }

    fn arrive(
        &mut self,
        tile: u32,
        message: u32,
        arrival: f64,
        timeline: &mut Option<&mut Timeline>,
    ) {
        let at = self.place(tile, message);
        self.arrivals[at] = arrival;
        if let Some(timeline) = timeline {
            timeline.messages[at].arrive = arrival;
        }
        let drainer = self.decoded.messages[message as usize].drainer;
        if drainer != NONE && self.lanes[drainer as usize].wait == Wait::Message(message) {
            self.consider(drainer);
        }
    }
}

/// Seconds since the start, in order.
#[derive(Clone, Copy, PartialEq)]
struct Time(f64);

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
