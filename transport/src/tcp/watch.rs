//! A rank that sleeps on its doorbell and on its sockets at once.
//!
//! It then reads what arrives itself, and no other thread has to run in between. The sockets of all
//! complete pairs are in the rank's own `epoll` set, with the event of its doorbell. A socket stays
//! ready there until all is read, so that the rank needs no system call before it sleeps, and no
//! event is lost. Meanwhile the service thread does not wait for arrivals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::poller::{Event, EventFlags, Poller};
use crate::doorbell::Doorbell;
use crate::inbox::Inbox;
use crate::sync::{AtomicBool, Ordering};
use crate::wake_event::WakeEvent;

/// The data of the event of the doorbell. No stream has it.
const DOORBELL_EVENT: u64 = u64::MAX;
/// How many events one sleep returns.
const MOST_EVENTS: usize = 16;

/// The descriptors on which a rank sleeps.
#[derive(Debug)]
pub(crate) struct SocketWatch {
    /// Made for the first socket. Dropped before the inbox, whose address identifies the doorbell.
    set: OnceLock<WatchSet>,
    poller: Arc<Poller>,
    inbox: Arc<Inbox>,
    /// A socket could not be added, so nobody sleeps here.
    incomplete: AtomicBool,
    /// Held by the thread that sleeps here or is about to.
    watcher: Mutex<()>,
}

#[derive(Debug)]
struct WatchSet {
    epoll: OwnedFd,
    event: Arc<WakeEvent>,
    /// The address of the doorbell.
    doorbell: usize,
}

/// The permission to sleep on the sockets, issued before the last check of the condition.
#[derive(Debug)]
pub(crate) struct WatchTicket<'a> {
    watch: &'a SocketWatch,
    set: &'a WatchSet,
    _watcher: MutexGuard<'a, ()>,
}

impl SocketWatch {
    /// For the sockets of the rank with this inbox, which the service thread serves with `poller`.
    pub(crate) fn new(poller: Arc<Poller>, inbox: Arc<Inbox>) -> Self {
        let (set, incomplete) = (OnceLock::new(), AtomicBool::new(false));
        Self { set, poller, inbox, incomplete, watcher: Mutex::new(()) }
    }

    fn doorbell(&self) -> &Doorbell {
        &self.inbox.header().doorbell
    }

    /// Adds a socket. `data` is returned with its events.
    pub(crate) fn add(&self, socket: impl AsFd, data: u64) {
        let set = match self.set.get() {
            Some(set) => Ok(set),
            None => WatchSet::new(self.doorbell()).map(|new| self.set.get_or_init(|| new)),
        };
        if let Err(error) = set.and_then(|set| set.add(socket, data)) {
            log::info!("the service thread reads the sockets: {error}");
            self.incomplete.store(true, Ordering::SeqCst);
            self.doorbell().ring();
        }
    }

    /// Removes a socket, if it is there.
    pub(crate) fn remove(&self, socket: impl AsFd) {
        if let Some(set) = self.set.get() {
            let _ = epoll::delete(&set.epoll, socket);
        }
    }

    /// Announces that the caller is about to sleep here; see [`Doorbell::prepare_to_watch`]. `None`
    /// if that is not possible: there are no sockets, or another thread does so.
    pub(crate) fn prepare_to_sleep(&self) -> Option<WatchTicket<'_>> {
        let set = self.set.get()?;
        let watcher = match self.watcher.try_lock() {
            Ok(watcher) => watcher,
            Err(TryLockError::Poisoned(watcher)) => watcher.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        self.doorbell().prepare_to_watch();
        let ticket = WatchTicket { watch: self, set, _watcher: watcher };
        // A socket that was not added before this is one that the service thread reads.
        (!self.incomplete.load(Ordering::SeqCst)).then_some(ticket)
    }
}

impl WatchSet {
    fn new(doorbell: &Doorbell) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let doorbell = doorbell.address();
        let set = Self { epoll, event: WakeEvent::register(doorbell)?, doorbell };
        set.add(&*set.event, DOORBELL_EVENT)?;
        Ok(set)
    }

    fn add(&self, socket: impl AsFd, data: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(data), EventFlags::IN)?)
    }
}

impl Drop for WatchSet {
    fn drop(&mut self) {
        WakeEvent::unregister(self.doorbell);
    }
}

impl WatchTicket<'_> {
    /// Sleeps until something has arrived, the doorbell has rung, or `timeout` has passed; or for
    /// no reason. Calls `read` with the data of each socket that has something to read.
    pub(crate) fn sleep(self, timeout: Duration, mut read: impl FnMut(u64)) {
        let none = Event { flags: EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; MOST_EVENTS];
        let timeout = Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let got = match epoll::wait(&self.set.epoll, &mut events, Some(&timeout)) {
            Ok(got) => got,
            Err(Errno::INTR) => 0,
            Err(errno) => {
                log::warn!("epoll_wait failed: {errno}");
                self.watch.incomplete.store(true, Ordering::SeqCst);
                0
            }
        };
        // Before the news are read, so that they do not ring for this thread.
        self.watch.doorbell().finish_watching();
        for event in &events[..got] {
            // Copied, because the structure is packed.
            let data = event.data;
            match data.u64() {
                DOORBELL_EVENT => {
                    self.set.event.reset();
                }
                stream => read(stream),
            }
        }
    }
}

impl Drop for WatchTicket<'_> {
    fn drop(&mut self) {
        self.watch.doorbell().finish_watching();
        // The service thread waits for arrivals again, at the end of its next tick.
        self.watch.poller.wake_within_tick();
    }
}
