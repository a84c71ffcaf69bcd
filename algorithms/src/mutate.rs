//! Mutants: schedules with one fault each, to test that the verifier finds it.
//!
//! A mutant need not be wrong: some faults do no harm, such as an input order that only changes the
//! tree of a fast schedule. Tests that use mutants must execute those that the verifier accepts.

use std::fmt;

use crate::schedule::{After, Chunk, Operand, Schedule, Step, StepTable};

/// A schedule with one fault.
pub struct Mutant {
    /// The kind of fault.
    pub kind: &'static str,
    /// What was changed.
    pub description: String,
    /// The schedule with the fault.
    pub schedule: Schedule,
}

impl fmt::Debug for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {}", self.schedule, self.description)
    }
}

/// `count` mutants of `schedule`, the same ones for the same `seed`; none if it has no steps.
pub fn mutants(schedule: &Schedule, seed: u64, count: usize) -> impl Iterator<Item = Mutant> {
    let original = schedule.to_table();
    let schedule = schedule.clone();
    let mut random = SplitMix64(seed);
    let steps: usize = original.0.iter().flatten().map(Vec::len).sum();
    let count = if steps == 0 { 0 } else { count };
    (0..count).map(move |_| {
        loop {
            let mut changed =
                MutableSchedule { schedule: schedule.clone(), table: original.clone() };
            let (kind, fault) = KINDS[random.below(KINDS.len())];
            if let Some(description) = fault(&mut changed, &mut random) {
                let schedule = changed.schedule.with_program(changed.table);
                return Mutant { kind, description, schedule };
            }
        }
    })
}

/// The parts of a schedule that a fault may change.
struct MutableSchedule {
    schedule: Schedule,
    table: StepTable,
}

/// Makes a fault and describes it; None if it does not apply to the step that it drew.
type Fault = fn(&mut MutableSchedule, &mut SplitMix64) -> Option<String>;

// Dropping a step always applies, so that there is always a mutant.
const KINDS: &[(&str, Fault)] = &[
    ("step dropped", drop_step),
    ("step duplicated", duplicate_step),
    ("steps swapped", swap_steps),
    ("peer redirected", redirect_peer),
    ("channel changed", change_channel),
    ("chunk mis-addressed", change_chunk),
    ("order of the fold changed", swap_inputs),
    ("input dropped", drop_input),
    ("output dropped", drop_output),
    ("dependency dropped", drop_after),
    ("finish toggled", toggle_finish),
    ("scratch merged", merge_scratch),
    ("credit reduced", reduce_credit),
];

/// The position of a step in a table.
#[derive(Clone, Copy)]
struct StepPosition {
    rank: usize,
    lane: usize,
    step: usize,
}

impl fmt::Display for StepPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of lane {} of rank {}", self.step, self.lane, self.rank)
    }
}

impl MutableSchedule {
    /// A random step; all are equally likely.
    fn draw(&self, random: &mut SplitMix64) -> StepPosition {
        let steps: usize = self.table.0.iter().flatten().map(Vec::len).sum();
        let mut left = random.below(steps);
        for (rank, lanes) in self.table.0.iter().enumerate() {
            for (lane, steps) in lanes.iter().enumerate() {
                if left < steps.len() {
                    return StepPosition { rank, lane, step: left };
                }
                left -= steps.len();
            }
        }
        unreachable!("`below` returns less than the number of steps")
    }

    fn lane(&mut self, at: StepPosition) -> &mut Vec<Step> {
        &mut self.table.0[at.rank][at.lane]
    }

    fn step(&mut self, at: StepPosition) -> &mut Step {
        &mut self.table.0[at.rank][at.lane][at.step]
    }

    /// Renumbers the steps of this lane in every `after`. `number` gives the new number, or None
    /// for a step that no longer exists and is not waited for any more.
    fn renumber(&mut self, at: StepPosition, number: impl Fn(u32) -> Option<u32>) {
        for step in self.table.0[at.rank].iter_mut().flatten() {
            step.after = step
                .after
                .iter()
                .filter_map(|&After { lane, step }| {
                    let step = if lane as usize == at.lane { number(step)? } else { step };
                    Some(After { lane, step })
                })
                .collect();
        }
    }
}

fn drop_step(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let step = changed.lane(at).remove(at.step);
    let removed = at.step as u32;
    changed.renumber(at, |i| (i != removed).then(|| i - u32::from(i > removed)));
    Some(format!("{at} dropped: {step}"))
}

fn duplicate_step(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let step = *changed.step(at);
    changed.lane(at).insert(at.step, step);
    let again = at.step as u32;
    changed.renumber(at, |i| Some(i + u32::from(i > again)));
    Some(format!("{at} duplicated: {step}"))
}

fn swap_steps(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let next = at.step + 1;
    let lane = changed.lane(at);
    if next == lane.len() || lane[at.step] == lane[next] {
        return None;
    }
    lane.swap(at.step, next);
    let (low, high) = (at.step as u32, next as u32);
    changed.renumber(at, |i| {
        Some(match i {
            i if i == low => high,
            i if i == high => low,
            i => i,
        })
    });
    Some(format!("{at} swapped with the next"))
}

/// Changes an operand of a random step by `change`.
fn change_operand(
    changed: &mut MutableSchedule,
    random: &mut SplitMix64,
    change: impl FnOnce(&Schedule, &mut SplitMix64, StepPosition, Operand) -> Option<Operand>,
) -> Option<String> {
    let at = changed.draw(random);
    let schedule = changed.schedule.clone();
    let step = changed.step(at);
    let inputs = step.inputs.len();
    let i = random.below(inputs + step.outputs.len());
    let slot = match i.checked_sub(inputs) {
        None => &mut step.inputs.as_mut_slice()[i],
        Some(i) => &mut step.outputs.as_mut_slice()[i],
    };
    let old = *slot;
    let new = change(&schedule, random, at, old)?;
    *slot = new;
    (old != new).then(|| format!("{at}: {old} is {new}"))
}

fn redirect_peer(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    change_operand(changed, random, |schedule, random, at, operand| {
        let Operand::Peer { channel, .. } = operand else { return None };
        let rank = random.below(schedule.nranks as usize);
        (rank != at.rank).then_some(Operand::Peer { rank: rank as u32, channel })
    })
}

fn change_channel(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let mut used = 0;
    let description = change_operand(changed, random, |_, _, _, operand| {
        let Operand::Peer { rank, channel } = operand else { return None };
        used = channel ^ 1;
        Some(Operand::Peer { rank, channel: used })
    });
    // Without this, only the declared number of channels would be wrong.
    changed.schedule.channels = changed.schedule.channels.max(used + 1);
    description
}

fn change_chunk(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    change_operand(changed, random, |schedule, random, _, operand| {
        let Operand::Local(chunk) = operand else { return None };
        let mut draw = |limit: u32| random.below(limit as usize) as u32;
        Some(Operand::Local(match chunk {
            Chunk::Input(_) => Chunk::Input(draw(schedule.input_chunks())),
            Chunk::Output(_) => Chunk::Output(draw(schedule.output_chunks())),
            Chunk::Scratch(_) => Chunk::Scratch(draw(schedule.scratch)),
        }))
    })
}

fn swap_inputs(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let inputs = changed.step(at).inputs.as_mut_slice();
    if inputs.len() < 2 {
        return None;
    }
    let i = random.below(inputs.len() - 1);
    inputs.swap(i, i + 1);
    (inputs[i] != inputs[i + 1]).then(|| format!("{at}: inputs {i} and {} swapped", i + 1))
}

fn drop_input(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let inputs = &mut changed.step(at).inputs;
    let operand = inputs.remove(random.below(inputs.len()));
    Some(format!("{at}: input {operand} dropped"))
}

fn drop_output(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let outputs = &mut changed.step(at).outputs;
    let operand = outputs.remove(random.below(outputs.len()));
    Some(format!("{at}: output {operand} dropped"))
}

fn drop_after(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let after = &mut changed.step(at).after;
    if after.is_empty() {
        return None;
    }
    let After { lane, step } = after.remove(random.below(after.len()));
    Some(format!("{at}: no longer after {lane}:{step}"))
}

fn toggle_finish(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let at = changed.draw(random);
    let step = changed.step(at);
    step.finish = !step.finish;
    Some(format!("{at}: finish is {}", step.finish))
}

fn merge_scratch(changed: &mut MutableSchedule, random: &mut SplitMix64) -> Option<String> {
    let scratch = changed.schedule.scratch as usize;
    if scratch < 2 {
        return None;
    }
    let rank = random.below(changed.table.0.len());
    let (kept, removed) = (random.below(scratch) as u32, random.below(scratch) as u32);
    let mut merged = false;
    for step in changed.table.0[rank].iter_mut().flatten() {
        for operands in [&mut step.inputs, &mut step.outputs] {
            for operand in operands.as_mut_slice() {
                if kept != removed && *operand == Operand::Local(Chunk::Scratch(removed)) {
                    *operand = Operand::Local(Chunk::Scratch(kept));
                    merged = true;
                }
            }
        }
    }
    merged.then(|| format!("scratch{removed} of rank {rank} is scratch{kept}"))
}

fn reduce_credit(changed: &mut MutableSchedule, _: &mut SplitMix64) -> Option<String> {
    if changed.schedule.credit < 2 {
        return None;
    }
    changed.schedule.credit -= 1;
    Some(format!("credit {}", changed.schedule.credit))
}

/// The random numbers of the tests: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), from a seed.
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next_number() % limit as u64) as usize
    }
}
