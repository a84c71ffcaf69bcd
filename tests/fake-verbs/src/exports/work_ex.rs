//! Posting work requests with the functions `ibv_wr_*`.

use std::ffi::{c_int, c_void};
use std::sync::{MutexGuard, PoisonError};

use super::address::address;
use super::given;
use super::lists::{append, entries};
use super::queue_pair::{Building, Pair, pair};
use super::work::{add, binding};
use crate::abi;
use crate::fabric::fabric;
use crate::misuse::misuse;
use crate::requester::{Datagram, Work, progress};
use crate::sync::Relaxed;

/// Puts the functions into the table of a queue pair.
pub(super) fn fill(base: &mut abi::ibv_qp_ex) {
    base.wr_atomic_cmp_swp = Some(atomic_cmp_swp);
    base.wr_atomic_fetch_add = Some(atomic_fetch_add);
    base.wr_bind_mw = Some(bind_mw);
    base.wr_local_inv = Some(local_inv);
    base.wr_rdma_read = Some(rdma_read);
    base.wr_rdma_write = Some(rdma_write);
    base.wr_rdma_write_imm = Some(rdma_write_imm);
    base.wr_send = Some(send);
    base.wr_send_imm = Some(send_imm);
    base.wr_send_inv = Some(send_inv);
    base.wr_set_ud_addr = Some(set_ud_addr);
    base.wr_set_inline_data = Some(set_inline_data);
    base.wr_set_inline_data_list = Some(set_inline_data_list);
    base.wr_set_sge = Some(set_sge);
    base.wr_set_sge_list = Some(set_sge_list);
    base.wr_start = Some(start);
    base.wr_complete = Some(complete);
    base.wr_abort = Some(abort);
}

type Pointer = *mut abi::ibv_qp_ex;

fn extended<'a>(pointer: Pointer) -> &'a Pair {
    pair(pointer.cast())
}

fn building(it: &Pair) -> MutexGuard<'_, Building> {
    it.building.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn start(pointer: Pointer) {
    loop {
        // One thread at a time; the others wait, as the manual allows.
        let mut building = building(extended(pointer));
        if !building.open {
            building.open = true;
            return;
        }
        drop(building);
        std::thread::yield_now();
    }
}

/// Begins a work request.
fn begin(pointer: Pointer, opcode: abi::ibv_wr_opcode, needs: abi::ibv_qp_create_send_ops_flags) {
    let it = extended(pointer);
    let mut building = building(it);
    if !building.open {
        building.error =
            misuse!(libc::EINVAL, "a work request outside of ibv_wr_start and ibv_wr_complete");
    }
    if it.operations & u64::from(needs) == 0 {
        building.error = misuse!(
            libc::EINVAL,
            "operation {opcode} was not asked for when the queue pair was created"
        );
    }
    // SAFETY: the caller sets these fields before it begins a work request.
    let (wr_id, flags) = unsafe { ((*it.base.get()).wr_id, (*it.base.get()).wr_flags) };
    building.list.push(Work {
        wr_id,
        opcode,
        flags: flags & !abi::IBV_SEND_INLINE,
        immediate: 0,
        remote_address: 0,
        remote_key: 0,
        compare_add: 0,
        swap: 0,
        entries: Vec::new(),
        inline: Vec::new(),
        datagram: None,
        bind: None,
    });
}

/// Changes the work request that was begun last.
fn change(pointer: Pointer, change: impl FnOnce(&mut Work)) {
    let mut building = building(extended(pointer));
    match building.list.last_mut() {
        Some(work) => change(work),
        None => {
            building.error = misuse!(libc::EINVAL, "details of a work request that was not begun");
        }
    }
}

extern "C" fn atomic_cmp_swp(pointer: Pointer, key: u32, to: u64, compare: u64, swap: u64) {
    begin(pointer, abi::IBV_WR_ATOMIC_CMP_AND_SWP, abi::IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP);
    change(pointer, |work| {
        (work.remote_key, work.remote_address) = (key, to);
        (work.compare_add, work.swap) = (compare, swap);
    });
}

extern "C" fn atomic_fetch_add(pointer: Pointer, key: u32, to: u64, add: u64) {
    begin(pointer, abi::IBV_WR_ATOMIC_FETCH_AND_ADD, abi::IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD);
    change(pointer, |work| {
        (work.remote_key, work.remote_address) = (key, to);
        work.compare_add = add;
    });
}

extern "C" fn bind_mw(
    pointer: Pointer,
    window: *mut abi::ibv_mw,
    key: u32,
    info: *const abi::ibv_mw_bind_info,
) {
    begin(pointer, abi::IBV_WR_BIND_MW, abi::IBV_QP_EX_WITH_BIND_MW);
    match binding(window, key, given!(info)) {
        Ok(bind) => change(pointer, |work| work.bind = Some(bind)),
        Err(errno) => building(extended(pointer)).error = errno,
    }
}

extern "C" fn local_inv(pointer: Pointer, key: u32) {
    begin(pointer, abi::IBV_WR_LOCAL_INV, abi::IBV_QP_EX_WITH_LOCAL_INV);
    change(pointer, |work| work.immediate = key);
}

extern "C" fn rdma_read(pointer: Pointer, key: u32, from: u64) {
    begin(pointer, abi::IBV_WR_RDMA_READ, abi::IBV_QP_EX_WITH_RDMA_READ);
    change(pointer, |work| (work.remote_key, work.remote_address) = (key, from));
}

extern "C" fn rdma_write(pointer: Pointer, key: u32, to: u64) {
    begin(pointer, abi::IBV_WR_RDMA_WRITE, abi::IBV_QP_EX_WITH_RDMA_WRITE);
    change(pointer, |work| (work.remote_key, work.remote_address) = (key, to));
}

extern "C" fn rdma_write_imm(pointer: Pointer, key: u32, to: u64, immediate: u32) {
    begin(pointer, abi::IBV_WR_RDMA_WRITE_WITH_IMM, abi::IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM);
    change(pointer, |work| {
        (work.remote_key, work.remote_address) = (key, to);
        work.immediate = immediate;
    });
}

extern "C" fn send(pointer: Pointer) {
    begin(pointer, abi::IBV_WR_SEND, abi::IBV_QP_EX_WITH_SEND);
}

extern "C" fn send_imm(pointer: Pointer, immediate: u32) {
    begin(pointer, abi::IBV_WR_SEND_WITH_IMM, abi::IBV_QP_EX_WITH_SEND_WITH_IMM);
    change(pointer, |work| work.immediate = immediate);
}

extern "C" fn send_inv(pointer: Pointer, key: u32) {
    begin(pointer, abi::IBV_WR_SEND_WITH_INV, abi::IBV_QP_EX_WITH_SEND_WITH_INV);
    change(pointer, |work| work.immediate = key);
}

extern "C" fn set_ud_addr(pointer: Pointer, to: *mut abi::ibv_ah, number: u32, key: u32) {
    let datagram = Datagram { address: address(to), number, key };
    change(pointer, |work| work.datagram = Some(datagram));
}

extern "C" fn set_inline_data(pointer: Pointer, data: *mut c_void, length: usize) {
    change(pointer, |work| {
        work.flags |= abi::IBV_SEND_INLINE;
        append(&mut work.inline, data.expose_provenance() as u64, length);
    });
}

extern "C" fn set_inline_data_list(pointer: Pointer, count: usize, list: *const abi::ibv_data_buf) {
    change(pointer, |work| {
        work.flags |= abi::IBV_SEND_INLINE;
        for index in 0..count {
            // SAFETY: the caller's list has so many entries.
            let buffer = unsafe { *list.add(index) };
            append(&mut work.inline, buffer.addr.expose_provenance() as u64, buffer.length);
        }
    });
}

extern "C" fn set_sge(pointer: Pointer, key: u32, address: u64, length: u32) {
    let entry = abi::ibv_sge { addr: address, length, lkey: key };
    change(pointer, |work| work.entries.push(entry));
}

extern "C" fn set_sge_list(pointer: Pointer, count: usize, list: *const abi::ibv_sge) {
    change(pointer, |work| work.entries.extend_from_slice(entries(list, count as c_int)));
}

/// Posts all that was begun, or nothing.
extern "C" fn complete(pointer: Pointer) -> c_int {
    let it = extended(pointer);
    let mut building = building(it);
    if !building.open {
        return misuse!(libc::EINVAL, "ibv_wr_complete without ibv_wr_start");
    }
    let mut queue = it.core.queue();
    let (before, posted) = (queue.waiting.len(), queue.posted);
    let mut error = std::mem::take(&mut building.error);
    for work in std::mem::take(&mut building.list) {
        if error == 0
            && let Err(errno) = add(it, &mut queue, work)
        {
            error = errno;
        }
    }
    if error != 0 {
        queue.waiting.truncate(before);
        queue.posted = posted;
    }
    fabric().settings.doorbells.fetch_add(1, Relaxed);
    progress(&it.core, &mut queue);
    building.open = false;
    error
}

extern "C" fn abort(pointer: Pointer) {
    *building(extended(pointer)) = Building::default();
}
