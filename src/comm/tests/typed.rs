//! The methods on slices: shapes, forms in place, refusals.

use maypole_algorithms::RedOp;

use super::{as_ranks, over_tcp};
use crate::comm::Communicator;
use crate::config::Config;
use crate::error::Error;

/// Element `i` of the send buffer of `rank`.
fn mine(rank: u32, i: usize) -> i64 {
    i64::from(rank) * 1_000_000 + i as i64
}

fn sent(rank: u32, len: usize) -> Vec<i64> {
    (0..len).map(|i| mine(rank, i)).collect()
}

#[test]
fn every_collective_does_what_its_documentation_says() {
    for (nranks, config) in [(1, Config::default()), (4, Config::default()), (3, over_tcp(1))] {
        as_ranks(nranks, &config, move |comm| {
            for (k, root) in [1, 5, 3000].into_iter().zip([0, nranks - 1, nranks / 2]) {
                let (rank, n) = (comm.rank(), nranks as usize);
                let all = || (0..nranks).flat_map(|r| sent(r, k)).collect::<Vec<_>>();
                let sum = |i: usize| (0..nranks).map(|r| mine(r, i)).sum::<i64>();
                let sums = |at: usize, len| (at..at + len).map(sum).collect::<Vec<_>>();
                let (own, here) = (rank as usize * k, rank == root);

                let mut recv = vec![0; k];
                comm.reduce_scatter(&sent(rank, n * k), &mut recv, RedOp::Sum).expect("a call");
                assert_eq!(recv, sums(own, k));
                let mut data = sent(rank, n * k);
                comm.reduce_scatter_in_place(&mut data, RedOp::Sum).expect("a call");
                assert_eq!(data[own..own + k], sums(own, k));
                data[own..own + k].copy_from_slice(&sent(rank, n * k)[own..own + k]);
                assert_eq!(data, sent(rank, n * k), "other blocks stay");

                let mut recv = vec![0; n * k];
                comm.all_gather(&sent(rank, k), &mut recv).expect("a call");
                assert_eq!(recv, all());
                let mut data = vec![0; n * k];
                data[own..own + k].copy_from_slice(&sent(rank, k));
                comm.all_gather_in_place(&mut data).expect("a call");
                assert_eq!(data, all());

                let (send, mut recv) = (sent(rank, if here { k } else { 0 }), vec![0; k]);
                comm.broadcast(&send, &mut recv, root).expect("a call");
                assert_eq!(recv, sent(root, k));
                let mut data = sent(rank, k);
                comm.broadcast_in_place(&mut data, root).expect("a call");
                assert_eq!(data, sent(root, k));

                let mut recv = vec![0; if here { k } else { 0 }];
                comm.reduce(&sent(rank, k), &mut recv, RedOp::Sum, root).expect("a call");
                assert_eq!(recv, sums(0, recv.len()));
                let mut data = sent(rank, k);
                comm.reduce_in_place(&mut data, RedOp::Sum, root).expect("a call");
                assert_eq!(data, if here { sums(0, k) } else { sent(rank, k) });

                let mut recv = vec![0; n * k];
                comm.all_to_all(&sent(rank, n * k), &mut recv).expect("a call");
                let theirs = |r| sent(r, n * k)[own..own + k].to_vec();
                assert_eq!(recv, (0..nranks).flat_map(theirs).collect::<Vec<_>>());

                let mut recv = vec![0; if here { n * k } else { 0 }];
                comm.gather(&sent(rank, k), &mut recv, root).expect("a call");
                assert_eq!(recv, if here { all() } else { vec![] });
                let mut data = sent(rank, k);
                if here {
                    data = vec![0; n * k];
                    data[own..own + k].copy_from_slice(&sent(rank, k));
                }
                comm.gather_in_place(&mut data, root).expect("a call");
                assert_eq!(data, if here { all() } else { sent(rank, k) });

                let (send, mut recv) = (sent(rank, if here { n * k } else { 0 }), vec![0; k]);
                comm.scatter(&send, &mut recv, root).expect("a call");
                assert_eq!(recv, sent(root, n * k)[own..own + k]);
                let mut data = if here { sent(rank, n * k) } else { vec![0; k] };
                comm.scatter_in_place(&mut data, root).expect("a call");
                let expected = sent(root, n * k);
                assert_eq!(data, if here { &expected[..] } else { &expected[own..own + k] });

                let (next, last) = ((rank + 1) % nranks, (rank + nranks - 1) % nranks);
                let mut got = vec![0; k];
                if nranks > 1 {
                    // One rank after the other, so that some rank receives first.
                    if rank == 0 {
                        comm.send(&sent(rank, k), next).expect("a send");
                        comm.recv(&mut got, last).expect("a message");
                    } else {
                        comm.recv(&mut got, last).expect("a message");
                        comm.send(&sent(rank, k), next).expect("a send");
                    }
                    assert_eq!(got, sent(last, k));
                }
                comm.barrier().expect("a barrier");
            }
        });
    }
}

#[test]
fn slices_of_the_wrong_shape_are_refused_and_the_communicator_goes_on() {
    let results = as_ranks(3, &Config::default(), |comm| {
        let (four, mut seven, mut twelve) = ([1; 4], [0; 7], [0; 12]);
        let rank = comm.rank();
        let refusals = [
            comm.all_reduce(&four, &mut seven, RedOp::Sum),
            comm.reduce_scatter(&four, &mut seven, RedOp::Sum),
            comm.reduce_scatter_in_place(&mut seven, RedOp::Sum),
            comm.all_gather(&four, &mut seven),
            comm.all_gather_in_place(&mut seven),
            comm.broadcast(&four, &mut seven, rank),
            comm.broadcast(&four, &mut seven, 3),
            comm.broadcast_in_place(&mut seven, 3),
            comm.reduce(&four, &mut seven, RedOp::Sum, rank),
            comm.reduce(&four, &mut seven, RedOp::Sum, 3),
            comm.all_to_all(&four, &mut seven),
            comm.all_to_all(&four, &mut [0; 4]),
            comm.gather(&four, &mut seven, rank),
            comm.gather_in_place(&mut seven, rank),
            comm.scatter(&four, &mut seven, rank),
            comm.scatter_in_place(&mut seven, rank),
            comm.scatter(&four, &mut seven, 3),
            comm.send(&four, 3),
        ];
        for (i, refusal) in refusals.into_iter().enumerate() {
            let error = refusal.expect_err("a wrong shape");
            assert!(matches!(error, Error::InvalidArgument { .. }), "{i}: {error}");
        }
        comm.all_gather(&four, &mut twelve).expect("it goes on");
        twelve
    });
    assert_eq!(results, [[1; 12]; 3]);
}

#[test]
fn all_to_all_works_in_place_before_and_after_there_is_a_plan() {
    let results = as_ranks(2, &Config::default(), |comm| {
        let first = 10 * comm.rank();
        let filled = || [first, first + 1, first + 2, first + 3];
        let in_place = |comm: &mut Communicator| {
            let mut buffer = filled();
            let call = crate::call::Call {
                collective: maypole_algorithms::Collective::AllToAll,
                send: buffer.as_ptr().cast(),
                recv: buffer.as_mut_ptr().cast(),
                count: 2,
                dtype: maypole_algorithms::DType::Uint32,
                reduction: RedOp::Max.into(),
            };
            // SAFETY: the array holds two blocks of two elements.
            unsafe { comm.run(&call) }.expect("an all-to-all in place");
            buffer
        };
        let before = in_place(comm);
        let (send, mut recv) = (filled(), [0; 4]);
        comm.all_to_all(&send, &mut recv).expect("an all-to-all");
        (before, recv, in_place(comm))
    });
    let (zero, one) = ([0, 1, 10, 11], [2, 3, 12, 13]);
    assert_eq!(results, [(zero, zero, zero), (one, one, one)]);
}

#[test]
fn no_rank_leaves_a_barrier_before_the_last_has_reached_it() {
    use maypole_transport::sync::{AtomicU32, Ordering};
    static COME: AtomicU32 = AtomicU32::new(0);
    for config in [Config::default(), over_tcp(1)] {
        COME.store(0, Ordering::SeqCst);
        as_ranks(5, &config, |comm| {
            for round in 0..200 {
                COME.fetch_add(1, Ordering::SeqCst);
                comm.barrier().expect("a barrier");
                let come = COME.load(Ordering::SeqCst);
                assert!(come >= 5 * (round + 1), "{come} in round {round}");
            }
        });
    }
}

#[test]
fn a_barrier_and_an_all_reduce_of_a_byte_are_different_calls() {
    let errors = as_ranks(2, &Config::default(), |comm| {
        comm.barrier().expect("a barrier");
        if comm.rank() == 0 {
            return comm.barrier().expect_err("rank 1 is elsewhere").to_string();
        }
        comm.all_reduce(&[1u8], &mut [0], RedOp::Max).expect_err("rank 0 is elsewhere").to_string()
    });
    for error in errors {
        assert!(
            error.contains("in call 2 rank 0 calls barrier, rank 1 all_reduce of 1 uint8 max"),
            "{error}"
        );
    }
}
