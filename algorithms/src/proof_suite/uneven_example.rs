//! An example of a schedule written by hand: all-reduce over seven ranks in three unequal groups.
//!
//! Ranks 0 1 2, ranks 3 4 and ranks 5 6 are the groups (three machines, for example), the first
//! rank of each is its leader. Every line of [`uneven_example`] is a step: a member sends its input
//! to its leader; a leader folds the inputs of its group, keeps the partial sum and sends it to the
//! other leaders; then it folds the three partial sums in the order of the groups, so that all
//! leaders have the same bits, and sends the result to its members. The two steps of a member are
//! in two lanes: it may send the next tile before it has the result of this one.
//!
//! Two points to note when you write one. The partial sum is in scratch, not in the output: a
//! message may lend the memory it was sent from, and a leader that wrote the result over it would
//! wait for the other leaders, which wait for this one. And a chunk of scratch is the same memory
//! in every tile: hence one lane for both steps of a leader.
//!
//! * steps: two per rank
//! * bytes sent per rank: at most `4 m`, of which `2 m` leave the group; a member sends `m`
//! * cost: `3 a + 5 m b + 5 m g`, for the leader of three ranks
//! * class: fast (groups that are not aligned powers of two are not subtrees of the canonical tree)

use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Schedule, Step, StepTable};
use crate::types::{Collective, Rank};

/// The schedule, for seven ranks.
pub fn uneven_example() -> Schedule {
    let p = |rank| peer(rank, 0);
    let table = StepTable(vec![
        vec![vec![
            Step::new([input(0), p(1), p(2)], [scratch(0), p(3), p(5)]),
            Step::new([scratch(0), p(3), p(5)], [output(0), p(1), p(2)]).finishing(),
        ]],
        member_of(0),
        member_of(0),
        vec![vec![
            Step::new([input(0), p(4)], [scratch(0), p(0), p(5)]),
            Step::new([p(0), scratch(0), p(5)], [output(0), p(4)]).finishing(),
        ]],
        member_of(3),
        vec![vec![
            Step::new([input(0), p(6)], [scratch(0), p(0), p(3)]),
            Step::new([p(0), p(3), scratch(0)], [output(0), p(6)]).finishing(),
        ]],
        member_of(5),
    ]);
    Schedule::new("uneven_example", Collective::AllReduce, 7, 1, table).with_scratch(1)
}

/// The two lanes of a rank that leads no group. `after` is for calls in place, where the output is
/// the memory of the input.
fn member_of(leader: Rank) -> Vec<Vec<Step>> {
    let up = Step::new([input(0)], [peer(leader, 0)]);
    let down = Step::new([peer(leader, 0)], [output(0)]).after(0, 0);
    vec![vec![up], vec![down]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Operand;

    /// The verifier checks everything; this test only checks that each message sent is received.
    #[test]
    fn sends_and_receives_pair_up() {
        let schedule = uneven_example();
        let mut ends = Vec::new();
        for rank in 0..7 {
            for step in (0..schedule.lanes(rank)).flat_map(|l| schedule.lane(rank, l)) {
                let peers = |list: &[Operand]| {
                    list.iter()
                        .filter_map(|o| match o {
                            Operand::Peer { rank, .. } => Some(*rank),
                            Operand::Local(_) => None,
                        })
                        .collect::<Vec<_>>()
                };
                ends.extend(peers(&step.outputs).into_iter().map(|to| (rank, to, "sent")));
                ends.extend(peers(&step.inputs).into_iter().map(|from| (from, rank, "received")));
            }
        }
        ends.sort_unstable();
        assert_eq!(ends.len(), 2 * 14);
        assert!(ends.chunks(2).all(|pair| {
            (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1) && pair[0].2 != pair[1].2
        }));
    }
}
