//! Tests of the control plane: ranks that die, stop, come late, leave, or make another call.

mod mismatches;
mod processes;
mod waits;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use maypole::config::Config;
use maypole::{Communicator, Error, RedOp, UniqueId};

fn sum(comm: &mut Communicator, value: i32) -> Result<i32, Error> {
    let mut result = [0];
    comm.all_reduce(&[value], &mut result, RedOp::Sum)?;
    Ok(result[0])
}

/// Runs `f` for each of `nranks` ranks in a thread, and fails if that takes a minute.
fn as_ranks<T: Send + 'static>(
    nranks: u32,
    config: &Config,
    f: impl Fn(Communicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let id = UniqueId::create().expect("a unique id");
    let f = Arc::new(f);
    let (done, all) = mpsc::channel();
    for rank in 0..nranks {
        let (f, done, config) = (Arc::clone(&f), done.clone(), config.clone());
        std::thread::spawn(move || {
            let comm = Communicator::builder(&id).rank(rank, nranks).config(config.clone()).build();
            let result = f(comm.unwrap_or_else(|e| panic!("rank {rank}: {e}")));
            done.send((rank, result)).expect("the test waits");
        });
    }
    drop(done);
    let mut results: Vec<(u32, T)> = (0..nranks)
        .map(|_| all.recv_timeout(Duration::from_secs(60)).expect("a rank failed or hangs"))
        .collect();
    results.sort_by_key(|result| result.0);
    results.into_iter().map(|result| result.1).collect()
}

/// Settings with which a rank reports a wait after `report`.
fn reporting_after(report: Duration) -> Config {
    Config { report, ..Config::default() }
}
