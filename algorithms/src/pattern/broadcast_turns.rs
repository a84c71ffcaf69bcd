//! The [`BroadcastRounds`] of an optimal broadcast as one list per tree node: what it sends and
//! receives, in the order of the rounds.
//!
//! With `c q + 1` blocks every phase is complete, see [`crate::pattern::broadcast_rounds`]. Within
//! a round a tree node sends before it receives, so that no two of them wait for each other. Read
//! from the end, with sending and receiving exchanged, the list is that of a reduction.

use crate::pattern::binomial::{node, rank};
use crate::pattern::broadcast_rounds::BroadcastRounds;
use crate::types::Rank;

/// The turns of the ranks of a collective with a root, which is tree node 0.
#[derive(Clone, Copy, Debug)]
pub struct RootedTurns {
    /// The number of ranks, at least 2.
    pub nranks: u32,
    /// The root.
    pub root: Rank,
}

impl RootedTurns {
    /// The number of phases after the first, which is the number of blocks per skip.
    const LATER: u32 = 4;

    /// The turns of `rank`.
    pub fn of_rank(self, rank: Rank) -> NodeTurns {
        let node = node(rank, self.root, self.nranks);
        NodeTurns { rounds: BroadcastRounds::new(self.nranks), later: Self::LATER, node }
    }

    /// The rank at tree node `node`.
    pub const fn rank_at(self, node: u32) -> Rank {
        rank(node, self.root, self.nranks)
    }
}

/// What one tree node does in the rounds that send `later * q + 1` blocks, with `q` skips.
#[derive(Clone, Copy, Debug)]
pub struct NodeTurns {
    /// The rounds, which say which tree nodes exchange blocks.
    pub rounds: BroadcastRounds,
    /// The number of phases after phase 0.
    pub later: u32,
    /// The tree node.
    pub node: u32,
}

/// What a tree node sends or receives in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeTurn {
    /// The block that is moved.
    pub block: u32,
    /// The other tree node.
    pub peer: u32,
    /// The tree node sends; else it receives.
    pub sends: bool,
    /// The phase of the round.
    pub phase: u32,
    /// The skip of the round.
    pub skip: u32,
}

impl NodeTurns {
    /// The number of blocks.
    pub const fn blocks(self) -> u32 {
        self.later * self.rounds.skips() + 1
    }

    /// The number of turns of the tree node.
    pub fn count(self) -> u32 {
        let q = self.rounds.skips();
        if self.node == 0 {
            return (self.later + 1) * q;
        }
        self.first_phase() + self.later * self.phase()
    }

    /// The number of turns of a tree node other than 0 in phase 0: it receives its base block and
    /// sends it over its larger skips.
    fn first_phase(self) -> u32 {
        1 + self.rounds.skips() - self.rounds.first_sent(self.node)
    }

    /// The number of turns of a tree node other than 0 in a later phase: it sends and receives in
    /// every round, but sends nothing to node 0.
    fn phase(self) -> u32 {
        2 * self.rounds.skips() - u32::from(self.skip_to_root().is_some())
    }

    fn skip_to_root(self) -> Option<u32> {
        (0..self.rounds.skips()).find(|&k| self.rounds.to(self.node, k) == 0)
    }

    /// Turn `index < count()`. O(log nodes).
    pub fn turn(self, index: u32) -> NodeTurn {
        let q = self.rounds.skips();
        if self.node == 0 {
            return self.round(index / q, index % q, true);
        }
        let Some(index) = index.checked_sub(self.first_phase()) else {
            return match index {
                0 => self.round(0, self.rounds.first(self.node), false),
                _ => self.round(0, self.rounds.first_sent(self.node) + index - 1, true),
            };
        };
        let (phase, mut place) = (1 + index / self.phase(), index % self.phase());
        if self.skip_to_root().is_some_and(|k| place >= 2 * k) {
            place += 1;
        }
        self.round(phase, place / 2, place.is_multiple_of(2))
    }

    fn round(self, phase: u32, skip: u32, sends: bool) -> NodeTurn {
        let Self { rounds, node, .. } = self;
        let (block, peer) = if sends {
            let block = rounds.sent(node, skip).expect("nothing is sent to node 0");
            (block, rounds.to(node, skip))
        } else {
            (rounds.received(node, skip), rounds.from(node, skip))
        };
        let block = (phase * rounds.skips()).saturating_add_signed(block);
        NodeTurn { block: block.min(self.blocks() - 1), peer, sends, phase, skip }
    }

    /// The phases and skips in which the tree node sends `block`, in no particular order. O(log^2
    /// nodes).
    pub fn sends_of(self, block: u32) -> impl Iterator<Item = (u32, u32)> {
        let q = self.rounds.skips() as i64;
        let last = self.blocks() - 1;
        (0..self.rounds.skips()).filter_map(move |skip| {
            let sent = i64::from(self.rounds.sent(self.node, skip)?);
            if block == last {
                // In the last phase, all numbers beyond the last block stand for it.
                return (sent >= 0).then_some((self.later, skip));
            }
            let ahead = i64::from(block) - sent;
            let phase = ahead / q;
            let is_sent = ahead >= 0 && ahead % q == 0 && phase <= i64::from(self.later);
            is_sent.then_some((phase as u32, skip))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(nodes: u32, later: u32, node: u32) -> NodeTurns {
        NodeTurns { rounds: BroadcastRounds::new(nodes), later, node }
    }

    #[test]
    fn blocks_reach_all_nodes_in_the_optimal_number_of_rounds() {
        for nodes in 2..80 {
            for later in [1, 2, 4] {
                let q = BroadcastRounds::new(nodes).skips();
                let blocks = turns(nodes, later, 0).blocks();
                // By block and tree node the round in which the block arrives.
                let mut has = vec![vec![None; nodes as usize]; blocks as usize];
                has.iter_mut().for_each(|block| block[0] = Some(0));
                let mut all: Vec<_> = (0..nodes)
                    .flat_map(|node| {
                        let turns = turns(nodes, later, node);
                        (0..turns.count()).map(move |i| (node, turns.turn(i)))
                    })
                    .collect();
                all.sort_by_key(|(_, t)| (t.phase, t.skip));
                let time = |t: &NodeTurn| t.phase * q + t.skip + 1;
                for (node, t) in &all {
                    let has = &mut has[t.block as usize];
                    if t.sends {
                        assert!(has[*node as usize].is_some_and(|came| came < time(t)));
                    } else {
                        assert_eq!(has[*node as usize], None, "{t:?} twice");
                        has[*node as usize] = Some(time(t));
                    }
                }
                let last = has.iter().flatten().map(|came| came.expect("all have all")).max();
                assert_eq!(last, Some(blocks - 1 + q), "{nodes} nodes, {blocks} blocks");
            }
        }
    }

    #[test]
    fn sends_of_a_block_are_the_turns_that_send_it() {
        for nodes in (2..70).chain([129]) {
            for node in 0..nodes {
                let turns = turns(nodes, 3, node);
                let mut given: Vec<_> = (0..turns.count())
                    .map(|i| turns.turn(i))
                    .filter(|t| t.sends)
                    .map(|t| (t.block, t.phase, t.skip))
                    .collect();
                let sends_of = |b| turns.sends_of(b).map(move |(phase, skip)| (b, phase, skip));
                let mut sends_of: Vec<_> = (0..turns.blocks()).flat_map(sends_of).collect();
                given.sort_unstable();
                sends_of.sort_unstable();
                assert_eq!(given, sends_of, "{node} of {nodes}");
            }
        }
    }
}
