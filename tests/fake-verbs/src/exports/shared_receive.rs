//! Shared receive queues.

use std::ffi::c_int;
use std::mem::zeroed;

use super::acknowledged::{Acknowledged, finish};
use super::context::context;
use super::protection::domain;
use super::{given, given_mut, null};
use crate::abi;
use crate::fabric::{Entries, SharedReceiveQueue, Table, fabric};
use crate::misuse::misuse;
use crate::sync::{AcqRel, Acquire, AtomicU32, Relaxed};

/// A shared receive queue.
#[repr(C)]
pub(super) struct Shared {
    base: abi::ibv_srq,
    pub(super) place: u32,
    /// Queue pairs that use it.
    pub(super) users: AtomicU32,
    pub(super) events: Acknowledged,
}

/// The queue of a pointer that the caller has.
pub(super) fn shared<'a>(pointer: *mut abi::ibv_srq) -> &'a Shared {
    given!(pointer.cast())
}

impl Shared {
    fn queue(&self) -> &'static SharedReceiveQueue {
        &fabric().shared_queues[self.place as usize]
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_create_srq(
    domain_of: *mut abi::ibv_pd,
    init: *mut abi::ibv_srq_init_attr,
) -> *mut abi::ibv_srq {
    let owner = domain(domain_of);
    let context_of = given!(domain_of).context;
    let context = context(context_of);
    let init = given_mut!(init);
    let limits = context.with_device(|device| device.limits);
    let attributes = &init.attr;
    if let Err(errno) = context.check() {
        null!(errno);
    }
    if attributes.max_wr == 0
        || attributes.max_wr > limits.shared_receives
        || attributes.max_sge > limits.entries
    {
        null!(misuse!(libc::EINVAL, "a shared receive queue of a size that is not allowed"));
    }
    let Some(place) = fabric().claim(Table::SharedQueues, &fabric().shared_queues) else {
        null!(libc::ENOMEM);
    };
    let queue = &fabric().shared_queues[place];
    if !queue.open(context.place, owner.number, attributes.max_wr, attributes.max_sge) {
        queue.release();
        null!(libc::ENOMEM);
    }
    owner.users.fetch_add(1, AcqRel);
    context.objects.fetch_add(1, Relaxed);
    // SAFETY: null and 0 are valid, and so is the mutex.
    let mut base: abi::ibv_srq = unsafe { zeroed() };
    base.context = context_of;
    base.srq_context = init.srq_context;
    base.pd = domain_of;
    base.handle = place as u32;
    let made = Box::into_raw(Box::new(Shared {
        base,
        place: place as u32,
        users: AtomicU32::new(0),
        events: Acknowledged::default(),
    }));
    queue.set_object(made.expose_provenance() as u64);
    made.cast()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_modify_srq(
    pointer: *mut abi::ibv_srq,
    attributes: *mut abi::ibv_srq_attr,
    mask: c_int,
) -> c_int {
    let mask = mask as u32;
    if mask & !abi::IBV_SRQ_LIMIT != 0 {
        return misuse!(libc::EINVAL, "a shared receive queue cannot be resized");
    }
    let mut state = shared(pointer).queue().lock();
    let limit = given!(attributes).srq_limit;
    if mask & abi::IBV_SRQ_LIMIT != 0 {
        if limit > state.ring.capacity() {
            return misuse!(libc::EINVAL, "the limit is larger than the shared receive queue");
        }
        state.limit = limit;
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_srq(
    pointer: *mut abi::ibv_srq,
    attributes: *mut abi::ibv_srq_attr,
) -> c_int {
    let state = shared(pointer).queue().lock();
    *given_mut!(attributes) = abi::ibv_srq_attr {
        max_wr: state.ring.capacity(),
        max_sge: state.ring.most_entries(),
        srq_limit: state.limit,
    };
    0
}

pub(super) extern "C" fn get_srq_num(_: *mut abi::ibv_srq, _number: *mut u32) -> c_int {
    // Only those of connections that many processes share have numbers.
    libc::EOPNOTSUPP
}

#[unsafe(no_mangle)]
extern "C" fn ibv_destroy_srq(pointer: *mut abi::ibv_srq) -> c_int {
    let it = shared(pointer);
    let users = it.users.load(Acquire);
    if users != 0 {
        return misuse!(libc::EBUSY, "a shared receive queue is destroyed that {users} pairs use");
    }
    finish(it.base.context, pointer.addr() as u64, &it.events);
    it.queue().destroy();
    domain(it.base.pd).users.fetch_sub(1, AcqRel);
    context(it.base.context).objects.fetch_sub(1, Relaxed);
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<Shared>()) });
    0
}

pub(super) extern "C" fn post_srq_recv(
    pointer: *mut abi::ibv_srq,
    first: *mut abi::ibv_recv_wr,
    bad: *mut *mut abi::ibv_recv_wr,
) -> c_int {
    let it = shared(pointer);
    let mut next = first;
    while !next.is_null() {
        let request = given!(next);
        if let Err(errno) = post(it, request) {
            if !bad.is_null() {
                *given_mut!(bad) = next;
            }
            return errno;
        }
        next = request.next;
    }
    0
}

fn post(it: &Shared, request: &abi::ibv_recv_wr) -> Result<(), c_int> {
    context(it.base.context).check()?;
    let entries = super::lists::entries(request.sg_list, request.num_sge);
    let mut state = it.queue().lock();
    let most = state.ring.most_entries();
    if entries.len() > most as usize {
        return Err(misuse!(
            libc::EINVAL,
            "a receive has {} entries, at most {most}",
            entries.len()
        ));
    }
    if !it.queue().take_place(state.ring.capacity()) {
        return Err(misuse!(libc::ENOMEM, "a shared receive queue is full"));
    }
    state.ring.push(request.wr_id, entries);
    Ok(())
}
