//! The set of sockets on which the TCP service thread waits, and which other threads can change.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use crate::sync::{AtomicBool, Ordering};

pub(crate) use rustix::event::epoll::{Event, EventFlags};

/// An `epoll` set, with an `eventfd` in it that wakes the thread.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    /// The thread will check everything within its tick.
    tick_pending: AtomicBool,
}

impl Poller {
    /// `wake_data` is the data of the event that [`wake`](Self::wake) causes.
    pub(crate) fn new(wake_data: u64) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poller = Self { epoll, wake, tick_pending: AtomicBool::new(false) };
        poller.add(&poller.wake, EventFlags::IN, wake_data)?;
        Ok(poller)
    }

    /// Adds a socket. `data` is returned with its events.
    pub(crate) fn add(&self, socket: impl AsFd, flags: EventFlags, data: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(data), flags)?)
    }

    /// Changes the events of a socket that was added. It needs no memory, so it cannot fail.
    pub(crate) fn change(&self, socket: impl AsFd, flags: EventFlags, data: u64) {
        let data = epoll::EventData::new_u64(data);
        let result = epoll::modify(&self.epoll, socket, data, flags);
        debug_assert!(result.is_ok(), "the socket was not added: {result:?}");
    }

    /// Removes a socket. Closing it does not suffice, because a child made by fork may hold it too.
    pub(crate) fn remove(&self, socket: impl AsFd) {
        // It cannot fail, because the socket was added.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Makes the thread check everything.
    pub(crate) fn wake(&self) {
        // If the counter is full, the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Like [`wake`](Self::wake), but the end of the thread's next tick is soon enough.
    pub(crate) fn wake_within_tick(&self) {
        if !self.tick_pending.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    pub(crate) fn set_tick_pending(&self, pending: bool) {
        self.tick_pending.store(pending, Ordering::SeqCst);
    }

    /// Waits for events, at most `timeout`. Returns their number.
    pub(crate) fn wait(
        &self,
        events: &mut [Event],
        timeout: Option<&Timespec>,
    ) -> io::Result<usize> {
        match epoll::wait(&self.epoll, events, timeout) {
            Ok(got) => Ok(got),
            Err(Errno::INTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Resets the event of a wake-up that has arrived.
    pub(crate) fn clear_wake(&self) {
        // It does not block.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}
