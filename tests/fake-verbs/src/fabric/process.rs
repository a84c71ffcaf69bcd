//! The processes that share a fabric: which of them live, and what they do to each other's memory
//! at this moment.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use super::{Fabric, MOST_PROCESSES, fabric};
use crate::sync::{Acquire, AtomicU32, AtomicU64, Relaxed, Release, SeqCst};

/// Transfers that the threads of one process can do at the same time.
const MOST_TRANSFERS: usize = 64;

/// One process of the fabric.
#[repr(C)]
pub(crate) struct Process {
    /// 0 if the place is free.
    pid: AtomicU32,
    /// When it started, in ticks since the host started: tells apart two processes with one id.
    started: AtomicU64,
    /// The transfers of its threads at this moment: 0, or a number that is used once, with the
    /// process whose memory is read or written, plus one, in the low 16 bits.
    transfers: [AtomicU64; MOST_TRANSFERS],
    /// The next of these numbers.
    next_transfer: AtomicU64,
}

static ME: OnceLock<u32> = OnceLock::new();

/// The place of this process in the table.
pub(crate) fn me() -> u32 {
    *ME.get().expect("the process has joined the fabric")
}

/// Takes a place in the table. The caller holds the lock of the namespace, so that no other process
/// does the same.
pub(super) fn register(fabric: &Fabric) {
    let pid = std::process::id();
    for (index, process) in fabric.processes.iter().enumerate() {
        let old = process.pid.load(Acquire);
        if old != 0 && exists(old, process.started.load(Relaxed)) {
            continue;
        }
        let _ = ME.set(index as u32);
        if old != 0 {
            fabric.reap(index as u32);
        }
        for transfer in &process.transfers {
            transfer.store(0, Relaxed);
        }
        process.started.store(start_time(pid).unwrap_or(0), Relaxed);
        process.pid.store(pid, Release);
        return;
    }
    eprintln!("maypole-fake-verbs: more than {MOST_PROCESSES} processes in one namespace");
    std::process::abort();
}

/// When a process started, from `/proc`. None if there is none.
fn start_time(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, can contain anything.
    let rest = &text[text.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn exists(pid: u32, started: u64) -> bool {
    start_time(pid) == Some(started)
}

/// What this process knows of another one.
#[derive(Debug)]
struct Peer {
    started: u64,
    /// None if the process is dead.
    pidfd: Option<OwnedFd>,
    /// Descriptors of that process, duplicated, with the number that tells apart their uses.
    descriptors: HashMap<(i32, u32), OwnedFd>,
}

static PEERS: LazyLock<Mutex<HashMap<u32, Peer>>> = LazyLock::new(Mutex::default);

fn with_peer<R>(index: u32, use_it: impl FnOnce(&mut Peer) -> R) -> R {
    let process = &fabric().processes[index as usize];
    let (pid, started) = (process.pid.load(Acquire), process.started.load(Relaxed));
    let mut peers = PEERS.lock().unwrap_or_else(PoisonError::into_inner);
    let peer = peers.entry(index).or_insert_with(|| Peer::open(pid, started));
    if peer.started != started {
        *peer = Peer::open(pid, started);
    }
    use_it(peer)
}

impl Peer {
    fn open(pid: u32, started: u64) -> Self {
        // SAFETY: the call has no arguments in memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        // SAFETY: a descriptor that the call has returned is nobody else's.
        let pidfd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) });
        // The descriptor is that of the process only if the process had not been replaced before.
        let pidfd = pidfd.filter(|_| exists(pid, started));
        Self { started, pidfd, descriptors: HashMap::new() }
    }

    fn is_alive(&mut self) -> bool {
        let Some(pidfd) = &self.pidfd else { return false };
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: it points to one entry.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        if ready > 0 {
            self.pidfd = None;
        }
        ready <= 0
    }
}

/// The process id of a place in the table.
pub(crate) fn pid(index: u32) -> u32 {
    fabric().processes[index as usize].pid.load(Acquire)
}

/// Whether the process lives.
pub(crate) fn is_alive(index: u32) -> bool {
    if index == me() {
        return true;
    }
    if fabric().processes[index as usize].pid.load(Acquire) == 0 {
        return false;
    }
    with_peer(index, Peer::is_alive)
}

/// Adds one to an event descriptor of a process. `number` tells apart the uses of a descriptor.
pub(crate) fn signal(index: u32, descriptor: i32, number: u32) {
    let write = |fd: i32| {
        let one = 1u64;
        // SAFETY: it writes the eight bytes of `one`.
        unsafe { libc::write(fd, (&raw const one).cast(), 8) };
    };
    if index == me() {
        write(descriptor);
        return;
    }
    with_peer(index, |peer| {
        let Some(pidfd) = peer.pidfd.as_ref().map(AsRawFd::as_raw_fd) else { return };
        let key = (descriptor, number);
        if !peer.descriptors.contains_key(&key) {
            // An earlier use of the descriptor is over.
            peer.descriptors.retain(|(fd, _), _| *fd != descriptor);
            // SAFETY: the call has no arguments in memory.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, descriptor, 0) };
            if fd < 0 {
                return;
            }
            // SAFETY: a descriptor that the call has returned is nobody else's.
            peer.descriptors.insert(key, unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        write(peer.descriptors[&key].as_raw_fd());
    });
}

/// A transfer that runs now. A thread that takes memory out of use waits for those that may use it.
#[derive(Debug)]
pub(crate) struct Transfer {
    place: usize,
}

thread_local! {
    static LAST_PLACE: Cell<usize> = const { Cell::new(0) };
}

impl Transfer {
    /// Declares that this thread will use memory of `other`, and its own. What is checked after
    /// this call stays valid until the value is dropped.
    pub(crate) fn begin(other: u32) -> Self {
        let process = &fabric().processes[me() as usize];
        let number = process.next_transfer.fetch_add(1, Relaxed) + 1;
        let value = (number << 16) | u64::from(other + 1);
        let mut place = LAST_PLACE.get();
        loop {
            // In the one total order of the SeqCst operations, either this comes before the end of
            // the use of a region, which then waits, or the check that follows finds it ended.
            let free = &process.transfers[place];
            if free.load(Relaxed) == 0 && free.compare_exchange(0, value, SeqCst, Relaxed).is_ok() {
                LAST_PLACE.set(place);
                return Self { place };
            }
            place = (place + 1) % MOST_TRANSFERS;
            if place == LAST_PLACE.get() {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        fabric().processes[me() as usize].transfers[self.place].store(0, Release);
    }
}

/// Waits until every transfer that had begun and that may use memory of this process is over.
pub(crate) fn wait_for_transfers() {
    let fabric = fabric();
    for (index, process) in fabric.processes.iter().enumerate() {
        if process.pid.load(Acquire) == 0 {
            continue;
        }
        for transfer in &process.transfers {
            let value = transfer.load(SeqCst);
            let mine = index as u32 == me() || (value & 0xffff) as u32 == me() + 1;
            if value == 0 || !mine {
                continue;
            }
            let mut turns = 0u32;
            while transfer.load(SeqCst) == value {
                std::thread::yield_now();
                turns += 1;
                if turns.is_multiple_of(1000) && !is_alive(index as u32) {
                    break;
                }
            }
        }
    }
}
