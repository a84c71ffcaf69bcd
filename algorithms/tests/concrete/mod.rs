//! A second, simple reading of what schedules mean: executes them on numbers, in random orders,
//! with random choices of copying or lending each message and of credits. It shares nothing with
//! the verifier but `interpret::apply`.

use std::collections::{HashMap, VecDeque};

use maypole_algorithms::semantics::{Algebra, evaluate_step, fold};
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Chunk, Class, Collective, Operand, Schedule, Step};

const TILES: usize = 3;
const CALLS: usize = 2;

/// What stands for an element: a sum that any order gives, and a hash that only the same tree
/// gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    sum: u64,
    tree: u64,
}

struct Numbers {
    reduces: bool,
}

impl Algebra for Numbers {
    type Value = Value;

    fn contribute(&mut self, value: Value) -> Value {
        let scale = |x: u64| if self.reduces { mix(x) } else { x };
        Value { sum: scale(value.sum), tree: scale(value.tree) }
    }

    fn combine(&mut self, left: Value, right: Value) -> Value {
        let tree = mix(left.tree.wrapping_mul(3).wrapping_add(mix(right.tree)));
        Value { sum: left.sum.wrapping_add(right.sum), tree }
    }

    fn finish(&mut self, value: Value) -> Value {
        Value { sum: mix(value.sum), tree: mix(value.tree) }
    }
}

fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(mix(self.0)) >> 8) as usize % limit
    }
}

/// Memory: rank, call and tile (none of both for scratch), chunk; in place outputs are named as
/// inputs.
type Cell = (u32, Option<(usize, usize)>, Chunk);

struct Message {
    copy: Option<Value>,
    lent: Vec<Cell>,
    from: (u32, u32, usize),
}

#[derive(Clone, Copy)]
struct Mode {
    lend: usize,
    credit: usize,
    greed: usize,
    in_place: bool,
}

struct World<'a> {
    schedule: &'a Schedule,
    proof: Option<&'a Proved>,
    mode: Mode,
    random: Random,
    memory: HashMap<Cell, Value>,
    links: HashMap<(u32, u32, u16), VecDeque<Message>>,
    /// Per rank and lane: steps fired, over all tiles and calls.
    fired: Vec<Vec<usize>>,
    /// Per rank: its lent messages (lane, count of the firing, cells).
    lent: Vec<Vec<(u32, usize, Vec<Cell>)>>,
}

/// Executes the schedule under many orders; tells what went wrong with one. With a proof, the
/// outputs must have come about by the very trees that it states.
pub(crate) fn check(
    schedule: &Schedule,
    proof: Option<&Proved>,
    seed: u64,
    runs: usize,
) -> Result<(), String> {
    for run in 0..runs {
        let mut random = Random(seed ^ (run as u64) << 20);
        let mode = Mode {
            lend: run % 3,
            credit: schedule.credit as usize + [0, 1, 100][random.below(3)],
            greed: random.below(4),
            in_place: run % 2 == 1,
        };
        let lanes = |rank| vec![0; schedule.lanes(rank) as usize];
        let mut world = World {
            schedule,
            proof,
            mode,
            random,
            memory: HashMap::new(),
            links: HashMap::new(),
            fired: (0..schedule.nranks).map(lanes).collect(),
            lent: vec![Vec::new(); schedule.nranks as usize],
        };
        world.run().map_err(|what| format!("run {run}: {what}"))?;
    }
    Ok(())
}

fn sent(rank: u32, chunk: u32, call: usize, tile: usize) -> Value {
    let x = mix(1
        + u64::from(rank)
        + 1000 * u64::from(chunk)
        + ((call * TILES + tile) as u64 * 1_000_000));
    Value { sum: x, tree: mix(x) }
}

impl World<'_> {
    fn run(&mut self) -> Result<(), String> {
        for rank in 0..self.schedule.nranks {
            for (call, tile) in (0..CALLS).flat_map(|c| (0..TILES).map(move |t| (c, t))) {
                for i in 0..self.schedule.input_chunks() {
                    let cell = (rank, Some((call, tile)), Chunk::Input(i));
                    self.memory.insert(cell, sent(rank, i, call, tile));
                }
            }
        }
        let all: Vec<_> = (0..self.schedule.nranks)
            .flat_map(|rank| (0..self.schedule.lanes(rank)).map(move |lane| (rank, lane)))
            .collect();
        loop {
            let mut able: Vec<_> =
                all.iter().filter(|(r, l)| self.can_fire(*r, *l)).copied().collect();
            if able.is_empty() {
                break;
            }
            // Some orders prefer one end of the ranks or lanes, so that others lag far behind.
            match self.mode.greed {
                0 => able.truncate(1),
                1 => able.drain(..able.len() - 1).for_each(drop),
                _ => {}
            }
            let (rank, lane) = able[self.random.below(able.len())];
            self.fire(rank, lane);
        }
        for &(rank, lane) in &all {
            if self.position(rank, lane).is_some() {
                return Err(format!("rank {rank}, lane {lane} is stuck"));
            }
        }
        if self.links.values().any(|messages| !messages.is_empty()) {
            return Err("messages are left over".to_owned());
        }
        self.check_outputs()
    }

    /// The call, the tile, and the index in the lane of what is next.
    fn position(&self, rank: u32, lane: u32) -> Option<(usize, usize, usize)> {
        let steps = self.schedule.steps(rank, lane) as usize;
        let fired = self.fired[rank as usize][lane as usize];
        let left = fired < steps * TILES * CALLS;
        left.then(|| (fired / (steps * TILES), fired / steps % TILES, fired % steps))
    }

    fn cell(&self, rank: u32, call: usize, tile: usize, chunk: Chunk) -> Cell {
        let Schedule { nranks, parts, collective, .. } = *self.schedule;
        match chunk {
            Chunk::Scratch(_) => (rank, None, chunk),
            Chunk::Output(o) if self.mode.in_place => {
                let shared = collective.in_place(nranks, parts, rank, o);
                (rank, Some((call, tile)), shared.map_or(chunk, Chunk::Input))
            }
            _ => (rank, Some((call, tile)), chunk),
        }
    }

    fn can_fire(&self, rank: u32, lane: u32) -> bool {
        let Some((call, tile, index)) = self.position(rank, lane) else { return false };
        let lent = &self.lent[rank as usize];
        if call > 0 && tile == 0 && index == 0 {
            let over = |l| self.position(rank, l).is_none_or(|(c, ..)| c >= call);
            if !(0..self.schedule.lanes(rank)).all(over)
                || lent
                    .iter()
                    .any(|&(l, at, _)| at / (self.schedule.steps(rank, l) as usize * TILES) < call)
            {
                return false;
            }
        }
        let step = self.schedule.step(rank, lane, index as u32);
        for after in &step.after {
            let steps = self.schedule.steps(rank, after.lane) as usize;
            let at = (call * TILES + tile) * steps + after.step as usize;
            let fired = self.fired[rank as usize][after.lane as usize] > at;
            if !fired || lent.iter().any(|&(l, a, _)| (l, a) == (after.lane, at)) {
                return false;
            }
        }
        let arrived = step.inputs.iter().all(|input| match *input {
            Operand::Peer { rank: peer, channel } => self.in_flight(peer, rank, channel) > 0,
            Operand::Local(_) => true,
        });
        arrived
            && step.outputs.iter().all(|output| match *output {
                Operand::Peer { rank: peer, channel } => {
                    self.in_flight(rank, peer, channel) < self.mode.credit
                }
                Operand::Local(chunk) => {
                    let cell = self.cell(rank, call, tile, chunk);
                    !lent.iter().any(|(l, _, cells)| *l == lane && cells.contains(&cell))
                }
            })
    }

    fn in_flight(&self, from: u32, to: u32, channel: u16) -> usize {
        self.links.get(&(from, to, channel)).map_or(0, VecDeque::len)
    }

    fn read(&mut self, cell: Cell) -> Value {
        let garbage = Value { sum: self.random.below(1 << 40) as u64, tree: 0 };
        self.memory.get(&cell).copied().unwrap_or(garbage)
    }

    fn fire(&mut self, rank: u32, lane: u32) {
        let (call, tile, index) = self.position(rank, lane).expect("only what can fire is fired");
        let at = self.fired[rank as usize][lane as usize];
        let step = self.schedule.step(rank, lane, index as u32);
        let mut numbers = Numbers { reduces: self.schedule.collective.reduces() };
        let result = evaluate_step(&mut numbers, &step, |operand| match operand {
            Operand::Local(chunk) => self.read(self.cell(rank, call, tile, chunk)),
            Operand::Peer { rank: peer, channel } => {
                let line = self.links.get_mut(&(peer, rank, channel)).expect("has arrived");
                let message = line.pop_front().expect("has arrived");
                let gone = self.lent[peer as usize]
                    .iter()
                    .position(|(l, a, c)| (peer, *l, *a) == message.from && *c == message.lent);
                if let Some(gone) = gone.filter(|_| message.copy.is_none()) {
                    self.lent[peer as usize].swap_remove(gone);
                }
                match message.copy {
                    Some(value) => value,
                    None => {
                        let choice = self.random.below(message.lent.len());
                        self.read(message.lent[choice])
                    }
                }
            }
        });
        for output in &step.outputs {
            if let Operand::Local(chunk) = *output {
                self.memory.insert(self.cell(rank, call, tile, chunk), result);
            }
        }
        let lendable: Vec<_> =
            lendable(&step).into_iter().map(|chunk| self.cell(rank, call, tile, chunk)).collect();
        // A message that no output chunk equals is lent from the input, if that is what it says:
        // not if the operation scales contributions or closes results.
        let changed = !step.outputs.iter().any(is_local)
            && (step.finish
                || numbers.reduces && matches!(step.inputs[0], Operand::Local(Chunk::Input(_))));
        for output in &step.outputs {
            let Operand::Peer { rank: peer, channel } = *output else { continue };
            let chosen = match self.mode.lend {
                0 => false,
                1 => true,
                _ => self.random.below(2) == 0,
            };
            let lends = chosen && !lendable.is_empty() && !changed;
            let from = (rank, lane, at);
            let message = if lends {
                self.lent[rank as usize].push((lane, at, lendable.clone()));
                Message { copy: None, lent: lendable.clone(), from }
            } else {
                Message { copy: Some(result), lent: Vec::new(), from }
            };
            self.links.entry((rank, peer, channel)).or_default().push_back(message);
        }
        self.fired[rank as usize][lane as usize] += 1;
    }

    fn check_outputs(&mut self) -> Result<(), String> {
        let Schedule { nranks, class, collective, .. } = *self.schedule;
        for (call, tile) in (0..CALLS).flat_map(|c| (0..TILES).map(move |t| (c, t))) {
            for output in 0..self.schedule.output_chunks() {
                let mut trees = Vec::new();
                for rank in 0..nranks {
                    let Some(wanted) = wanted(self.schedule, rank, output, call, tile) else {
                        continue;
                    };
                    let found = self.read(self.cell(rank, call, tile, Chunk::Output(output)));
                    trees.push(found.tree);
                    let bits = class == Class::Fast || found.tree == wanted.tree;
                    let stated = self.stated(rank, output, call, tile);
                    if stated.is_some_and(|stated| stated != found) {
                        return Err(format!(
                            "out{output} of rank {rank} has another tree than proved"
                        ));
                    }
                    if found.sum != wanted.sum || !bits {
                        return Err(format!(
                            "rank {rank} ends with a wrong out{output} in tile {tile}"
                        ));
                    }
                }
                if collective == Collective::AllReduce && trees.iter().any(|t| *t != trees[0]) {
                    return Err(format!("ranks differ in the bits of out{output}"));
                }
            }
        }
        Ok(())
    }

    /// What the tree of the proof gives, if there is a proof.
    fn stated(&self, rank: u32, output: u32, call: usize, tile: usize) -> Option<Value> {
        let tree = self.proof?.tree(rank, output).expect("the collective gives this chunk");
        let contribution = |rank, chunk| {
            let reduces = self.schedule.collective.reduces();
            Numbers { reduces }.contribute(sent(rank, chunk, call, tile))
        };
        Some(tree.evaluate(&mut Numbers { reduces: true }, contribution))
    }
}

fn is_local(operand: &Operand) -> bool {
    matches!(operand, Operand::Local(_))
}

fn lendable(step: &Step) -> Vec<Chunk> {
    let locals = |operands: &[Operand]| -> Vec<Chunk> {
        let chunk = |operand: &Operand| match operand {
            Operand::Local(chunk) => Some(*chunk),
            Operand::Peer { .. } => None,
        };
        operands.iter().filter_map(chunk).collect()
    };
    let written = locals(&step.outputs);
    if written.is_empty() && step.inputs.len() == 1 { locals(&step.inputs) } else { written }
}

fn wanted(schedule: &Schedule, rank: u32, output: u32, call: usize, tile: usize) -> Option<Value> {
    let Schedule { nranks, parts: k, collective, .. } = *schedule;
    let of = |rank, chunk| sent(rank, chunk, call, tile);
    let reduction = |chunk| {
        let mut numbers = Numbers { reduces: true };
        let values: Vec<_> = (0..nranks).map(|r| numbers.contribute(of(r, chunk))).collect();
        let sum = fold(&mut numbers, &values);
        numbers.finish(sum)
    };
    match collective {
        Collective::AllReduce => Some(reduction(output)),
        Collective::ReduceScatter => Some(reduction(rank * k + output)),
        Collective::Reduce { root } => (rank == root).then(|| reduction(output)),
        Collective::AllGather => Some(of(output / k, output % k)),
        Collective::Gather { root } => (rank == root).then(|| of(output / k, output % k)),
        Collective::Broadcast { root } => Some(of(root, output)),
        Collective::Scatter { root } => Some(of(root, rank * k + output)),
        Collective::AllToAll => Some(of(output / k, rank * k + output % k)),
    }
}
