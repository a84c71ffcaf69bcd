//! A second, simple implementation of what schedules mean: it executes them on numbers, in random
//! orders, with random numbers of credits and a random choice for each message whether it is copied
//! or lent. It shares nothing with the verifier except [`evaluate_step`].

mod numbers;

use std::collections::{HashMap, VecDeque};

use maypole_algorithms::mutate::SplitMix64;
use maypole_algorithms::semantics::{Algebra, evaluate_step, fold};
use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Chunk, Class, Collective, Operand, Schedule, Step};
use numbers::{NumberAlgebra, TestNumber, input_number, required_input};

const TILES: usize = 3;
const CALLS: usize = 2;

/// A piece of memory: rank, call and tile (neither for scratch), chunk. In place, an output chunk
/// has the name of the input chunk that is the same memory.
type MemoryCell = (u32, Option<(usize, usize)>, Chunk);

/// A message that is sent and not yet received.
struct MessageInFlight {
    copy: Option<TestNumber>,
    lent: Vec<MemoryCell>,
    from: (u32, u32, usize),
}

/// How one execution behaves.
#[derive(Clone, Copy)]
struct ExecutionMode {
    /// 0: no message is lent, 1: all that can be, 2: a random choice.
    lend: usize,
    credit: usize,
    /// 0 and 1 prefer the first and the last lane, so that others lag behind; else the choice is
    /// random.
    preference: usize,
    in_place: bool,
}

/// One execution of all calls.
struct RandomExecution<'a> {
    schedule: &'a Schedule,
    proof: Option<&'a Proved>,
    mode: ExecutionMode,
    random: SplitMix64,
    memory: HashMap<MemoryCell, TestNumber>,
    links: HashMap<(u32, u32, u16), VecDeque<MessageInFlight>>,
    /// By rank and lane: steps fired, over all tiles and calls.
    fired: Vec<Vec<usize>>,
    /// By rank its lent messages: lane, number of the firing, cells.
    lent: Vec<Vec<(u32, usize, Vec<MemoryCell>)>>,
}

/// Executes the schedule in many orders; returns what went wrong in one of them. With a proof, the
/// outputs must have been reduced by the trees that it states.
pub(crate) fn check(
    schedule: &Schedule,
    proof: Option<&Proved>,
    seed: u64,
    runs: usize,
) -> Result<(), String> {
    for run in 0..runs {
        let mut random = SplitMix64(seed ^ (run as u64) << 20);
        let mode = ExecutionMode {
            lend: run % 3,
            credit: schedule.credit as usize + [0, 1, 100][random.below(3)],
            preference: random.below(4),
            in_place: run % 2 == 1,
        };
        let lanes = |rank| vec![0; schedule.lanes(rank) as usize];
        let mut execution = RandomExecution {
            schedule,
            proof,
            mode,
            random,
            memory: HashMap::new(),
            links: HashMap::new(),
            fired: (0..schedule.nranks).map(lanes).collect(),
            lent: vec![Vec::new(); schedule.nranks as usize],
        };
        execution.run().map_err(|what| format!("run {run}: {what}"))?;
    }
    Ok(())
}

/// The content of an input chunk in a tile of a call.
fn input_of(rank: u32, chunk: u32, call: usize, tile: usize) -> TestNumber {
    input_number(rank, chunk, call * TILES + tile)
}

impl RandomExecution<'_> {
    fn run(&mut self) -> Result<(), String> {
        for rank in 0..self.schedule.nranks {
            for (call, tile) in (0..CALLS).flat_map(|c| (0..TILES).map(move |t| (c, t))) {
                for i in 0..self.schedule.input_chunks() {
                    let cell = (rank, Some((call, tile)), Chunk::Input(i));
                    self.memory.insert(cell, input_of(rank, i, call, tile));
                }
            }
        }
        let all: Vec<_> = (0..self.schedule.nranks)
            .flat_map(|rank| (0..self.schedule.lanes(rank)).map(move |lane| (rank, lane)))
            .collect();
        loop {
            let mut ready: Vec<_> =
                all.iter().filter(|(r, l)| self.can_fire(*r, *l)).copied().collect();
            if ready.is_empty() {
                break;
            }
            // Some orders prefer the first or the last lanes, so that others lag far behind.
            match self.mode.preference {
                0 => ready.truncate(1),
                1 => ready.drain(..ready.len() - 1).for_each(drop),
                _ => {}
            }
            let (rank, lane) = ready[self.random.below(ready.len())];
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

    /// The call, the tile and the index of the next step of a lane; None if it is finished.
    fn position(&self, rank: u32, lane: u32) -> Option<(usize, usize, usize)> {
        let steps = self.schedule.steps(rank, lane) as usize;
        let fired = self.fired[rank as usize][lane as usize];
        let left = fired < steps * TILES * CALLS;
        left.then(|| (fired / (steps * TILES), fired / steps % TILES, fired % steps))
    }

    fn cell(&self, rank: u32, call: usize, tile: usize, chunk: Chunk) -> MemoryCell {
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
            let is_over = |l| self.position(rank, l).is_none_or(|(c, ..)| c >= call);
            if !(0..self.schedule.lanes(rank)).all(is_over)
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

    fn read(&mut self, cell: MemoryCell) -> TestNumber {
        let garbage = TestNumber { sum: self.random.below(1 << 40) as u64, tree: 0 };
        self.memory.get(&cell).copied().unwrap_or(garbage)
    }

    fn fire(&mut self, rank: u32, lane: u32) {
        let (call, tile, index) =
            self.position(rank, lane).expect("a lane that can fire has a next step");
        let at = self.fired[rank as usize][lane as usize];
        let step = self.schedule.step(rank, lane, index as u32);
        let mut numbers = NumberAlgebra { reduces: self.schedule.collective.reduces() };
        let result = evaluate_step(&mut numbers, &step, |operand| match operand {
            Operand::Local(chunk) => self.read(self.cell(rank, call, tile, chunk)),
            Operand::Peer { rank: peer, channel } => {
                let queue =
                    self.links.get_mut(&(peer, rank, channel)).expect("the message has arrived");
                let message = queue.pop_front().expect("the message has arrived");
                let loan = self.lent[peer as usize]
                    .iter()
                    .position(|(l, a, c)| (peer, *l, *a) == message.from && *c == message.lent);
                if let Some(loan) = loan.filter(|_| message.copy.is_none()) {
                    self.lent[peer as usize].swap_remove(loan);
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
        // A message without an output chunk beside it is lent from the input, if the step does not
        // change it: not if the operation scales contributions or finishes results.
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
                MessageInFlight { copy: None, lent: lendable.clone(), from }
            } else {
                MessageInFlight { copy: Some(result), lent: Vec::new(), from }
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
                    let Some(required) = required(self.schedule, rank, output, call, tile) else {
                        continue;
                    };
                    let found = self.read(self.cell(rank, call, tile, Chunk::Output(output)));
                    trees.push(found.tree);
                    let bits = class == Class::Fast || found.tree == required.tree;
                    let proved = self.proved(rank, output, call, tile);
                    if proved.is_some_and(|proved| proved != found) {
                        return Err(format!(
                            "out{output} of rank {rank} has another tree than proved"
                        ));
                    }
                    if found.sum != required.sum || !bits {
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

    /// The value of the tree that the proof states, if there is a proof.
    fn proved(&self, rank: u32, output: u32, call: usize, tile: usize) -> Option<TestNumber> {
        let tree = self.proof?.tree(rank, output).expect("the collective gives this chunk");
        let contribution = |rank, chunk| {
            let reduces = self.schedule.collective.reduces();
            NumberAlgebra { reduces }.contribute(input_of(rank, chunk, call, tile))
        };
        Some(tree.evaluate(&mut NumberAlgebra { reduces: true }, contribution))
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

/// What the collective requires of an output chunk; None if the rank gets nothing.
fn required(
    schedule: &Schedule,
    rank: u32,
    output: u32,
    call: usize,
    tile: usize,
) -> Option<TestNumber> {
    let (source, chunk) = required_input(schedule, rank, output)?;
    if let Some(source) = source {
        return Some(input_of(source, chunk, call, tile));
    }
    let mut algebra = NumberAlgebra { reduces: true };
    let contribution = |rank| algebra.contribute(input_of(rank, chunk, call, tile));
    let values: Vec<_> = (0..schedule.nranks).map(contribution).collect();
    let sum = fold(&mut algebra, &values);
    Some(algebra.finish(sum))
}
