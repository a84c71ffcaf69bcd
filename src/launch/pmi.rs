//! The variables and the protocol of PMI-1, of MPICH's Hydra, Intel MPI and others: lines of
//! `name=value` words over an inherited socket, `PMI_FD`.
//!
//! Rank 0 puts one value, all ranks wait at a barrier, the others get the value; then the channel
//! is closed. The value is as safe as the launcher's own connections: on one host these are sockets
//! of this user, between hosts they are what Hydra uses.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::job::{LauncherJob, RendezvousMethod, VariableLookup, number, rank_of_nranks};

const NAME: &str = "PMI-1 (mpirun of MPICH or Intel MPI)";

/// The key of the value.
const KEY: &str = "maypole-launch";

pub(super) fn job(lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    let rank_and_size = rank_of_nranks(lookup, "PMI_RANK", "PMI_SIZE")?;
    let (Some((rank, nranks)), Some(fd)) = (rank_and_size, number(lookup, "PMI_FD")?) else {
        return match (rank_and_size, lookup("PMI_PORT"), lookup("PMIX_NAMESPACE")) {
            // Slurm sets PMI_RANK and PMI_SIZE with every --mpi.
            _ if lookup("SLURM_STEP_ID").is_some() => Ok(None),
            (Some((rank, nranks)), port, None) if nranks > 1 => Err(format!(
                "PMI_RANK={rank} of PMI_SIZE={nranks}, but PMI_FD is not set{}: this program \
                 speaks PMI-1 over PMI_FD, which mpirun of MPICH and of Intel MPI set",
                port.map_or(String::new(), |it| format!(
                    " (PMI_PORT={it} is, and is not supported)"
                ))
            )),
            _ => Ok(None),
        };
    };
    let fd = RawFd::try_from(fd).map_err(|_| format!("PMI_FD={fd} is not a descriptor"))?;
    Ok(Some(LauncherJob { launcher: NAME, rank, nranks, method: RendezvousMethod::Pmi(fd) }))
}

/// Broadcasts rank 0's text, which is `mine` there, to all ranks, until `deadline`.
pub(super) fn broadcast(
    fd: RawFd,
    rank: u32,
    mine: Option<&str>,
    deadline: Instant,
) -> io::Result<String> {
    // SAFETY: fcntl accepts any number, and fails if it is not an open descriptor.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(failed(&format!(
            "PMI_FD={fd} is not open; did a wrapper of this program close it?"
        )));
    }
    // SAFETY: the descriptor is open, as fcntl just showed, and is only borrowed for the copy.
    let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
    let session = PmiSession::new(UnixStream::from(copy), deadline);
    // The descriptor is the launcher's: it must not keep a timeout.
    session.and_then(|mut session| {
        let text = session.broadcast(rank, mine);
        session.send.set_read_timeout(None)?;
        session.send.set_write_timeout(None)?;
        text
    })
}

/// The conversation with the launcher over its channel.
struct PmiSession {
    send: UnixStream,
    receive: BufReader<UnixStream>,
    deadline: Instant,
}

impl PmiSession {
    fn new(socket: UnixStream, deadline: Instant) -> io::Result<Self> {
        Ok(Self { send: socket.try_clone()?, receive: BufReader::new(socket), deadline })
    }

    fn broadcast(&mut self, rank: u32, mine: Option<&str>) -> io::Result<String> {
        self.request("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init")?;
        let name = self.request("cmd=get_my_kvsname", "my_kvsname")?;
        let name =
            word(&name, "kvsname").ok_or_else(|| failed("the answer names no key-value space"))?;
        let name = name.to_owned();
        if let Some(value) = mine.filter(|_| rank == 0) {
            let put = format!("cmd=put kvsname={name} key={KEY} value={value}");
            self.request(&put, "put_result")?;
        }
        self.request("cmd=barrier_in", "barrier_out")?;
        let got = self.request(&format!("cmd=get kvsname={name} key={KEY}"), "get_result")?;
        let value = word(&got, "value").ok_or_else(|| failed("the answer has no value"))?;
        self.request("cmd=finalize", "finalize_ack")?;
        Ok(value.to_owned())
    }

    /// Sends a line; returns the answer, which must be of this kind and must not report a failure.
    fn request(&mut self, line: &str, kind: &str) -> io::Result<String> {
        // A launcher that answers in part and then stops would be waited for twice as long.
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Some(left.max(Duration::from_millis(1)));
        self.send.set_write_timeout(left)?;
        self.send.set_read_timeout(left)?;
        let mut answer = String::new();
        let sent = self.send.write_all(format!("{line}\n").as_bytes());
        match sent.and_then(|()| self.receive.read_line(&mut answer)) {
            Ok(0) => return Err(failed("the launcher closed it")),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let command = word(line, "cmd").unwrap_or_default();
                return Err(io::Error::new(ErrorKind::TimedOut, timed_out(command)));
            }
            Err(error) => return Err(error),
        }
        let succeeded = word(&answer, "rc").is_none_or(|rc| rc == "0");
        if word(&answer, "cmd") != Some(kind) || !succeeded {
            // The line may hold the secret, so only its command is shown. A wrong answer holds
            // none.
            let command = word(line, "cmd").unwrap_or_default();
            return Err(failed(&format!(
                "the launcher answered {command} with: {}",
                answer.trim()
            )));
        }
        Ok(answer)
    }
}

fn timed_out(command: &str) -> String {
    format!(
        "the launcher's PMI-1 channel: no answer to {command} within MAYPOLE_INIT_TIMEOUT; all \
         processes of the job must run this program, or another one that uses Maypole"
    )
}

fn failed(why: &str) -> io::Error {
    io::Error::other(format!("the launcher's PMI-1 channel: {why}"))
}

/// The value of a word of a line. A value has no blanks; only `msg`, which comes last, may have.
fn word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::variables;
    use super::*;

    fn job_in(set: &[(&str, &str)]) -> Result<Option<LauncherJob>, String> {
        job(&variables(set))
    }

    /// A launcher of two processes, which answers a `get` with `last`, where % stands for the
    /// value.
    fn launcher(sockets: Vec<UnixStream>, last: &'static str) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let mut value = String::new();
            let mut waiting = Vec::new();
            let mut readers: Vec<_> =
                sockets.iter().map(|it| BufReader::new(it.try_clone().unwrap())).collect();
            // It serves one process up to its barrier, then the other; then each to its end.
            for phase in 0..2 {
                for (at, reader) in readers.iter_mut().enumerate() {
                    if phase == 1 {
                        (&sockets[at]).write_all(b"cmd=barrier_out\n").unwrap();
                    }
                    let mut line = String::new();
                    while {
                        line.clear();
                        reader.read_line(&mut line).unwrap() > 0
                    } {
                        let answer = match word(&line, "cmd").unwrap() {
                            "init" => "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0"
                                .to_owned(),
                            "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1".to_owned(),
                            "put" => {
                                value = word(&line, "value").unwrap().to_owned();
                                "cmd=put_result rc=0 msg=success".to_owned()
                            }
                            "barrier_in" => {
                                waiting.push(at);
                                break;
                            }
                            "get" => last.replace('%', &value),
                            "finalize" => "cmd=finalize_ack".to_owned(),
                            other => panic!("{other}"),
                        };
                        (&sockets[at]).write_all(format!("{answer}\n").as_bytes()).unwrap();
                        if answer == "cmd=finalize_ack" {
                            break;
                        }
                    }
                }
            }
        })
    }

    fn run(last: &'static str) -> Vec<io::Result<String>> {
        let (theirs, ours): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
        let launcher = launcher(theirs, last);
        let ranks: Vec<_> = (0..)
            .zip(ours)
            .map(|(rank, socket)| {
                std::thread::spawn(move || {
                    let mine = format!("secret@{rank}");
                    let deadline = Instant::now() + Duration::from_secs(60);
                    let mut session = PmiSession::new(socket, deadline)?;
                    session.broadcast(rank, (rank == 0).then_some(&*mine))
                })
            })
            .collect();
        let got = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        launcher.join().unwrap();
        got
    }

    #[test]
    fn all_ranks_get_the_value_of_rank_0() {
        let got = run("cmd=get_result rc=0 msg=success value=%");
        assert_eq!(
            got.iter().map(|it| it.as_deref().unwrap()).collect::<Vec<_>>(),
            ["secret@0"; 2]
        );
    }

    #[test]
    fn a_failed_request_is_an_error() {
        for got in run("cmd=get_result rc=-1 msg=key_not_found value=unknown") {
            let error = got.unwrap_err().to_string();
            assert!(error.contains("answered get with: cmd=get_result rc=-1"), "{error}");
        }
    }

    #[test]
    fn missing_pmi_fd_is_an_error() {
        let error =
            job_in(&[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("PMI_PORT", "n1:7")]).unwrap_err();
        assert!(error.contains("PMI_FD is not set (PMI_PORT=n1:7"), "{error}");
        assert_eq!(job_in(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]), Ok(None));
        let error = broadcast(9999, 1, None, Instant::now()).unwrap_err();
        assert!(error.to_string().contains("not open"));
    }

    /// As if another process of the job never came to the barrier.
    #[test]
    fn a_launcher_that_does_not_answer_is_an_error_in_time() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let answers = "cmd=response_to_init rc=0\ncmd=my_kvsname kvsname=k\n";
        (&theirs).write_all(answers.as_bytes()).unwrap();
        let mut session =
            PmiSession::new(ours, Instant::now() + Duration::from_millis(50)).unwrap();
        let error = session.broadcast(1, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("no answer to barrier_in"), "{error}");
    }
}
