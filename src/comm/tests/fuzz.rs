//! A rank with the secret that writes and sends anything to its peers while they run collectives.
//! They may get wrong data from it, and errors, but no crash, no hang and no damaged memory.

use std::thread;

use maypole_algorithms::RedOp;
use maypole_algorithms::collective::all;
use maypole_transport::conformance::fuzz::rounds_within;

use super::case::Case;
use super::{Random, as_ranks, over_tcp};
use crate::comm::Communicator;
use crate::config::Config;

/// The rank that misbehaves.
const MALICIOUS: u32 = 1;

const RANKS: u32 = 3;

/// Runs random calls until one fails. Returns that error, or what a call has damaged.
fn calls_until_an_error(comm: &mut Communicator, seed: u64) -> Result<String, String> {
    let mut random = Random(seed);
    let generators: Vec<_> = all().collect();
    loop {
        let generator = random.pick(&generators);
        let collective = generator.collective_with_root(random.below(u64::from(RANKS)) as u32);
        let case = Case::random(&mut random, collective);
        let schedule = generator.schedule(collective, RANKS);
        let Err(why) = case.run(comm, &schedule) else { continue };
        if ["memory beside a buffer", "was changed"].iter().any(|damage| why.contains(damage)) {
            return Err(format!("{case:?}: {why}"));
        }
        // Data of the malicious rank may be anything.
        if !why.contains(" instead of ") {
            return Ok(why);
        }
    }
}

/// Misbehaves towards both other ranks, then aborts.
fn misbehave(comm: &Communicator, seed: u64) -> thread::JoinHandle<()> {
    let (endpoint, abort) = (comm.host.endpoint.clone(), comm.abort_handle());
    thread::spawn(move || {
        let mut random = Random(!seed);
        for _ in 0..random.below(3_000) {
            let peer = random.pick(&[0, 2]);
            endpoint.misbehave(peer, &mut || random.next());
            if random.below(4) == 0 {
                thread::yield_now();
            }
        }
        abort.abort();
    })
}

#[test]
fn fuzz_a_rank_with_the_secret() {
    let mut corrupt = 0;
    let count = rounds_within(0, |random| {
        let seed = random.below(usize::MAX) as u64;
        let apart = Config { p2p_disable: true, lend_from: Some(0), ..Config::default() };
        let mut config = if random.below(2) == 0 { apart } else { over_tcp(1) };
        config.slot_bytes = Some([256, 4096, 65_536][random.below(3)]);
        let results = as_ranks(RANKS, &config, move |comm| {
            let mut sum = [0_u32];
            if let Err(error) = comm.all_reduce(&[1], &mut sum, RedOp::Sum) {
                // The malicious rank may be through it before.
                return Ok(error.to_string());
            }
            let malicious = (comm.rank() == MALICIOUS).then(|| misbehave(comm, seed));
            let ended = calls_until_an_error(comm, seed);
            if let Some(thread) = malicious {
                thread.join().expect("it only writes");
            }
            ended
        });
        for (rank, result) in results.into_iter().enumerate() {
            let error = result.unwrap_or_else(|damage| panic!("rank {rank}, {seed}: {damage}"));
            assert!(error.contains("rank "), "rank {rank}, {seed}: {error}");
            corrupt += u32::from(error.contains("corrupt"));
        }
    });
    println!("{count} rounds, {corrupt} errors of corrupt peers");
}
