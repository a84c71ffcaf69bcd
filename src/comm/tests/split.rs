//! Split and shrink.

use maypole_algorithms::RedOp;

use super::{as_ranks, sum_of};
use crate::config::Config;

#[test]
fn ranks_are_split_by_color_in_the_order_of_the_keys() {
    let results = as_ranks(7, &Config::default(), |comm| {
        let rank = comm.rank();
        let color = (rank != 3).then_some(rank % 2);
        let part = comm.split(color, -(rank as i32)).expect("a split");
        let all = sum_of(comm, rank);
        (all, part.map(|mut part| (part.rank(), part.nranks(), sum_of(&mut part, rank))))
    });
    assert_eq!(results.iter().map(|r| r.0).collect::<Vec<_>>(), [21; 7]);
    let parts: Vec<_> = results.into_iter().map(|r| r.1).collect();
    let (even, odd) = (|at| Some((at, 4, 12)), |at| Some((at, 2, 6)));
    assert_eq!(parts, [even(3), odd(1), even(2), None, even(1), odd(0), even(0)]);
}

#[test]
fn survivors_of_a_broken_communicator_shrink_and_go_on() {
    let results = as_ranks(5, &Config::default(), |comm| {
        let rank = comm.rank();
        let mut sum = [0];
        // The abort may reach a rank that is still in its first call.
        let _first = comm.all_reduce(&[rank], &mut sum, RedOp::Sum);
        if rank == 1 || rank == 4 {
            comm.abort_handle().abort();
            return None;
        }
        comm.all_reduce(&[rank], &mut sum, RedOp::Sum).expect_err("it was aborted");
        assert!(comm.split(Some(0), 0).is_err() && comm.shrink(&[]).is_err());
        assert!(comm.shrink(&[rank]).is_err() && comm.shrink(&[5]).is_err());
        let mut left = comm.shrink(&[1, 4]).expect("a smaller communicator");
        let mut again = left.shrink(&[0]).ok();
        Some((left.rank(), sum_of(&mut left, rank), again.as_mut().map(|a| sum_of(a, rank))))
    });
    assert_eq!(
        results,
        [Some((0, 5, None)), None, Some((1, 5, Some(5))), Some((2, 5, Some(5))), None]
    );
}

/// A survivor that has left the communicator cannot come to the shrink. The others learn that long
/// before the timeout: that of these ranks is longer than the test may take.
#[test]
fn a_shrink_ends_if_a_survivor_has_left() {
    // At a child rank, and at the one that has the root.
    for gone in [2, 0] {
        let results = as_ranks(4, &Config::default(), move |comm| {
            if comm.rank() == gone || comm.rank() == 3 {
                return None;
            }
            Some(comm.shrink(&[3]).err().expect("a survivor is gone").to_string())
        });
        for error in results.into_iter().flatten() {
            assert!(error.contains(&format!("rank {gone} gave up")), "{error}");
        }
    }
}

#[test]
fn shrinks_by_different_ranks_do_not_disturb_each_other_or_the_parent() {
    let results = as_ranks(5, &Config::default(), |comm| {
        let rank = comm.rank();
        let mut sums = Vec::new();
        for excluded in [&[1][..], &[4, 0], &[1], &[2, 3, 4]] {
            if !excluded.contains(&rank) {
                let mut child = comm.shrink(excluded).expect("a smaller communicator");
                sums.push(sum_of(&mut child, rank));
            }
            sums.push(sum_of(comm, rank));
        }
        sums
    });
    let sums: [&[u32]; 5] = [
        &[9, 10, 10, 9, 10, 1, 10],
        &[10, 6, 10, 10, 1, 10],
        &[9, 10, 6, 10, 9, 10, 10],
        &[9, 10, 6, 10, 9, 10, 10],
        &[9, 10, 10, 9, 10, 10],
    ];
    assert_eq!(results, sums);
}
