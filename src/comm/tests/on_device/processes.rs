//! Ranks as processes that open each other's device memory.

use std::time::Duration;

use super::super::case::Case;
use super::super::{Random, as_processes};
use super::support::{Rank, configure, folder, simulator};
use crate::bootstrap::Options;
use crate::call::Task;
use crate::comm::Communicator;
use crate::config::Config;
use maypole_algorithms::Collective;

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
    let options = Options { device: Some(device as i32), ..Options::default() };
    let comm = Communicator::builder(&id)
        .rank(rank, nranks)
        .config(config.clone())
        .options(options.clone())
        .build();
    let comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
    let mut rank = Rank::new(comm, &simulator.driver, device as i32);
    let mut random = Random(17);
    for round in 0..40 {
        let all = Collective::all(nranks - 1);
        let case = Case::random(&mut random, all[round % all.len()]);
        let task = Task::from(&case.call(rank.comm.rank()));
        let (schedule, choice) = rank.comm.tuner.choose(&task).expect("a choice");
        let result = case.run(&mut rank.comm, &schedule);
        result.unwrap_or_else(|why| panic!("round {round}, {case:?}, {choice}: {why}"));
        rank.comm.barrier().expect("a barrier");
    }
}
