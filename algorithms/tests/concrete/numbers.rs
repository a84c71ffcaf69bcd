//! The numbers on which tests execute schedules, and what a collective requires of its outputs.

use maypole_algorithms::semantics::Algebra;
use maypole_algorithms::{Collective, Rank, Schedule};

/// A number that stands for the content of a chunk: a sum, which every order of the reduction
/// gives, and a hash, which only the same reduction tree gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TestNumber {
    pub(crate) sum: u64,
    pub(crate) tree: u64,
}

/// The operations of a test collective. Contributions are scaled if it reduces.
pub(crate) struct NumberAlgebra {
    pub(crate) reduces: bool,
}

impl Algebra for NumberAlgebra {
    type Value = TestNumber;

    fn contribute(&mut self, value: TestNumber) -> TestNumber {
        let scale = |x: u64| if self.reduces { mix(x) } else { x };
        TestNumber { sum: scale(value.sum), tree: scale(value.tree) }
    }

    fn combine(&mut self, left: TestNumber, right: TestNumber) -> TestNumber {
        let tree = mix(left.tree.wrapping_mul(3).wrapping_add(mix(right.tree)));
        TestNumber { sum: left.sum.wrapping_add(right.sum), tree }
    }

    fn finish(&mut self, value: TestNumber) -> TestNumber {
        TestNumber { sum: mix(value.sum), tree: mix(value.tree) }
    }
}

/// The content of input chunk `chunk` of `rank`; `tile` counts tiles through all calls.
pub(crate) fn input_number(rank: Rank, chunk: u32, tile: usize) -> TestNumber {
    let x = mix(1 + u64::from(rank) + (u64::from(chunk) << 24) + ((tile as u64) << 56));
    TestNumber { sum: x, tree: mix(x) }
}

/// The input chunk that output chunk `output` of `rank` is made of, and its rank, or no rank if it
/// is reduced over all ranks. None if the collective gives the rank nothing.
pub(crate) fn required_input(
    schedule: &Schedule,
    rank: Rank,
    output: u32,
) -> Option<(Option<Rank>, u32)> {
    let parts = schedule.parts;
    match schedule.collective {
        Collective::AllReduce => Some((None, output)),
        Collective::ReduceScatter => Some((None, rank * parts + output)),
        Collective::Reduce { root } => (rank == root).then_some((None, output)),
        Collective::AllGather => Some((Some(output / parts), output % parts)),
        Collective::Gather { root } => {
            (rank == root).then_some((Some(output / parts), output % parts))
        }
        Collective::Broadcast { root } => Some((Some(root), output)),
        Collective::Scatter { root } => Some((Some(root), rank * parts + output)),
        Collective::AllToAll => Some((Some(output / parts), rank * parts + output % parts)),
    }
}

fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}
