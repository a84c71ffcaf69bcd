//! All-gather by doubling: the reverse of the reduce-scatter by halving. Blocks of ranks separate,
//! farthest first, and at every separation a rank sends its peer all blocks of data that it has,
//! and receives as many. For any rank count, see [`crate::pattern::halving`].
//!
//! * steps: per rank `n-1` sends and `n-1` receives on average, those of each separation in a lane
//!   each; a send waits for the receive of the same block
//! * bytes sent per rank: `(n-1) m` on average for blocks of `m` bytes (at other rank counts than
//!   powers of two some ranks send more than others)
//! * cost: `ceil(log2 n) a + (n-1) m b`
//! * credits: 1. All lanes handle the blocks in ascending order, so the lowest unfinished block can
//!   always proceed.
//! * class: canonical (nothing is reduced)
//! * wins: mid-size blocks at many ranks; most data moves between near ranks
//! * source: see the pattern

use crate::pattern::halving::{BlockJoin, joins};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{After, Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather over blocks of ranks that separate.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("doubling", Collective::AllGather);
    }
    let spread = Spread { nranks, first_lane: 1, channel: 0, own: After { lane: 0, step: 0 } };
    Schedule::new("doubling", Collective::AllGather, nranks, 1, Doubling { spread }).canonical()
}

/// The steps that bring chunk `r` from rank `r` to all outputs: for each of the rank's joins a lane
/// that sends and one that receives.
#[derive(Clone, Copy)]
pub(in crate::collective) struct Spread {
    pub(in crate::collective) nranks: u32,
    /// The number of its first lane.
    pub(in crate::collective) first_lane: u32,
    pub(in crate::collective) channel: Channel,
    /// The step that writes the rank's own chunk to the output and sends it to
    /// [`first`](Self::first).
    pub(in crate::collective) own: After,
}

impl Spread {
    /// The rank to which the rank's own chunk is sent first.
    pub(in crate::collective) fn first(self, rank: Rank) -> Rank {
        joins(rank, self.nranks).next_back().expect("two ranks join").peer(rank)
    }

    pub(in crate::collective) fn lanes(self, rank: Rank) -> u32 {
        2 * joins(rank, self.nranks).count() as u32 - 1
    }

    /// What `lane` does: receive or send, for which join. The farthest join has only a lane that
    /// receives.
    fn part(self, rank: Rank, lane: u32) -> (bool, BlockJoin) {
        let mut joins = joins(rank, self.nranks).rev();
        let nth = (lane - self.first_lane).div_ceil(2);
        let receives = (lane - self.first_lane).is_multiple_of(2);
        (receives, joins.nth(nth as usize).expect("two lanes per join"))
    }

    pub(in crate::collective) fn steps(self, rank: Rank, lane: u32) -> u32 {
        let (receives, join) = self.part(rank, lane);
        if receives { join.lost() } else { join.after.count() }
    }

    pub(in crate::collective) fn step(self, rank: Rank, lane: u32, index: u32) -> Step {
        let (receives, join) = self.part(rank, lane);
        if receives {
            let chunk = join.lost_chunk(index);
            return Step::new([peer(join.peer(chunk), self.channel)], [output(chunk)]);
        }
        let chunk = join.after.chunk(index);
        let After { lane, step } = self.arrival(rank, chunk);
        let to = peer(join.peer(chunk), self.channel);
        Step::new([output(chunk)], [to]).after(lane, step)
    }

    /// The step that writes `chunk` to the output. It belongs to the join in which the
    /// reduce-scatter sends the chunk away.
    fn arrival(self, rank: Rank, chunk: u32) -> After {
        if chunk == rank {
            return self.own;
        }
        let mut partings = (0..).zip(joins(rank, self.nranks).rev());
        let (nth, join) = partings
            .find(|(_, join)| join.before.contains(chunk))
            .expect("before the first join a rank holds all chunks");
        After { lane: self.first_lane + 2 * nth, step: join.lost_index(chunk) }
    }
}

struct Doubling {
    spread: Spread,
}

impl Program for Doubling {
    fn lanes(&self, rank: Rank) -> u32 {
        1 + self.spread.lanes(rank)
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        if lane == 0 { 1 } else { self.spread.steps(rank, lane) }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if lane == 0 {
            return Step::new([input(0)], [output(rank), peer(self.spread.first(rank), 0)]);
        }
        self.spread.step(rank, lane, index)
    }
}
