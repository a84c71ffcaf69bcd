//! Several roots for one communicator.

use super::super::multi_root::Share;
use super::super::root::ENDED;
use super::*;

/// As `join_all`, each rank with what `ids` gives it.
fn join_several(
    ids: impl Fn(u32) -> Vec<UniqueId>,
    ranks: impl IntoIterator<Item = u32>,
    nranks: u32,
    timeout: Duration,
) -> Vec<Outcome> {
    join_each(ranks, |rank| {
        let ids = ids(rank);
        move || join_among(&ids, rank, nranks, &card(rank), &options(timeout))
    })
}

fn some(count: usize) -> Vec<UniqueId> {
    (0..count).map(|_| create()).collect()
}

/// What the root of this id has served, once it has ended.
fn served(id: &UniqueId) -> ControlTraffic {
    let until = Instant::now() + LONG;
    loop {
        let ended = ENDED.lock().unwrap();
        let proof = id.contents().unwrap().secret.prove("ended", &[]);
        if let Some((_, traffic)) = ended.iter().find(|(of, _)| *of == proof) {
            return *traffic;
        }
        drop(ended);
        assert!(Instant::now() < until, "a root stays");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_root_serves_its_share() {
    watched(|| {
        for (nranks, count) in [(8, 1), (8, 2), (8, 3), (8, 8), (2, 2), (64, 4), (61, 8)] {
            let ids = some(count);
            check(join_several(|_| ids.clone(), 0..nranks, nranks, LONG));
            let mut most = 0;
            for (index, id) in (0..).zip(&ids) {
                let share = Share { index, of: count as u32, fingerprint: 0 };
                let block = share.ranks(nranks);
                let traffic = served(id);
                // Those of its block, the parents of these, and rank 0; each says who it is, and that it leaves.
                let visitors = share.expected(nranks) as u64;
                assert_eq!(u64::from(traffic.connections), visitors, "{index} of {count}");
                assert_eq!(traffic.received, 2 * visitors);
                // To each of its block, where its parent is; rank 0 has none.
                assert_eq!(traffic.sent, block.filter(|rank| *rank > 0).count() as u64);
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
fn other_ids_are_refused_and_the_others_go_on() {
    watched(|| {
        let ids = some(3);
        let right = ids.clone();
        let first = thread::spawn(move || join_several(|_| right.clone(), 0..7, 8, LONG));
        thread::sleep(Duration::from_millis(200));
        // Another order, and another number.
        for wrong in [vec![ids[1], ids[0], ids[2]], vec![ids[0], ids[2]]] {
            let other = join_several(|_| wrong.clone(), [7], 8, LONG);
            let BootstrapError::Disagreement { what, ranks } = error(&other[0]) else {
                panic!("{}", error(&other[0]));
            };
            assert!(what.contains("ids"));
            assert_eq!(*ranks, RankSet::new([7]));
        }
        let mut outcomes = join_several(|_| ids.clone(), [7], 8, LONG);
        let mut all = first.join().unwrap();
        all.append(&mut outcomes);
        check(all);
    });
}

#[test]
fn a_root_that_is_gone_ends_it_for_all() {
    watched(|| {
        for gone in 0..3 {
            let ids = some(3);
            check(join_all(ids[gone], 0..1, 1, LONG));
            let address = root_addresses(&ids[gone])[0].to_string();
            let outcomes = join_several(|_| ids.clone(), 0..8, 8, Duration::from_secs(1));
            for (rank, outcome) in outcomes.iter().enumerate() {
                match error(outcome) {
                    BootstrapError::RootUnreachable { addresses: why, .. }
                    | BootstrapError::PeerFailed { why, .. } => {
                        assert!(why.contains(&address), "rank {rank}: {why}");
                    }
                    // It was at the root when that ended.
                    BootstrapError::RootLost { .. } => {}
                    other => panic!("root {gone}, rank {rank}: {other}"),
                }
            }
        }
    });
}

#[test]
fn missing_ranks_are_named_to_all_whatever_root_they_would_ask() {
    watched(|| {
        // Blocks are 0-2, 3-5, 6-7.
        for missing in [0, 1, 2, 4, 7] {
            let ids = some(3);
            let present = (0..8).filter(|rank| *rank != missing);
            let outcomes = join_several(|_| ids.clone(), present, 8, Duration::from_millis(700));
            for outcome in outcomes {
                let BootstrapError::MissingRanks { ranks, nranks: 8, .. } = error(&outcome) else {
                    panic!("{missing} missing, but: {}", error(&outcome));
                };
                assert_eq!(*ranks, RankSet::new([missing]));
            }
        }
    });
}

#[test]
fn an_abort_of_one_rank_ends_it_for_all_that_wait() {
    watched(|| {
        for aborted in 0..8 {
            let ids = some(3);
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
                        join_among(&ids, rank, 8, &card(rank), &options)
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

#[test]
fn ids_that_do_not_make_a_communicator() {
    watched(|| {
        let ids = some(2);
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
        // But those of one address of the user's choice always are.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        check(join_several(|_| vec![id::tests::fixed_at(port); 3], 0..5, 5, LONG));
    });
}
