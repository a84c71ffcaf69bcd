//! Waiting for events and acknowledging them.

use std::ffi::{c_int, c_uint, c_void};

use super::channel::{channel, read_one};
use super::completion::completion;
use super::context::context;
use super::queue_pair::pair;
use super::shared_receive::shared;
use super::{given, given_mut};
use crate::abi;

#[unsafe(no_mangle)]
extern "C" fn ibv_get_cq_event(
    pointer: *mut abi::ibv_comp_channel,
    queue: *mut *mut abi::ibv_cq,
    queue_context: *mut *mut c_void,
) -> c_int {
    let it = channel(pointer);
    loop {
        if !read_one(it.base.fd) {
            return -1;
        }
        let Some(event) = it.events().pop() else { continue };
        let object: *mut abi::ibv_cq = std::ptr::with_exposed_provenance_mut(event.object as usize);
        completion(object).completion_events.deliver();
        *given_mut!(queue) = object;
        *given_mut!(queue_context) = given!(object).cq_context;
        return 0;
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_ack_cq_events(queue: *mut abi::ibv_cq, count: c_uint) {
    if count != 0 {
        completion(queue).completion_events.acknowledge(u64::from(count));
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_async_event(
    pointer: *mut abi::ibv_context,
    to: *mut abi::ibv_async_event,
) -> c_int {
    let it = context(pointer);
    let event = loop {
        if !read_one(given!(pointer).async_fd) {
            return -1;
        }
        if let Some(event) = it.events().pop() {
            break event;
        }
    };
    let to = given_mut!(to);
    to.event_type = event.kind;
    let object = event.object as usize;
    match subject(event.kind) {
        Subject::Queue => {
            let queue = std::ptr::with_exposed_provenance_mut(object);
            completion(queue).events.deliver();
            to.element.cq = queue;
        }
        Subject::Pair => {
            let it = std::ptr::with_exposed_provenance_mut(object);
            pair(it).events.deliver();
            to.element.qp = it;
        }
        Subject::Shared => {
            let it = std::ptr::with_exposed_provenance_mut(object);
            shared(it).events.deliver();
            to.element.srq = it;
        }
        Subject::Port => to.element.port_num = event.port as c_int,
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_ack_async_event(event: *mut abi::ibv_async_event) {
    let event = given!(event);
    // SAFETY: the field of the union is the one that the kind of event determines.
    unsafe {
        match subject(event.event_type) {
            Subject::Queue => completion(event.element.cq).events.acknowledge(1),
            Subject::Pair => pair(event.element.qp).events.acknowledge(1),
            Subject::Shared => shared(event.element.srq).events.acknowledge(1),
            Subject::Port => {}
        }
    }
}

/// What an event is about.
enum Subject {
    Queue,
    Pair,
    Shared,
    Port,
}

fn subject(kind: abi::ibv_event_type) -> Subject {
    match kind {
        abi::IBV_EVENT_CQ_ERR => Subject::Queue,
        abi::IBV_EVENT_QP_FATAL
        | abi::IBV_EVENT_QP_REQ_ERR
        | abi::IBV_EVENT_QP_ACCESS_ERR
        | abi::IBV_EVENT_COMM_EST
        | abi::IBV_EVENT_SQ_DRAINED
        | abi::IBV_EVENT_PATH_MIG
        | abi::IBV_EVENT_PATH_MIG_ERR
        | abi::IBV_EVENT_QP_LAST_WQE_REACHED => Subject::Pair,
        abi::IBV_EVENT_SRQ_ERR | abi::IBV_EVENT_SRQ_LIMIT_REACHED => Subject::Shared,
        _ => Subject::Port,
    }
}
