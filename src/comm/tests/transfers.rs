//! Groups of sends and receives.

use super::{Random, as_ranks, lateness};
use crate::config::Config;
use crate::test_share::some_of;
use crate::transfer::Transfer;

#[test]
fn transfers_in_any_order_arrive_complete() {
    for (apart, slot_bytes, fault) in [
        (false, None, None),
        (true, None, None),
        (true, Some(256), None),
        (false, Some(256), None),
        (true, Some(256), lateness(1)),
        (false, None, lateness(2)),
        (false, Some(256), lateness(3)),
    ] {
        let config = Config { p2p_disable: apart, slot_bytes, fault, ..Config::default() };
        let results = as_ranks(5, &config, |comm| {
            let (rank, n) = (comm.rank(), comm.nranks());
            for round in 0..20u64 {
                // The k-th message from a to b. Its length and content follow from a, b and k.
                let len = |a: u32, b: u32, k: u64| {
                    let spread = [0, 1, 255, 256, 2200, 5000]
                        [(u64::from(a * 7 + b * 3) + k + round) as usize % 6];
                    spread as usize + usize::from(a == b)
                };
                let byte = |a: u32, b: u32, k: u64, i: usize| {
                    (a as usize * 31 + b as usize * 17 + k as usize * 5 + i) as u8
                };
                let fill =
                    |a, b, k| (0..len(a, b, k)).map(|i| byte(a, b, k, i)).collect::<Vec<u8>>();
                let pairs: Vec<(u32, u64)> = (0..n).flat_map(|p| [(p, 0), (p, 1)]).collect();
                let sent: Vec<Vec<u8>> = pairs.iter().map(|&(p, k)| fill(rank, p, k)).collect();
                let mut received: Vec<Vec<u8>> =
                    pairs.iter().map(|&(p, k)| vec![0xee; len(p, rank, k)]).collect();
                let mut list = Vec::new();
                for ((&(peer, k), data), space) in pairs.iter().zip(&sent).zip(&mut received) {
                    let (data, bytes) = (data.as_ptr(), data.len());
                    list.push((k, Transfer::Send { data, bytes, peer }));
                    let (data, bytes) = (space.as_mut_ptr(), space.len());
                    list.push((k, Transfer::Receive { data, bytes, peer }));
                }
                // An arbitrary order that keeps the order of each pair of ranks.
                let mut random = Random(round << 8 | u64::from(rank));
                let mut keyed: Vec<_> =
                    list.into_iter().map(|(k, t)| ((k, random.next()), t)).collect();
                keyed.sort_by_key(|t| t.0);
                let list: Vec<Transfer> = keyed.into_iter().map(|t| t.1).collect();
                // SAFETY: each transfer has a vector of its length that nothing else uses.
                unsafe { comm.exchange(&list) }.map_err(|e| e.to_string())?;
                for (&(peer, k), got) in pairs.iter().zip(&received) {
                    if *got != fill(peer, rank, k) {
                        return Err(format!("round {round}: message {k} from {peer} is wrong"));
                    }
                }
            }
            Ok(())
        });
        for result in results {
            result.unwrap_or_else(|why| panic!("apart {apart}, slots {slot_bytes:?}: {why}"));
        }
    }
}

/// What is sent is the content before the call, also where it is overwritten.
#[test]
fn a_send_and_a_receive_may_share_memory() {
    for apart in [false, true] {
        let config = Config { p2p_disable: apart, ..Config::default() };
        let results = as_ranks(3, &config, |comm| {
            let (rank, n) = (comm.rank(), comm.nranks());
            let (next, before) = ((rank + 1) % n, (rank + n - 1) % n);
            [8, 5000, 300_000].map(|bytes| {
                let mut space = vec![rank as u8; bytes + 4];
                let base = space.as_mut_ptr();
                let transfers = [
                    Transfer::Send { data: base.cast_const(), bytes, peer: next },
                    Transfer::Receive { data: base.wrapping_add(4), bytes, peer: before },
                ];
                // SAFETY: both ranges lie within the vector, which nothing else uses.
                unsafe { comm.exchange(&transfers) }.expect("an exchange");
                let (own, received) = space.split_at(4);
                own == [rank as u8; 4] && received.iter().all(|&byte| byte == before as u8)
            })
        });
        assert!(results.iter().all(|right| *right == [true; 3]), "apart {apart}: {results:?}");
    }
}

#[test]
fn transfers_without_a_partner_are_errors() {
    let results = as_ranks(2, &Config::default(), |comm| {
        let mut space = [0u8; 8];
        let own = Transfer::Send { data: space.as_ptr(), bytes: 8, peer: comm.rank() };
        let nobody = Transfer::Send { data: space.as_ptr(), bytes: 8, peer: 2 };
        // SAFETY: the array outlives the calls.
        let harmless = unsafe { [comm.exchange(&[own]), comm.exchange(&[nobody])] };
        let bytes = 4 + 4 * comm.rank() as usize;
        let (data, peer) = (space.as_mut_ptr(), 1 - comm.rank());
        let transfer = if peer == 0 {
            Transfer::Send { data, bytes, peer }
        } else {
            Transfer::Receive { data, bytes, peer }
        };
        // SAFETY: as above.
        let unequal = unsafe { comm.exchange(&[transfer]) };
        (harmless.map(|h| h.is_err()), unequal.map_err(|e| e.to_string()))
    });
    assert!(results.iter().all(|r| r.0 == [true, true]));
    assert!(results[0].1.as_ref().is_err_and(|e| e.contains("rank 1")), "{results:?}");
}

/// The two lengths may travel by different protocols. Without a check, the receiver would then wait
/// without end.
#[test]
fn a_transfer_of_another_length_is_an_error_by_any_protocol() {
    let small_or_large = [(8, 100_000), (100_000, 8), (8, 16), (1000, 8), (3000, 100_000), (0, 8)];
    for (index, (sent, received)) in small_or_large.into_iter().enumerate() {
        for apart in some_of(&[false, true], index) {
            let config = Config { p2p_disable: apart, ..Config::default() };
            let results = as_ranks(2, &config, move |comm| {
                let bytes = if comm.rank() == 0 { sent } else { received };
                let mut space = vec![7u8; bytes];
                let (data, peer) = (space.as_mut_ptr(), 1 - comm.rank());
                let transfer = if comm.rank() == 0 {
                    Transfer::Send { data, bytes, peer }
                } else {
                    Transfer::Receive { data, bytes, peer }
                };
                // SAFETY: the vector outlives the call.
                unsafe { comm.exchange(&[transfer]) }.map_err(|e| e.to_string())
            });
            let said = format!("rank 0 does not send the {received} bytes");
            assert!(
                results[1].as_ref().is_err_and(|e| e.contains(&said)),
                "apart {apart}, {sent} sent and {received} received: {results:?}"
            );
        }
    }
}

/// The transfers of a link are matched in their order, also where they travel by different
/// protocols and each of them would find a message of its length.
#[test]
fn transfers_listed_in_another_order_are_an_error() {
    for (index, lengths) in [[8, 100_000], [100_000, 8], [8, 16]].into_iter().enumerate() {
        for apart in some_of(&[false, true], index) {
            let config = Config { p2p_disable: apart, ..Config::default() };
            let results = as_ranks(2, &config, move |comm| {
                let mut spaces = lengths.map(|bytes| vec![7u8; bytes]);
                let peer = 1 - comm.rank();
                let mut transfers: Vec<_> = spaces
                    .iter_mut()
                    .map(|space| {
                        let (data, bytes) = (space.as_mut_ptr(), space.len());
                        match peer {
                            1 => Transfer::Send { data, bytes, peer },
                            _ => Transfer::Receive { data, bytes, peer },
                        }
                    })
                    .collect();
                if peer == 0 {
                    transfers.reverse();
                }
                // SAFETY: the vectors outlive the call.
                unsafe { comm.exchange(&transfers) }.map_err(|e| e.to_string())
            });
            let wrong = |e: &String| e.contains("rank 0 does not send the");
            assert!(
                results[1].as_ref().is_err_and(wrong),
                "apart {apart}, {lengths:?}: {results:?}"
            );
        }
    }
}

/// More messages between two ranks than their link has room for.
#[test]
fn many_small_transfers_in_one_group_arrive_complete() {
    let results = as_ranks(3, &Config::default(), |comm| {
        const EACH: usize = 40;
        let (rank, n) = (comm.rank() as usize, comm.nranks() as usize);
        let word = |from: usize, to: usize, k: usize| (from * 10_000 + to * 1000 + k) as u64;
        let sent: Vec<u64> = (0..n * EACH).map(|i| word(rank, i / EACH, i % EACH)).collect();
        let mut received = vec![0u64; n * EACH];
        for _ in 0..3 {
            received.fill(0);
            let transfers: Vec<_> = (0..n * EACH)
                .flat_map(|i| {
                    let peer = (i / EACH) as u32;
                    let from = sent[i..].as_ptr().cast();
                    let to = received[i..].as_mut_ptr().cast();
                    [
                        Transfer::Receive { data: to, bytes: 8, peer },
                        Transfer::Send { data: from, bytes: 8, peer },
                    ]
                })
                .collect();
            // SAFETY: each transfer has a word of its own.
            unsafe { comm.exchange(&transfers) }.expect("an exchange");
            let right = |i: usize| received[i] == word(i / EACH, rank, i % EACH);
            assert!((0..n * EACH).all(right), "rank {rank}: {received:?}");
        }
    });
    assert_eq!(results.len(), 3);
}
