//! Answers other processes that ask for the communicators of this process.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::codec::encode;
use super::{CommunicatorStatus, PREFIX, credentials};
use crate::process::ProcessIdentity;

/// The listening socket at which a process answers. The service thread owns it.
pub(in crate::control) struct StatusServer(Option<UnixListener>);

impl StatusServer {
    /// Opens the socket. If that fails the process is not listed; nothing else changes.
    pub(in crate::control) fn open() -> Self {
        let name = format!("{}{}", &PREFIX[1..], ProcessIdentity::current().unique_name());
        let listener = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        if let Err(error) = &listener {
            log::info!("`maypole ps` will not show this process: {error}");
        }
        Self(listener.ok())
    }

    /// The descriptor to poll, or -1.
    pub(in crate::control) fn fd(&self) -> i32 {
        self.0.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Answers the processes that have connected, without waiting. `communicators` are those of
    /// this process.
    pub(in crate::control) fn serve(
        &mut self,
        communicators: impl Fn() -> Vec<CommunicatorStatus>,
    ) {
        let Some(listener) = &self.0 else { return };
        // SAFETY: the call has no preconditions.
        let user = unsafe { libc::geteuid() };
        // Bounded, so that many connections do not keep the thread from its other work.
        for _ in 0..16 {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
                {
                    // A connection that cannot be accepted would keep the socket ready, and the
                    // thread awake.
                    log::info!("`maypole ps` will not show this process any more: {error}");
                    self.0 = None;
                    return;
                }
                // The connection has ended, or a signal came.
                Err(_) => continue,
            };
            let is_allowed =
                credentials(&stream).is_ok_and(|peer| peer.uid == user || peer.uid == 0);
            if is_allowed && stream.set_nonblocking(true).is_ok() {
                // The answer fits into the buffer of the socket. If the asker has gone it is lost.
                let _ = stream.write(&encode(communicators().into_iter()));
            }
        }
    }
}
