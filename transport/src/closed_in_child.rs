//! Closes sockets in children made by fork, so that the end of this process ends its connections.
//!
//! A socket stays open as long as any process holds it. A child that lives on would hide from peers
//! on other hosts that this process has ended. In the child, the number of the socket remains in
//! use, by a descriptor that does nothing: the objects that the child has inherited may close it,
//! and must not close what the child has opened since.
//!
//! A child that the program makes without the C library (by the system call `clone`) keeps the
//! sockets.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use crate::sync::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// Sockets with numbers from here on stay open in children.
const MOST: usize = 1 << 16;

/// By number, the inode of each socket that is to be closed; 0 for others.
static INODES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// The highest number of such a socket so far.
static HIGHEST: AtomicI32 = AtomicI32::new(-1);

/// While it lives, a socket is closed in new children. It must be dropped before the socket.
#[derive(Debug)]
pub struct ClosedInChild(RawFd);

impl ClosedInChild {
    /// Closes this socket in children that this process makes from now on.
    pub fn new(socket: &impl AsFd) -> Self {
        static INSTALLED: AtomicBool = AtomicBool::new(false);
        // Relaxed: only the value counts. Two threads may install the handler at the same time;
        // then it runs twice, and has nothing to do the second time.
        if !INSTALLED.load(Ordering::Relaxed) {
            // SAFETY: the handler makes system calls and uses atomics, which is allowed in a child
            // of a process with many threads. If there is no memory for it, sockets stay open.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            INSTALLED.store(true, Ordering::Relaxed);
        }
        let fd = socket.as_fd().as_raw_fd();
        if let Some(place) = INODES.get(fd as usize) {
            place.store(inode(fd).unwrap_or(0), Ordering::Relaxed);
            HIGHEST.fetch_max(fd, Ordering::Relaxed);
        }
        Self(fd)
    }
}

impl Drop for ClosedInChild {
    fn drop(&mut self) {
        if let Some(place) = INODES.get(self.0 as usize) {
            place.store(0, Ordering::Relaxed);
        }
    }
}

/// The inode of an open file.
fn inode(fd: RawFd) -> Option<u64> {
    // SAFETY: all zeros is a valid value, and the structure is writable.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &raw mut status) == 0).then_some(status.st_ino)
    }
}

/// The handler that runs in the child.
///
/// # Safety
/// None beyond its type: it may be called at any time, on any thread.
unsafe extern "C" fn in_child() {
    let highest = HIGHEST.load(Ordering::Relaxed);
    // SAFETY: the calls take numbers. Where there is no descriptor left, sockets stay open.
    let nothing = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if nothing < 0 {
        return;
    }
    for (fd, place) in (0..=highest).zip(&INODES) {
        let registered = place.swap(0, Ordering::Relaxed);
        // The number means another file if the program has closed the socket itself.
        if registered != 0 && inode(fd) == Some(registered) {
            // SAFETY: as above. The socket belongs to objects of the parent, which this process
            // does not use.
            unsafe { libc::dup3(nothing, fd, libc::O_CLOEXEC) };
        }
    }
    // SAFETY: it was opened here.
    unsafe { libc::close(nothing) };
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_child_does_not_keep_a_connection_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let guard = ClosedInChild::new(&socket);
        let (fd, inode_here) = (socket.as_raw_fd(), inode(socket.as_raw_fd()));
        // SAFETY: the child makes system calls only, and ends when it is killed below.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above. The number is in use, and not by the socket.
            unsafe {
                if inode(fd).is_none() || inode(fd) == inode_here {
                    libc::_exit(1);
                }
                libc::alarm(60);
                loop {
                    libc::pause();
                }
            }
        }
        drop(guard);
        drop(socket);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        let mut status = 0;
        // SAFETY: the child was not waited for; `status` is writable.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &raw mut status, 0);
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
        }
    }
}
