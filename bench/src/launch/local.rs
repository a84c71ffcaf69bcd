//! `-np N`: starts this program again as N processes of this host, carries what they exchange, and ends them all when one fails.
//!
//! Nothing is left behind: every process asks the kernel for SIGKILL when the launcher dies, of whatever.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use super::socket::{self, Inherited};
use super::{Exchange, Place};
use crate::status;

/// The variable that tells a process its rank and how many there are: `2/8`. Its standard input is its socket.
const VARIABLE: &str = "MAYPOLE_BENCH_PLACE";

/// Set to 1, processes are not bound to cores.
pub(crate) const UNBOUND: &str = "MAYPOLE_BENCH_UNBOUND";

/// How long the others may take to fail too, or to finish, once a rank has ended.
const GRACE: Duration = Duration::from_secs(2);

/// What a rank does.
enum Event {
    /// It gave this to the exchange.
    Gave(u32, Vec<u8>),
    /// It closed its socket: it has ended, or is about to.
    Left(u32),
}

/// The place of a process that [`launch`] started.
pub(super) fn place() -> io::Result<Option<Place>> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let text = text.to_string_lossy();
    let numbers = text.split_once('/').and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    let Some((rank, nranks)) = numbers.filter(|&(rank, nranks): &(u32, u32)| rank < nranks) else {
        let what = format!("{VARIABLE}={text} is for maypole bench -np to set; unset it");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let exchange: Box<dyn Exchange> = Box::new(Inherited::take(nranks)?);
    Ok(Some(Place { rank, nranks, exchange }))
}

/// True if [`launch`] started this process.
pub(super) fn placed() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Runs `program(rank)` for every rank, each bound to a core if `bind`, and returns the exit status for all.
pub(crate) fn launch(
    program: &mut dyn FnMut(u32) -> io::Result<Command>,
    nranks: u32,
    bind: bool,
) -> io::Result<u8> {
    let (events, inbox) = mpsc::channel();
    let mut ranks = Ranks::default();
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
        // Who ended has told why.
        Some(Failure { end, .. }) if end.code().is_some_and(told) => end.code().unwrap_or(0) as u8,
        Some(Failure { rank, end }) => {
            eprintln!("maypole: rank {rank} {}{others}", describe(end));
            end.code().unwrap_or_else(|| 128 + end.signal().unwrap_or(0)) as u8
        }
    })
}

/// Statuses that a process ends with only after it, or rank 0, has said why.
fn told(status: i32) -> bool {
    [status::WRONG, status::USAGE, status::UNSUPPORTED, status::TIMEOUT]
        .into_iter()
        .any(|s| status == i32::from(s))
}

/// This program again, with the same arguments.
pub(crate) fn myself() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    Ok(command)
}

/// The core that the process of that rank is bound to, in turns over those that this process may use: else the kernel may leave two
/// ranks on one core for good, since ranks that wait for each other there keep it no more than half busy. None if `UNBOUND` is set.
fn core_of(rank: u32) -> Option<libc::cpu_set_t> {
    if std::env::var_os(UNBOUND).is_some_and(|value| value != "0") {
        return None;
    }
    // SAFETY: an all-zero set is a valid one, and the kernel writes no more than its size.
    let (allowed, ended) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let ended = libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
        (set, ended)
    };
    if ended != 0 {
        return None;
    }
    // SAFETY: the numbers are below that of the bits of a set.
    let cores: Vec<_> = (0..8 * size_of_val(&allowed))
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &allowed) })
        .collect();
    let core = *cores.get(rank as usize % cores.len().max(1))?;
    // SAFETY: as above.
    Some(unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    })
}

/// Why a run did not end well.
struct Failure {
    rank: u32,
    end: ExitStatus,
}

#[derive(Default)]
struct Ranks {
    children: Vec<Child>,
    sockets: Vec<UnixStream>,
}

impl Ranks {
    fn start(
        &mut self,
        mut command: Command,
        (rank, nranks): (u32, u32),
        core: Option<libc::cpu_set_t>,
        events: Sender<Event>,
    ) -> io::Result<()> {
        let (mine, theirs) = UnixStream::pair()?;
        let launcher = std::process::id();
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.env(VARIABLE, format!("{rank}/{nranks}"));
        // SAFETY: prctl, getppid, sched_setaffinity and _exit are async-signal-safe, and the closure touches nothing else.
        unsafe {
            command.pre_exec(move || {
                if let Some(core) = &core {
                    // A process that stays unbound is only slower.
                    libc::sched_setaffinity(0, size_of_val(core), core);
                }
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The launcher may have died before the kernel knew that it matters.
                if libc::getppid().cast_unsigned() != launcher {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        self.children.push(command.spawn()?);
        let mut from = mine.try_clone()?;
        self.sockets.push(mine);
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
            while let Ok(bytes) = socket::receive(&mut from) {
                if events.send(Event::Gave(rank, bytes)).is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Left(rank));
        })?;
        Ok(())
    }

    /// Carries exchanges until all ranks have ended, or one has failed.
    fn serve(&mut self, inbox: &Receiver<Event>) -> io::Result<Option<Failure>> {
        let mut given: Vec<Option<Vec<u8>>> = vec![None; self.children.len()];
        let mut left = vec![false; self.children.len()];
        while let Ok(event) = inbox.recv() {
            match event {
                Event::Gave(rank, bytes) => {
                    given[rank as usize] = Some(bytes);
                    if given.iter().all(Option::is_some) {
                        self.scatter(given.iter_mut().filter_map(Option::take).collect());
                    }
                }
                Event::Left(rank) => {
                    left[rank as usize] = true;
                    // Its end closed the socket, so this takes a moment at most, unless it closed its standard input.
                    let end = self.children[rank as usize].wait()?;
                    if !end.success() {
                        return Ok(Some(self.cause(rank, end)));
                    }
                    if left.iter().all(|&left| left) {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Gives everyone what all gave. Who cannot be written to has ended, which is seen elsewhere.
    fn scatter(&mut self, all: Vec<Vec<u8>>) {
        for socket in &mut self.sockets {
            for bytes in &all {
                if socket::send(socket, bytes).is_err() {
                    break;
                }
            }
        }
    }

    /// Which failure to report when `rank` was the first that was seen to fail: a rank that was killed makes the others
    /// fail too, and those may be seen first.
    fn cause(&mut self, rank: u32, end: ExitStatus) -> Failure {
        let deadline = Instant::now() + GRACE;
        loop {
            let ends = self.children.iter_mut().map(|child| child.try_wait().ok().flatten());
            let ends: Vec<_> = ends.collect();
            let killed = ends.iter().position(|end| end.is_some_and(|end| end.signal().is_some()));
            if let Some(killed) = killed {
                return Failure { rank: killed as u32, end: ends[killed].unwrap_or(end) };
            }
            if ends.iter().all(Option::is_some) || Instant::now() > deadline {
                return Failure { rank, end };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends who has not ended yet, and waits for all.
    fn stop(&mut self) {
        for child in &mut self.children {
            // An error means that it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Ranks {
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
    fn a_killed_rank_is_the_cause_even_if_others_fail_of_it() {
        assert_eq!(shell(&["exit 3", "kill -9 $$"]), 137);
    }

    #[test]
    fn ranks_get_what_all_gave() {
        // Each gives one byte, and succeeds if it reads both back: 2 * (4 + 1) bytes.
        let script = r"printf '\1\0\0\0x' >&0; test $(head -c 10 | tr -dc x | wc -c) = 2";
        assert_eq!(shell(&[script, script]), 0);
    }
}
