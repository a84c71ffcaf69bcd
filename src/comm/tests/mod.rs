//! Tests with ranks as threads: the result of every collective is compared with a scalar evaluation
//! of the reduction tree that was proved of its schedule.

mod algorithms;
mod as_processes;
mod by_schedule;
mod case;
mod control;
mod damage;
mod ends;
mod environment;
mod fuzz;
mod kept_plans;
mod on_device;
mod random;
mod settings;
mod split;
#[path = "../../../tests/support/splitmix.rs"]
mod splitmix;
mod transfers;
mod typed;
mod vector;
mod windows;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use maypole_algorithms::RedOp;
use maypole_transport::fault::FaultRecipe;

use super::Communicator;
use crate::bootstrap::UniqueId;
use crate::config::Config;
use splitmix::Random;

/// Runs `f` as each of `nranks` ranks, in threads; fails if that takes longer than a minute.
fn as_ranks<T: Send + 'static>(
    nranks: u32,
    config: &Config,
    f: impl Fn(&mut Communicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    as_ranks_within(Duration::from_secs(60), nranks, config, f)
}

/// The same with another time limit.
fn as_ranks_within<T: Send + 'static>(
    patience: Duration,
    nranks: u32,
    config: &Config,
    f: impl Fn(&mut Communicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let id = UniqueId::create().expect("a unique id");
    let f = Arc::new(f);
    let (done, all) = mpsc::channel();
    for rank in 0..nranks {
        let (f, done, config) = (Arc::clone(&f), done.clone(), config.clone());
        std::thread::spawn(move || {
            let comm = Communicator::builder(&id).rank(rank, nranks).config(config).build();
            let mut comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
            let result = f(&mut comm);
            done.send((rank, result)).expect("the test waits");
        });
    }
    drop(done);
    let mut results: Vec<(u32, T)> =
        (0..nranks).map(|_| all.recv_timeout(patience).expect("a rank failed or hangs")).collect();
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}

pub(super) fn over_tcp(sockets_per_thread: u32) -> Config {
    let mut config = Config { shm_disable: true, p2p_disable: true, ..Config::default() };
    config.verbs.disabled = true;
    // Many of the tests' messages are longer, and many are shorter.
    config.lend_from = Some(256);
    Config { sockets_per_thread, ..config }
}

/// RDMA between all ranks: over the library that `MAYPOLE_VERBS_LIBRARY` names, or the library for
/// tests if it was built, or the devices of this host. `None`, with a line that says so, if there
/// is none of these.
pub(super) fn over_rdma() -> Option<Config> {
    let mut config = Config { shm_disable: true, p2p_disable: true, ..Config::default() };
    let named = std::env::var_os("MAYPOLE_VERBS_LIBRARY").map(PathBuf::from);
    let beside = || {
        let program = std::env::current_exe().ok()?;
        let folders = program.ancestors().skip(1).take(2);
        let mut files = folders.map(|folder| folder.join("libmaypole_fake_verbs.so"));
        files.find(|file| file.exists())
    };
    config.verbs.library = named.or_else(beside);
    let ports = as_ranks(2, &config, |comm| comm.host.endpoint.rdma_port());
    if ports.iter().all(Option::is_some) {
        return Some(config);
    }
    eprintln!("skipped: there is no RDMA device, and no library that has one");
    None
}

/// Delays that change the duration of a correct program and nothing else.
pub(super) fn lateness(seed: u64) -> Option<FaultRecipe> {
    FaultRecipe::parse(&format!("seed={seed},delay=0.05:100us,backpressure=0.1"))
}

/// The sum of `number` over all ranks.
pub(super) fn sum_of(comm: &mut Communicator, number: u32) -> u32 {
    let mut sum = [0];
    comm.all_reduce(&[number], &mut sum, RedOp::Sum).expect("a sum");
    sum[0]
}
