//! Rounds in which any number of blocks spreads from node 0 to nodes `1..n`, one block sent and one
//! received per node and round, in the least number of rounds there can be.
//!
//! Round `i` uses skip `k = i mod q` with `q = ceil(log2 n)`: every node sends to the node
//! `skip(k)` above it and receives from the one as far below, all mod `n`. The skips are
//! `ceil(n / 2^(q-k))`: 1, 2 or so, and on to half of `n`. Rounds are counted by *phases* of `q`.
//! In phase `j` and skip `k` a node receives block `j q + takes(k)`, where `takes(k)` is one of
//! `-q..0`, each once, except that one of them is replaced by the same plus `q`: the node's *base
//! block*. A block number below zero means that there is nothing in this round, one beyond the last
//! block means the last. So with `c q + 1` blocks there are `c + 1` phases, every node gets its
//! base block in phase 0 and `q` more in each later phase, and nothing twice. Phase 0 is a binomial
//! tree in the general sense: a node's base block comes by its largest skip, see [`Rounds::first`].
//!
//! What a node receives is found in O(log n) by a search over paths of ever smaller skips; what it
//! sends is what the receiver of the round takes. Source: J. L. Träff, "Optimal Broadcast Schedules
//! in Logarithmic Time with Applications to Broadcast, All-Broadcast, Reduction and All-Reduction"
//! (2024), arXiv:2407.18004, sections 2 and 3; the same author's CLUSTER 2022 paper.

/// The most skips there can be.
const MAX_SKIPS: usize = 32;

/// The rounds over `nodes` nodes, at least 2.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    nodes: u32,
}

impl Rounds {
    /// The rounds over `nodes >= 2` nodes.
    pub const fn new(nodes: u32) -> Self {
        assert!(nodes >= 2, "one node has nothing to spread");
        Self { nodes }
    }

    /// How many skips there are: `q = ceil(log2 nodes)`.
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

    /// The skip over which a node other than 0 gets its base block in phase 0: its largest.
    pub fn first(self, node: u32) -> u32 {
        (0..self.skips()).rev().find(|&k| self.skip(k) <= node).expect("the least skip is 1")
    }

    /// The first of the skips over which `node` sends in phase 0; it sends over all from there on.
    /// Node 0: all.
    pub fn first_sent(self, node: u32) -> u32 {
        let gap = |k| self.skip(k + 1) - self.skip(k);
        (0..self.skips()).find(|&k| node < gap(k)).unwrap_or(self.skips())
    }

    /// The base block of a node other than 0: its least skip when it is made up of skips, the
    /// largest ones first.
    fn base(self, mut node: u32) -> u32 {
        loop {
            let k = self.first(node);
            node -= self.skip(k);
            if node == 0 {
                return k;
            }
        }
    }

    /// What `node`, not 0, receives over skip `k`, counted from the phase's own block number. O(log
    /// nodes).
    pub fn takes(self, node: u32, k: u32) -> i32 {
        let q = self.skips();
        let base = self.base(node);
        // Index q stands for node 0's own copy: the path without a skip, on which the base block
        // comes.
        let free = ((2u64 << q) - 1) & !(1 << base);
        let goal = i64::from(self.nodes) + i64::from(node);
        let mut search = Search { rounds: self, goal, free, found: [0; MAX_SKIPS], count: 0 };
        search.descend(0, 2 * i64::from(self.nodes), q);
        match u32::from(search.found[k as usize]) {
            found if found == q => base as i32,
            found => found as i32 - q as i32,
        }
    }

    /// What `node` sends over skip `k`, likewise; None where the receiver is node 0, which has
    /// everything. O(log nodes).
    pub fn gives(self, node: u32, k: u32) -> Option<i32> {
        match self.to(node, k) {
            0 => None,
            to => Some(self.takes(to, k)),
        }
    }
}

/// The search for the blocks that one node receives, skip by skip. Every skip index (and `q`)
/// stands for the block of phase 0 with that number; a path that ends with skip `e` from a node
/// which is `skip(k)` or more below the goal brings block `e`.
struct Search {
    rounds: Rounds,
    goal: i64,
    /// Bit `e` is set while block `e` is not given out.
    free: u64,
    found: [u8; MAX_SKIPS],
    count: u32,
}

impl Search {
    /// Extends the path that has come to `place` by skips from index `e` down; paths must end below
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
    fn every_node_takes_every_block_once_and_sends_only_what_it_has() {
        for nodes in (2..140).chain([255, 256, 257, 1000, 1023, 1024, 1025, 4095, 4099]) {
            let rounds = Rounds::new(nodes);
            let q = rounds.skips() as i32;
            for node in 1..nodes {
                let base = rounds.base(node) as i32;
                let takes: Vec<_> = (0..q).map(|k| rounds.takes(node, k as u32)).collect();
                let mut sorted: Vec<_> = takes.iter().map(|t| t.rem_euclid(q)).collect();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..q), "{node} of {nodes}: {takes:?}");
                for (k, &take) in takes.iter().enumerate() {
                    let is_first = k as u32 == rounds.first(node);
                    let allowed = if is_first { base..base + 1 } else { -q..0 };
                    assert!(allowed.contains(&take), "{node} of {nodes}: {takes:?}");
                }
                for k in 0..q as u32 {
                    let Some(given) = rounds.gives(node, k) else { continue };
                    // Received in the same phase before, or in the phase before that.
                    let before = takes[..k as usize].contains(&given);
                    let earlier = takes.contains(&(given + q));
                    assert!(before || earlier, "{node} of {nodes} sends {given} over {k}");
                    assert_eq!(given >= 0, k >= rounds.first_sent(node), "{node} of {nodes}, {k}");
                }
            }
            assert!((0..q).all(|k| rounds.gives(0, k as u32) == Some(k)));
        }
    }

    #[test]
    fn skips_halve_and_ends_agree() {
        let skips = |nodes| {
            let rounds = Rounds::new(nodes);
            (0..=rounds.skips()).map(|k| rounds.skip(k)).collect::<Vec<_>>()
        };
        assert_eq!(skips(2), [1, 2]);
        assert_eq!(skips(13), [1, 2, 4, 7, 13]);
        for nodes in 2..90 {
            let rounds = Rounds::new(nodes);
            for k in 0..rounds.skips() {
                assert!((0..nodes).all(|node| rounds.from(rounds.to(node, k), k) == node));
            }
        }
    }

    #[test]
    fn large_numbers_of_nodes_agree_too() {
        for nodes in [100_003, 1 << 20, 3_000_001, u32::MAX] {
            let rounds = Rounds::new(nodes);
            let q = rounds.skips() as i32;
            for node in [1, 2, nodes / 3, nodes / 2, nodes - 2, nodes - 1] {
                let takes: Vec<_> = (0..q).map(|k| rounds.takes(node, k as u32)).collect();
                for k in 0..q as u32 {
                    let Some(given) = rounds.gives(node, k) else { continue };
                    assert!(takes[..k as usize].contains(&given) || takes.contains(&(given + q)));
                }
            }
        }
    }
}
