//! Completion channels, and reading their descriptors and those of contexts.

use std::ffi::c_int;
use std::ptr::null_mut;

use super::context::context;
use super::{given, null};
use crate::abi;
use crate::fabric::{Entries, EventQueue, Table, fabric};
use crate::misuse::misuse;
use crate::sync::{AcqRel, Acquire, AtomicU32, Relaxed};

/// A completion channel.
#[repr(C)]
pub(super) struct Channel {
    pub(super) base: abi::ibv_comp_channel,
    pub(super) place: u32,
    pub(super) queues: AtomicU32,
}

/// The channel of a pointer that the caller has.
pub(super) fn channel<'a>(pointer: *mut abi::ibv_comp_channel) -> &'a Channel {
    given!(pointer.cast())
}

impl Channel {
    pub(super) fn events(&self) -> &'static EventQueue {
        &fabric().channels[self.place as usize]
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_create_comp_channel(
    pointer: *mut abi::ibv_context,
) -> *mut abi::ibv_comp_channel {
    let it = context(pointer);
    // SAFETY: the call has no arguments in memory.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_SEMAPHORE) };
    if fd < 0 {
        return null_mut();
    }
    let Some(place) = fabric().claim(Table::Channels, &fabric().channels) else {
        // SAFETY: the descriptor was just made.
        unsafe { libc::close(fd) };
        null!(libc::ENOMEM);
    };
    fabric().channels[place].open(it.device, fd);
    it.objects.fetch_add(1, Relaxed);
    let base = abi::ibv_comp_channel { context: pointer, fd, refcnt: 0 };
    Box::into_raw(Box::new(Channel { base, place: place as u32, queues: AtomicU32::new(0) })).cast()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_destroy_comp_channel(pointer: *mut abi::ibv_comp_channel) -> c_int {
    let it = channel(pointer);
    if it.queues.load(Acquire) != 0 {
        return misuse!(libc::EBUSY, "a completion channel is destroyed that queues use");
    }
    it.events().release();
    context(it.base.context).objects.fetch_sub(1, Relaxed);
    // SAFETY: the descriptor is that of the channel.
    unsafe { libc::close(it.base.fd) };
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<Channel>()) });
    0
}

/// Reads one event from the descriptor, as the user has set it: blocking or not.
pub(super) fn read_one(descriptor: c_int) -> bool {
    let mut count = 0u64;
    // SAFETY: it reads eight bytes into `count`.
    unsafe { libc::read(descriptor, (&raw mut count).cast(), 8) == 8 }
}

/// Reads so many events that are there.
pub(super) fn discard(descriptor: c_int, count: u32) {
    for _ in 0..count {
        let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
        // SAFETY: it points to one entry.
        if unsafe { libc::poll(&mut poll, 1, 0) } > 0 {
            read_one(descriptor);
        }
    }
}

/// Counts a queue less, of a channel.
pub(super) fn leave(channel: &Channel) {
    channel.queues.fetch_sub(1, AcqRel);
}
