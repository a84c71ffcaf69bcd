//! Whole collectives in which headers of messages and acknowledgements are damaged: each rank gets
//! the right data, or an error that names a peer.

use maypole_algorithms::Schedule;
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::proof_suite::uneven_example;
use maypole_transport::fault::FaultRecipe;
use maypole_transport::ll::LL_CAPACITY;

use super::case::{Case, try_plan};
use super::{Random, as_ranks, over_tcp};
use crate::config::Config;
use crate::test_share::some_of;
use crate::tune::Protocol;

/// The parts of a message that are damaged.
const PARTS: [&str; 4] = ["length", "sequence", "kind", "acknowledgement"];

const TILE: usize = 256;

/// Runs calls by `schedule` until one fails, on all ranks. The calls have several tiles, the last
/// of which is short. Returns the errors.
fn errors(
    schedule: impl Fn(u32) -> Schedule + Clone + Send + Sync + 'static,
    nranks: u32,
    config: &Config,
) -> Vec<String> {
    let results = as_ranks(nranks, config, move |comm| {
        let mut random = Random(u64::from(nranks));
        for call in 0..12 {
            let schedule = schedule(call % nranks);
            let case = Case {
                // Calls of different kinds, so that each gets its own plan.
                count: 40 * (1 + call as usize) + call as usize % 3,
                ..Case::random(&mut random, schedule.collective)
            };
            try_plan(comm, schedule.clone(), &case, Protocol::Slots, TILE)
                .and_then(|()| case.run(comm, &schedule))
                .map_err(|why| (call, why))?;
        }
        Ok(())
    });
    results
        .into_iter()
        .filter_map(Result::err)
        .map(|(call, why)| format!("{call}: {why}"))
        .collect()
}

/// The same links, with every way in which messages travel.
fn media() -> [Config; 3] {
    let apart = Config { p2p_disable: true, lend_from: Some(0), ..Config::default() };
    [Config::default(), apart, over_tcp(1)]
}

/// Whether an error says that the memory or the stream shared with a peer is damaged, or that a
/// rank that noticed it has aborted. No process has died.
fn names_a_peer(error: &str) -> bool {
    ["what this rank shares with rank ", "rank "]
        .iter()
        .any(|start| error.split_once(": ").is_some_and(|(_, text)| text.starts_with(start)))
}

/// Damages each part over each medium, or one of them in turn; returns how many ranks noticed it.
fn run(
    index: usize,
    schedule: impl Fn(u32) -> Schedule + Clone + Send + Sync + 'static,
    nranks: u32,
) -> usize {
    let media = media();
    let damages: Vec<_> =
        (0..media.len()).flat_map(|medium| PARTS.map(|part| (medium, part))).collect();
    let mut noticed = 0;
    for (medium, part) in some_of(&damages, index) {
        let fault = FaultRecipe::parse(&format!("seed={index},corrupt=0.02:{part}"));
        assert!(fault.is_some());
        let (slot_bytes, slot_depth) = (Some(TILE), Some(8));
        let config = Config { fault, slot_bytes, slot_depth, ..media[medium].clone() };
        for error in errors(schedule.clone(), nranks, &config) {
            let name = format!("{:?}, {part}, medium {medium}, seed {index}", schedule(0));
            assert!(names_a_peer(&error), "{name}: {error}");
            noticed += 1;
        }
    }
    noticed
}

fn by(generator: &'static Generator, nranks: u32) -> impl Fn(u32) -> Schedule + Clone {
    move |root| generator.schedule(generator.collective_with_root(root), nranks)
}

#[test]
fn damaged_headers_are_errors_that_name_a_peer() {
    let mut noticed = 0;
    for (index, generator) in all().enumerate() {
        for nranks in some_of(&[2, 3, 5], index) {
            noticed += run(index, by(generator, nranks), nranks);
        }
    }
    noticed += run(0, |_| uneven_example(), uneven_example().nranks);
    assert!(noticed > 10, "only {noticed} ranks noticed damage");
}

/// The number that follows "rank " in an error for the first time.
fn named_rank(error: &str) -> Option<u32> {
    error.split("rank ").skip(1).find_map(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

/// The rank that writes into its LL messages instead of making a call.
const MALICIOUS: u32 = 1;

/// Runs calls of LL messages, the last of which the malicious rank does not make: it writes random
/// flags and acknowledgements, and leaves. Returns the errors of the other ranks.
fn errors_of_ll_messages(
    schedule: impl Fn(u32) -> Schedule + Clone + Send + Sync + 'static,
    nranks: u32,
    seed: u64,
) -> Vec<String> {
    // The messages pass through memory that the ranks share as processes do.
    let config = Config { p2p_disable: true, ..Config::default() };
    let calls = 1 + seed as usize % 20;
    let results = as_ranks(nranks, &config, move |comm| {
        let mut random = Random(seed);
        for call in 0..=calls {
            let schedule = schedule(call as u32 % nranks);
            let case = Case {
                // Up to several lines. Calls of different kinds, so that each gets its own plan.
                count: 1 + call * 3,
                ..Case::random(&mut random, schedule.collective)
            };
            try_plan(comm, schedule.clone(), &case, Protocol::Ll, LL_CAPACITY)?;
            if call == calls && comm.rank() == MALICIOUS {
                for peer in (0..nranks).filter(|peer| *peer != MALICIOUS) {
                    for _ in 0..2000 {
                        comm.host.endpoint.misbehave(peer, &mut || random.next());
                    }
                }
                return Ok(());
            }
            case.run(comm, &schedule)?;
        }
        Ok(())
    });
    results.into_iter().filter_map(Result::err).collect()
}

#[test]
fn damaged_ll_messages_are_errors_that_name_a_peer() {
    let mut corrupt = 0;
    for (index, generator) in all().enumerate() {
        for nranks in some_of(&[2, 3, 5], index) {
            for error in errors_of_ll_messages(by(generator, nranks), nranks, index as u64) {
                let name = format!("{}, {nranks} ranks, seed {index}", generator.name);
                // What the malicious rank sent, and nobody had read yet, may be anything.
                if error.contains(" instead of ") {
                    continue;
                }
                let names_one = named_rank(&error).is_some_and(|rank| rank < nranks);
                assert!(names_one, "{name}: {error}");
                corrupt += usize::from(error.contains("corrupt"));
            }
        }
    }
    assert!(corrupt > 0, "nobody noticed damage");
}
