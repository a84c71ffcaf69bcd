//! The states of queue pairs, and which attributes each change of state needs and allows.
//!
//! The table is that of the InfiniBand specification (section 11.2.5.2), as the Linux kernel has it
//! (`qp_state_table` in `drivers/infiniband/core/verbs.c`).

use std::ffi::c_int;

use super::context::{Context, context};
use super::given;
use super::queue_pair::{Pair, pair};
use crate::abi::*;
use crate::fabric::network::{Address, MOST_GIDS, NO_GID};
use crate::fabric::process::wait_for_transfers;
use crate::misuse::misuse;
use crate::requester::progress;

/// The attributes that a change needs, and that it allows. None if there is no such change.
fn attributes(kind: ibv_qp_type, from: ibv_qp_state, to: ibv_qp_state) -> Option<(u32, u32)> {
    let reliable = kind == IBV_QPT_RC;
    let datagrams = kind == IBV_QPT_UD;
    let in_use = if datagrams {
        IBV_QP_CUR_STATE | IBV_QP_QKEY
    } else {
        let timer = if reliable { IBV_QP_MIN_RNR_TIMER } else { 0 };
        IBV_QP_CUR_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_ALT_PATH | IBV_QP_PATH_MIG_STATE | timer
    };
    let place =
        IBV_QP_PKEY_INDEX | IBV_QP_PORT | if datagrams { IBV_QP_QKEY } else { IBV_QP_ACCESS_FLAGS };
    let connection = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    let sending = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    Some(match (from, to) {
        (_, IBV_QPS_RESET | IBV_QPS_ERR) => (0, 0),
        (IBV_QPS_RESET, IBV_QPS_INIT) => (place, 0),
        (IBV_QPS_INIT, IBV_QPS_INIT) => (0, place),
        (IBV_QPS_INIT, IBV_QPS_RTR) if datagrams => (0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY),
        (IBV_QPS_INIT, IBV_QPS_RTR) => {
            let more = if reliable { IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER } else { 0 };
            (connection | more, IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX)
        }
        (IBV_QPS_RTR, IBV_QPS_RTS) if reliable => (IBV_QP_SQ_PSN | sending, in_use),
        (IBV_QPS_RTR, IBV_QPS_RTS) => (IBV_QP_SQ_PSN, in_use),
        (IBV_QPS_RTS, IBV_QPS_RTS) | (IBV_QPS_SQD, IBV_QPS_RTS) => (0, in_use),
        (IBV_QPS_SQE, IBV_QPS_RTS) if !reliable => (0, in_use),
        (IBV_QPS_RTS, IBV_QPS_SQD) => (0, IBV_QP_EN_SQD_ASYNC_NOTIFY),
        (IBV_QPS_SQD, IBV_QPS_SQD) if reliable => (0, in_use | sending),
        (IBV_QPS_SQD, IBV_QPS_SQD) => (0, in_use),
        _ => return None,
    })
}

/// The name of a state, for explanations.
fn name(state: ibv_qp_state) -> &'static str {
    match state {
        IBV_QPS_RESET => "RESET",
        IBV_QPS_INIT => "INIT",
        IBV_QPS_RTR => "RTR",
        IBV_QPS_RTS => "RTS",
        IBV_QPS_SQD => "SQD",
        IBV_QPS_SQE => "SQE",
        IBV_QPS_ERR => "ERR",
        _ => "?",
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_modify_qp(
    pointer: *mut ibv_qp,
    attributes: *mut ibv_qp_attr,
    mask: c_int,
) -> c_int {
    let it = pair(pointer);
    match modify(it, given!(attributes), mask as u32) {
        Ok(()) => 0,
        Err(errno) => errno,
    }
}

fn modify(it: &Pair, given: &ibv_qp_attr, mask: u32) -> Result<(), c_int> {
    let context = context(it.base().context);
    context.check()?;
    let core = &it.core;
    let there = core.shared();
    let state = there.state();
    if mask & IBV_QP_CUR_STATE != 0 && given.cur_qp_state != state {
        let (is, said) = (name(state), name(given.cur_qp_state));
        return Err(misuse!(libc::EINVAL, "the queue pair is in state {is}, not {said}"));
    }
    let to = if mask & IBV_QP_STATE != 0 { given.qp_state } else { state };
    let change = format!("{} to {}", name(state), name(to));
    let Some((needed, allowed)) = attributes(core.kind, state, to) else {
        return Err(misuse!(libc::EINVAL, "a queue pair cannot go from {change}"));
    };
    let missing = needed & !mask;
    let extra = mask & !(needed | allowed | IBV_QP_STATE);
    if missing != 0 || extra != 0 {
        return Err(misuse!(
            libc::EINVAL,
            "{change}: attributes {missing:#x} are missing, {extra:#x} are not allowed"
        ));
    }
    check_values(context, given, mask)?;
    let address = if mask & IBV_QP_AV != 0 {
        let port = there.lock().attributes.port_num;
        if given.ah_attr.port_num != port {
            let other = given.ah_attr.port_num;
            return Err(misuse!(libc::EINVAL, "the address is for port {other}, not {port}"));
        }
        Some(resolve(context, &given.ah_attr)?)
    } else {
        None
    };
    match to {
        IBV_QPS_RESET => {
            // Nothing is delivered from now on; what is under way ends.
            there.set_state(IBV_QPS_RESET);
            core.queue().reset();
            wait_for_transfers();
            there.reset(core.place);
        }
        IBV_QPS_ERR => {
            there.fail(core.place, None);
            progress(core, &mut core.queue());
        }
        _ => {
            let mut queue = core.queue();
            copy(given, mask, &mut queue.attributes);
            copy(given, mask, &mut there.lock().attributes);
            if let Some(address) = address {
                queue.connect(address);
            }
            there.set_state(to);
            progress(core, &mut queue);
        }
    }
    // SAFETY: the field of the caller's structure, which others only read.
    unsafe { (*it.base.get()).qp_base.state = to };
    Ok(())
}

fn check_values(context: &Context, given: &ibv_qp_attr, mask: u32) -> Result<(), c_int> {
    let has = |flag| mask & flag != 0;
    let (ports, reads) = context.with_device(|device| (device.port_count, device.limits.reads));
    let wrong = if has(IBV_QP_PORT) && !(1..=ports).contains(&u32::from(given.port_num)) {
        "the device has no such port"
    } else if has(IBV_QP_PKEY_INDEX) && given.pkey_index != 0 {
        "the table of partitions has one entry"
    } else if has(IBV_QP_PATH_MTU) && !(IBV_MTU_256..=IBV_MTU_4096).contains(&given.path_mtu) {
        "there is no such MTU"
    } else if has(IBV_QP_DEST_QPN) && given.dest_qp_num >> 24 != 0 {
        "numbers of queue pairs have 24 bits"
    } else if has(IBV_QP_RQ_PSN) && given.rq_psn >> 24 != 0
        || has(IBV_QP_SQ_PSN) && given.sq_psn >> 24 != 0
    {
        "numbers of packets have 24 bits"
    } else if has(IBV_QP_TIMEOUT) && given.timeout > 31
        || has(IBV_QP_MIN_RNR_TIMER) && given.min_rnr_timer > 31
    {
        "timers have 5 bits"
    } else if has(IBV_QP_RETRY_CNT) && given.retry_cnt > 7
        || has(IBV_QP_RNR_RETRY) && given.rnr_retry > 7
    {
        "numbers of retries have 3 bits"
    } else if has(IBV_QP_MAX_QP_RD_ATOMIC) && u32::from(given.max_rd_atomic) > reads
        || has(IBV_QP_MAX_DEST_RD_ATOMIC) && u32::from(given.max_dest_rd_atomic) > reads
    {
        "more reads at a time than the device can do"
    } else if has(IBV_QP_ALT_PATH) {
        "there are no alternate paths"
    } else {
        return Ok(());
    };
    Err(misuse!(libc::EINVAL, "ibv_modify_qp: {wrong}"))
}

/// The address that the attributes describe, with what the index of the own address stands for now.
pub(super) fn resolve(context: &Context, given: &ibv_ah_attr) -> Result<Address, c_int> {
    let port = u32::from(given.port_num);
    let index = u32::from(given.grh.sgid_index);
    let found = context.with_device(|device| {
        let port = device.port(port)?;
        Some((port.link_layer, port.gids[index as usize % MOST_GIDS]))
    });
    let Some((link_layer, own)) = found else {
        return Err(misuse!(libc::EINVAL, "an address: the device has no port {port}"));
    };
    let is_global = given.is_global != 0;
    if !is_global && link_layer == IBV_LINK_LAYER_ETHERNET {
        return Err(misuse!(libc::EINVAL, "an address on Ethernet needs a global identifier"));
    }
    if is_global && (index as usize >= MOST_GIDS || own.kind == NO_GID) {
        return Err(misuse!(libc::EINVAL, "an address: entry {index} of the table is empty"));
    }
    // SAFETY: both parts of the union are 16 bytes, of which any value is valid.
    let to = unsafe { given.grh.dgid.raw };
    if is_global && to == [0; 16] {
        return Err(misuse!(libc::EINVAL, "an address: the global identifier is 0"));
    }
    Ok(Address {
        device: context.device,
        port,
        own,
        index,
        global: is_global.then_some(to),
        lid: u32::from(given.dlid),
    })
}

fn copy(from: &ibv_qp_attr, mask: u32, to: &mut ibv_qp_attr) {
    macro_rules! take {
        ($($flag:ident $($field:ident)+;)+) => {
            $(if mask & $flag != 0 { $(to.$field = from.$field;)+ })+
        };
    }
    take! {
        IBV_QP_EN_SQD_ASYNC_NOTIFY en_sqd_async_notify;
        IBV_QP_ACCESS_FLAGS qp_access_flags;
        IBV_QP_PKEY_INDEX pkey_index;
        IBV_QP_PORT port_num;
        IBV_QP_QKEY qkey;
        IBV_QP_AV ah_attr;
        IBV_QP_PATH_MTU path_mtu;
        IBV_QP_TIMEOUT timeout;
        IBV_QP_RETRY_CNT retry_cnt;
        IBV_QP_RNR_RETRY rnr_retry;
        IBV_QP_RQ_PSN rq_psn;
        IBV_QP_MAX_QP_RD_ATOMIC max_rd_atomic;
        IBV_QP_MIN_RNR_TIMER min_rnr_timer;
        IBV_QP_SQ_PSN sq_psn;
        IBV_QP_MAX_DEST_RD_ATOMIC max_dest_rd_atomic;
        IBV_QP_PATH_MIG_STATE path_mig_state;
        IBV_QP_DEST_QPN dest_qp_num;
    }
}
