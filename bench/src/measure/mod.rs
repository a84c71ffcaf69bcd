//! A process of a benchmark: it agrees with the others on what is measured, and runs its ranks, a thread each.
//!
//! * [`rank`] - a rank's way through the table
//! * [`timing`] - the measured loop
//! * [`check`] - buffers filled, results compared
//! * [`roof`] - what the machine could do
//! * [`resources`] - processor time and memory
//! * [`watchdog`] - -T

mod check;
mod groups;
mod progress;
mod rank;
mod resources;
mod roof;
mod timing;
mod watchdog;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use maypole::UniqueId;

use crate::launch::{LaunchExchange, LaunchedRank};
use crate::operation::traffic::Matrix;
use crate::options::Options;
use crate::rank_threads::{Member, crew};
use crate::report::Participant;
use crate::status::{self, Failure};
use groups::Group;
use watchdog::Watchdog;

/// What all ranks of this process share.
struct Team {
    options: Options,
    matrix: Option<Matrix>,
    processes: Vec<Process>,
    watchdog: Watchdog,
    /// Bytes that this process had before there was a rank.
    before: u64,
    /// The largest size is smaller than was asked for.
    reduced: bool,
}

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    host: String,
    /// Bytes of memory that a rank's buffer may have there.
    room: usize,
    /// A digest of its options and variables.
    digest: u64,
    /// They as they were given.
    line: String,
}

/// Runs the ranks of the process at `place`; returns the exit status.
pub(crate) fn run(options: Options, place: LaunchedRank) -> Result<u8, Failure> {
    let before = resources::memory();
    let LaunchedRank { rank: process, nranks, mut exchange } = place;
    if let Some(wanted) = options.processes.filter(|&n| n != nranks) {
        let text =
            format!("-np {wanted}: a launcher has started {nranks} processes; leave -np away");
        return Err(Failure::usage(text));
    }
    let matrix = Matrix::named(&options.variables);
    let processes = introduce(&mut *exchange, &options, matrix.as_ref().ok())?;
    agree(&processes)?;
    let matrix = matrix?;
    let per_process = options.ranks_per_process();
    let watchdog = Watchdog::new(process * per_process, per_process);
    let wanted = options.max_bytes;
    let options = limit(options, &processes)?;
    let reduced = options.max_bytes < wanted;
    let team = Arc::new(Team { options, matrix, processes, watchdog, before, reduced });
    Watchdog::start(&team);
    // What ended a rank first; the others end of it.
    let failed = Mutex::new(None);
    let statuses: Vec<u8> = std::thread::scope(|scope| {
        let ranks = crew(exchange, per_process).into_iter().map(|member| {
            let (team, failed) = (&team, &failed);
            scope.spawn(move || {
                let rank = process * per_process + member.index;
                one(team, process, &member).unwrap_or_else(|failure| {
                    let status = failure.status;
                    let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert_with(|| named(rank, failure));
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

/// What the failure of a rank is called by its process.
fn named(rank: u32, failure: Failure) -> Failure {
    if failure.common {
        return failure;
    }
    Failure { text: format!("rank {rank}: {failure}"), ..failure }
}

/// One rank, from its communicator to its result.
fn one(team: &Team, process: u32, member: &Member) -> Result<u8, Failure> {
    let Team { options, processes, .. } = team;
    let group = Group::new(options, process, processes.len() as u32, member.index);
    if let Some(root) = options.root.filter(|&r| r >= group.smallest && options.operation.rooted())
    {
        let text = format!("-r {root}: no such rank among {}", group.smallest);
        return Err(Failure::usage(text));
    }
    let id = if group.rank == 0 { new_id()? } else { Vec::new() };
    let ids = member.all_gather(&id)?;
    let id = ids.get(group.leader as usize).and_then(|bytes| bytes.as_slice().try_into().ok());
    let id = id.ok_or_else(|| Failure::internal("a group's first rank gave no unique id"))?;
    let id = UniqueId::from_bytes(id).map_err(|error| Failure::internal(error.to_string()))?;
    let comm = maypole::Communicator::new(&id, group.rank, group.nranks)?;
    rank::Bench::new(team, member, comm, group)?.sweep()
}

fn new_id() -> Result<Vec<u8>, Failure> {
    Ok(UniqueId::create().map_err(maypole::Error::from)?.to_bytes().to_vec())
}

/// Tells all processes of this one, and returns what they say.
fn introduce(
    exchange: &mut dyn LaunchExchange,
    options: &Options,
    matrix: Option<&Option<Matrix>>,
) -> Result<Vec<Process>, Failure> {
    let mut digest = DefaultHasher::new();
    format!("{options:?} {matrix:?}").hash(&mut digest);
    let mine = Process {
        pid: std::process::id(),
        host: maypole::internal::logger::host_name().to_owned(),
        room: resources::available_memory() as usize / 10 * 9,
        digest: digest.finish(),
        line: given(),
    };
    let all = exchange.all_gather(mine.to_text().as_bytes())?;
    let all = all.iter().map(|bytes| Process::from_text(&String::from_utf8_lossy(bytes)));
    all.collect::<Option<_>>().ok_or_else(|| Failure::internal("a process gave no name"))
}

/// The options and variables of this process, in one line.
fn given() -> String {
    let mut words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let of_tests = |name: &str| name.starts_with("NCCL_TESTS_");
    words.extend(
        std::env::vars().filter(|(name, _)| of_tests(name)).map(|(n, v)| format!("{n}={v}")),
    );
    words.join(" ").replace('\n', " ")
}

/// Every rank must measure the same.
fn agree(processes: &[Process]) -> Result<(), Failure> {
    let Some(other) = processes.iter().position(|p| p.digest != processes[0].digest) else {
        return Ok(());
    };
    let (first, second) = (&processes[0].line, &processes[other].line);
    Err(Failure::usage(format!(
        "the processes were given different options: process 0 '{first}', process {other} '{second}'"
    )))
}

/// The options with the sizes that fit everybody's memory: each rank has two buffers.
fn limit(options: Options, processes: &[Process]) -> Result<Options, Failure> {
    let per_process = options.ranks_per_process() as usize;
    let room = |process: &Process| {
        let neighbours = processes.iter().filter(|p| p.host == process.host).count();
        process.room / (neighbours * per_process) / 2
    };
    let room = processes.iter().map(room).min().unwrap_or(usize::MAX);
    if room < options.min_bytes {
        let least = options.min_bytes;
        let text =
            format!("-b {least}: not every host has memory for buffers of more than {room} bytes");
        return Err(Failure { common: true, ..Failure::system(text) });
    }
    Ok(Options { max_bytes: options.max_bytes.min(room), ..options })
}

impl Team {
    /// The ranks of all processes, for the header.
    fn participants(&self) -> Vec<Participant> {
        let per_process = self.options.ranks_per_process();
        let of = |(number, process): (u32, &Process)| {
            let color = self.options.variables.split.map_or(0, |split| split.color(number));
            let Process { pid, host, .. } = process.clone();
            let device = self.options.variables.device;
            let one = Participant { group: color, pid, host, device };
            std::iter::repeat_n(one, per_process as usize)
        };
        (0..).zip(&self.processes).flat_map(of).collect()
    }
}

impl Process {
    fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n{}\n{}", self.pid, self.host, self.room, self.digest, self.line)
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.splitn(5, '\n');
        Some(Self {
            pid: lines.next()?.parse().ok()?,
            host: lines.next()?.to_owned(),
            room: lines.next()?.parse().ok()?,
            digest: lines.next()?.parse().ok()?,
            line: lines.next()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(digest: u64) -> Process {
        let line = format!("all_reduce -b {digest}");
        Process { pid: 1, host: "a".to_owned(), room: 1 << 30, digest, line }
    }

    #[test]
    fn what_a_process_says_arrives() {
        let mine = process(7);
        assert_eq!(Process::from_text(&mine.to_text()), Some(mine));
        assert_eq!(Process::from_text("1\na"), None);
    }

    #[test]
    fn processes_that_differ_are_named() {
        assert_eq!(agree(&[process(1), process(1)]), Ok(()));
        let failure = agree(&[process(1), process(1), process(2)]).unwrap_err();
        assert_eq!((failure.status, failure.common), (status::USAGE, true));
        assert!(failure.text.contains("process 2 'all_reduce -b 2'"), "{failure}");
    }

    #[test]
    fn sizes_are_limited_by_the_scarcest_memory() {
        let options = Options { max_bytes: 1 << 40, min_bytes: 8, ..Options::default() };
        let mut processes = vec![process(1), process(1)];
        assert_eq!(limit(options.clone(), &processes).unwrap().max_bytes, 1 << 28);
        processes[1] = Process { host: "b".to_owned(), room: 1 << 20, ..process(1) };
        assert_eq!(limit(options.clone(), &processes).unwrap().max_bytes, 1 << 19);
        let options = Options { min_bytes: 1 << 20, ..options };
        assert_eq!(limit(options, &processes).unwrap_err().status, status::SYSTEM);
    }
}
