//! Posting work requests.

use std::ffi::c_int;

use super::address::address;
use super::context::context;
use super::lists::{append, entries};
use super::queue_pair::{Pair, pair};
use super::{given, given_mut};
use crate::abi;
use crate::fabric::fabric;
use crate::misuse::misuse;
use crate::requester::{Bind, Datagram, SendQueue, Work, progress};
use crate::sync::Relaxed;

pub(super) extern "C" fn post_send(
    pointer: *mut abi::ibv_qp,
    first: *mut abi::ibv_send_wr,
    bad: *mut *mut abi::ibv_send_wr,
) -> c_int {
    let it = pair(pointer);
    let mut queue = it.core.queue();
    let mut next = first;
    let mut result = 0;
    while !next.is_null() {
        let request = given!(next);
        let posted = work(it, request).and_then(|work| add(it, &mut queue, work));
        if let Err(errno) = posted {
            if !bad.is_null() {
                *given_mut!(bad) = next;
            }
            result = errno;
            break;
        }
        next = request.next;
    }
    fabric().settings.doorbells.fetch_add(1, Relaxed);
    progress(&it.core, &mut queue);
    result
}

/// Checks a work request and adds it to the send queue.
pub(super) fn add(it: &Pair, queue: &mut SendQueue, work: Work) -> Result<(), c_int> {
    let core = &it.core;
    let state = core.shared().state();
    if matches!(state, abi::IBV_QPS_RESET | abi::IBV_QPS_INIT | abi::IBV_QPS_RTR) {
        return Err(misuse!(libc::EINVAL, "a send is posted to a queue pair in state {state}"));
    }
    context(it.base().context).check()?;
    if work.entries.len() > queue.most_entries as usize {
        let (count, most) = (work.entries.len(), queue.most_entries);
        return Err(misuse!(libc::EINVAL, "a work request has {count} entries, at most {most}"));
    }
    if work.inline.len() > queue.most_inline as usize {
        let (count, most) = (work.inline.len(), queue.most_inline);
        return Err(misuse!(libc::EINVAL, "{count} bytes inline, at most {most}"));
    }
    check_operation(core.kind, &work)?;
    let used = queue.used(core.shared());
    if used >= u64::from(queue.capacity) {
        return Err(misuse!(
            libc::ENOMEM,
            "the send queue of {} is full: completions of {used} work requests were not polled",
            queue.capacity
        ));
    }
    let settings = &fabric().settings;
    settings.posted.fetch_add(1, Relaxed);
    let bytes = crate::memory::total(&work.entries) + work.inline.len() as u64;
    settings.bytes.fetch_add(bytes, Relaxed);
    queue.posted += 1;
    queue.waiting.push_back(work);
    Ok(())
}

fn check_operation(kind: abi::ibv_qp_type, work: &Work) -> Result<(), c_int> {
    let sends = matches!(work.opcode, abi::IBV_WR_SEND | abi::IBV_WR_SEND_WITH_IMM);
    let writes = matches!(work.opcode, abi::IBV_WR_RDMA_WRITE | abi::IBV_WR_RDMA_WRITE_WITH_IMM);
    let atomic =
        matches!(work.opcode, abi::IBV_WR_ATOMIC_CMP_AND_SWP | abi::IBV_WR_ATOMIC_FETCH_AND_ADD);
    let known = work.opcode <= abi::IBV_WR_SEND_WITH_INV;
    let allowed = match kind {
        abi::IBV_QPT_RC => known,
        abi::IBV_QPT_UC => sends || writes || work.opcode == abi::IBV_WR_BIND_MW,
        _ => sends && work.datagram.is_some(),
    };
    if !allowed {
        let opcode = work.opcode;
        return Err(misuse!(libc::EINVAL, "operation {opcode} on a queue pair of type {kind}"));
    }
    if work.is_inline() && !(sends || writes || work.opcode == abi::IBV_WR_SEND_WITH_INV) {
        return Err(misuse!(libc::EINVAL, "operation {} cannot be inline", work.opcode));
    }
    if atomic && (work.entries.len() != 1 || work.entries[0].length != 8) {
        return Err(misuse!(libc::EINVAL, "an atomic operation needs one entry of 8 bytes"));
    }
    Ok(())
}

/// The work request of the caller's structure.
fn work(it: &Pair, request: &abi::ibv_send_wr) -> Result<Work, c_int> {
    let list = entries(request.sg_list, request.num_sge);
    let datagrams = it.core.kind == abi::IBV_QPT_UD;
    let mut work = Work {
        wr_id: request.wr_id,
        opcode: request.opcode,
        flags: request.send_flags,
        // SAFETY: both parts of the union are numbers.
        immediate: unsafe { request.__bindgen_anon_1.imm_data },
        remote_address: 0,
        remote_key: 0,
        compare_add: 0,
        swap: 0,
        entries: Vec::new(),
        inline: Vec::new(),
        datagram: None,
        bind: None,
    };
    // SAFETY: the type of the queue pair and the operation determine the part of the union.
    unsafe {
        match request.opcode {
            _ if datagrams => {
                let ud = request.wr.ud;
                if ud.ah.is_null() {
                    return Err(misuse!(libc::EINVAL, "a datagram needs an address handle"));
                }
                let (number, key) = (ud.remote_qpn, ud.remote_qkey);
                work.datagram = Some(Datagram { address: address(ud.ah), number, key });
            }
            abi::IBV_WR_ATOMIC_CMP_AND_SWP | abi::IBV_WR_ATOMIC_FETCH_AND_ADD => {
                let atomic = request.wr.atomic;
                (work.remote_address, work.remote_key) = (atomic.remote_addr, atomic.rkey);
                (work.compare_add, work.swap) = (atomic.compare_add, atomic.swap);
            }
            abi::IBV_WR_BIND_MW => {
                let bind = request.__bindgen_anon_2.bind_mw;
                work.bind = Some(binding(bind.mw, bind.rkey, &bind.bind_info)?);
            }
            _ => {
                let rdma = request.wr.rdma;
                (work.remote_address, work.remote_key) = (rdma.remote_addr, rdma.rkey);
            }
        }
    }
    if work.is_inline() {
        for entry in list {
            append(&mut work.inline, entry.addr, entry.length as usize);
        }
    } else if !matches!(request.opcode, abi::IBV_WR_BIND_MW | abi::IBV_WR_LOCAL_INV) {
        work.entries.extend_from_slice(list);
    }
    Ok(work)
}

/// The binding of a window of type 2.
pub(super) fn binding(
    window: *mut abi::ibv_mw,
    new_key: u32,
    info: &abi::ibv_mw_bind_info,
) -> Result<Bind, c_int> {
    let it = given!(window);
    if it.type_ != abi::IBV_MW_TYPE_2 {
        return Err(misuse!(libc::EINVAL, "a window of type 1 is bound by ibv_bind_mw"));
    }
    if (new_key ^ it.rkey) >> 8 != 0 {
        return Err(misuse!(libc::EINVAL, "the new key of a window differs in more than its tag"));
    }
    let bind = bind(it, new_key, info);
    // The manual has the caller pass the new key as the present one of the next call.
    given_mut!(window).rkey = new_key;
    Ok(bind)
}

fn bind(window: &abi::ibv_mw, new_key: u32, info: &abi::ibv_mw_bind_info) -> Bind {
    Bind {
        window: window.rkey,
        new_key,
        region: if info.mr.is_null() { 0 } else { given!(info.mr).lkey },
        address: info.addr,
        length: info.length,
        access: info.mw_access_flags,
    }
}

/// Binds a window of type 1.
pub(super) extern "C" fn bind_mw(
    pointer: *mut abi::ibv_qp,
    window: *mut abi::ibv_mw,
    request: *mut abi::ibv_mw_bind,
) -> c_int {
    let it = pair(pointer);
    let request = given!(request);
    let present = given!(window).rkey;
    let new_key = present & !0xff | present.wrapping_add(1) & 0xff;
    let work = Work {
        wr_id: request.wr_id,
        opcode: abi::IBV_WR_BIND_MW,
        flags: request.send_flags,
        immediate: 0,
        remote_address: 0,
        remote_key: 0,
        compare_add: 0,
        swap: 0,
        entries: Vec::new(),
        inline: Vec::new(),
        datagram: None,
        bind: Some(bind(given!(window), new_key, &request.bind_info)),
    };
    let mut queue = it.core.queue();
    if let Err(errno) = add(it, &mut queue, work) {
        return errno;
    }
    given_mut!(window).rkey = new_key;
    progress(&it.core, &mut queue);
    0
}

pub(super) extern "C" fn post_recv(
    pointer: *mut abi::ibv_qp,
    first: *mut abi::ibv_recv_wr,
    bad: *mut *mut abi::ibv_recv_wr,
) -> c_int {
    let it = pair(pointer);
    let mut next = first;
    while !next.is_null() {
        let request = given!(next);
        if let Err(errno) = receive(it, request) {
            if !bad.is_null() {
                *given_mut!(bad) = next;
            }
            return errno;
        }
        next = request.next;
    }
    0
}

fn receive(it: &Pair, request: &abi::ibv_recv_wr) -> Result<(), c_int> {
    let core = &it.core;
    let there = core.shared();
    if there.state() == abi::IBV_QPS_RESET {
        return Err(misuse!(libc::EINVAL, "a receive is posted to a queue pair in state RESET"));
    }
    context(it.base().context).check()?;
    if !it.base().srq.is_null() {
        return Err(misuse!(
            libc::EINVAL,
            "a receive for a queue pair with a shared receive queue"
        ));
    }
    let list = entries(request.sg_list, request.num_sge);
    let mut responder = there.lock();
    let most = responder.ring.most_entries() as usize;
    if list.len() > most {
        return Err(misuse!(libc::EINVAL, "a receive has {} entries, at most {most}", list.len()));
    }
    if !there.take_place(responder.ring.capacity()) {
        return Err(misuse!(libc::ENOMEM, "the receive queue is full"));
    }
    responder.ring.push(request.wr_id, list);
    drop(responder);
    there.flush_if_failed(core.place);
    Ok(())
}
