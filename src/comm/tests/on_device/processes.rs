//! Ranks as processes that open each other's device memory.

use std::time::Duration;

use super::super::{Random, as_processes};
use super::support::{Rank, configure, folder, join, random_call, simulator};
use crate::config::Config;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn ranks_of_several_processes_use_each_others_device_memory() {
    folder();
    for (nranks, devices) in [(2u32, 1u32), (3, 2)] {
        let what = format!("{nranks} ranks on {devices} devices");
        let test = "comm::tests::on_device::processes::rank";
        as_processes::run(test, nranks, PATIENCE, &what, |rank| {
            format!("{rank} {nranks} {}", rank % devices)
        });
    }
}

/// The body of a rank process, not a test.
#[test]
#[ignore = "run by the test above, as a rank"]
fn rank() {
    let Some((text, id)) = as_processes::session() else { return };
    let words: Vec<u32> = text.split(' ').map(|word| word.parse().expect("a number")).collect();
    let [rank, nranks, device] = words[..] else { panic!("three numbers") };
    let simulator = simulator();
    configure(100);
    let config = Config { gpu_slot_bytes: Some(1024), ..Config::default() };
    let comm = join(&id, rank, nranks, device as i32, &config);
    let mut rank = Rank::new(comm, &simulator.driver, device as i32);
    let mut random = Random(17);
    for round in 0..40 {
        random_call(&mut rank.comm, &mut random, round);
        rank.comm.barrier().expect("a barrier");
    }
}
