//! Asks all processes of this host for their communicators.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::codec::decode;
use super::{MOST_BYTES, PREFIX, ProcessStatus, StatusAnswer, credentials};
use crate::clock;
use crate::process::ProcessWatch;
use maypole_control::communicator::ProcessState;

/// Asks all processes of this host that have communicators, for no longer than `timeout`.
///
/// # Errors
/// `/proc/net/unix` cannot be read.
pub fn query(timeout: Duration) -> io::Result<Vec<ProcessStatus>> {
    let until = clock::after(timeout);
    let table = std::fs::read_to_string("/proc/net/unix")?;
    // All processes are asked before any answer is read, so that a slow one does not delay the
    // others.
    let asked: Vec<_> = names(&table).filter_map(|name| ask(name).ok()).collect();
    // SAFETY: the call has no preconditions.
    let user = unsafe { libc::geteuid() };
    let mut found: Vec<ProcessStatus> = Vec::new();
    for (stream, owner) in asked {
        let watch = ProcessWatch::open(owner.pid.cast_unsigned());
        // A child of a process that has ended may still have the socket.
        let has_ended = match &watch {
            Ok(watch) => watch.state() == ProcessState::Ended,
            Err(error) => owner.pid != 0 && error.raw_os_error() == Some(libc::ESRCH),
        };
        if (owner.uid != user && user != 0) || has_ended {
            continue;
        }
        let state = watch.map(|watch| watch.state());
        let pid = owner.pid.cast_unsigned();
        let answer = match state {
            Ok(ProcessState::Stopped) => StatusAnswer::Stopped,
            _ => receive(stream, until)
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

/// The names of the sockets of Maypole in the text of `/proc/net/unix`, without the `@` that stands
/// for a zero byte.
fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path; listening sockets have __SO_ACCEPTCON.
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let path = fields.nth(3)?;
        (flags & 0x10000 != 0 && path.starts_with(PREFIX)).then(|| &path[1..])
    })
}

/// Connects to the socket of a process and finds out the owner, without waiting.
fn ask(name: &str) -> io::Result<(UnixStream, libc::ucred)> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros is a valid value of this structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = address.sun_path.get_mut(1..=name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    path.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte.cast_signed());
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: the address is readable for its length. (If the queue of the listener is full, the
    // call fails at once, because this socket does not block.)
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

/// All bytes of an answer, or None if it does not end in time.
fn receive(mut stream: UnixStream, until: Instant) -> Option<Vec<u8>> {
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

/// Replaces control characters, which could change what a terminal shows.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_maypole_are_asked() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 27305 @maypole/7/8/9\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 27306 @maypole/7/8/9\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 27307 /run/maypole/1\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 27308\n";
        assert_eq!(names(table).collect::<Vec<_>>(), ["maypole/7/8/9"]);
    }
}
