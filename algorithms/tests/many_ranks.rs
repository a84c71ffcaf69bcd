//! Very many ranks: every generator of the table at 100 003 ranks (a prime) and at 131 072 (a power
//! of two).
//!
//! # What is shown
//!
//! * **No memory.** Making the schedule allocates a few kilobytes at most, whatever the rank count,
//!   and asking it for random steps allocates nothing.
//! * **Sparse schedules do what they should.** Where all ranks together have at most [`MOST_STEPS`]
//!   steps (logarithmic algorithms, and linear ones of one root), the whole schedule is executed on
//!   numbers, with copied messages and no more credits than it states: it ends, no message is left
//!   over, and every output is what the collective asks, by the canonical tree where the schedule
//!   declares it. Contributions are random 64-bit numbers, so a missing or doubled one shows but
//!   for a chance of 2^-64.
//! * **Dense schedules agree where they are looked at.** For random steps of the others, the step
//!   at the other end of each message exists: as many messages are sent on the link as taken, one
//!   lane feeds and one drains it. Random outputs are followed backwards, through the messages that
//!   carry them, for up to [`HOPS`] messages: every contribution met on the way is to the chunk
//!   that the collective asks for, of the rank that it asks for.
//! * **Symmetry carries over.** A generator whose steps are those of rank 0 with ranks and blocks
//!   rotated, at every rank of the small rank counts where it is proved in full, has that symmetry
//!   for random ranks here too. What is shown of the steps of one rank then holds of all.
//!
//! # What is not shown
//!
//! Nothing here is a proof in the sense of [`maypole_algorithms::verify`]: of dense schedules only
//! what was drawn is looked at; races, lent messages, several tiles and calls back to back are not
//! looked at at this size at all. Those are proved at every rank count up to 64 and some up to 256
//! (`verify_generators.rs`), and for the rank count in use before a schedule first runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::VecDeque;

use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::semantics::{Algebra, evaluate_step, fold};
use maypole_algorithms::{Chunk, Class, Collective, Operand, Rank, Schedule, Step};

const RANKS: [u32; 2] = [100_003, 131_072];
const MOST_STEPS: u64 = 5_000_000;
const HOPS: usize = 5;

/// Counts the bytes that the thread has asked for.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is; counting touches a plain thread-local
// cell and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate after its cells are gone; nobody counts that.
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes that `work` asks for.
fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = BYTES.get();
    let result = work();
    (result, BYTES.get() - before)
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 32) as u32 % limit
    }
}

fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A step of the schedule, by rank, lane and index.
type At = (Rank, u32, u32);

/// A random step; there is one on every rank that is drawn often enough.
fn draw(schedule: &Schedule, random: &mut Random) -> At {
    loop {
        let rank = random.below(schedule.nranks);
        let lanes = schedule.lanes(rank);
        let lane = if lanes == 0 { continue } else { random.below(lanes) };
        let steps = schedule.steps(rank, lane);
        if steps > 0 {
            return (rank, lane, random.below(steps));
        }
    }
}

fn step(schedule: &Schedule, (rank, lane, index): At) -> Step {
    schedule.step(rank, lane, index)
}

fn total_steps(schedule: &Schedule) -> u64 {
    let of = |rank| (0..schedule.lanes(rank)).map(move |lane| schedule.steps(rank, lane));
    (0..schedule.nranks).flat_map(of).map(u64::from).sum()
}

/// Every generator at both rank counts, from a root in the middle of nowhere.
fn each(test: impl Fn(&'static Generator, Schedule)) {
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
            let mut random = Random(u64::from(n));
            let ((), bytes) = allocated(|| {
                for _ in 0..2000 {
                    let at = draw(&schedule, &mut random);
                    assert!(!step(&schedule, at).inputs.is_empty());
                }
            });
            assert_eq!(bytes, 0, "{schedule:?}: steps are not made without memory");
        }
    }
}

/// What stands for a chunk's content: a sum that any order gives, and a hash that only the same
/// tree gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    sum: u64,
    tree: u64,
}

struct Numbers {
    reduces: bool,
}

impl Algebra for Numbers {
    type Value = Value;

    fn contribute(&mut self, Value { sum, tree }: Value) -> Value {
        if self.reduces { Value { sum: mix(sum), tree: mix(tree) } } else { Value { sum, tree } }
    }

    fn combine(&mut self, left: Value, right: Value) -> Value {
        let tree = mix(left.tree.wrapping_mul(3).wrapping_add(mix(right.tree)));
        Value { sum: left.sum.wrapping_add(right.sum), tree }
    }

    fn finish(&mut self, Value { sum, tree }: Value) -> Value {
        Value { sum: mix(sum), tree: mix(tree) }
    }
}

fn sent(rank: Rank, chunk: u32) -> Value {
    let x = mix(1 + u64::from(rank) + (u64::from(chunk) << 32));
    Value { sum: x, tree: mix(x) }
}

#[test]
fn sparse_schedules_do_what_they_should() {
    let executed = Cell::new(0);
    each(|_, schedule| {
        if total_steps(&schedule) <= MOST_STEPS {
            execute(&schedule).unwrap_or_else(|what| panic!("{schedule:?}: {what}"));
            println!("{schedule:?}: executed");
            executed.set(executed.get() + 1);
        }
    });
    assert!(executed.get() > 0);
}

/// Executes the schedule once, tile and call alone, with copied messages and the credits that it
/// states.
fn execute(schedule: &Schedule) -> Result<(), String> {
    let mut memory: HashMap<(Rank, Chunk), Value> = HashMap::new();
    let mut links: HashMap<(Rank, Rank, u16), VecDeque<Value>> = HashMap::new();
    let mut next: Vec<Vec<u32>> =
        (0..schedule.nranks).map(|rank| vec![0; schedule.lanes(rank) as usize]).collect();
    let mut numbers = Numbers { reduces: schedule.collective.reduces() };
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
                let able =
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
                if !able {
                    continue;
                }
                let mut undefined = None;
                let value = evaluate_step(&mut numbers, &step, |operand| match operand {
                    Operand::Local(Chunk::Input(i)) => sent(rank, i),
                    Operand::Local(chunk) => *memory.get(&(rank, chunk)).unwrap_or_else(|| {
                        undefined = Some(chunk);
                        &Value { sum: 0, tree: 0 }
                    }),
                    Operand::Peer { rank: from, channel } => {
                        wake(from);
                        let line = links.get_mut(&(from, rank, channel)).expect("has arrived");
                        line.pop_front().expect("has arrived")
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
    if links.values().any(|line| !line.is_empty()) {
        return Err("messages are left over".to_owned());
    }
    check_outputs(schedule, &memory)
}

fn check_outputs(
    schedule: &Schedule,
    memory: &HashMap<(Rank, Chunk), Value>,
) -> Result<(), String> {
    let mut reductions: HashMap<u32, Value> = HashMap::new();
    let mut reduction = |chunk| {
        *reductions.entry(chunk).or_insert_with(|| {
            let mut numbers = Numbers { reduces: true };
            let own: Vec<_> =
                (0..schedule.nranks).map(|rank| numbers.contribute(sent(rank, chunk))).collect();
            let sum = fold(&mut numbers, &own);
            numbers.finish(sum)
        })
    };
    // What gives one rank only gives it many chunks: not all pairs of ranks and chunks are looked
    // at.
    for rank in (0..schedule.nranks).filter(|&rank| wanted(schedule, rank, 0).is_some()) {
        for output in 0..schedule.output_chunks() {
            let found = memory.get(&(rank, Chunk::Output(output)));
            let right = match wanted(schedule, rank, output) {
                None => continue,
                Some((Some(source), chunk)) => found == Some(&sent(source, chunk)),
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

/// The input chunk that an output is made of, and the rank that it is of; no rank if it is of all.
/// None where the collective gives nothing.
fn wanted(schedule: &Schedule, rank: Rank, output: u32) -> Option<(Option<Rank>, u32)> {
    let k = schedule.parts;
    match schedule.collective {
        Collective::AllReduce => Some((None, output)),
        Collective::ReduceScatter => Some((None, rank * k + output)),
        Collective::Reduce { root } => (rank == root).then_some((None, output)),
        Collective::AllGather => Some((Some(output / k), output % k)),
        Collective::Gather { root } => (rank == root).then_some((Some(output / k), output % k)),
        Collective::Broadcast { root } => Some((Some(root), output)),
        Collective::Scatter { root } => Some((Some(root), rank * k + output)),
        Collective::AllToAll => Some((Some(output / k), rank * k + output % k)),
    }
}

#[test]
fn dense_schedules_agree_where_they_are_looked_at() {
    each(|_, schedule| {
        if total_steps(&schedule) <= MOST_STEPS {
            return;
        }
        let mut random = Random(u64::from(schedule.nranks) + 1);
        for _ in 0..4 {
            let at = draw(&schedule, &mut random);
            look_at_both_ends(&schedule, at);
        }
        let hops: Vec<_> = (0..3).map(|_| follow(&schedule, &mut random)).collect();
        println!("{schedule:?}: outputs followed through {hops:?} messages");
    });
}

/// Whether `operand` is the other end of a link: to or from that rank on that channel.
fn meets(operand: &Operand, peer: Rank, on: u16) -> bool {
    matches!(*operand, Operand::Peer { rank, channel } if rank == peer && channel == on)
}

/// The steps of `rank` with that operand (among the outputs if `sends`, else the inputs), and the
/// lanes that they are in.
fn ends(schedule: &Schedule, rank: Rank, peer: Rank, channel: u16, sends: bool) -> Vec<At> {
    let mut found = Vec::new();
    for lane in 0..schedule.lanes(rank) {
        for (index, step) in (0..).zip(schedule.lane(rank, lane)) {
            let operands = if sends { &step.outputs } else { &step.inputs };
            if operands.iter().any(|operand| meets(operand, peer, channel)) {
                found.push((rank, lane, index));
            }
        }
    }
    assert!(found.iter().all(|at| at.1 == found[0].1), "a link has one lane at each end");
    found
}

fn look_at_both_ends(schedule: &Schedule, at: At) {
    let step = step(schedule, at);
    for (operands, sends) in [(&step.inputs, false), (&step.outputs, true)] {
        let peer = operands.iter().find_map(|operand| match *operand {
            Operand::Peer { rank, channel } => Some((rank, channel)),
            Operand::Local(_) => None,
        });
        let Some((peer, channel)) = peer else { continue };
        let near = ends(schedule, at.0, peer, channel, sends);
        let far = ends(schedule, peer, at.0, channel, !sends);
        assert!(near.contains(&at));
        assert_eq!(near.len(), far.len(), "{schedule:?}: rank {} and {peer}, {channel}", at.0);
    }
}

/// Follows a random output backwards, a random input at each fold; returns through how many
/// messages.
fn follow(schedule: &Schedule, random: &mut Random) -> usize {
    let (mut rank, output, (source, chunk)) = loop {
        let (rank, output) =
            (random.below(schedule.nranks), random.below(schedule.output_chunks()));
        if let Some(wanted) = wanted(schedule, rank, output) {
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
        match step.inputs[random.below(step.inputs.len() as u32) as usize] {
            Operand::Local(Chunk::Input(_)) => return hops,
            Operand::Local(chunk) => at = writer(schedule, rank, chunk, Some((at, &step))),
            Operand::Peer { .. } if hops == HOPS => return hops,
            Operand::Peer { rank: from, channel } => {
                let taken = ends(schedule, rank, from, channel, false);
                let ordinal = taken.iter().position(|taken| *taken == at).expect("it takes one");
                at = ends(schedule, from, rank, channel, true)[ordinal];
                (rank, hops) = (from, hops + 1);
            }
        }
    }
}

/// The step that wrote `chunk` last: before the reader in its lane, or by the steps that the reader
/// comes after, or at all.
fn writer(schedule: &Schedule, rank: Rank, chunk: Chunk, reader: Option<(At, &Step)>) -> At {
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
fn symmetry_carries_over() {
    let mut symmetric = Vec::new();
    for generator in all() {
        let small = [5, 8, 13].iter().all(|&n| {
            (1..n).all(|by| {
                let (base, turned) = pair(generator, n, by);
                (0..base.lanes(0)).all(|lane| {
                    (0..base.steps(0, lane))
                        .all(|index| rotates(&base, &turned, (0, lane, index), by))
                })
            })
        });
        if !small {
            continue;
        }
        symmetric.push(format!("{} {}", generator.collective, generator.name));
        for n in RANKS {
            let mut random = Random(u64::from(n) + 2);
            for _ in 0..50 {
                let by = random.below(n);
                let (base, turned) = pair(generator, n, by);
                for _ in 0..20 {
                    let lane = random.below(base.lanes(0));
                    let steps = base.steps(0, lane);
                    if steps == 0 {
                        continue;
                    }
                    let at = (0, lane, random.below(steps));
                    assert!(rotates(&base, &turned, at, by), "{base:?} by {by}: {at:?}");
                }
            }
        }
    }
    println!("symmetric under rotation: {}", symmetric.join(", "));
    assert!(symmetric.contains(&"all_reduce ring".to_owned()), "{symmetric:?}");
}

/// The schedule, from root 0 where it has one, and the same from a root `by` further.
fn pair(generator: &Generator, n: u32, by: u32) -> (Schedule, Schedule) {
    let from = |root| generator.schedule(generator.collective_with_root(root), n);
    (from(0), from(by % n))
}

/// Whether the step of rank `by` in `turned` is that of rank 0 in `base` with ranks and blocks
/// rotated.
fn rotates(base: &Schedule, turned: &Schedule, at: At, by: u32) -> bool {
    let n = base.nranks;
    let turn = |rank: u32| ((u64::from(rank) + u64::from(by)) % u64::from(n)) as u32;
    // A buffer of one chunk or more for each rank is of blocks by rank.
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
