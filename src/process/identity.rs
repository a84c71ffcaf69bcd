//! Identifies a process so that another process of the same host can find it, watch it and see
//! whether it runs.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use maypole_control::communicator::ProcessState;

/// A process, named such that another process of its host can find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: u32,
    /// When the process began, in clock ticks after boot, because the kernel reuses process
    /// numbers. 0 if unknown.
    started: u64,
    /// The inode of the namespace in which `pid` counts. 0 if unknown.
    namespace: u64,
}

/// The result of an attempt to watch a process.
#[derive(Debug)]
pub(crate) enum ProcessWatch {
    /// A descriptor that becomes readable when the process ends.
    Running(OwnedFd),
    /// The process has ended.
    Ended,
    /// This process cannot see it.
    Invisible,
}

impl ProcessIdentity {
    /// This process.
    pub(crate) fn current() -> Self {
        let pid = std::process::id();
        let started = read_stat(pid).map_or(0, |(_, started)| started);
        let namespace = std::fs::metadata("/proc/self/ns/pid").map_or(0, |file| file.ino());
        Self { pid, started, namespace }
    }

    /// The process that has this number now in the namespace of this process.
    pub(crate) fn with_pid(pid: u32) -> Option<Self> {
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

    /// Whether `other`, on the same host, is in the same process namespace, so that each can look
    /// at the other.
    pub(crate) fn shares_namespace_with(&self, other: &Self) -> bool {
        self.namespace != 0 && self.namespace == other.namespace
    }

    /// Opens a descriptor that becomes readable when this process ends, even if a child of the
    /// process still holds its sockets. The descriptor is closed in programs that this process
    /// executes.
    pub(crate) fn watch(&self) -> ProcessWatch {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid as libc::pid_t, 0) };
        if fd < 0 {
            let error = std::io::Error::last_os_error().raw_os_error();
            return if error == Some(libc::ESRCH) {
                ProcessWatch::Ended
            } else {
                ProcessWatch::Invisible
            };
        }
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
        // Checked only now: while the descriptor is open, the number cannot be given to another
        // process.
        match self.state() {
            ProcessState::Ended => ProcessWatch::Ended,
            _ => ProcessWatch::Running(fd),
        }
    }

    /// What the process is doing, from `/proc`.
    pub(crate) fn state(&self) -> ProcessState {
        match read_stat(self.pid) {
            Some((_, started)) if self.started != 0 && started != self.started => {
                ProcessState::Ended
            }
            Some(('T' | 't', _)) => ProcessState::Stopped,
            Some(('Z' | 'X', _)) => ProcessState::Ended,
            Some(_) => ProcessState::Running,
            None if std::path::Path::new("/proc/self/stat").exists() => ProcessState::Ended,
            None => ProcessState::Running,
        }
    }
}

/// The state letter and the start time of a process, from `/proc/PID/stat`.
fn read_stat(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain any character. The state is field 3, the start time
    // field 22.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_identified_by_its_start_time_too() {
        let this = ProcessIdentity::current();
        assert_eq!(ProcessIdentity::from_bytes(&this.to_bytes()), Some(this));
        assert!(this.shares_namespace_with(&this) && this.state() == ProcessState::Running);
        assert!(matches!(this.watch(), ProcessWatch::Running(_)));
        let earlier = ProcessIdentity { started: this.started - 1, ..this };
        assert!(matches!(earlier.watch(), ProcessWatch::Ended));
    }
}
