//! Querying and destroying queue pairs.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_uint};
use std::sync::{Arc, Mutex};

use super::acknowledged::{Acknowledged, finish};
use super::completion::leave_queue;
use super::context::context;
use super::protection::domain;
use super::shared_receive::shared;
use super::{given, given_mut};
use crate::abi;
use crate::fabric::process::wait_for_transfers;
use crate::misuse::misuse;
use crate::requester::{Core, Work};
use crate::sync::{AcqRel, Relaxed};

/// Work requests between `ibv_wr_start` and `ibv_wr_complete`.
#[derive(Debug, Default)]
pub(super) struct Building {
    pub(super) open: bool,
    pub(super) list: Vec<Work>,
    /// The first error, which `ibv_wr_complete` returns.
    pub(super) error: c_int,
}

/// A queue pair.
#[repr(C)]
pub(super) struct Pair {
    /// Its first part is the structure of ordinary queue pairs.
    pub(super) base: UnsafeCell<abi::ibv_qp_ex>,
    pub(super) core: Arc<Core>,
    pub(super) cap: abi::ibv_qp_cap,
    pub(super) events: Acknowledged,
    /// Whether it was created for the functions `ibv_wr_*`, and for which operations.
    pub(super) extended: bool,
    pub(super) operations: u64,
    /// Work requests between `ibv_wr_start` and `ibv_wr_complete`.
    pub(super) building: Mutex<Building>,
}

/// The queue pair of a pointer that the caller has.
pub(super) fn pair<'a>(pointer: *mut abi::ibv_qp) -> &'a Pair {
    given!(pointer.cast())
}

impl Pair {
    /// The structure that the caller sees; its fields do not change, except the state.
    pub(super) fn base(&self) -> &abi::ibv_qp {
        // SAFETY: the fields that are read do not change after the creation.
        unsafe { &(*self.base.get()).qp_base }
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_qp_to_qp_ex(pointer: *mut abi::ibv_qp) -> *mut abi::ibv_qp_ex {
    if pair(pointer).extended { pointer.cast() } else { std::ptr::null_mut() }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_qp(
    pointer: *mut abi::ibv_qp,
    attributes: *mut abi::ibv_qp_attr,
    _mask: c_int,
    init: *mut abi::ibv_qp_init_attr,
) -> c_int {
    let it = pair(pointer);
    let base = it.base();
    if let Err(errno) = context(base.context).check() {
        return errno;
    }
    let state = it.core.shared().state();
    let queue = it.core.queue();
    let to = given_mut!(attributes);
    *to = it.core.shared().lock().attributes;
    to.sq_psn = queue.attributes.sq_psn;
    (to.qp_state, to.cur_qp_state) = (state, state);
    to.cap = it.cap;
    let init = given_mut!(init);
    init.qp_context = base.qp_context;
    (init.send_cq, init.recv_cq, init.srq) = (base.send_cq, base.recv_cq, base.srq);
    init.cap = it.cap;
    init.qp_type = base.qp_type;
    init.sq_sig_all = c_int::from(queue.all_signaled);
    drop(queue);
    // SAFETY: the field of the caller's structure, which others only read.
    unsafe { (*it.base.get()).qp_base.state = state };
    0
}

/// Whether the last byte of a message arrives last. An adapter does not promise it.
#[unsafe(no_mangle)]
extern "C" fn ibv_query_qp_data_in_order(
    _: *mut abi::ibv_qp,
    _operation: abi::ibv_wr_opcode,
    _flags: c_uint,
) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_destroy_qp(pointer: *mut abi::ibv_qp) -> c_int {
    let it = pair(pointer);
    let there = it.core.shared();
    there.set_state(abi::IBV_QPS_RESET);
    it.core.queue().reset();
    wait_for_transfers();
    there.reset(it.core.place);
    let base = it.base();
    finish(base.context, pointer.addr() as u64, &it.events);
    there.destroy();
    leave_queue(base.send_cq);
    leave_queue(base.recv_cq);
    if !base.srq.is_null() {
        shared(base.srq).users.fetch_sub(1, AcqRel);
    }
    domain(base.pd).users.fetch_sub(1, AcqRel);
    context(base.context).objects.fetch_sub(1, Relaxed);
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<Pair>()) });
    0
}

/// Options of a connection that the two ends agree on. There are none.
#[unsafe(no_mangle)]
extern "C" fn ibv_query_ece(_: *mut abi::ibv_qp, ece: *mut abi::ibv_ece) -> c_int {
    *given_mut!(ece) = abi::ibv_ece { vendor_id: 0, options: 0, comp_mask: 0 };
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_set_ece(_: *mut abi::ibv_qp, ece: *mut abi::ibv_ece) -> c_int {
    let it = given_mut!(ece);
    if it.comp_mask != 0 {
        return misuse!(libc::EINVAL, "ibv_set_ece: bits of comp_mask that do not exist");
    }
    it.options = 0;
    if it.vendor_id == 0 { 0 } else { libc::EOPNOTSUPP }
}
