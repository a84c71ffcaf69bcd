//! Tests with several roots for one communicator.

use super::super::multi_root::RootIds;
use super::super::root::ENDED;
use super::*;

/// As `join_all`, but each rank joins with the ids that `ids` returns for it.
fn join_several(
    ids: impl Fn(u32) -> Vec<UniqueId>,
    ranks: impl IntoIterator<Item = u32>,
    nranks: u32,
    timeout: Duration,
) -> Vec<JoinResult> {
    join_each(ranks, |rank| {
        let ids = ids(rank);
        move || join_among(&ids, rank, nranks, &rank_info(rank), &options(timeout))
    })
}

fn create_ids(count: usize) -> Vec<UniqueId> {
    (0..count).map(|_| create()).collect()
}

/// The traffic of the root of this id, once it has ended.
fn traffic_of_root(id: &UniqueId) -> ControlTraffic {
    let until = Instant::now() + LONG;
    loop {
        let ended = ENDED.lock().unwrap();
        let proof = *id.contents().unwrap().secret.derive("ended", &[]).bytes();
        if let Some((_, traffic)) = ended.iter().find(|(of, _)| *of == proof) {
            return *traffic;
        }
        drop(ended);
        assert!(Instant::now() < until, "a root does not end");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_root_serves_its_share_of_the_ranks() {
    with_watchdog(|| {
        for (nranks, count) in [(8, 1), (8, 2), (8, 3), (8, 8), (2, 2), (64, 4), (61, 8)] {
            let ids = create_ids(count);
            check(join_several(|_| ids.clone(), 0..nranks, nranks, LONG));
            let mut most = 0;
            for (index, id) in (0..).zip(&ids) {
                let share = RootShare { index, count: count as u32, fingerprint: 0 };
                let block = share.ranks(nranks);
                let traffic = traffic_of_root(id);
                // The ranks of its block, their parents, and rank 0; each sends its registration
                // and that it leaves.
                let visitors = share.expected(nranks) as u64;
                assert_eq!(u64::from(traffic.connections), visitors, "{index} of {count}");
                assert!(traffic.received >= 2 * visitors, "{index} of {count}");
                // Each rank of the block gets the address of its parent; rank 0 has none. A slow
                // machine adds reports of ranks that are missing, and the answers to them.
                assert!(traffic.sent >= block.filter(|rank| *rank > 0).count() as u64);
                most = most.max(traffic.connections);
            }
            match (nranks, count) {
                (64, 4) => assert_eq!(most, 16 + 9 + 1),
                (61, 8) => assert_eq!(most, 8 + 5 + 1),
                (_, 1) => assert_eq!(most, nranks),
                _ => {}
            }
        }
    });
}

#[test]
fn a_rank_with_other_ids_is_refused_and_the_others_go_on() {
    with_watchdog(|| {
        let ids = create_ids(3);
        let right = ids.clone();
        let first = thread::spawn(move || join_several(|_| right.clone(), 0..6, 8, LONG));
        // Ranks 6 and 7 ask the third root, which knows the right ids when others have registered.
        let share = RootIds::new(&ids, 8).unwrap().share(2);
        let mut ghost = register_at(&ids[2], 6, 8, share);
        wait_until_missing(&mut ghost, &[7]);
        // The ids in another order, and fewer ids.
        for wrong in [vec![ids[1], ids[0], ids[2]], vec![ids[0], ids[2]]] {
            let other = join_several(|_| wrong.clone(), [7], 8, LONG);
            let BootstrapError::Disagreement { what, ranks } = error(&other[0]) else {
                panic!("{}", error(&other[0]));
            };
            assert!(what.contains("ids"));
            assert_eq!(*ranks, RankSet::new([7]));
        }
        leave(ghost);
        let mut outcomes = join_several(|_| ids.clone(), [6, 7], 8, LONG);
        let mut all = first.join().unwrap();
        all.append(&mut outcomes);
        check(all);
    });
}

#[test]
fn a_root_that_is_gone_ends_the_attempt_on_all_ranks() {
    with_watchdog(|| {
        for gone in 0..3 {
            given_time(|timeout| a_root_is_gone(gone, timeout));
        }
    });
}

fn a_root_is_gone(gone: usize, timeout: Duration) -> Result<(), String> {
    let ids = create_ids(3);
    check(join_all(ids[gone], 0..1, 1, LONG));
    let address = root_addresses(&ids[gone])[0].to_string();
    let outcomes = join_several(|_| ids.clone(), 0..8, 8, timeout);
    for (rank, outcome) in outcomes.iter().enumerate() {
        match error(outcome) {
            BootstrapError::RootUnreachable { addresses: why, .. }
            | BootstrapError::PeerFailed { why, .. } => {
                assert!(why.contains(&address), "rank {rank}: {why}");
            }
            // The rank was connected to the root when that ended.
            BootstrapError::RootLost { .. } => {}
            other => return Err(format!("root {gone}, rank {rank}: {other}")),
        }
    }
    Ok(())
}

#[test]
fn all_ranks_learn_which_rank_is_missing_whatever_its_root() {
    with_watchdog(|| {
        // Blocks are 0-2, 3-5, 6-7.
        for missing in [0, 1, 2, 4, 7] {
            let present = (0..8).filter(|rank| *rank != missing);
            given_time(|timeout| {
                let ids = create_ids(3);
                let outcomes = join_several(|_| ids.clone(), present.clone(), 8, timeout);
                all_miss(&[missing], 8, &outcomes)
            });
        }
    });
}

#[test]
fn an_abort_of_one_rank_ends_the_attempt_on_all_ranks() {
    with_watchdog(|| {
        // Rank 4 is left out: rank 0 would not come, which tells one root what another knows.
        for aborted in [0, 1, 2, 3, 5, 6, 7] {
            let ids = create_ids(3);
            let signal = AbortSignal::new().unwrap();
            // One rank does not come, so that all others wait.
            let late = (aborted + 4) % 8;
            let threads: Vec<_> = (0..8)
                .filter(|rank| *rank != late)
                .map(|rank| {
                    let (ids, signal) = (ids.clone(), signal.clone());
                    thread::spawn(move || {
                        let abort = (rank == aborted).then_some(signal);
                        let options = Options { abort, ..options(LONG) };
                        join_among(&ids, rank, 8, &rank_info(rank), &options)
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(30 * u64::from(aborted % 3)));
            signal.abort();
            for thread in threads {
                let outcome = thread.join().unwrap();
                let expected = BootstrapError::Aborted { by: aborted };
                assert_eq!(*error(&outcome), expected);
            }
        }
    });
}

/// Rank 2 asks the first root, and is expected at the third one as the parent of rank 6. Rank 0,
/// which would tell one root what another knows, does not come.
#[test]
fn a_rank_that_fails_tells_the_roots_that_expect_it_as_a_parent() {
    with_watchdog(|| {
        let ids = create_ids(3);
        let theirs = ids.clone();
        let waiting = thread::spawn(move || join_several(|_| theirs.clone(), [6, 7], 8, LONG));
        let signal = AbortSignal::new().unwrap();
        signal.abort();
        let options = Options { abort: Some(signal), ..options(LONG) };
        let aborted = join_among(&ids, 2, 8, &rank_info(2), &options);
        for outcome in waiting.join().unwrap().into_iter().chain([aborted]) {
            assert_eq!(*error(&outcome), BootstrapError::Aborted { by: 2 });
        }
    });
}

#[test]
fn ids_that_cannot_be_used_together_are_refused() {
    with_watchdog(|| {
        let ids = create_ids(2);
        let fails = |ids: &[UniqueId], nranks| {
            let outcome = join_among(ids, 0, nranks, b"", &options(LONG));
            let BootstrapError::Ids { what } = error(&outcome).clone() else {
                panic!("{}", error(&outcome));
            };
            what
        };
        assert_eq!(fails(&[], 2), "0 of them for 2 ranks");
        assert_eq!(fails(&[ids[0], ids[1]], 1), "2 of them for 1 ranks");
        assert_eq!(fails(&[ids[0], ids[1], ids[0]], 3), "number 0 and number 2 are the same");
        check(join_several(|_| ids.clone(), 0..2, 2, LONG));
        // Ids of one fixed address are always the same.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        check(join_several(|_| vec![id::tests::fixed_at(port); 3], 0..5, 5, LONG));
    });
}
