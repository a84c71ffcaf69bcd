//! Processes: which one a rank is, whether it runs, and what becomes of a communicator in a child made by fork.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Once;

use maypole_transport::sync::{AtomicU32, Ordering};

use crate::control::{dump, service};

/// A process as another one on its host can find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// When it began, in clock ticks after boot: numbers are used again. 0 if unknown.
    started: u64,
    /// The namespace that gave it its number. 0 if unknown.
    namespace: u64,
}

/// What came of an attempt to watch a process.
#[derive(Debug)]
pub(crate) enum Watched {
    /// Readable from its end on.
    Until(OwnedFd),
    /// It has ended.
    Ended,
    /// It cannot be seen from here.
    Unseen,
}

impl Process {
    /// This process.
    pub(crate) fn here() -> Self {
        let pid = std::process::id();
        let started = read_stat(pid).map_or(0, |(_, started)| started);
        let namespace = std::fs::metadata("/proc/self/ns/pid").map_or(0, |it| it.ino());
        Self { pid, started, namespace }
    }

    /// The process that has this number now, as seen from here.
    pub(crate) fn numbered(pid: u32) -> Option<Self> {
        let (_, started) = read_stat(pid)?;
        Some(Self { pid, started, namespace: 0 })
    }

    /// A name that no other process of this host has, now or later.
    pub(crate) fn unique_name(&self) -> String {
        format!("{}/{}/{:x}", self.pid, self.started, self.namespace)
    }

    pub(crate) fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.pid.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.started.to_le_bytes());
        bytes[12..].copy_from_slice(&self.namespace.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (pid, rest) = bytes.split_first_chunk()?;
        let (started, rest) = rest.split_first_chunk()?;
        Some(Self {
            pid: u32::from_le_bytes(*pid),
            started: u64::from_le_bytes(*started),
            namespace: u64::from_le_bytes(rest.try_into().ok()?),
        })
    }

    /// Whether `other`, on the same host, has its number from the same namespace, so that one can look at the other.
    pub(crate) fn sees(&self, other: &Self) -> bool {
        self.namespace != 0 && self.namespace == other.namespace
    }

    /// A descriptor that tells of the end of this process. It stays open in no child and is not fooled by sockets that a
    /// child of the dead process still holds.
    pub(crate) fn watch(&self) -> Watched {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid as libc::pid_t, 0) };
        if fd < 0 {
            let error = std::io::Error::last_os_error().raw_os_error();
            return if error == Some(libc::ESRCH) { Watched::Ended } else { Watched::Unseen };
        }
        // SAFETY: the kernel just gave us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
        // Only now: the number cannot be used again while the descriptor names its process.
        match self.state() {
            State::Ended => Watched::Ended,
            _ => Watched::Until(fd),
        }
    }

    pub(crate) fn state(&self) -> State {
        match read_stat(self.pid) {
            Some((_, started)) if self.started != 0 && started != self.started => State::Ended,
            Some(('T' | 't', _)) => State::Stopped,
            Some(('Z' | 'X', _)) => State::Ended,
            Some(_) => State::Runs,
            None if std::path::Path::new("/proc/self/stat").exists() => State::Ended,
            None => State::Runs,
        }
    }
}

/// What a process that can be seen is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    Stopped,
    Ended,
}

/// State and start of a process, from `/proc/PID/stat`.
fn read_stat(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold anything. State is field 3, the start field 22.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Differs between a process and a child that it made by fork. Cheap.
#[inline]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// From now on forks are noticed.
pub(crate) fn notice_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only stores to atomics, which is allowed in a child of a process with many threads.
        let status = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if status != 0 {
            log::warn!(
                "pthread_atfork failed ({status}): do not use communicators in a child made by fork"
            );
        }
    });
}

/// The child has none of the parent's threads: what it inherited must be left alone.
unsafe extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    service::forget();
    dump::forget();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let here = Process::here();
        assert_eq!(Process::from_bytes(&here.to_bytes()), Some(here));
        assert!(here.sees(&here) && here.state() == State::Runs);
        assert!(matches!(here.watch(), Watched::Until(_)));
        let earlier = Process { started: here.started - 1, ..here };
        assert!(matches!(earlier.watch(), Watched::Ended));
    }
}
