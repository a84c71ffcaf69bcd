//! Whole collectives in which headers of messages and acknowledgements are damaged: each rank gets
//! the right data, or an error that names a peer.

use maypole_algorithms::Schedule;
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::proof_suite::uneven_example;
use maypole_transport::fault::FaultRecipe;

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
