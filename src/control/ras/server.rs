//! The thread that listens at the port and answers.

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_control::communicator::ProcessState;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::caller::is_allowed;
use super::job::Job;
use super::json::job_json;
use super::session::{Question, RasSession, Reply};
use super::text::job_text;
use crate::bootstrap::poll::{new_event, poll_fd, signal_event, take_event, wait};
use crate::config::{Config, HostPort};
use crate::control::status::query;
use crate::process::{ProcessWatch, spawn_thread};

/// Where NCCL listens.
const ADDRESS: (&str, u16) = ("localhost", 28028);
/// Most clients that are connected at the same time.
const MOST_CLIENTS: usize = 16;
/// How long a client may be connected without asking.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to read an answer.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// The server of a process. Dropping it ends the thread, after the answer that it works on.
pub(in crate::control) struct RasServer {
    running: Option<(Arc<OwnedFd>, JoinHandle<()>)>,
}

/// A connection.
struct RasClient {
    stream: TcpStream,
    session: RasSession,
    /// When it is closed.
    until: Instant,
}

impl RasServer {
    /// Listens, if the settings say so. If that fails, programs that read the status do not see
    /// this process at the port; nothing else changes.
    pub(in crate::control) fn open() -> Self {
        let config = Config::get();
        let address = config.ras_address.as_ref();
        if !config.ras_enable.unwrap_or(address.is_some()) {
            return Self { running: None };
        }
        let started = start(address);
        if let Err(error) = &started {
            log::warn!("the RAS service cannot be started (NCCL_RAS_ADDR): {error}");
        }
        Self { running: started.ok() }
    }
}

impl Drop for RasServer {
    fn drop(&mut self) {
        if let Some((event, thread)) = self.running.take() {
            signal_event(&event);
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

fn start(address: Option<&HostPort>) -> io::Result<(Arc<OwnedFd>, JoinHandle<()>)> {
    let (host, port) = address.map_or(ADDRESS, |it| (&*it.host, it.port));
    let listener = listen(host, port)?;
    let event = Arc::new(new_event()?);
    let theirs = event.clone();
    let thread = spawn_thread("maypole-ras", None, move || run(&theirs, &listener))?;
    Ok((event, thread))
}

/// Listens at the first address of the host where that is possible.
fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for address in (host, port).to_socket_addrs()? {
        result = listen_at(address);
        if let Ok(listener) = &result {
            log::info!("RAS client listening socket at {}", listener.local_addr()?);
            break;
        }
    }
    result
}

/// Listens at an address that several processes of the user share, which `TcpListener::bind`
/// cannot.
fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 128)?;
    Ok(TcpListener::from(socket))
}

/// The thread.
fn run(event: &OwnedFd, listener: &TcpListener) {
    let mut clients: Vec<RasClient> = Vec::new();
    loop {
        let has_room = clients.len() < MOST_CLIENTS;
        let listening = if has_room { listener.as_raw_fd() } else { -1 };
        let mut fds: Vec<libc::pollfd> = [event.as_raw_fd(), listening]
            .into_iter()
            .chain(clients.iter().map(|client| client.stream.as_raw_fd()))
            .map(|fd| poll_fd(fd, libc::POLLIN))
            .collect();
        let until = clients.iter().map(|client| client.until).min();
        wait(&mut fds, until.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)));
        if take_event(event) {
            return;
        }
        while clients.len() < MOST_CLIENTS {
            match listener.accept() {
                Ok((stream, _)) => clients.extend(RasClient::new(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error)
                    if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
                {
                    // The connection would keep the socket ready, and the thread awake.
                    log::warn!("the RAS service ends: {error}");
                    return;
                }
                // The connection has ended, or a signal came.
                Err(_) => {}
            }
        }
        clients.retain_mut(RasClient::serve);
    }
}

impl RasClient {
    fn new(stream: TcpStream) -> Option<Self> {
        if !is_allowed(&stream) {
            log::info!("a connection to the RAS service is of another user and was closed");
            return None;
        }
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream, session: RasSession::default(), until: Instant::now() + IDLE })
    }

    /// Does what the client has asked for. Returns whether the connection stays.
    fn serve(&mut self) -> bool {
        let mut part = [0; 512];
        loop {
            let count = match self.stream.read(&mut part) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Instant::now() < self.until;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            for reply in self.session.take(&part[..count]) {
                match reply {
                    // A line fits into the buffer of the socket, unless the client reads nothing.
                    Reply::Line(line) => {
                        if self.stream.write_all((line + "\n").as_bytes()).is_err() {
                            return false;
                        }
                    }
                    Reply::Answer(question) => {
                        // The client is gone if it cannot be written to.
                        let _ = self.answer(question);
                        return false;
                    }
                    Reply::Close => return false,
                }
            }
        }
    }

    fn answer(&mut self, question: Question) -> io::Result<()> {
        let begin = Instant::now();
        let found = query(question.timeout)?;
        let is_running =
            |pid| ProcessWatch::open(pid).is_ok_and(|watch| watch.state() != ProcessState::Ended);
        let job = Job::new(own_address(), &found, is_running);
        let seconds = begin.elapsed().as_secs_f64();
        let text = if question.is_json {
            job_json(&job, &local_time(), seconds)
        } else {
            job_text(&job, question.is_verbose, seconds)
        };
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(WRITE_TIME))?;
        self.stream.write_all(text.as_bytes())
    }
}

/// The address of this host, as NCCL names hosts.
fn own_address() -> String {
    let addresses = crate::bootstrap::addresses(Config::get());
    let address = addresses.ok().and_then(|all| all.first().copied());
    address.map_or_else(|| crate::logger::host_name().to_owned(), |ip| ip.to_string())
}

/// The local time, as NCCL writes it.
fn local_time() -> String {
    let mut text = [0_u8; 32];
    // SAFETY: all zeros is a valid value of the structure, which the second call sets. The text is
    // writable for its length, and `strftime` ends what it writes with a zero byte.
    unsafe {
        let (now, mut parts) = (libc::time(std::ptr::null_mut()), std::mem::zeroed());
        libc::localtime_r(&raw const now, &raw mut parts);
        libc::strftime(text.as_mut_ptr().cast(), text.len(), c"%F %T".as_ptr(), &raw const parts);
    }
    CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::poll::poll_now;

    #[test]
    fn processes_share_a_port() {
        let first = listen("127.0.0.1", 0).unwrap();
        let port = first.local_addr().unwrap().port();
        assert_eq!(listen("127.0.0.1", port).unwrap().local_addr().unwrap().port(), port);
    }

    #[test]
    fn a_client_is_answered_and_the_thread_ends_when_told() {
        let listener = listen("127.0.0.1", 0).unwrap();
        let address = listener.local_addr().unwrap();
        let event = Arc::new(new_event().unwrap());
        let theirs = event.clone();
        let thread = spawn_thread("test-ras", None, move || run(&theirs, &listener)).unwrap();
        for (command, begin) in [("SET FORMAT json\nSTATUS\n", "OK\n{"), ("status\n", "NCCL ver")] {
            let mut stream = TcpStream::connect(address).unwrap();
            // Other processes of the machine need not answer.
            stream.write_all(format!("TIMEOUT 0.001\n{command}").as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.starts_with(&format!("OK\n{begin}")), "{text}");
        }
        signal_event(&event);
        thread.join().unwrap();
    }

    #[test]
    fn an_idle_client_is_closed() {
        let listener = listen("127.0.0.1", 0).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut fds = [poll_fd(listener.as_raw_fd(), libc::POLLIN)];
        while fds[0].revents == 0 {
            poll_now(&mut fds);
        }
        let mut client = RasClient::new(listener.accept().unwrap().0).unwrap();
        assert!(client.serve());
        client.until = Instant::now();
        assert!(!client.serve());
    }
}
