//! Encodes the lanes of one rank as flat words, in the [`layout`] that the kernels read.
//!
//! The words contain what the plan binds: where the chunks lie in the buffers, how long a tile is,
//! and the index of each link in the tables of a launch. Everything that the kernel would otherwise
//! have to check is checked here. [`encode_transfers`] does the same for sends and receives, which
//! have no schedule.

pub mod layout;
mod transfers;

pub use transfers::{LinkTransfer, TransferEnd, encode_transfers};

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::schedule::MAX_FAN;
use maypole_algorithms::{Chunk, Operand, Rank, Schedule, Step};
use std::collections::HashSet;

/// The position of a chunk in its buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkExtent {
    /// The first element.
    pub offset: u64,
    /// The number of elements. Chunks may differ in length, and may be empty.
    pub elements: u64,
}

/// The other end of a link, as a rank sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkPort {
    /// The rank at the other end.
    pub peer: Rank,
    /// The channel between the two ranks.
    pub channel: Channel,
}

/// The memory and links to which a plan binds the chunks and channels of one rank.
#[derive(Clone, Copy, Debug)]
pub struct ProgramBinding<'a> {
    /// The input chunks in the send buffer.
    pub inputs: &'a [ChunkExtent],
    /// The output chunks in the receive buffer.
    pub outputs: &'a [ChunkExtent],
    /// Elements per tile; every slot of every link has room for a tile.
    pub tile: u32,
    /// The number of tiles: that of the longest chunk of any rank, the same on all ranks.
    pub tiles: u64,
    /// The tag of the messages, combined by xor with the tag of the work; the same on all ranks.
    pub tag: u32,
    /// The links on which the rank may send, in the order of the sending table of a launch.
    pub sending: &'a [LinkPort],
    /// The links from which the rank may receive, in the order of the receiving table.
    pub receiving: &'a [LinkPort],
}

/// The schedule and the binding do not fit each other, or the device cannot run a step. This is a
/// bug of the plan or an unproved schedule, never a mistake of the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A tile has no elements, or the tiles do not cover a chunk.
    #[error("rank {rank}: {tiles} tiles of {tile} elements do not hold a chunk of {elements}")]
    Tiles {
        /// The rank of the program.
        rank: Rank,
        /// Elements per tile.
        tile: u32,
        /// The number of tiles.
        tiles: u64,
        /// Elements of the longest chunk.
        elements: u64,
    },
    /// The device cannot run a step.
    #[error("rank {rank}, lane {lane}, step {step}: {problem}")]
    Step {
        /// The rank of the program.
        rank: Rank,
        /// The lane of the step.
        lane: u32,
        /// The index of the step in the lane.
        step: u32,
        /// The reason.
        problem: StepProblem,
    },
    /// The program has more than 2^32 words.
    #[error("rank {rank}: the program has more than 2^32 words")]
    TooLong {
        /// The rank of the program.
        rank: Rank,
    },
}

/// The reason why a step cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepProblem {
    /// The step has no input or no output.
    #[error("a step needs an input and an output")]
    Empty,
    /// Neither the schedule nor the binding has such a chunk.
    #[error("there is no {0:?}")]
    NoChunk(Chunk),
    /// The binding has no such link.
    #[error("no link is bound for {0:?}")]
    NoLink(LinkPort),
    /// The step uses two messages of one link; their order would be undefined.
    #[error("{0:?} twice on one side")]
    LinkTwice(LinkPort),
    /// The step waits for a step that the rank does not have.
    #[error("it waits for step {step} of lane {lane}, which does not exist")]
    NoStep {
        /// The other lane.
        lane: u32,
        /// The step in that lane.
        step: u32,
    },
}

/// Encodes the program of `rank`, as it is copied to the device.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode(
    schedule: &Schedule,
    rank: Rank,
    binding: &ProgramBinding<'_>,
) -> Result<Vec<u32>, EncodeError> {
    check_tiles(rank, binding)?;
    let read = reads(schedule, rank);
    let lanes = (0..schedule.lanes(rank)).map(|lane| {
        let steps = schedule.lane(rank, lane).enumerate().map(move |(i, step)| (lane, i, step));
        vec![LaneSegment { steps, tiles: binding.tiles, tag: binding.tag }]
    });
    let ProgramBinding { tile, inputs, outputs, .. } = *binding;
    let tables = ProgramTables { tile, inputs, outputs };
    let words = assemble(&tables, lanes.collect(), |(lane, i, step), words| {
        let step = (without_unread(step, &read), read.awaited.contains(&(lane, i as u32)));
        encode_step(schedule, rank, binding, step, words).map_err(|problem| EncodeError::Step {
            rank,
            lane,
            step: i as u32,
            problem,
        })
    })?;
    if u32::try_from(words.len()).is_err() {
        return Err(EncodeError::TooLong { rank });
    }
    Ok(words)
}

/// The parts of a program before its lanes.
struct ProgramTables<'a> {
    tile: u32,
    inputs: &'a [ChunkExtent],
    outputs: &'a [ChunkExtent],
}

/// Steps that are run once per tile.
struct LaneSegment<I> {
    steps: I,
    tiles: u64,
    tag: u32,
}

/// Writes the words of a program; `push` writes each step.
fn assemble<S, I: Iterator<Item = S>, E>(
    tables: &ProgramTables<'_>,
    lanes: Vec<Vec<LaneSegment<I>>>,
    mut push: impl FnMut(S, &mut Vec<u32>) -> Result<(), E>,
) -> Result<Vec<u32>, E> {
    let lane_table = layout::HEADER_WORDS;
    let segment_table = lane_table + lanes.len() * layout::LANE_WORDS;
    let segments: usize = lanes.iter().map(Vec::len).sum();
    let input_table = segment_table + segments * layout::SEGMENT_WORDS;
    let output_table = input_table + tables.inputs.len() * layout::EXTENT_WORDS;
    let steps = output_table + tables.outputs.len() * layout::EXTENT_WORDS;

    let mut words = vec![0; steps];
    words[layout::HEADER_MAGIC] = layout::MAGIC;
    words[layout::HEADER_LANES] = lanes.len() as u32;
    words[layout::HEADER_TILE] = tables.tile;
    words[layout::HEADER_LANE_TABLE] = lane_table as u32;
    words[layout::HEADER_SEGMENT_TABLE] = segment_table as u32;
    words[layout::HEADER_INPUT_TABLE] = input_table as u32;
    words[layout::HEADER_OUTPUT_TABLE] = output_table as u32;
    let extents = words[input_table..].chunks_exact_mut(layout::EXTENT_WORDS);
    for (entry, extent) in extents.zip(tables.inputs.iter().chain(tables.outputs)) {
        let ChunkExtent { offset, elements } = *extent;
        let halves = [offset, offset >> 32, elements, elements >> 32];
        entry.copy_from_slice(&halves.map(|half| half as u32));
    }
    let mut segment = 0;
    for (lane, segments) in lanes.into_iter().enumerate() {
        let entry = lane_table + lane * layout::LANE_WORDS;
        words[entry..][..2].copy_from_slice(&[segment, segments.len() as u32]);
        for LaneSegment { steps, tiles, tag } in segments {
            let entry = segment_table + segment as usize * layout::SEGMENT_WORDS;
            let first = words.len() as u32;
            let mut count = 0;
            for step in steps {
                push(step, &mut words)?;
                count += 1;
            }
            let values = [first, count, tiles as u32, (tiles >> 32) as u32, tag];
            words[entry..][..layout::SEGMENT_WORDS].copy_from_slice(&values);
            segment += 1;
        }
    }
    words.resize((words.len() + layout::STEP_WORDS).max(layout::PREFIX_WORDS), 0);
    Ok(words)
}

/// What the steps of a rank use of each other.
struct Reads {
    /// The operands that any step reads.
    operands: HashSet<Operand>,
    /// The lanes and steps for which another step waits.
    awaited: HashSet<(u32, u32)>,
}

fn reads(schedule: &Schedule, rank: Rank) -> Reads {
    let mut reads = Reads { operands: HashSet::new(), awaited: HashSet::new() };
    for step in (0..schedule.lanes(rank)).flat_map(|lane| schedule.lane(rank, lane)) {
        reads.operands.extend(step.inputs.iter());
        reads.awaited.extend(step.after.iter().map(|after| (after.lane, after.step)));
    }
    reads
}

/// Removes outputs to scratch chunks that no step reads. In a schedule such chunks exist to be
/// lent; here messages are always copies.
fn without_unread(mut step: Step, reads: &Reads) -> Step {
    let unread =
        |o: &Operand| matches!(o, Operand::Local(Chunk::Scratch(_))) && !reads.operands.contains(o);
    while step.outputs.len() > 1
        && let Some(i) = step.outputs.iter().position(unread)
    {
        step.outputs.remove(i);
    }
    step
}

/// The links on which `rank` sends, and those from which it receives, both sorted.
pub fn ports(schedule: &Schedule, rank: Rank) -> (Vec<LinkPort>, Vec<LinkPort>) {
    let mut sending = Vec::new();
    let mut receiving = Vec::new();
    for step in (0..schedule.lanes(rank)).flat_map(|lane| schedule.lane(rank, lane)) {
        sending.extend(step.outputs.iter().filter_map(port));
        receiving.extend(step.inputs.iter().filter_map(port));
    }
    for list in [&mut sending, &mut receiving] {
        list.sort_unstable();
        list.dedup();
    }
    (sending, receiving)
}

fn port(operand: &Operand) -> Option<LinkPort> {
    match *operand {
        Operand::Peer { rank, channel } => Some(LinkPort { peer: rank, channel }),
        Operand::Local(_) => None,
    }
}

fn check_tiles(rank: Rank, binding: &ProgramBinding<'_>) -> Result<(), EncodeError> {
    let chunks = binding.inputs.iter().chain(binding.outputs);
    let elements = chunks.map(|extent| extent.elements).max().unwrap_or(0);
    let ProgramBinding { tile, tiles, .. } = *binding;
    if tile == 0 || tiles.saturating_mul(tile.into()) < elements {
        return Err(EncodeError::Tiles { rank, tile, tiles, elements });
    }
    Ok(())
}

fn encode_step(
    schedule: &Schedule,
    rank: Rank,
    binding: &ProgramBinding<'_>,
    (step, awaited): (Step, bool),
    words: &mut Vec<u32>,
) -> Result<(), StepProblem> {
    if step.inputs.is_empty() || step.outputs.is_empty() {
        return Err(StepProblem::Empty);
    }
    let is_own = |operand: &Operand| matches!(operand, Operand::Local(Chunk::Input(_)));
    let inputs = step.inputs.iter().enumerate();
    let own = inputs.fold(0, |own, (i, operand)| own | u32::from(is_own(operand)) << i);
    words.push(
        step.inputs.len() as u32
            | (step.outputs.len() as u32) << layout::OUTPUTS_SHIFT
            | (step.after.len() as u32) << layout::AFTER_SHIFT
            | u32::from(step.finish) << layout::FINISH_SHIFT
            | u32::from(awaited) << layout::AWAITED_SHIFT
            | own << layout::OWN_SHIFT,
    );
    for (operands, links) in [(&step.inputs, binding.receiving), (&step.outputs, binding.sending)] {
        for (i, operand) in operands.iter().enumerate() {
            if let Some(port) = port(operand)
                && operands[..i].contains(operand)
            {
                return Err(StepProblem::LinkTwice(port));
            }
            words.push(encode_operand(schedule, binding, links, *operand)?);
        }
    }
    for after in &step.after {
        let (lane, step) = (after.lane, after.step);
        if lane >= schedule.lanes(rank) || step >= schedule.steps(rank, lane) {
            return Err(StepProblem::NoStep { lane, step });
        }
        words.extend([lane, step]);
    }
    Ok(())
}

fn encode_operand(
    schedule: &Schedule,
    binding: &ProgramBinding<'_>,
    links: &[LinkPort],
    operand: Operand,
) -> Result<u32, StepProblem> {
    const { assert!(MAX_FAN <= layout::COUNT_MASK as usize) };
    let (kind, index, count) = match operand {
        Operand::Local(Chunk::Input(i)) => (layout::KIND_INPUT, i, binding.inputs.len()),
        Operand::Local(Chunk::Output(i)) => (layout::KIND_OUTPUT, i, binding.outputs.len()),
        Operand::Local(Chunk::Scratch(i)) => (layout::KIND_SCRATCH, i, schedule.scratch as usize),
        Operand::Peer { rank, channel } => {
            let port = LinkPort { peer: rank, channel };
            let index = links.iter().position(|p| *p == port);
            let index = index.ok_or(StepProblem::NoLink(port))?;
            (layout::KIND_LINK, index as u32, links.len())
        }
    };
    match operand {
        Operand::Local(chunk) if index as usize >= count.min(1 << layout::KIND_SHIFT) => {
            Err(StepProblem::NoChunk(chunk))
        }
        _ => Ok(kind << layout::KIND_SHIFT | index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maypole_algorithms::Collective;
    use maypole_algorithms::collective::all_gather::pat;
    use maypole_algorithms::collective::all_reduce::double_tree;
    use maypole_algorithms::proof_suite::uneven_example;
    use maypole_algorithms::schedule::InlineVec;
    use maypole_algorithms::schedule::operand::{input, output, peer, scratch};
    use maypole_algorithms::schedule::{After, StepTable};

    const WHOLE: ChunkExtent = ChunkExtent { offset: 5 << 32, elements: 10 };

    fn encoded(schedule: &Schedule, rank: Rank) -> Result<Vec<u32>, EncodeError> {
        let (sending, receiving) = ports(schedule, rank);
        let inputs = vec![WHOLE; schedule.input_chunks() as usize];
        let outputs = vec![WHOLE; schedule.output_chunks() as usize];
        let (inputs, outputs) = (&inputs[..], &outputs[..]);
        let (sending, receiving) = (&sending[..], &receiving[..]);
        let binding =
            ProgramBinding { inputs, outputs, tile: 4, tiles: 3, tag: 9, sending, receiving };
        encode(schedule, rank, &binding)
    }

    /// Decodes the step at `words[at..]`; also returns where the next step begins.
    fn decode(words: &[u32], at: usize, links: &[Vec<LinkPort>; 2]) -> (Step, usize) {
        let count = |shift: u32| (words[at] >> shift & layout::COUNT_MASK) as usize;
        let operand = |word: u32, side: usize| {
            let index = word & !(3 << layout::KIND_SHIFT);
            match word >> layout::KIND_SHIFT {
                layout::KIND_INPUT => input(index),
                layout::KIND_OUTPUT => output(index),
                layout::KIND_SCRATCH => scratch(index),
                _ => peer(links[side][index as usize].peer, links[side][index as usize].channel),
            }
        };
        let inputs = at + 1;
        let outputs = inputs + count(0);
        let after = outputs + count(layout::OUTPUTS_SHIFT);
        let end = after + 2 * count(layout::AFTER_SHIFT);
        let mut step = Step::new(
            words[inputs..outputs].iter().map(|w| operand(*w, 1)),
            words[outputs..after].iter().map(|w| operand(*w, 0)),
        );
        let pairs = words[after..end].chunks(2);
        step.after = pairs.map(|p| After { lane: p[0], step: p[1] }).collect::<InlineVec<_>>();
        step.finish = words[at] >> layout::FINISH_SHIFT & 1 == 1;
        (step, end)
    }

    #[test]
    fn every_step_can_be_decoded() {
        for schedule in [double_tree::schedule(13), uneven_example(), pat::schedule(11)] {
            for rank in 0..schedule.nranks {
                let words = encoded(&schedule, rank).unwrap();
                let links: [Vec<LinkPort>; 2] = ports(&schedule, rank).into();
                let read = reads(&schedule, rank);
                let mut at = words[layout::HEADER_OUTPUT_TABLE] as usize
                    + schedule.output_chunks() as usize * layout::EXTENT_WORDS;
                for lane in 0..schedule.lanes(rank) {
                    let entry = layout::HEADER_WORDS + lane as usize * layout::LANE_WORDS;
                    assert_eq!(words[entry..][..2], [lane, 1]);
                    let segments = words[layout::HEADER_SEGMENT_TABLE] as usize;
                    let segment = &words[segments + lane as usize * layout::SEGMENT_WORDS..];
                    assert_eq!(segment[..5], [at as u32, schedule.steps(rank, lane), 3, 0, 9]);
                    for expected in schedule.lane(rank, lane) {
                        let (step, next) = decode(&words, at, &links);
                        assert_eq!(step, without_unread(expected, &read));
                        at = next;
                    }
                }
                assert_eq!((at + layout::STEP_WORDS).max(layout::PREFIX_WORDS), words.len());
            }
        }
    }

    #[test]
    fn extents_are_64_bits_wide() {
        let words = encoded(&uneven_example(), 1).unwrap();
        assert_eq!(words[words[layout::HEADER_INPUT_TABLE] as usize..][..4], [0, 5, 10, 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use StepProblem as P;
        let port = |peer| LinkPort { peer, channel: 0 };
        let cases = [
            (Step::new([], [output(0)]), P::Empty),
            (Step::new([input(0)], []), P::Empty),
            (Step::new([input(1)], [output(0)]), P::NoChunk(Chunk::Input(1))),
            (Step::new([input(0)], [output(1)]), P::NoChunk(Chunk::Output(1))),
            (Step::new([input(0)], [scratch(2)]), P::NoChunk(Chunk::Scratch(2))),
            (Step::new([peer(1, 0), peer(1, 0)], [output(0)]), P::LinkTwice(port(1))),
            (Step::new([input(0)], [output(0)]).after(1, 0), P::NoStep { lane: 1, step: 0 }),
            (Step::new([input(0)], [output(0)]).after(0, 1), P::NoStep { lane: 0, step: 1 }),
        ];
        for (step, problem) in cases {
            let table = StepTable(vec![vec![vec![step]], vec![]]);
            let schedule = Schedule::new("bad", Collective::AllReduce, 2, 1, table).with_scratch(2);
            let refused = EncodeError::Step { rank: 0, lane: 0, step: 0, problem };
            assert_eq!(encoded(&schedule, 0), Err(refused));
        }
        let schedule = uneven_example();
        let none = ProgramBinding {
            inputs: &[WHOLE],
            outputs: &[WHOLE],
            tile: 4,
            tiles: 2,
            tag: 0,
            sending: &[],
            receiving: &[],
        };
        let refused = EncodeError::Tiles { rank: 1, tile: 4, tiles: 2, elements: 10 };
        assert_eq!(encode(&schedule, 1, &none), Err(refused));
        let unlinked = encode(&schedule, 1, &ProgramBinding { tiles: 3, ..none });
        let problem = P::NoLink(port(0));
        assert_eq!(unlinked, Err(EncodeError::Step { rank: 1, lane: 0, step: 0, problem }));
    }
}
