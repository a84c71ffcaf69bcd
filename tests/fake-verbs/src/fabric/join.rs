//! How processes find the fabric of their namespace, without a file and without a server.
//!
//! The environment variable `MAYPOLE_FAKE_VERBS` names the namespace. Each process of it listens on
//! an abstract socket whose name has the namespace and a number. A process that joins connects to
//! these sockets until one is there; the kernel says which process listens, and the memory is
//! opened through the descriptors of that process in `/proc`. If there is none, the process makes
//! the memory. Sockets and memory vanish with the last process, however it ends.
//!
//! Without the variable, the fabric is this process's own.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};

use super::{FABRIC, Fabric, JOINING, control, process};

/// The variable that names the namespace.
const NAMESPACE: &str = "MAYPOLE_FAKE_VERBS";
/// The name of the memory, by which it is found among the descriptors of a process.
const MEMORY: &CStr = c"maypole-fake-verbs";
/// Sockets that are looked for.
const MOST_MEMBERS: usize = super::MOST_PROCESSES;

static ONE_THREAD: Mutex<()> = Mutex::new(());

/// Joins the fabric of the namespace: maps its memory and takes a place in the table of processes.
pub(super) fn join() -> &'static Fabric {
    let _guard = ONE_THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fabric) = FABRIC.get() {
        return fabric;
    }
    allow_access();
    let Some(namespace) = std::env::var(NAMESPACE).ok().filter(|name| !name.is_empty()) else {
        return enter(&create(), true);
    };
    // Only the process that binds this name joins.
    let lock = bind_when_free(&address(&namespace, "lock"));
    let mut free = None;
    let mut memory = None;
    for number in 0..MOST_MEMBERS {
        let address = address(&namespace, &number.to_string());
        match UnixStream::connect_addr(&address) {
            Ok(member) => memory = memory.or_else(|| memory_of(&member)),
            Err(_) => free = free.or(Some(address)),
        }
        if memory.is_some() && free.is_some() {
            break;
        }
    }
    let created = memory.is_none();
    let fabric = enter(&memory.unwrap_or_else(create), created);
    let free = free.unwrap_or_else(|| fail("too many processes in the namespace"));
    let own = UnixListener::bind_addr(&free).unwrap_or_else(|e| fail(&e.to_string()));
    // Both stay open as long as the process lives.
    std::mem::forget(own);
    drop(lock);
    fabric
}

fn fail(why: &str) -> ! {
    eprintln!("maypole-fake-verbs: cannot join the namespace: {why}");
    std::process::abort()
}

fn address(namespace: &str, part: &str) -> SocketAddr {
    let name = format!("maypole-fake-verbs/{namespace}/{part}");
    SocketAddr::from_abstract_name(name).unwrap_or_else(|e| fail(&e.to_string()))
}

fn bind_when_free(address: &SocketAddr) -> UnixListener {
    loop {
        match UnixListener::bind_addr(address) {
            Ok(listener) => return listener,
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => std::thread::yield_now(),
            Err(e) => fail(&e.to_string()),
        }
    }
}

/// Lets processes of the same user reach this one's memory, also where the kernel restricts that to
/// a parent and its children.
fn allow_access() {
    // SAFETY: the call has no arguments in memory. It fails where there is no such restriction.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// The memory of the process that listens at the other end.
fn memory_of(member: &UnixStream) -> Option<OwnedFd> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to a value of the length that is stated.
    let result = unsafe {
        libc::getsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return None;
    }
    let wanted = format!("/memfd:{}", MEMORY.to_str().ok()?);
    for entry in std::fs::read_dir(format!("/proc/{}/fd", credentials.pid)).ok()?.flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if target.to_str().is_some_and(|target| target.starts_with(&wanted)) {
            let file = std::fs::File::options().read(true).write(true).open(entry.path()).ok()?;
            return Some(file.into());
        }
    }
    None
}

fn create() -> OwnedFd {
    // SAFETY: the name ends with a zero.
    let fd: RawFd = unsafe { libc::memfd_create(MEMORY.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        fail("no memory file");
    }
    // SAFETY: the descriptor is new and nobody else's.
    let memory = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the descriptor is open.
    if unsafe { libc::ftruncate(fd, size_of::<Fabric>() as libc::off_t) } != 0 {
        fail("the memory file cannot be made large enough");
    }
    memory
}

fn enter(memory: &OwnedFd, created: bool) -> &'static Fabric {
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Fabric>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            memory.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        fail("the memory cannot be mapped");
    }
    // Other processes open the memory through this descriptor.
    // SAFETY: the call has no arguments in memory.
    if unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) } < 0 {
        fail("too many descriptors");
    }
    // SAFETY: the mapping has the size of the type, is never unmapped, and all its fields are
    // atomics or behind locks; zeros are valid.
    let fabric: &'static Fabric = unsafe { &*address.cast() };
    JOINING.set(Some(fabric));
    process::register(fabric);
    if created {
        control::set_up();
    }
    // Other threads use it from now on.
    let _ = FABRIC.set(fabric);
    fabric
}
