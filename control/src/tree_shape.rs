//! The shape of the control tree: a binary tree over all ranks with rank 0 at the top, in which the
//! parent of rank r is (r - 1) / 2. A rank has at most three neighbours, and the longest path has 2
//! log2(n) edges.

/// The parent of a rank. Rank 0 has none.
pub fn parent(rank: u32) -> Option<u32> {
    (rank > 0).then(|| (rank - 1) / 2)
}

/// The children of a rank.
pub fn children(rank: u32, nranks: u32) -> impl Iterator<Item = u32> {
    let first = 2 * u64::from(rank) + 1;
    (first..first + 2).filter(move |&child| child < u64::from(nranks)).map(|child| child as u32)
}

/// Whether `rank` is in the subtree of `top`, which includes `top`.
pub fn is_in_subtree(mut rank: u32, top: u32) -> bool {
    while rank > top {
        rank = (rank - 1) / 2;
    }
    rank == top
}

/// The number of ranks in the subtree of `top`. Each level of it is a range of ranks, cut off at
/// `nranks`.
pub fn subtree_size(top: u32, nranks: u32) -> usize {
    let (mut first, mut last, end) = (u64::from(top), u64::from(top), u64::from(nranks));
    let mut count = 0;
    while first < end {
        count += last.min(end - 1) - first + 1;
        (first, last) = (2 * first + 1, 2 * last + 2);
    }
    count as usize
}

/// The neighbour of `from` on the path to `to`. None if `from` is rank 0 and `to` is in no subtree,
/// or is rank 0.
pub fn next_hop(from: u32, to: u32, nranks: u32) -> Option<u32> {
    let child = children(from, nranks).find(|&child| is_in_subtree(to, child));
    child.or_else(|| parent(from))
}

/// The ranks on the path between two ranks, without these two.
pub fn ranks_between(one: u32, other: u32) -> Vec<u32> {
    let mut path = Vec::new();
    let (mut a, mut b) = (one, other);
    while a != b {
        // The higher number is never an ancestor of the other, so the path goes through its parent.
        let higher = if a > b { &mut a } else { &mut b };
        *higher = (*higher - 1) / 2;
        path.push(*higher);
    }
    path.retain(|&rank| rank != one && rank != other);
    path.dedup();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_are_consistent() {
        for nranks in 1..70 {
            for top in 0..nranks {
                let members = (0..nranks).filter(|&rank| is_in_subtree(rank, top)).count();
                assert_eq!(subtree_size(top, nranks), members);
                for child in children(top, nranks) {
                    assert_eq!(parent(child), Some(top));
                }
            }
        }
        assert_eq!(children(u32::MAX - 1, u32::MAX).count(), 0);
    }

    #[test]
    fn a_path_leads_to_its_end_and_passes_the_ranks_between() {
        for nranks in [2, 5, 16, 33] {
            for (from, to) in (0..nranks).flat_map(|a| (0..nranks).map(move |b| (a, b))) {
                let mut path = vec![from];
                while from != to && path.last() != Some(&to) {
                    path.push(next_hop(*path.last().unwrap(), to, nranks).unwrap());
                    assert!(path.len() < 12);
                }
                path.retain(|rank| *rank != from && *rank != to);
                path.sort_unstable();
                let mut between = ranks_between(from, to);
                between.sort_unstable();
                assert_eq!(between, path, "{from} to {to}");
            }
        }
    }
}
