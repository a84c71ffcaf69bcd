//! Rounds that send any number of blocks from tree node 0 to tree nodes `1..n`. Each one sends one
//! block and receives one block per round; the number of rounds is the smallest possible.
//!
//! Round `i` uses skip `k = i mod q`, where `q = ceil(log2 n)`: every tree node sends to the one
//! `skip(k)` above it and receives from the one as far below, all mod `n`. The skips are
//! `ceil(n / 2^(q-k))`, from 1 to about half of `n`. Rounds are counted in *phases* of `q`.
//!
//! In phase `j` and skip `k` a tree node receives block `j q + received(k)`. The values
//! `received(k)` are the numbers `-q..0`, each once, except that one of them is replaced by the
//! same number plus `q`: the *base block*. A block number below zero means that nothing is received
//! in this round; a number beyond the last block means the last block. So with `c q + 1` blocks
//! there are `c + 1` phases, every tree node gets its base block in phase 0 and `q` more blocks in
//! each later phase, and no block twice. Phase 0 is a binomial tree in the general sense: the base
//! block is received over the largest skip, see [`BroadcastRounds::first`].
//!
//! What a tree node receives is found in O(log n) by a search over paths of decreasing skips; what
//! it sends is what the receiver of the round receives. Source: J. L. Träff, "Optimal Broadcast
//! Schedules in Logarithmic Time with Applications to Broadcast, All-Broadcast, Reduction and
//! All-Reduction" (2024), arXiv:2407.18004, sections 2 and 3; the same author's CLUSTER 2022 paper.

/// An upper bound of the number of skips.
const MAX_SKIPS: usize = 32;

/// The rounds over `nodes` tree nodes, at least 2.
#[derive(Clone, Copy, Debug)]
pub struct BroadcastRounds {
    nodes: u32,
}

impl BroadcastRounds {
    /// The rounds over `nodes >= 2` tree nodes.
    pub const fn new(nodes: u32) -> Self {
        assert!(nodes >= 2, "one node has no other to send to");
        Self { nodes }
    }

    /// The number of skips: `q = ceil(log2 nodes)`.
    pub const fn skips(self) -> u32 {
        (self.nodes - 1).ilog2() + 1
    }

    /// Skip `k <= skips()`; the last is the number of nodes itself.
    pub const fn skip(self, k: u32) -> u32 {
        let halvings = self.skips() - k;
        ((self.nodes as u64 + (1 << halvings) - 1) >> halvings) as u32
    }

    /// The node to which `node` sends over skip `k`.
    pub const fn to(self, node: u32, k: u32) -> u32 {
        let room = self.nodes - node;
        let skip = self.skip(k);
        if skip < room { node + skip } else { skip - room }
    }

    /// The node from which `node` receives over skip `k`.
    pub const fn from(self, node: u32, k: u32) -> u32 {
        let skip = self.skip(k);
        if node >= skip { node - skip } else { node + (self.nodes - skip) }
    }

    /// The skip over which a tree node other than 0 receives its base block in phase 0: the largest
    /// one that is not greater than its number.
    pub fn first(self, node: u32) -> u32 {
        (0..self.skips()).rev().find(|&k| self.skip(k) <= node).expect("the least skip is 1")
    }

    /// The first skip over which `node` sends in phase 0; it sends over all larger ones too. For
    /// node 0 it is skip 0.
    pub fn first_sent(self, node: u32) -> u32 {
        let gap = |k| self.skip(k + 1) - self.skip(k);
        (0..self.skips()).find(|&k| node < gap(k)).unwrap_or(self.skips())
    }

    /// The base block of a tree node other than 0: the smallest skip when its number is written as
    /// a sum of skips, the largest ones first.
    fn base(self, mut node: u32) -> u32 {
        loop {
            let k = self.first(node);
            node -= self.skip(k);
            if node == 0 {
                return k;
            }
        }
    }

    /// The block that `node`, not 0, receives over skip `k`, counted from the first block of the
    /// phase. O(log nodes).
    pub fn received(self, node: u32, k: u32) -> i32 {
        let q = self.skips();
        let base = self.base(node);
        // Index q stands for the copy of node 0: the path without a skip, which brings the base
        // block.
        let free = ((2u64 << q) - 1) & !(1 << base);
        let goal = i64::from(self.nodes) + i64::from(node);
        let mut search = BlockSearch { rounds: self, goal, free, found: [0; MAX_SKIPS], count: 0 };
        search.descend(0, 2 * i64::from(self.nodes), q);
        match u32::from(search.found[k as usize]) {
            found if found == q => base as i32,
            found => found as i32 - q as i32,
        }
    }

    /// The block that `node` sends over skip `k`, counted in the same way; None if the receiver is
    /// node 0, which has all blocks. O(log nodes).
    pub fn sent(self, node: u32, k: u32) -> Option<i32> {
        match self.to(node, k) {
            0 => None,
            to => Some(self.received(to, k)),
        }
    }
}

/// The search for the blocks that one tree node receives, skip by skip. Every skip index (and `q`)
/// stands for the block of phase 0 with that number. A path that ends with skip `e` at a tree node
/// which is `skip(k)` or more below the goal brings block `e`.
struct BlockSearch {
    rounds: BroadcastRounds,
    goal: i64,
    /// Bit `e` is set while block `e` is not assigned to a skip.
    free: u64,
    found: [u8; MAX_SKIPS],
    count: u32,
}

impl BlockSearch {
    /// Extends the path that has reached `place` by skips from index `e` down; paths must end below
    /// `end`.
    fn descend(&mut self, place: i64, mut end: i64, e: u32) {
        let mut next = Some(e);
        while let Some(e) = next
            && self.count < self.rounds.skips()
        {
            let skip = |k| i64::from(self.rounds.skip(k));
            let reached = place + skip(e);
            if reached <= self.goal - skip(self.count) && reached < end {
                if reached <= self.goal - skip(self.count + 1) {
                    self.descend(reached, end, e);
                    if self.count == self.rounds.skips() {
                        return;
                    }
                }
                if place > self.goal - i64::from(self.rounds.skip(self.count + 1)) {
                    return;
                }
                end = reached;
                self.found[self.count as usize] = e as u8;
                self.count += 1;
                self.free &= !(1 << e);
            }
            let below = self.free & ((1 << e) - 1);
            next = (below != 0).then(|| below.ilog2());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_receives_every_block_once_and_sends_only_what_it_has() {
        for nodes in (2..140).chain([255, 256, 257, 1000, 1023, 1024, 1025, 4095, 4099]) {
            let rounds = BroadcastRounds::new(nodes);
            let q = rounds.skips() as i32;
            for node in 1..nodes {
                let base = rounds.base(node) as i32;
                let received: Vec<_> = (0..q).map(|k| rounds.received(node, k as u32)).collect();
                let mut sorted: Vec<_> = received.iter().map(|t| t.rem_euclid(q)).collect();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..q), "{node} of {nodes}: {received:?}");
                for (k, &take) in received.iter().enumerate() {
                    let is_first = k as u32 == rounds.first(node);
                    let allowed = if is_first { base..base + 1 } else { -q..0 };
                    assert!(allowed.contains(&take), "{node} of {nodes}: {received:?}");
                }
                for k in 0..q as u32 {
                    let Some(given) = rounds.sent(node, k) else { continue };
                    // It was received earlier in the same phase, or in the phase before.
                    let before = received[..k as usize].contains(&given);
                    let earlier = received.contains(&(given + q));
                    assert!(before || earlier, "{node} of {nodes} sends {given} over {k}");
                    assert_eq!(given >= 0, k >= rounds.first_sent(node), "{node} of {nodes}, {k}");
                }
            }
            assert!((0..q).all(|k| rounds.sent(0, k as u32) == Some(k)));
        }
    }

    #[test]
    fn skips_halve_and_ends_agree() {
        let skips = |nodes| {
            let rounds = BroadcastRounds::new(nodes);
            (0..=rounds.skips()).map(|k| rounds.skip(k)).collect::<Vec<_>>()
        };
        assert_eq!(skips(2), [1, 2]);
        assert_eq!(skips(13), [1, 2, 4, 7, 13]);
        for nodes in 2..90 {
            let rounds = BroadcastRounds::new(nodes);
            for k in 0..rounds.skips() {
                assert!((0..nodes).all(|node| rounds.from(rounds.to(node, k), k) == node));
            }
        }
    }

    #[test]
    fn large_numbers_of_nodes_agree_too() {
        for nodes in [100_003, 1 << 20, 3_000_001, u32::MAX] {
            let rounds = BroadcastRounds::new(nodes);
            let q = rounds.skips() as i32;
            for node in [1, 2, nodes / 3, nodes / 2, nodes - 2, nodes - 1] {
                let received: Vec<_> = (0..q).map(|k| rounds.received(node, k as u32)).collect();
                for k in 0..q as u32 {
                    let Some(given) = rounds.sent(node, k) else { continue };
                    assert!(
                        received[..k as usize].contains(&given) || received.contains(&(given + q))
                    );
                }
            }
        }
    }
}
