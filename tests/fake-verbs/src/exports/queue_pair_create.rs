//! Creating queue pairs.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem::zeroed;
use std::sync::{Arc, Mutex};

use super::acknowledged::Acknowledged;
use super::completion::{completion, use_queue};
use super::context::context;
use super::protection::domain;
use super::queue_pair::Pair;
use super::shared_receive::shared;
use super::{given, given_mut, null, work_ex};
use crate::abi;
use crate::fabric::{QueuePair, Table, fabric};
use crate::misuse::misuse;
use crate::requester::{Core, SendQueue};
use crate::sync::{AcqRel, Relaxed};

/// The operations of `ibv_wr_*` that there are.
const OPERATIONS: u64 = (abi::IBV_QP_EX_WITH_RDMA_WRITE
    | abi::IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
    | abi::IBV_QP_EX_WITH_SEND
    | abi::IBV_QP_EX_WITH_SEND_WITH_IMM
    | abi::IBV_QP_EX_WITH_RDMA_READ
    | abi::IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
    | abi::IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD
    | abi::IBV_QP_EX_WITH_LOCAL_INV
    | abi::IBV_QP_EX_WITH_BIND_MW
    | abi::IBV_QP_EX_WITH_SEND_WITH_INV) as u64;

fn check_init(domain: *mut abi::ibv_pd, init: &abi::ibv_qp_init_attr) -> Result<(), c_int> {
    let of = given!(domain).context;
    let context = context(of);
    context.check()?;
    match init.qp_type {
        abi::IBV_QPT_RC | abi::IBV_QPT_UC | abi::IBV_QPT_UD => {}
        abi::IBV_QPT_RAW_PACKET | abi::IBV_QPT_XRC_SEND | abi::IBV_QPT_XRC_RECV => {
            return Err(libc::EOPNOTSUPP);
        }
        abi::IBV_QPT_DRIVER => return Err(libc::EOPNOTSUPP),
        other => return Err(misuse!(libc::EINVAL, "there are no queue pairs of type {other}")),
    }
    if init.send_cq.is_null() || init.recv_cq.is_null() {
        return Err(misuse!(libc::EINVAL, "a queue pair needs two completion queues"));
    }
    let mut contexts = vec![given!(init.send_cq).context, given!(init.recv_cq).context];
    if !init.srq.is_null() {
        contexts.push(given!(init.srq).context);
    }
    if contexts.iter().any(|other| *other != of) {
        return Err(misuse!(libc::EINVAL, "objects of different contexts in one queue pair"));
    }
    let cap = &init.cap;
    let limits = context.with_device(|device| device.limits);
    let entries = cap.max_send_sge.max(cap.max_recv_sge);
    if cap.max_send_wr > limits.work_requests
        || cap.max_recv_wr > limits.work_requests
        || entries > limits.entries
        || cap.max_inline_data > limits.inline
    {
        return Err(misuse!(libc::EINVAL, "a queue pair larger than the device allows: {cap:?}"));
    }
    Ok(())
}

fn create(
    domain_of: *mut abi::ibv_pd,
    init: &mut abi::ibv_qp_init_attr,
    operations: Option<u64>,
) -> Result<*mut abi::ibv_qp, c_int> {
    check_init(domain_of, init)?;
    let owner = domain(domain_of);
    let context_of = given!(domain_of).context;
    let context = context(context_of);
    let shared = (!init.srq.is_null()).then(|| shared(init.srq));
    if shared.is_some() {
        (init.cap.max_recv_wr, init.cap.max_recv_sge) = (0, 0);
    }
    let place = fabric().claim(Table::QueuePairs, &fabric().queue_pairs).ok_or(libc::ENOMEM)?;
    let there = &fabric().queue_pairs[place];
    let Some(mut responder) = QueuePair::responder(init.cap.max_recv_wr, init.cap.max_recv_sge)
    else {
        there.destroy();
        return Err(libc::ENOMEM);
    };
    responder.kind = init.qp_type;
    responder.domain = owner.number;
    responder.device = context.device;
    responder.send_queue = completion(init.send_cq).place;
    responder.receive_queue = completion(init.recv_cq).place;
    responder.shared = shared.map_or(0, |shared| shared.place);
    there.open(place, context.place, responder);
    use_queue(init.send_cq);
    use_queue(init.recv_cq);
    if let Some(shared) = shared {
        shared.users.fetch_add(1, AcqRel);
    }
    owner.users.fetch_add(1, AcqRel);
    context.objects.fetch_add(1, Relaxed);
    let number = there.number();
    let queue = SendQueue::new(&init.cap, init.sq_sig_all != 0);
    let place = place as u32;
    let of = (owner.number, context.device, completion(init.send_cq).place);
    let core = Arc::new(Core::new((place, number), init.qp_type, of, queue));
    // SAFETY: functions that are missing, null and 0 are valid, and so is the mutex.
    let mut base: abi::ibv_qp_ex = unsafe { zeroed() };
    let simple = &mut base.qp_base;
    simple.context = context_of;
    simple.qp_context = init.qp_context;
    simple.pd = domain_of;
    simple.send_cq = init.send_cq;
    simple.recv_cq = init.recv_cq;
    simple.srq = init.srq;
    simple.handle = place;
    simple.qp_num = number;
    simple.state = abi::IBV_QPS_RESET;
    simple.qp_type = init.qp_type;
    if operations.is_some() {
        work_ex::fill(&mut base);
    }
    let made = Box::into_raw(Box::new(Pair {
        base: UnsafeCell::new(base),
        core,
        cap: init.cap,
        events: Acknowledged::default(),
        extended: operations.is_some(),
        operations: operations.unwrap_or(0),
        building: Mutex::default(),
    }));
    there.set_object(made.expose_provenance() as u64);
    Ok(made.cast())
}

#[unsafe(no_mangle)]
extern "C" fn ibv_create_qp(
    domain: *mut abi::ibv_pd,
    init: *mut abi::ibv_qp_init_attr,
) -> *mut abi::ibv_qp {
    match create(domain, given_mut!(init), None) {
        Ok(made) => made,
        Err(errno) => null!(errno),
    }
}

pub(super) extern "C" fn create_qp_ex(
    pointer: *mut abi::ibv_context,
    attributes: *mut abi::ibv_qp_init_attr_ex,
) -> *mut abi::ibv_qp {
    let it = given_mut!(attributes);
    let known = abi::IBV_QP_INIT_ATTR_PD
        | abi::IBV_QP_INIT_ATTR_CREATE_FLAGS
        | abi::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    let has = |flag| it.comp_mask & flag != 0;
    if it.comp_mask & !known != 0 || has(abi::IBV_QP_INIT_ATTR_CREATE_FLAGS) && it.create_flags != 0
    {
        null!(libc::EOPNOTSUPP);
    }
    if !has(abi::IBV_QP_INIT_ATTR_PD) || given!(it.pd).context != pointer {
        null!(misuse!(libc::EINVAL, "ibv_create_qp_ex: no protection domain of this context"));
    }
    let operations = has(abi::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS).then_some(it.send_ops_flags);
    if operations.is_some_and(|operations| operations & !OPERATIONS != 0) {
        null!(libc::EOPNOTSUPP);
    }
    let domain = it.pd;
    // The first part of the structure is that of ordinary queue pairs.
    match create(domain, given_mut!(attributes.cast()), operations) {
        Ok(made) => made,
        Err(errno) => null!(errno),
    }
}
