//! Vector collectives against a plain evaluation, and lengths that differ between ranks.

use maypole_algorithms::RedOp;

use super::{Random, as_ranks, lateness, over_tcp};
use crate::call::Blocks;
use crate::comm::Communicator;
use crate::config::{self, Config};
use crate::error::Error;
use crate::test_share::some_of;

const FILL: i64 = -77;

/// Element `i` of the block from rank `from` to rank `to`.
fn value(from: u32, to: u32, i: usize) -> i64 {
    i64::from(from) << 40 | i64::from(to) << 20 | i as i64
}

/// Counts and displacements of blocks in an order of this rank's own, with gaps, and the length of
/// the buffer.
fn lay_out(counts: Vec<usize>, random: &mut Random) -> (Vec<usize>, Vec<usize>, usize) {
    let mut order: Vec<(u64, usize)> = (0..counts.len()).map(|i| (random.next(), i)).collect();
    order.sort_unstable();
    let (mut displacements, mut end) = (vec![0; counts.len()], 0);
    for (_, i) in order {
        end += random.below(5) as usize;
        displacements[i] = end;
        end += counts[i];
    }
    (counts, displacements, end)
}

/// The number of calls in a round.
pub(super) const CALLS: u32 = 7;

/// One call of each vector collective. Lengths follow from `seed`, displacements from the rank and
/// `seed`.
pub(super) fn round(comm: &mut Communicator, seed: u64) {
    let (rank, n) = (comm.rank(), comm.nranks());
    let len = |from: u32, to: u32| {
        let mut random = Random(seed ^ u64::from(from) << 32 ^ u64::from(to) << 16);
        random.pick(&[0, 0, 1, 3, 40, 700, 5000]) as usize
    };
    let root = (seed % u64::from(n)) as u32;
    let mut random = Random(seed << 8 | u64::from(rank));
    let block = |from, to, len| (0..len).map(|i| value(from, to, i)).collect::<Vec<_>>();
    let everything =
        |data: &[i64], counts: &[usize], starts: &[usize], of: &dyn Fn(u32) -> Vec<i64>| {
            let mut expected = vec![FILL; data.len()];
            for (r, (&count, &start)) in (0..).zip(counts.iter().zip(starts)) {
                expected[start..start + count].copy_from_slice(&of(r));
            }
            assert_eq!(data, expected, "seed {seed}, rank {rank}");
        };

    // All-gather. Lengths depend on the sender only.
    let lens = |r| len(r, r);
    let (counts, displacements, end) = lay_out((0..n).map(lens).collect(), &mut random);
    let blocks = Blocks { counts: &counts, displacements: &displacements };
    let mut recv = vec![FILL; end];
    comm.all_gather_v(&block(rank, rank, lens(rank)), &mut recv, blocks).expect("a call");
    everything(&recv, &counts, &displacements, &|r| block(r, r, lens(r)));
    let mut data = vec![FILL; end];
    let own = displacements[rank as usize];
    data[own..own + lens(rank)].copy_from_slice(&block(rank, rank, lens(rank)));
    comm.all_gather_v_in_place(&mut data, blocks).expect("a call");
    assert_eq!(data, recv);

    // Reduce-scatter.
    let mut send = vec![FILL; end];
    for to in 0..n {
        let at = displacements[to as usize];
        send[at..at + lens(to)].copy_from_slice(&block(rank, to, lens(to)));
    }
    let sum = |i| (0..n).map(|from| value(from, rank, i)).sum::<i64>();
    let sums: Vec<i64> = (0..lens(rank)).map(sum).collect();
    let mut recv = vec![FILL; lens(rank)];
    comm.reduce_scatter_v(&send, blocks, &mut recv, RedOp::Sum).expect("a call");
    assert_eq!(recv, sums);
    comm.reduce_scatter_v_in_place(&mut send, blocks, RedOp::Sum).expect("a call");
    assert_eq!(send[own..own + lens(rank)], sums);

    // All-to-all.
    let (out, out_at, end) = lay_out((0..n).map(|to| len(rank, to)).collect(), &mut random);
    let mut send = vec![FILL; end];
    for to in 0..n {
        let (at, k) = (out_at[to as usize], len(rank, to));
        send[at..at + k].copy_from_slice(&block(rank, to, k));
    }
    let sends = Blocks { counts: &out, displacements: &out_at };
    let (into, into_at, end) = lay_out((0..n).map(|from| len(from, rank)).collect(), &mut random);
    let recvs = Blocks { counts: &into, displacements: &into_at };
    let mut recv = vec![FILL; end];
    comm.all_to_all_v(&send, sends, &mut recv, recvs).expect("a call");
    everything(&recv, &into, &into_at, &|from| block(from, rank, len(from, rank)));

    // Gather and scatter.
    let mut recv = vec![FILL; if rank == root { end } else { 0 }];
    comm.gather_v(&block(rank, root, len(rank, root)), &mut recv, recvs, root).expect("a call");
    if rank == root {
        everything(&recv, &into, &into_at, &|from| block(from, rank, len(from, rank)));
    }
    let mut recv = vec![FILL; len(root, rank)];
    comm.scatter_v(&send, sends, &mut recv, root).expect("a call");
    assert_eq!(recv, block(root, rank, len(root, rank)));
}

#[test]
fn every_vector_collective_over_every_kind_of_link() {
    let small = Config { slot_bytes: Some(256), ..Config::default() };
    let apart = Config { p2p_disable: true, ..Config::default() };
    let slots = Config { protocol: config::ProtocolSetting::Slots, ..Config::default() };
    let late = Config { fault: lateness(5), slot_bytes: Some(4096), ..Config::default() };
    for (nranks, config, rounds) in [
        (1, Config::default(), 5),
        (2, Config::default(), 40),
        (5, Config::default(), 40),
        (3, apart.clone(), 20),
        (6, apart, 10),
        (4, small, 10),
        (4, slots, 20),
        (3, over_tcp(2), 20),
        (4, late, 10),
    ] {
        as_ranks(nranks, &config, move |comm| {
            // The same lengths come again now and then, so that plans are found.
            (0..rounds).for_each(|r| round(comm, [r, r, r % 3][r as usize % 3]));
        });
    }
}

#[test]
fn every_algorithm_runs_blocks_of_different_lengths() {
    for (index, generator) in maypole_algorithms::collective::all().enumerate() {
        if !["all_gather", "reduce_scatter"].contains(&generator.collective) {
            continue;
        }
        let only = format!("{}:{}", generator.collective, generator.name);
        for (nranks, p2p_disable) in some_of(&[(2, false), (5, false), (8, true)], index) {
            let config =
                Config { algorithms: Some(only.clone()), p2p_disable, ..Config::default() };
            as_ranks(nranks, &config, |comm| (0..12).for_each(|r| round(comm, 100 + r)));
        }
    }
}

#[test]
fn more_kinds_of_vector_calls_than_plans_are_kept() {
    as_ranks(3, &Config::default(), |comm| {
        for i in (0..100).chain([99, 70, 3, 99]) {
            let counts = [i, 2, 100 - i];
            let blocks = Blocks { counts: &counts, displacements: &[0, i, i + 2] };
            let mut data = vec![0u64; 102];
            let own = blocks.extent(comm.rank() as usize);
            data[own.start..own.start + own.len].fill(u64::from(comm.rank()) + 1);
            comm.all_gather_v_in_place(&mut data, blocks).expect("a call");
            let expected = |at: usize| 1 + u64::from(at >= i) + u64::from(at >= i + 2);
            assert!(data.iter().enumerate().all(|(at, v)| *v == expected(at)), "{i}: {data:?}");
        }
    });
}

#[test]
fn impossible_blocks_are_refused() {
    let results = as_ranks(2, &Config::default(), |comm| {
        let blocks = |counts, displacements| Blocks { counts, displacements };
        let (send, mut recv) = ([1u32; 2], [0u32; 5]);
        let own = 2;
        let refusals = [
            comm.all_gather_v(&send, &mut recv, blocks(&[2], &[0])),
            comm.all_gather_v(&send, &mut recv, blocks(&[2, 2], &[0])),
            comm.all_gather_v(&send, &mut recv, blocks(&[2, 2], &[0, 4])),
            comm.all_gather_v(&send, &mut recv, blocks(&[2, 2], &[0, 1])),
            comm.all_gather_v(&send, &mut recv, blocks(&[2, 2], &[0, usize::MAX])),
            comm.all_gather_v(&send, &mut recv, blocks(&[1, 1], &[0, 1])),
            comm.all_gather_v_in_place(&mut recv, blocks(&[], &[])),
            comm.reduce_scatter_v(&send, blocks(&[1, 1], &[0, 1]), &mut recv, RedOp::Sum),
            comm.all_to_all_v(
                &send,
                blocks(&[1, 1], &[0, 1]),
                &mut recv,
                blocks(&[own, own], &[0, 2]),
            ),
            comm.gather_v(&send, &mut recv, blocks(&[2, 2], &[0, 2]), 2),
            comm.scatter_v(&send, blocks(&[1, 1], &[0, 1]), &mut recv, comm.rank()),
        ];
        for (i, refusal) in refusals.into_iter().enumerate() {
            let error = refusal.expect_err("bad blocks");
            assert!(matches!(error, Error::InvalidArgument { .. }), "{i}: {error}");
        }
        comm.barrier().is_ok()
    });
    assert_eq!(results, [true; 2]);
}

#[test]
fn lengths_that_differ_between_ranks_are_an_error_that_names_both() {
    // Rank 1 passes 4 elements as the length of its block, rank 0 passes 3.
    let errors = as_ranks(2, &Config::default(), |comm| {
        let counts = [5, 3 + comm.rank() as usize];
        let blocks = Blocks { counts: &counts, displacements: &[0, 5] };
        let send = vec![1u8; counts[comm.rank() as usize]];
        comm.all_gather_v(&send, &mut [0; 9], blocks).expect_err("they differ").to_string()
    });
    for error in errors {
        assert!(error.contains("rank 0 calls all_gather_v of 8 uint8 in blocks of"), "{error}");
        assert!(error.contains("rank 1 all_gather_v of 9 uint8 in blocks of"), "{error}");
    }
    for apart in [false, true] {
        let config = Config { p2p_disable: apart, ..Config::default() };
        let errors = as_ranks(3, &config, |comm| {
            let rank = comm.rank() as usize;
            // The block from rank 2 to rank 1 has 20 elements on rank 2, and 30 on rank 1.
            let counts = if rank == 2 { [10, 30, 10] } else { [10, 10, 10] };
            let into = if rank == 1 { [10, 10, 20] } else { [10; 3] };
            let starts = [0, 30, 60];
            let sends = Blocks { counts: &counts, displacements: &starts };
            let recvs = Blocks { counts: &into, displacements: &starts };
            let (send, mut recv) = ([0u32; 90], [0u32; 90]);
            // Ranks 0 and 2 may finish the call, but not the next one.
            comm.all_to_all_v(&send, sends, &mut recv, recvs)
                .and_then(|()| comm.barrier())
                .expect_err("they differ")
                .to_string()
        });
        for error in errors {
            let said = "rank 2 does not send the 80 bytes that this rank receives from it";
            assert!(error.contains(said) && error.contains("rank 1 is at call 1"), "{error}");
            assert!(
                error.contains("alltoall_v of uint8") || error.contains("alltoall_v"),
                "{error}"
            );
        }
    }
}
