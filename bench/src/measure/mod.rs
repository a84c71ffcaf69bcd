//! One process of a benchmark: it checks that all processes measure the same, and runs its ranks, a
//! thread each.
//!
//! * [`sweep`] - a rank's way through the table
//! * [`rank`] - a rank's communicator and buffers
//! * [`timing`] - the measured loop
//! * [`check`] - filling buffers and comparing results
//! * [`roof`] - the least time that the machine needs
//! * [`groups`] - groups of processes that are measured at once
//! * [`resources`] - processor time and memory
//! * [`watchdog`] - `-T`
//! * [`progress`] - how many rows are done

mod check;
mod groups;
mod progress;
mod rank;
mod resources;
mod roof;
mod sweep;
mod timing;
mod watchdog;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use maypole::UniqueId;
use serde::{Deserialize, Serialize};

use crate::launch::{LaunchExchange, LaunchedRank};
use crate::operation::traffic::TrafficMatrix;
use crate::options::Options;
use crate::rank_threads::{RankThread, rank_threads};
use crate::report::ListedRank;
use crate::status::{self, Failure};
use groups::RankGroup;
use rank::RankBench;
use watchdog::Watchdog;

/// What all ranks of this process share.
struct ProcessRun {
    options: Options,
    /// The matrix of alltoallv, if a file gives one.
    matrix: Option<TrafficMatrix>,
    processes: Vec<ProcessInfo>,
    watchdog: Watchdog,
    /// Bytes that this process used before its first rank started.
    memory_before: u64,
    /// Whether the largest size is smaller than the options ask for.
    reduced: bool,
}

/// What a process tells the others about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProcessInfo {
    pid: u32,
    host: String,
    /// Bytes of memory that its host has for buffers.
    available_bytes: usize,
    /// Bytes of address space that it has for buffers.
    address_space: u64,
    /// A digest of its options and variables.
    digest: u64,
    /// Its options and variables as the user gave them.
    command_line: String,
}

/// Runs the ranks of this process. Returns the exit status.
pub(crate) fn run(options: Options, launched: LaunchedRank) -> Result<u8, Failure> {
    let memory_before = resources::memory();
    let LaunchedRank { rank: process, nranks, mut exchange } = launched;
    if let Some(wanted) = options.processes.filter(|&n| n != nranks) {
        return Err(Failure::usage(format!(
            "-np {wanted}: a launcher has already started {nranks} processes; leave out -np"
        )));
    }
    let variables = &options.variables;
    let matrix_file = variables.matrix_file.as_deref();
    let matrix =
        matrix_file.map(|path| TrafficMatrix::read(path, variables.matrix_scale)).transpose();
    let processes = exchange_infos(&mut *exchange, &options, matrix.as_ref().ok())?;
    check_agreement(&processes)?;
    let matrix = matrix?;
    let per_process = options.ranks_per_process();
    let watchdog = Watchdog::new(process * per_process, per_process);
    let wanted = options.max_bytes;
    let options = limit_sizes(options, &processes)?;
    let reduced = options.max_bytes < wanted;
    let run = ProcessRun { options, matrix, processes, watchdog, memory_before, reduced };
    let run = Arc::new(run);
    Watchdog::start(&run);
    // The failure of the first rank that fails. The other ranks fail because of it.
    let failed = Mutex::new(None);
    let statuses: Vec<u8> = std::thread::scope(|scope| {
        let ranks = rank_threads(exchange, per_process).into_iter().map(|thread| {
            let (run, failed) = (&run, &failed);
            scope.spawn(move || {
                let rank = process * per_process + thread.index;
                run_rank(run, process, &thread).unwrap_or_else(|failure| {
                    let status = failure.status;
                    let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert_with(|| with_rank(rank, failure));
                    status
                })
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap_or(status::INTERNAL)).collect()
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(statuses.into_iter().max().unwrap_or(status::FINE)),
    }
}

/// The failure with the number of its rank, unless all ranks fail alike.
fn with_rank(rank: u32, failure: Failure) -> Failure {
    if failure.common {
        return failure;
    }
    Failure { text: format!("rank {rank}: {failure}"), ..failure }
}

/// Runs one rank, from its communicator to its exit status.
fn run_rank(run: &ProcessRun, process: u32, thread: &RankThread) -> Result<u8, Failure> {
    let ProcessRun { options, processes, .. } = run;
    let group = RankGroup::new(options, process, processes.len() as u32, thread.index);
    let smallest = group.smallest;
    if let Some(root) = options.root.filter(|&r| r >= smallest && options.operation.rooted()) {
        return Err(Failure::usage(format!("-r {root}: no such rank among {smallest}")));
    }
    let id = if group.rank == 0 { new_id()? } else { Vec::new() };
    let ids = thread.all_gather(&id)?;
    let id = ids.get(group.leader as usize).and_then(|bytes| bytes.as_slice().try_into().ok());
    let id = id.ok_or_else(|| Failure::internal("the first rank of a group sent no unique id"))?;
    let id = UniqueId::from_bytes(id).map_err(|error| Failure::internal(error.to_string()))?;
    let comm = maypole::Communicator::new(&id, group.rank, group.nranks)?;
    RankBench::new(run, thread, comm, group)?.sweep()
}

fn new_id() -> Result<Vec<u8>, Failure> {
    Ok(UniqueId::create().map_err(maypole::Error::from)?.to_bytes().to_vec())
}

/// Exchanges the infos of all processes.
fn exchange_infos(
    exchange: &mut dyn LaunchExchange,
    options: &Options,
    matrix: Option<&Option<TrafficMatrix>>,
) -> Result<Vec<ProcessInfo>, Failure> {
    let mut digest = DefaultHasher::new();
    format!("{options:?} {matrix:?}").hash(&mut digest);
    let mine = ProcessInfo {
        pid: std::process::id(),
        host: maypole::internal::logger::host_name().to_owned(),
        available_bytes: resources::available_memory() as usize / 10 * 9,
        address_space: resources::address_space(),
        digest: digest.finish(),
        command_line: command_line(),
    };
    let mine = serde_json::to_vec(&mine).map_err(|error| Failure::internal(error.to_string()))?;
    let all = exchange.all_gather(&mine)?;
    let all = all.iter().map(|bytes| serde_json::from_slice(bytes));
    all.collect::<Result<_, _>>().map_err(|error| {
        Failure::internal(format!("a process of another version takes part: {error}"))
    })
}

/// The options and variables of this process, in one line.
fn command_line() -> String {
    let mut words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("NCCL_TESTS_"));
    words.extend(variables.map(|(name, value)| format!("{name}={value}")));
    words.join(" ").replace('\n', " ")
}

/// Checks that all processes have the same options and variables.
fn check_agreement(processes: &[ProcessInfo]) -> Result<(), Failure> {
    let Some(other) = processes.iter().position(|p| p.digest != processes[0].digest) else {
        return Ok(());
    };
    let (first, second) = (&processes[0].command_line, &processes[other].command_line);
    Err(Failure::usage(format!(
        "the processes were given different options: process 0 '{first}', process {other} \
         '{second}'"
    )))
}

/// The options with a largest size for which every host has enough memory, and every process enough
/// address space: each rank has two buffers.
fn limit_sizes(options: Options, processes: &[ProcessInfo]) -> Result<Options, Failure> {
    let per_process = options.ranks_per_process() as usize;
    let available = |process: &ProcessInfo| {
        let on_this_host = processes.iter().filter(|p| p.host == process.host).count();
        let of_host = process.available_bytes / (on_this_host * per_process) / 2;
        let of_process = process.address_space / per_process as u64 / 2;
        of_host.min(usize::try_from(of_process).unwrap_or(usize::MAX))
    };
    let available = processes.iter().map(available).min().unwrap_or(usize::MAX);
    if available < options.min_bytes {
        let text = format!(
            "-b {}: not every process has memory for buffers of more than {available} bytes; see \
             the memory of the hosts and ulimit -v",
            options.min_bytes
        );
        return Err(Failure { common: true, ..Failure::system(text) });
    }
    Ok(Options { max_bytes: options.max_bytes.min(available), ..options })
}

impl ProcessRun {
    /// The ranks of all processes, for the header.
    fn listed_ranks(&self) -> Vec<ListedRank> {
        let per_process = self.options.ranks_per_process();
        let ranks_of = |(number, process): (u32, &ProcessInfo)| {
            let color = self.options.variables.split.map_or(0, |split| split.color(number));
            // As in nccl-tests, the ranks of a host have devices one after the other, or those from
            // the number on that the variable gives.
            let before = self.processes[..number as usize].iter();
            let local = before.filter(|other| other.host == process.host).count() as u32;
            let first = self.options.variables.device.unwrap_or(local * per_process);
            let ProcessInfo { pid, host, .. } = process.clone();
            let rank = move |device| ListedRank { group: color, pid, host: host.clone(), device };
            (first..first + per_process).map(rank)
        };
        (0..).zip(&self.processes).flat_map(ranks_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(digest: u64) -> ProcessInfo {
        let command_line = format!("all_reduce -b {digest}");
        let (available_bytes, address_space) = (1 << 30, u64::MAX);
        let host = "a".to_owned();
        ProcessInfo { pid: 1, host, available_bytes, address_space, digest, command_line }
    }

    #[test]
    fn processes_that_differ_are_named() {
        assert_eq!(check_agreement(&[process(1), process(1)]), Ok(()));
        let failure = check_agreement(&[process(1), process(1), process(2)]).unwrap_err();
        assert_eq!((failure.status, failure.common), (status::USAGE, true));
        assert!(failure.text.contains("process 2 'all_reduce -b 2'"), "{failure}");
    }

    #[test]
    fn sizes_are_limited_by_the_host_with_the_least_memory() {
        let options = Options { max_bytes: 1 << 40, min_bytes: 8, ..Options::default() };
        let mut processes = vec![process(1), process(1)];
        assert_eq!(limit_sizes(options.clone(), &processes).unwrap().max_bytes, 1 << 28);
        processes[1] = ProcessInfo { host: "b".to_owned(), available_bytes: 1 << 20, ..process(1) };
        assert_eq!(limit_sizes(options.clone(), &processes).unwrap().max_bytes, 1 << 19);
        let narrow = ProcessInfo { address_space: 1 << 10, ..process(1) };
        assert_eq!(limit_sizes(options.clone(), &[narrow]).unwrap().max_bytes, 1 << 9);
        let options = Options { min_bytes: 1 << 20, ..options };
        assert_eq!(limit_sizes(options, &processes).unwrap_err().status, status::SYSTEM);
    }
}
