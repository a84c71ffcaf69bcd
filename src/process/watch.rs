//! Watches a process by a descriptor of it (pidfd), which alone proves that the process has ended.
//!
//! What `/proc` says proves nothing: it may be hidden, be that of another namespace, or count times
//! from another moment, and a process of which only the first thread has ended looks there like one
//! that has ended. It serves reports only.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use maypole_control::communicator::ProcessState;

/// A process of this host that is watched. The descriptor is closed in programs that this process
/// executes.
#[derive(Debug)]
pub(crate) struct ProcessWatch(OwnedFd);

impl ProcessWatch {
    /// Watches the process that has this number now.
    ///
    /// # Errors
    /// That of the system: no process has the number, or the kernel is too old or refuses.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// What the process is doing.
    pub(crate) fn state(&self) -> ProcessState {
        let mut entry = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `entry` is one pollfd, writable; a timeout of 0 does not wait.
        let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
        if ready > 0 && entry.revents & libc::POLLIN != 0 {
            return ProcessState::Ended;
        }
        if self.is_stopped() { ProcessState::Stopped } else { ProcessState::Running }
    }

    /// Whether `/proc` shows that the process is stopped.
    fn is_stopped(&self) -> bool {
        // The number of the process in the namespace of this `/proc`, which may be another than
        // that in which it was opened.
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.as_raw_fd()));
        let info = info.unwrap_or_default();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()).filter(|pid| *pid > 0) else {
            return false;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may contain any character. The state follows it.
        let after_name = stat.rfind(')').and_then(|at| stat.get(at + 1..)).unwrap_or_default();
        after_name.trim_start().starts_with(['T', 't'])
    }
}

impl AsRawFd for ProcessWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::process::{Command, Stdio};

    #[test]
    fn a_process_runs_until_it_has_ended_also_if_nobody_waits_for_it() {
        // It ends when its input does.
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watch = ProcessWatch::open(child.id()).unwrap();
        assert_ne!(watch.state(), ProcessState::Ended);
        drop(child.stdin.take());
        let mut entry = libc::pollfd { fd: watch.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `entry` is one pollfd, writable.
        assert_eq!(unsafe { libc::poll(&raw mut entry, 1, -1) }, 1);
        assert_eq!(watch.state(), ProcessState::Ended);
        child.wait().unwrap();
        assert_eq!(watch.state(), ProcessState::Ended);
    }

    #[test]
    fn a_stopped_process_is_seen_as_such() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watch = ProcessWatch::open(child.id()).unwrap();
        let pid = child.id() as libc::pid_t;
        // SAFETY: the calls take numbers and a writable place; the child was not waited for.
        unsafe {
            let mut status = 0;
            libc::kill(pid, libc::SIGSTOP);
            libc::waitpid(pid, &raw mut status, libc::WUNTRACED);
            assert!(libc::WIFSTOPPED(status));
        }
        assert_eq!(watch.state(), ProcessState::Stopped);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(watch.state(), ProcessState::Ended);
    }
}
