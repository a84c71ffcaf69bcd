//! Tests at very many ranks: every generator of the table at 100 003 ranks (a prime) and at 131 072
//! (a power of two).
//!
//! # What is shown
//!
//! * **No memory.** Making a schedule allocates at most a few kilobytes at any rank count, and
//!   computing random steps allocates nothing.
//! * **Sparse schedules are right.** Where all ranks together have at most [`MOST_STEPS`] steps
//!   (logarithmic algorithms, and linear ones of one root), the whole schedule is executed on
//!   numbers, with copied messages and no more credits than it states: it ends, no message is left
//!   over, and every output is what the collective requires, by the canonical tree where the
//!   schedule declares it. Contributions are random 64-bit numbers, so a missing or doubled one is
//!   missed with a probability of 2^-64.
//! * **Dense schedules agree in samples.** For random steps of the others, the step at the other
//!   end of each message exists: as many messages are sent on the link as received, and one lane
//!   sends and one receives. Random outputs are followed backwards through up to [`HOPS`] messages:
//!   every contribution on the way is to the chunk, and of the rank, that the collective requires.
//! * **Symmetry holds at this size too.** If at small rank counts, where a generator is proved in
//!   full, the steps of every rank are those of rank 0 with ranks and blocks rotated, then this
//!   holds for random ranks here. What is shown of the steps of one rank then holds for all ranks.
//!
//! # What is not shown
//!
//! Nothing here is a proof in the sense of [`maypole_algorithms::verify`]. Of dense schedules only
//! samples are checked; races, lent messages, several tiles and consecutive calls are not checked
//! at this size at all. Those are proved at every rank count up to 64 and some up to 256
//! (`verify_generators.rs`), and for the rank count in use before a schedule first runs.

#[path = "concrete/numbers.rs"]
mod numbers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::VecDeque;

use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::mutate::SplitMix64;
use maypole_algorithms::semantics::{Algebra, evaluate_step, fold};
use maypole_algorithms::{Chunk, Class, Operand, Rank, Schedule, Step};
use numbers::{NumberAlgebra, TestNumber, input_number, required_input};

const RANKS: [u32; 2] = [100_003, 131_072];
const MOST_STEPS: u64 = 5_000_000;
const HOPS: usize = 5;

/// An allocator that counts the bytes that the thread has allocated.
struct CountingAllocator;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed unchanged to the system allocator, which fulfils the contract.
// Counting only changes a thread-local cell without a destructor and allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate after its thread-local cells are gone; that is not
        // counted.
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: `layout` has a size that is not zero, as the caller guarantees.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `System.alloc` with this `layout`, as the caller guarantees.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The result of `work`, and the number of bytes that it allocates.
fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = BYTES.get();
    let result = work();
    (result, BYTES.get() - before)
}

/// A random number below `limit`.
fn below(random: &mut SplitMix64, limit: u32) -> u32 {
    random.below(limit as usize) as u32
}

/// A step of the schedule, by rank, lane and index.
type StepPosition = (Rank, u32, u32);

/// A random step of a random rank that has any.
fn draw(schedule: &Schedule, random: &mut SplitMix64) -> StepPosition {
    loop {
        let rank = below(random, schedule.nranks);
        let lanes = schedule.lanes(rank);
        let lane = if lanes == 0 { continue } else { below(random, lanes) };
        let steps = schedule.steps(rank, lane);
        if steps > 0 {
            return (rank, lane, below(random, steps));
        }
    }
}

fn step(schedule: &Schedule, (rank, lane, index): StepPosition) -> Step {
    schedule.step(rank, lane, index)
}

fn total_steps(schedule: &Schedule) -> u64 {
    let steps_of = |rank| (0..schedule.lanes(rank)).map(move |lane| schedule.steps(rank, lane));
    (0..schedule.nranks).flat_map(steps_of).map(u64::from).sum()
}

/// Runs `test` on every generator at both rank counts; rooted ones from rank `n/3`.
fn for_each_generator(test: impl Fn(&'static Generator, Schedule)) {
    for generator in all() {
        for n in RANKS {
            test(generator, generator.schedule(generator.collective_with_root(n / 3), n));
        }
    }
}

#[test]
fn steps_are_computed_without_memory() {
    for generator in all() {
        for n in RANKS {
            let make = || generator.schedule(generator.collective_with_root(n / 3), n);
            let (schedule, bytes) = allocated(make);
            assert!(bytes <= 4096, "{schedule:?} takes {bytes} bytes");
            let mut random = SplitMix64(u64::from(n));
            let ((), bytes) = allocated(|| {
                for _ in 0..2000 {
                    let at = draw(&schedule, &mut random);
                    assert!(!step(&schedule, at).inputs.is_empty());
                }
            });
            assert_eq!(bytes, 0, "{schedule:?}: computing steps allocates memory");
        }
    }
}

#[test]
fn sparse_schedules_are_right() {
    let executed = Cell::new(0);
    for_each_generator(|_, schedule| {
        if total_steps(&schedule) <= MOST_STEPS {
            execute(&schedule).unwrap_or_else(|what| panic!("{schedule:?}: {what}"));
            println!("{schedule:?}: executed");
            executed.set(executed.get() + 1);
        }
    });
    assert!(executed.get() > 0);
}

/// Executes one tile of one call, with copied messages and the number of credits that the schedule
/// states.
fn execute(schedule: &Schedule) -> Result<(), String> {
    let mut memory: HashMap<(Rank, Chunk), TestNumber> = HashMap::new();
    let mut links: HashMap<(Rank, Rank, u16), VecDeque<TestNumber>> = HashMap::new();
    let mut next: Vec<Vec<u32>> =
        (0..schedule.nranks).map(|rank| vec![0; schedule.lanes(rank) as usize]).collect();
    let mut numbers = NumberAlgebra { reduces: schedule.collective.reduces() };
    let mut work: VecDeque<Rank> = (0..schedule.nranks).collect();
    let mut queued = vec![true; schedule.nranks as usize];
    while let Some(rank) = work.pop_front() {
        queued[rank as usize] = false;
        let mut wake = |other: Rank| {
            if !std::mem::replace(&mut queued[other as usize], true) {
                work.push_back(other);
            }
        };
        let mut progress = true;
        while progress {
            progress = false;
            for lane in 0..schedule.lanes(rank) {
                let index = next[rank as usize][lane as usize];
                if index == schedule.steps(rank, lane) {
                    continue;
                }
                let step = schedule.step(rank, lane, index);
                let done = step.after.iter().all(|a| next[rank as usize][a.lane as usize] > a.step);
                let under_way = |ends| links.get(&ends).map_or(0, VecDeque::len);
                let is_ready =
                    done && step.inputs.iter().all(|input| match *input {
                        Operand::Peer { rank: from, channel } => {
                            under_way((from, rank, channel)) > 0
                        }
                        Operand::Local(_) => true,
                    }) && step.outputs.iter().all(|output| match *output {
                        Operand::Peer { rank: to, channel } => {
                            under_way((rank, to, channel)) < schedule.credit as usize
                        }
                        Operand::Local(_) => true,
                    });
                if !is_ready {
                    continue;
                }
                let mut undefined = None;
                let value = evaluate_step(&mut numbers, &step, |operand| match operand {
                    Operand::Local(Chunk::Input(i)) => input_number(rank, i, 0),
                    Operand::Local(chunk) => *memory.get(&(rank, chunk)).unwrap_or_else(|| {
                        undefined = Some(chunk);
                        &TestNumber { sum: 0, tree: 0 }
                    }),
                    Operand::Peer { rank: from, channel } => {
                        wake(from);
                        let queue = links.get_mut(&(from, rank, channel)).expect("has arrived");
                        queue.pop_front().expect("has arrived")
                    }
                });
                if let Some(chunk) = undefined {
                    return Err(format!("rank {rank} reads {chunk} before it is written"));
                }
                for output in &step.outputs {
                    match *output {
                        Operand::Local(chunk) => {
                            memory.insert((rank, chunk), value);
                        }
                        Operand::Peer { rank: to, channel } => {
                            links.entry((rank, to, channel)).or_default().push_back(value);
                            wake(to);
                        }
                    }
                }
                next[rank as usize][lane as usize] += 1;
                progress = true;
            }
        }
    }
    for rank in 0..schedule.nranks {
        for lane in 0..schedule.lanes(rank) {
            if next[rank as usize][lane as usize] < schedule.steps(rank, lane) {
                return Err(format!("rank {rank}, lane {lane} is stuck"));
            }
        }
    }
    if links.values().any(|queue| !queue.is_empty()) {
        return Err("messages are left over".to_owned());
    }
    check_outputs(schedule, &memory)
}

fn check_outputs(
    schedule: &Schedule,
    memory: &HashMap<(Rank, Chunk), TestNumber>,
) -> Result<(), String> {
    let mut reductions: HashMap<u32, TestNumber> = HashMap::new();
    let mut reduction = |chunk| {
        *reductions.entry(chunk).or_insert_with(|| {
            let mut numbers = NumberAlgebra { reduces: true };
            let own: Vec<_> = (0..schedule.nranks)
                .map(|rank| numbers.contribute(input_number(rank, chunk, 0)))
                .collect();
            let sum = fold(&mut numbers, &own);
            numbers.finish(sum)
        })
    };
    // Where only one rank has outputs, it has many: not all pairs of ranks and chunks need a check.
    for rank in (0..schedule.nranks).filter(|&rank| required_input(schedule, rank, 0).is_some()) {
        for output in 0..schedule.output_chunks() {
            let found = memory.get(&(rank, Chunk::Output(output)));
            let right = match required_input(schedule, rank, output) {
                None => continue,
                Some((Some(source), chunk)) => found == Some(&input_number(source, chunk, 0)),
                Some((None, chunk)) => {
                    let wanted = reduction(chunk);
                    found.is_some_and(|found| {
                        found.sum == wanted.sum
                            && (schedule.class == Class::Fast || found.tree == wanted.tree)
                    })
                }
            };
            if !right {
                return Err(format!("rank {rank} ends with a wrong out{output}"));
            }
        }
    }
    Ok(())
}

#[test]
fn dense_schedules_agree_in_samples() {
    for_each_generator(|_, schedule| {
        if total_steps(&schedule) <= MOST_STEPS {
            return;
        }
        let mut random = SplitMix64(u64::from(schedule.nranks) + 1);
        for _ in 0..4 {
            let at = draw(&schedule, &mut random);
            check_both_ends(&schedule, at);
        }
        let hops: Vec<_> = (0..3).map(|_| follow(&schedule, &mut random)).collect();
        println!("{schedule:?}: outputs followed through {hops:?} messages");
    });
}

/// Whether `operand` is a message to or from `peer` on channel `on`.
fn is_end_of(operand: &Operand, peer: Rank, on: u16) -> bool {
    matches!(*operand, Operand::Peer { rank, channel } if rank == peer && channel == on)
}

/// The steps of `rank` that send to `peer` on `channel` if `sends`, else those that receive from
/// it.
fn ends(
    schedule: &Schedule,
    rank: Rank,
    peer: Rank,
    channel: u16,
    sends: bool,
) -> Vec<StepPosition> {
    let mut found = Vec::new();
    for lane in 0..schedule.lanes(rank) {
        for (index, step) in (0..).zip(schedule.lane(rank, lane)) {
            let operands = if sends { &step.outputs } else { &step.inputs };
            if operands.iter().any(|operand| is_end_of(operand, peer, channel)) {
                found.push((rank, lane, index));
            }
        }
    }
    assert!(found.iter().all(|at| at.1 == found[0].1), "a link has one lane at each end");
    found
}

fn check_both_ends(schedule: &Schedule, at: StepPosition) {
    let step = step(schedule, at);
    for (operands, sends) in [(&step.inputs, false), (&step.outputs, true)] {
        let peer = operands.iter().find_map(|operand| match *operand {
            Operand::Peer { rank, channel } => Some((rank, channel)),
            Operand::Local(_) => None,
        });
        let Some((peer, channel)) = peer else { continue };
        let own = ends(schedule, at.0, peer, channel, sends);
        let others = ends(schedule, peer, at.0, channel, !sends);
        assert!(own.contains(&at));
        assert_eq!(own.len(), others.len(), "{schedule:?}: rank {} and {peer}, {channel}", at.0);
    }
}

/// Follows a random output backwards, through a random input at each fold; returns the number of
/// messages that it followed.
fn follow(schedule: &Schedule, random: &mut SplitMix64) -> usize {
    let (mut rank, output, (source, chunk)) = loop {
        let (rank, output) =
            (below(random, schedule.nranks), below(random, schedule.output_chunks()));
        if let Some(wanted) = required_input(schedule, rank, output) {
            break (rank, output, wanted);
        }
    };
    let mut at = writer(schedule, rank, Chunk::Output(output), None);
    let mut hops = 0;
    loop {
        let step = step(schedule, at);
        for input in &step.inputs {
            if let Operand::Local(Chunk::Input(i)) = *input {
                assert_eq!(i, chunk, "{schedule:?}: rank {rank} folds in{i} into chunk {chunk}");
                assert!(source.is_none_or(|source| source == rank), "{schedule:?}: from {rank}");
            }
        }
        match step.inputs[below(random, step.inputs.len() as u32) as usize] {
            Operand::Local(Chunk::Input(_)) => return hops,
            Operand::Local(chunk) => at = writer(schedule, rank, chunk, Some((at, &step))),
            Operand::Peer { .. } if hops == HOPS => return hops,
            Operand::Peer { rank: from, channel } => {
                let received = ends(schedule, rank, from, channel, false);
                let ordinal =
                    received.iter().position(|received| *received == at).expect("it receives one");
                at = ends(schedule, from, rank, channel, true)[ordinal];
                (rank, hops) = (from, hops + 1);
            }
        }
    }
}

/// The step that wrote `chunk` last: before the reader in its lane, or among the steps that the
/// reader waits for, or anywhere.
fn writer(
    schedule: &Schedule,
    rank: Rank,
    chunk: Chunk,
    reader: Option<(StepPosition, &Step)>,
) -> StepPosition {
    let last = |lane, end: u32| {
        let writes = |index: &u32| {
            schedule.step(rank, lane, *index).outputs.contains(&Operand::Local(chunk))
        };
        (0..end).rev().find(writes).map(|index| (rank, lane, index))
    };
    let own = reader.and_then(|(at, _)| last(at.1, at.2));
    let named = || {
        let after = reader.into_iter().flat_map(|(_, step)| step.after.to_vec());
        after.into_iter().find_map(|after| last(after.lane, after.step + 1))
    };
    let any = || (0..schedule.lanes(rank)).find_map(|lane| last(lane, schedule.steps(rank, lane)));
    own.or_else(named).or_else(any).expect("what is read is written")
}

#[test]
fn symmetry_holds_at_this_size_too() {
    let mut symmetric = Vec::new();
    for generator in all() {
        let small = [5, 8, 13].iter().all(|&n| {
            (1..n).all(|by| {
                let (base, turned) = pair(generator, n, by);
                (0..base.lanes(0)).all(|lane| {
                    (0..base.steps(0, lane))
                        .all(|index| is_rotated(&base, &turned, (0, lane, index), by))
                })
            })
        });
        if !small {
            continue;
        }
        symmetric.push(format!("{} {}", generator.collective, generator.name));
        for n in RANKS {
            let mut random = SplitMix64(u64::from(n) + 2);
            for _ in 0..50 {
                let by = below(&mut random, n);
                let (base, turned) = pair(generator, n, by);
                for _ in 0..20 {
                    let lane = below(&mut random, base.lanes(0));
                    let steps = base.steps(0, lane);
                    if steps == 0 {
                        continue;
                    }
                    let at = (0, lane, below(&mut random, steps));
                    assert!(is_rotated(&base, &turned, at, by), "{base:?} by {by}: {at:?}");
                }
            }
        }
    }
    println!("symmetric under rotation: {}", symmetric.join(", "));
    assert!(symmetric.contains(&"all_reduce ring".to_owned()), "{symmetric:?}");
}

/// The schedule with root 0, if it has a root, and the same with root `by`.
fn pair(generator: &Generator, n: u32, by: u32) -> (Schedule, Schedule) {
    let from = |root| generator.schedule(generator.collective_with_root(root), n);
    (from(0), from(by % n))
}

/// Whether the step of rank `by` in `turned` is that of rank 0 in `base` with ranks and blocks
/// rotated.
fn is_rotated(base: &Schedule, turned: &Schedule, at: StepPosition, by: u32) -> bool {
    let n = base.nranks;
    let turn = |rank: u32| ((u64::from(rank) + u64::from(by)) % u64::from(n)) as u32;
    // A buffer whose number of chunks is a multiple of the rank count consists of blocks by rank.
    let block = |i: u32, chunks: u32| {
        if chunks.is_multiple_of(n) {
            turn(i / (chunks / n)) * (chunks / n) + i % (chunks / n)
        } else {
            i
        }
    };
    let operand = |operand: &Operand| match *operand {
        Operand::Local(Chunk::Input(i)) => {
            Operand::Local(Chunk::Input(block(i, base.input_chunks())))
        }
        Operand::Local(Chunk::Output(i)) => {
            Operand::Local(Chunk::Output(block(i, base.output_chunks())))
        }
        Operand::Local(chunk) => Operand::Local(chunk),
        Operand::Peer { rank, channel } => Operand::Peer { rank: turn(rank), channel },
    };
    let step = step(base, at);
    let expected = Step {
        inputs: step.inputs.iter().map(operand).collect(),
        outputs: step.outputs.iter().map(operand).collect(),
        ..step
    };
    turned.lanes(turn(0)) == base.lanes(0)
        && turned.steps(turn(0), at.1) == base.steps(0, at.1)
        && turned.step(turn(0), at.1, at.2) == expected
}
