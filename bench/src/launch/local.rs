//! The launcher of `-np N`: starts this program again as N processes of this host, carries their
//! exchanges, and ends them all when one fails.
//!
//! No process is left behind: each asks the kernel for SIGKILL when the launcher dies for any
//! reason.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use maypole::launch::{LaunchedRank, read_message, write_message};

use super::inherited_socket::InheritedSocket;
use crate::status;

/// The variable that tells a process its rank and the number of ranks, as `2/8`. The standard input
/// of the process is its socket to the launcher.
const VARIABLE: &str = "MAYPOLE_BENCH_PLACE";

/// The variable that, set to 1, prevents that processes are bound to cores.
const UNBOUND: &str = "MAYPOLE_BENCH_UNBOUND";

/// How long the other ranks may take to fail too, or to finish, after one has failed.
const GRACE: Duration = Duration::from_secs(2);

/// What the launcher learns about a rank.
enum RankEvent {
    /// The rank contributed these bytes to the exchange.
    Contributed(u32, Vec<u8>),
    /// The rank closed its socket: it has ended, or is about to.
    Closed(u32),
}

/// The rank of this process if [`launch`] started it.
pub(super) fn launched_rank() -> io::Result<Option<LaunchedRank>> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let text = text.to_string_lossy();
    let numbers = text.split_once('/').and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    let Some((rank, nranks)) = numbers.filter(|&(rank, nranks): &(u32, u32)| rank < nranks) else {
        let what = format!("{VARIABLE}={text}: only maypole bench -np may set it; unset it");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let exchange = Box::new(InheritedSocket::from_stdin(nranks)?);
    Ok(Some(LaunchedRank { rank, nranks, exchange }))
}

/// Whether [`launch`] started this process.
pub(crate) fn is_launched() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Runs `program(rank)` for every rank, each bound to a core if `bind`, and returns the exit status
/// of the whole run.
pub(crate) fn launch(
    program: &mut dyn FnMut(u32) -> io::Result<Command>,
    nranks: u32,
    bind: bool,
) -> io::Result<u8> {
    let (events, inbox) = mpsc::channel();
    let mut ranks = RankProcesses::default();
    for rank in 0..nranks {
        let core = if bind { core_of(rank) } else { None };
        ranks.start(program(rank)?, (rank, nranks), core, events.clone())?;
    }
    drop(events);
    let failure = ranks.serve(&inbox)?;
    let all_ended = ranks.children.iter_mut().all(|child| !matches!(child.try_wait(), Ok(None)));
    let others = if all_ended { "" } else { "; the others were stopped" };
    ranks.stop();
    Ok(match failure {
        None => status::FINE,
        Some(RankFailure { end, .. }) if end.code().is_some_and(is_explained) => {
            end.code().unwrap_or(0) as u8
        }
        Some(RankFailure { rank, end }) => {
            eprintln!("maypole: rank {rank} {}{others}", describe(end));
            end.code().unwrap_or_else(|| 128 + end.signal().unwrap_or(0)) as u8
        }
    })
}

/// Whether a process ends with this status only after it, or rank 0, has said why.
fn is_explained(status: i32) -> bool {
    [status::WRONG, status::USAGE, status::UNSUPPORTED, status::TIMEOUT]
        .into_iter()
        .any(|s| status == i32::from(s))
}

/// A command that runs this program again, with the same arguments.
pub(crate) fn this_program() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    Ok(command)
}

/// The core for the process of that rank: the cores that this process may use, in turns. None if
/// `UNBOUND` is set.
///
/// Without this, the kernel may leave two ranks on one core for the whole run, because two ranks
/// that wait for each other there keep it no more than half busy.
fn core_of(rank: u32) -> Option<libc::cpu_set_t> {
    if std::env::var_os(UNBOUND).is_some_and(|value| value != "0") {
        return None;
    }
    // SAFETY: an all-zero set is valid, and the kernel writes no more than its size.
    let (allowed, status) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let status = libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
        (set, status)
    };
    if status != 0 {
        return None;
    }
    // SAFETY: each number is below the number of bits of the set.
    let cores: Vec<_> = (0..8 * size_of_val(&allowed))
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &allowed) })
        .collect();
    let core = *cores.get(rank as usize % cores.len().max(1))?;
    // SAFETY: an all-zero set is valid, and `core` is below its number of bits, as above.
    Some(unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    })
}

/// The rank whose failure ended the run.
struct RankFailure {
    rank: u32,
    end: ExitStatus,
}

/// The processes of all ranks, and the launcher's sockets to them.
#[derive(Default)]
struct RankProcesses {
    children: Vec<Child>,
    sockets: Vec<UnixStream>,
}

impl RankProcesses {
    fn start(
        &mut self,
        mut command: Command,
        (rank, nranks): (u32, u32),
        core: Option<libc::cpu_set_t>,
        events: Sender<RankEvent>,
    ) -> io::Result<()> {
        let (mine, theirs) = UnixStream::pair()?;
        let launcher = std::process::id();
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.env(VARIABLE, format!("{rank}/{nranks}"));
        // SAFETY: prctl, getppid, sched_setaffinity and _exit are async-signal-safe, and the
        // closure uses nothing else after the fork.
        unsafe {
            command.pre_exec(move || {
                if let Some(core) = &core {
                    // A failure is ignored: a process that stays unbound is only slower.
                    libc::sched_setaffinity(0, size_of_val(core), core);
                }
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The launcher may have died before the prctl.
                if libc::getppid().cast_unsigned() != launcher {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        self.children.push(command.spawn()?);
        let mut reader = mine.try_clone()?;
        self.sockets.push(mine);
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
            while let Ok(bytes) = read_message(&mut reader) {
                if events.send(RankEvent::Contributed(rank, bytes)).is_err() {
                    return;
                }
            }
            let _ = events.send(RankEvent::Closed(rank));
        })?;
        Ok(())
    }

    /// Carries exchanges until all ranks have ended or one has failed.
    fn serve(&mut self, inbox: &Receiver<RankEvent>) -> io::Result<Option<RankFailure>> {
        let mut contributions: Vec<Option<Vec<u8>>> = vec![None; self.children.len()];
        let mut closed = vec![false; self.children.len()];
        while let Ok(event) = inbox.recv() {
            match event {
                RankEvent::Contributed(rank, bytes) => {
                    contributions[rank as usize] = Some(bytes);
                    if contributions.iter().all(Option::is_some) {
                        let all = contributions.iter_mut().filter_map(Option::take).collect();
                        self.send_to_all(all);
                    }
                }
                RankEvent::Closed(rank) => {
                    closed[rank as usize] = true;
                    // The process closed its socket by ending, so this wait is short, unless it
                    // closed its standard input itself.
                    let end = self.children[rank as usize].wait()?;
                    if !end.success() {
                        return Ok(Some(self.cause(rank, end)));
                    }
                    if closed.iter().all(|&closed| closed) {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Sends the contributions of all ranks to every rank. A rank whose socket fails has ended,
    /// which `serve` notices.
    fn send_to_all(&mut self, all: Vec<Vec<u8>>) {
        for socket in &mut self.sockets {
            for bytes in &all {
                if write_message(socket, bytes).is_err() {
                    break;
                }
            }
        }
    }

    /// The failure to report when `rank` was the first that was seen to fail. A rank that was
    /// killed makes the others fail too, and their failures may be seen first.
    fn cause(&mut self, rank: u32, end: ExitStatus) -> RankFailure {
        let deadline = Instant::now() + GRACE;
        loop {
            let ends = self.children.iter_mut().map(|child| child.try_wait().ok().flatten());
            let ends: Vec<_> = ends.collect();
            let killed = ends.iter().position(|end| end.is_some_and(|end| end.signal().is_some()));
            if let Some(killed) = killed {
                return RankFailure { rank: killed as u32, end: ends[killed].unwrap_or(end) };
            }
            if ends.iter().all(Option::is_some) || Instant::now() > deadline {
                return RankFailure { rank, end };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the processes that have not ended, and waits for all.
    fn stop(&mut self) {
        for child in &mut self.children {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for RankProcesses {
    fn drop(&mut self) {
        self.stop();
    }
}

fn describe(end: ExitStatus) -> String {
    match (end.code(), end.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(scripts: &[&'static str]) -> u8 {
        let mut program = |rank: u32| {
            let mut command = Command::new("sh");
            command.args(["-c", scripts[rank as usize]]);
            Ok(command)
        };
        launch(&mut program, scripts.len() as u32, true).unwrap()
    }

    #[test]
    fn the_exit_status_of_a_failing_rank_is_passed_on() {
        assert_eq!(shell(&["exit 0", "exit 0"]), 0);
        assert_eq!(shell(&["exec sleep 1000", "exit 5"]), 5);
        assert_eq!(shell(&["exit 7", "exit 7"]), 7);
    }

    #[test]
    fn a_killed_rank_is_reported_rather_than_those_that_fail_because_of_it() {
        assert_eq!(shell(&["exit 3", "kill -9 $$"]), 137);
    }

    #[test]
    fn every_rank_gets_all_contributions() {
        // Each contributes one byte, and succeeds if it reads both back: 2 * (4 + 1) bytes.
        let script = r"printf '\1\0\0\0x' >&0; test $(head -c 10 | tr -dc x | wc -c) = 2";
        assert_eq!(shell(&[script, script]), 0);
    }
}
