//! One execution in model time, event by event in the order of time, so that cores and ports serve
//! first what comes to them first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::timeline::{StepSpan, Timeline};
use super::{LinkCost, MachineModel};
use crate::flat::{FlatLane, FlatLink, FlatSchedule, FlatStep, NONE};

/// What happens at a point in time. Events of one time happen in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ModelEvent {
    /// A message comes to the port where it leaves.
    Leave(TileMessage),
    /// The first byte of a message comes to the port where it enters.
    Enter(TileMessage),
    /// A lane is ready for its next step.
    Step(u32),
}

/// A message in one tile.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TileMessage {
    tile: u32,
    link: u32,
    /// Its number on the link in the tile.
    ordinal: u32,
}

/// How far a lane has come.
#[derive(Clone)]
struct LaneTime {
    tile: u32,
    /// The number of its next step.
    step: u32,
    /// The time at which its last step ended.
    free: f64,
    wait: ModelWait,
}

/// What the next step of a lane waits for.
#[derive(Clone, Copy, PartialEq)]
enum ModelWait {
    /// Nothing: the step has an event, or it queues for the core, or the lane is finished.
    Nothing,
    /// The message of this number in the tile; [`NONE`] if it is never sent.
    Message(u32),
    /// A step of another lane of the rank.
    Step(u32),
}

/// The core of a rank, where its lanes share one.
#[derive(Clone, Default)]
struct ModelCore {
    /// The time from which it is free.
    free: f64,
    /// The lane that has an event for the time at which the core is free.
    next: Option<u32>,
    /// The lanes that queue behind it.
    queue: VecDeque<u32>,
}

/// The times from which the two directions of a port are free.
#[derive(Clone, Copy, Default)]
struct ModelPort {
    out: f64,
    into: f64,
}

/// One execution of a schedule in model time. Times are in seconds since its start.
pub(super) struct ModelRun<'a> {
    machine: &'a MachineModel,
    flat: &'a FlatSchedule,
    tiles: u32,
    /// Bytes of one tile of a chunk.
    bytes: f64,
    /// By step how long it takes.
    durations: Vec<f64>,
    lanes: Vec<LaneTime>,
    cores: Vec<ModelCore>,
    /// The ports of the ranks, then those of the nodes.
    ports: Vec<ModelPort>,
    /// By tile and step the end of the step; NaN before it has ended.
    ends: Vec<f64>,
    /// By tile and message its arrival; NaN before that is known.
    arrivals: Vec<f64>,
    events: BinaryHeap<Reverse<(ModelTime, ModelEvent)>>,
}

impl<'a> ModelRun<'a> {
    pub(super) fn new(
        machine: &'a MachineModel,
        flat: &'a FlatSchedule,
        bytes: usize,
        tiles: u32,
    ) -> Self {
        let nodes = machine.network.as_ref().map_or(0, |network| {
            let ranks = network.grouping.nranks();
            assert_eq!(ranks, flat.nranks, "the machine's grouping has another number of ranks");
            network.grouping.nodes()
        });
        let lane = |lane: &FlatLane| {
            let tile = if lane.steps == 0 { tiles } else { 0 };
            LaneTime { tile, step: lane.first_step, free: 0.0, wait: ModelWait::Nothing }
        };
        let mut run = Self {
            machine,
            flat,
            tiles,
            bytes: bytes as f64,
            durations: Vec::new(),
            lanes: flat.lanes.iter().map(lane).collect(),
            cores: vec![ModelCore::default(); flat.nranks as usize],
            ports: vec![ModelPort::default(); (flat.nranks + nodes) as usize],
            ends: vec![f64::NAN; tiles as usize * flat.steps.len()],
            arrivals: vec![f64::NAN; tiles as usize * flat.messages as usize],
            events: BinaryHeap::with_capacity(flat.lanes.len()),
        };
        run.durations = flat.steps.iter().map(|step| run.duration(step)).collect();
        run
    }

    /// Executes; returns for each tile the time at which its last step ended. Steps that wait for a
    /// message or a step that never comes are left out.
    pub(super) fn finish(mut self, mut timeline: Option<&mut Timeline>) -> Vec<f64> {
        for lane in 0..self.lanes.len() as u32 {
            self.schedule_next(lane);
        }
        while let Some(Reverse((ModelTime(now), event))) = self.events.pop() {
            match event {
                ModelEvent::Step(lane) => {
                    if self.has_core(lane, now) {
                        self.fire(lane, now, &mut timeline);
                    }
                }
                ModelEvent::Leave(message) => {
                    let (cost, out, _) = self.route(self.link(message));
                    let depart = now.max(self.ports[out].out);
                    self.ports[out].out = depart + self.bytes * cost.byte;
                    self.push(depart + cost.latency, ModelEvent::Enter(message));
                }
                ModelEvent::Enter(message) => {
                    let (cost, _, into) = self.route(self.link(message));
                    let arrival = now.max(self.ports[into].into) + self.bytes * cost.byte;
                    self.ports[into].into = arrival;
                    self.arrive(message, arrival, &mut timeline);
                }
            }
        }
        let steps = self.flat.steps.len().max(1);
        self.ends.chunks(steps).map(|tile| tile.iter().copied().fold(0.0, f64::max)).collect()
    }

    /// How long a step keeps its lane busy.
    fn duration(&self, step: &FlatStep) -> f64 {
        let MachineModel { step: fixed, operand, byte, ranks_per_core, .. } = *self.machine;
        let step = self.flat.view(step);
        let messages = step.received().chain(step.sent());
        let messages: f64 = match self.machine.network {
            None => messages.count() as f64 * self.machine.link.message,
            Some(_) => messages
                .map(|(link, ordinal)| (&self.flat.links[link as usize], ordinal))
                .filter(|(link, ordinal)| link.message(*ordinal).is_some())
                .map(|(link, _)| self.route(link).0.message)
                .sum(),
        };
        let operands = (step.inputs.len() + step.outputs.len()) as f64;
        ranks_per_core * (fixed + operands * operand + operands * self.bytes * byte + messages)
    }

    fn link(&self, message: TileMessage) -> &'a FlatLink {
        &self.flat.links[message.link as usize]
    }

    /// What a message on a link costs, and the ports where it leaves and enters.
    fn route(&self, link: &FlatLink) -> (LinkCost, usize, usize) {
        let (source, destination) = (link.source, link.destination);
        match &self.machine.network {
            Some(network) if !network.grouping.same_node(source, destination) => {
                let port = |rank| (self.flat.nranks + network.grouping.node(rank)) as usize;
                (network.link, port(source), port(destination))
            }
            _ => (self.machine.link, source as usize, destination as usize),
        }
    }

    /// The index of message number `message` of a tile among those of all tiles.
    fn message_index(&self, tile: u32, message: u32) -> usize {
        tile as usize * self.flat.messages as usize + message as usize
    }

    fn push(&mut self, at: f64, event: ModelEvent) {
        self.events.push(Reverse((ModelTime(at), event)));
    }

    /// Adds an event for the next step of `lane`, or notes what the lane waits for.
    fn schedule_next(&mut self, lane: u32) {
        let LaneTime { tile, step, free, .. } = self.lanes[lane as usize];
        if tile == self.tiles {
            return;
        }
        let flat = self.flat;
        let mut ready = free;
        let view = flat.step(step);
        let ends = tile as usize * flat.steps.len();
        for after in view.after {
            let end = self.ends[ends + after.step as usize];
            if end.is_nan() {
                self.lanes[lane as usize].wait = ModelWait::Step(after.step);
                return;
            }
            ready = ready.max(end);
        }
        for (link, ordinal) in view.received() {
            let message = flat.links[link as usize].message(ordinal);
            let arrival = match message {
                Some(message) => self.arrivals[self.message_index(tile, message)],
                None => f64::NAN,
            };
            if arrival.is_nan() {
                self.lanes[lane as usize].wait = ModelWait::Message(message.unwrap_or(NONE));
                return;
            }
            ready = ready.max(arrival);
        }
        self.lanes[lane as usize].wait = ModelWait::Nothing;
        self.push(ready, ModelEvent::Step(lane));
    }

    /// Whether the lane gets its core now; else it queues for the core.
    fn has_core(&mut self, lane: u32, now: f64) -> bool {
        if !self.machine.lanes_share_a_core {
            return true;
        }
        let core = &mut self.cores[self.flat.lanes[lane as usize].rank as usize];
        if core.next == Some(lane) {
            core.next = None;
        }
        if core.free <= now {
            return true;
        }
        if core.next.is_some() {
            core.queue.push_back(lane);
        } else {
            core.next = Some(lane);
            let free = core.free;
            self.push(free, ModelEvent::Step(lane));
        }
        false
    }

    /// Executes the next step of `lane` from `start` on.
    fn fire(&mut self, lane: u32, start: f64, timeline: &mut Option<&mut Timeline>) {
        let flat = self.flat;
        let LaneTime { tile, step, .. } = self.lanes[lane as usize];
        let FlatLane { rank, index, first_step, steps } = flat.lanes[lane as usize];
        let end = start + self.durations[step as usize];
        if let Some(timeline) = timeline {
            let index_in_lane = step - first_step;
            timeline.steps.push(StepSpan {
                rank,
                lane: index,
                index: index_in_lane,
                tile,
                start,
                end,
            });
        }
        let clock = &mut self.lanes[lane as usize];
        clock.free = end;
        clock.step += 1;
        if clock.step == first_step + steps {
            (clock.step, clock.tile) = (first_step, tile + 1);
        }
        if self.machine.lanes_share_a_core {
            let core = &mut self.cores[rank as usize];
            core.free = end;
            if core.next.is_none()
                && let Some(next) = core.queue.pop_front()
            {
                core.next = Some(next);
                self.push(end, ModelEvent::Step(next));
            }
        }
        self.ends[tile as usize * flat.steps.len() + step as usize] = end;
        for (link, ordinal) in flat.step(step).sent() {
            let message = TileMessage { tile, link, ordinal };
            let link = self.link(message);
            if let Some(timeline) = timeline {
                let index = self.message_index(tile, link.first_message + ordinal);
                timeline.messages[index].depart = end;
            }
            let (cost, ..) = self.route(link);
            if cost.byte == 0.0 {
                self.arrive(message, end + cost.latency, timeline);
            } else {
                self.push(end, ModelEvent::Leave(message));
            }
        }
        if flat.steps[step as usize].is_awaited {
            for other in flat.lanes_of(rank) {
                if self.lanes[other as usize].wait == ModelWait::Step(step) {
                    self.schedule_next(other);
                }
            }
        }
        self.schedule_next(lane);
    }

    /// The last byte of a message arrives at `arrival`.
    fn arrive(&mut self, message: TileMessage, arrival: f64, timeline: &mut Option<&mut Timeline>) {
        let link = self.link(message);
        let number = link.first_message + message.ordinal;
        let index = self.message_index(message.tile, number);
        self.arrivals[index] = arrival;
        if let Some(timeline) = timeline {
            timeline.messages[index].arrive = arrival;
        }
        let drainer = link.drainer;
        if drainer != NONE && self.lanes[drainer as usize].wait == ModelWait::Message(number) {
            self.schedule_next(drainer);
        }
    }
}

/// Seconds since the start, with a total order.
#[derive(Clone, Copy, PartialEq)]
struct ModelTime(f64);

impl Eq for ModelTime {}

impl PartialOrd for ModelTime {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ModelTime {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
