//! The communicators of this host that live now, as their processes tell: what `maypole ps` shows.
//!
//! A process with communicators listens at the abstract socket `maypole/PID/START` (`StatusServer`), which is served by its service
//! thread and tells what the `record` holds anyway: no call is slowed by it. Only the same user or root is
//! answered, which the kernel vouches for, and only answers of the same user are believed (all, if root asks). The name is in
//! `/proc/net/unix`, so nothing is left behind and nothing is found from another network namespace.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;

use super::ControlShared;
use crate::bootstrap::{Take, put_text};
use crate::process::{ProcessIdentity, ProcessState};

/// What every name begins with, as `/proc/net/unix` shows it.
const PREFIX: &str = "@maypole/";
/// First byte of an answer.
const VERSION: u8 = 1;
/// An answer must fit the buffer of a socket, so that the service thread never waits for who asked.
const MOST_BYTES: usize = 64 << 10;
/// In place of a rank.
const NOBODY: u32 = u32::MAX;

/// A process of this host that has, or had a moment ago, communicators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStatus {
    /// Its number; 0 if it cannot be seen from here, as in another container.
    pub pid: u32,
    /// Its user's number.
    pub uid: u32,
    /// Its name, as the kernel has it.
    pub command: String,
    /// What it says.
    pub answer: StatusAnswer,
}

/// What a process says of its communicators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusAnswer {
    /// These it has, and so many more that did not fit.
    Communicators(Vec<CommunicatorStatus>, u32),
    /// Nothing: it is stopped, by a signal or a debugger.
    Stopped,
    /// Nothing within the time.
    Silent,
}

/// One communicator, as one of its ranks knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommunicatorStatus {
    /// The same on all ranks of the communicator, and in no other.
    pub key: u64,
    /// The rank that tells.
    pub rank: Rank,
    /// How many there are.
    pub nranks: u32,
    /// Calls begun.
    pub sequence: u64,
    /// Whether it waits in that call; a call that never had to wait is not seen from outside.
    pub in_call: bool,
    /// The current or last call, in words.
    pub call: String,
    /// Whom it waits for.
    pub waits_for: Option<Rank>,
    /// How long it has been in the call since its first long wait.
    pub waited: Option<Duration>,
    /// Why it is over, if it is.
    pub ended: Option<String>,
}

/// Asks all processes of this host that have communicators; takes no longer than `patience`.
///
/// # Errors
/// Of reading `/proc/net/unix`.
pub fn query(patience: Duration) -> io::Result<Vec<ProcessStatus>> {
    let until = Instant::now() + patience;
    let table = std::fs::read_to_string("/proc/net/unix")?;
    // All are asked before any is listened to: who is slow keeps nobody waiting.
    let asked: Vec<_> = names(&table).filter_map(|name| ask(name).ok()).collect();
    // SAFETY: it has no preconditions.
    let me = unsafe { libc::geteuid() };
    let mut found: Vec<ProcessStatus> = Vec::new();
    for (stream, owner) in asked {
        let state =
            ProcessIdentity::with_pid(owner.pid.cast_unsigned()).map(|process| process.state());
        // The name may be held by a child of a process that has ended.
        if (owner.uid != me && me != 0) || (owner.pid != 0 && state.is_none()) {
            continue;
        }
        let pid = owner.pid.cast_unsigned();
        let answer = match state {
            Some(ProcessState::Stopped) => StatusAnswer::Stopped,
            _ => listen(stream, until)
                .and_then(|bytes| decode(&bytes))
                .unwrap_or(StatusAnswer::Silent),
        };
        let command = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        let command = command.map_or_else(|_| "?".to_owned(), |text| printable(text.trim()));
        found.push(ProcessStatus { pid, uid: owner.uid, command, answer });
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

/// The names of desks in the text of `/proc/net/unix`, without the prefix that stands for a zero byte.
fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path; listening sockets have __SO_ACCEPTCON.
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let path = fields.nth(3)?;
        (flags & 0x10000 != 0 && path.starts_with(PREFIX)).then(|| &path[1..])
    })
}

/// Connects to a desk and finds out who owns it. Does not wait.
fn ask(name: &str) -> io::Result<(UnixStream, libc::ucred)> {
    // SAFETY: a new descriptor, or an error.
    let fd = unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = address.sun_path.get_mut(1..=name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    path.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte.cast_signed());
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: the address is valid for its length. A socket whose queue is full refuses at once, as ours does not block.
    let status = unsafe {
        libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len as libc::socklen_t)
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let stream = UnixStream::from(fd);
    let owner = credentials(&stream)?;
    Ok((stream, owner))
}

/// All that the desk says, or None if it says nothing in time.
fn listen(mut stream: UnixStream, until: Instant) -> Option<Vec<u8>> {
    stream.set_nonblocking(false).ok()?;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    while bytes.len() <= MOST_BYTES {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).ok()?;
        match stream.read(&mut part) {
            Ok(0) => return Some(bytes),
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    None
}

/// Who is at the other end: of a connection that was made, who began to listen.
fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut owner = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `owner` is writable for `len` bytes.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut owner).cast(),
            &raw mut len,
        )
    };
    if status == 0 { Ok(owner) } else { Err(io::Error::last_os_error()) }
}

/// Where a process answers. Belongs to its service thread.
pub(super) struct StatusServer(Option<UnixListener>);

impl StatusServer {
    /// Without one the process is not listed, and nothing else is different.
    pub(super) fn open() -> Self {
        let name = format!("{}{}", &PREFIX[1..], ProcessIdentity::current().unique_name());
        let listener = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        if let Err(error) = &listener {
            log::info!("`maypole ps` will not show this process: {error}");
        }
        Self(listener.ok())
    }

    /// What to poll, or -1.
    pub(super) fn fd(&self) -> i32 {
        self.0.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Answers those who came. Does not wait.
    pub(super) fn serve(&mut self, roster: &[Arc<ControlShared>]) {
        let Some(listener) = &self.0 else { return };
        // SAFETY: it has no preconditions.
        let me = unsafe { libc::geteuid() };
        // Bounded, so that nobody keeps the thread from its work.
        for _ in 0..16 {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
                {
                    // Who cannot be let in would wake the thread for ever.
                    log::info!("`maypole ps` will not show this process any more: {error}");
                    self.0 = None;
                    return;
                }
                // It has gone again, or a signal came.
                Err(_) => continue,
            };
            let welcome = credentials(&stream).is_ok_and(|it| it.uid == me || it.uid == 0);
            if welcome && stream.set_nonblocking(true).is_ok() {
                // Who does not listen has asked in vain.
                let _ = stream.write(&encode(roster.iter().map(|shared| shared.tell())));
            }
        }
    }
}

impl ControlShared {
    /// What it does now.
    fn tell(&self) -> CommunicatorStatus {
        let seen = self.record.read();
        CommunicatorStatus {
            key: self.key,
            rank: self.rank,
            nranks: self.nranks,
            sequence: seen.sequence,
            in_call: seen.in_call,
            call: seen.last(),
            waits_for: seen.waits_for,
            waited: if seen.in_call { self.record.waited(seen.sequence) } else { None },
            ended: self.final_error().map(|error| error.to_string()),
        }
    }
}

fn encode(communicators: impl ExactSizeIterator<Item = CommunicatorStatus>) -> Vec<u8> {
    let (mut body, mut count, all) = (Vec::new(), 0_u32, communicators.len() as u32);
    for it in communicators {
        let mut one = Vec::new();
        one.extend(it.key.to_le_bytes());
        one.extend(it.rank.to_le_bytes());
        one.extend(it.nranks.to_le_bytes());
        one.extend(it.sequence.to_le_bytes());
        one.push(u8::from(it.in_call));
        put_text(&mut one, &it.call);
        one.extend(it.waits_for.unwrap_or(NOBODY).to_le_bytes());
        one.extend(it.waited.map_or(u64::MAX, |it| it.as_millis() as u64).to_le_bytes());
        put_text(&mut one, it.ended.as_deref().unwrap_or(""));
        if body.len() + one.len() > MOST_BYTES - 9 {
            break;
        }
        body.extend(one);
        count += 1;
    }
    let mut bytes = vec![VERSION];
    bytes.extend(count.to_le_bytes());
    bytes.extend((all - count).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Trusts nothing.
fn decode(bytes: &[u8]) -> Option<StatusAnswer> {
    let mut take = Take::new(bytes);
    if take.u8()? != VERSION {
        return None;
    }
    let (count, more) = (take.u32()?, take.u32()?);
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(CommunicatorStatus {
            key: take.u64()?,
            rank: take.u32()?,
            nranks: take.u32()?,
            sequence: take.u64()?,
            in_call: take.u8()? != 0,
            call: take.text()?,
            waits_for: Some(take.u32()?).filter(|&rank| rank != NOBODY),
            waited: Some(take.u64()?).filter(|&ms| ms != u64::MAX).map(Duration::from_millis),
            ended: Some(take.text()?).filter(|text| !text.is_empty()),
        });
    }
    take.rest().is_empty().then_some(StatusAnswer::Communicators(all, more))
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(rank: Rank) -> CommunicatorStatus {
        CommunicatorStatus {
            key: 0x1234_5678_9abc_def0,
            rank,
            nranks: 4,
            sequence: 17,
            in_call: true,
            call: "call 17, all_reduce of 3 int32 sum".into(),
            waits_for: Some(0),
            waited: Some(Duration::from_millis(1500)),
            ended: None,
        }
    }

    #[test]
    fn answers_survive_the_wire_and_none_survives_a_cut() {
        let idle = CommunicatorStatus {
            waits_for: None,
            waited: None,
            ended: Some("x".into()),
            ..some(3)
        };
        let bytes = encode([some(1), idle.clone()].into_iter());
        assert_eq!(decode(&bytes), Some(StatusAnswer::Communicators(vec![some(1), idle], 0)));
        assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut]).is_none()));
    }

    #[test]
    fn an_answer_is_bounded_and_says_how_many_are_missing() {
        let bytes = encode((0..4000).map(some));
        assert!(bytes.len() <= MOST_BYTES);
        let Some(StatusAnswer::Communicators(told, more)) = decode(&bytes) else {
            panic!("an answer")
        };
        assert_eq!(told.len() + more as usize, 4000);
        assert!(more > 0);
    }

    #[test]
    fn only_listening_sockets_of_ours_are_asked() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 27305 @maypole/7/8/9\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 27306 @maypole/7/8/9\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 27307 /run/maypole/1\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 27308\n";
        assert_eq!(names(table).collect::<Vec<_>>(), ["maypole/7/8/9"]);
    }
}
