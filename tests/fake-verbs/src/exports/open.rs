//! Opening and closing a device.

use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr::null_mut;

use super::context::{Context, VECTORS, context, query_device_ex, query_port};
use super::{completion, device, null, protection, queue_pair_create, shared_receive, work};
use crate::abi;
use crate::fabric::{Entries, Table, fabric};
use crate::sync::{AtomicU32, Relaxed};

#[unsafe(no_mangle)]
extern "C" fn ibv_open_device(device: *mut abi::ibv_device) -> *mut abi::ibv_context {
    let place = device::place(device);
    if fabric().network.lock().devices[place as usize].present == 0 {
        null!(libc::ENODEV);
    }
    // SAFETY: the call has no arguments in memory.
    let events = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_SEMAPHORE) };
    if events < 0 {
        return null_mut();
    }
    let Some(slot) = fabric().claim(Table::Contexts, &fabric().contexts) else {
        null!(libc::ENOMEM);
    };
    fabric().contexts[slot].open(place, events);
    // SAFETY: functions that are missing and numbers that are 0 are valid, and so is the mutex.
    let mut verbs: abi::verbs_context = unsafe { zeroed() };
    let extended = fabric().network.lock().devices[place as usize].limits.extended != 0;
    verbs.query_port = Some(query_port);
    verbs.query_device_ex = Some(query_device_ex);
    verbs.get_srq_num = Some(shared_receive::get_srq_num);
    if extended {
        verbs.create_cq_ex = Some(completion::create_cq_ex);
        verbs.create_qp_ex = Some(queue_pair_create::create_qp_ex);
    }
    verbs.sz = size_of::<abi::verbs_context>();
    let context = &mut verbs.context;
    context.device = device;
    // Programs duplicate it, to give it to another process.
    context.cmd_fd = events;
    context.async_fd = events;
    context.num_comp_vectors = VECTORS as c_int;
    context.abi_compat = std::ptr::without_provenance_mut(usize::MAX);
    let ops = &mut context.ops;
    ops.alloc_mw = Some(protection::alloc_mw);
    ops.bind_mw = Some(work::bind_mw);
    ops.dealloc_mw = Some(protection::dealloc_mw);
    ops.poll_cq = Some(completion::poll_cq);
    ops.req_notify_cq = Some(completion::req_notify_cq);
    ops.post_srq_recv = Some(shared_receive::post_srq_recv);
    ops.post_send = Some(work::post_send);
    ops.post_recv = Some(work::post_recv);
    let objects = AtomicU32::new(0);
    let opened = Context { verbs, place: slot as u32, device: place, objects };
    let opened = Box::into_raw(Box::new(opened));
    // SAFETY: the box was just made; the address of a field is not a reference to it.
    unsafe { &raw mut (*opened).verbs.context }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_close_device(pointer: *mut abi::ibv_context) -> c_int {
    let it = context(pointer);
    let objects = it.objects.load(Relaxed);
    if objects != 0 {
        // The kernel frees what is left; a program that goes on to use it is wrong.
        crate::misuse::log(format_args!("a context is closed with {objects} objects in it"));
    }
    it.events().release();
    // SAFETY: the descriptor is that of the context.
    unsafe { libc::close(it.verbs.context.async_fd) };
    if objects == 0 {
        // SAFETY: it was made by a box, and nothing refers to it any more.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(it).cast_mut()) });
    }
    0
}
