//! An open device, and queries of it.

use std::ffi::c_int;
use std::mem::zeroed;

use super::{given, given_mut, null};
use crate::abi;
use crate::fabric::network::{Device, Gid, MOST_GIDS, NO_GID, Network, Port};
use crate::fabric::{EventQueue, fabric};
use crate::misuse::misuse;
use crate::sync::AtomicU32;

/// Completion vectors of a device.
pub(super) const VECTORS: u32 = 4;
/// The only partition: the default one, with full membership.
const PARTITION: u16 = 0xffff;

/// An open device.
#[repr(C)]
pub(super) struct Context {
    pub(super) verbs: abi::verbs_context,
    pub(super) place: u32,
    pub(super) device: u32,
    /// Objects that exist.
    pub(super) objects: AtomicU32,
}

/// The context of the pointer that the caller has.
pub(super) fn context<'a>(pointer: *mut abi::ibv_context) -> &'a Context {
    let offset = std::mem::offset_of!(abi::verbs_context, context);
    // SAFETY: the pointer is to the field `context` of the `verbs` of a context that is open.
    unsafe { &*pointer.byte_sub(offset).cast() }
}

impl Context {
    /// The events of the context.
    pub(super) fn events(&self) -> &'static EventQueue {
        &fabric().contexts[self.place as usize]
    }

    pub(super) fn with_device<R>(&self, use_it: impl FnOnce(&Device) -> R) -> R {
        use_it(&fabric().network.lock().devices[self.device as usize])
    }

    /// An error if the device was removed.
    pub(super) fn check(&self) -> Result<(), c_int> {
        if self.with_device(|device| device.present) == 0 {
            return Err(misuse!(libc::EIO, "the device was removed"));
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_device(
    pointer: *mut abi::ibv_context,
    attributes: *mut abi::ibv_device_attr,
) -> c_int {
    let it = context(pointer);
    if let Err(errno) = it.check() {
        return errno;
    }
    it.with_device(|device| *given_mut!(attributes) = device_attributes(device));
    0
}

fn device_attributes(device: &Device) -> abi::ibv_device_attr {
    let limits = &device.limits;
    // SAFETY: numbers that are 0 are valid.
    let mut to: abi::ibv_device_attr = unsafe { zeroed() };
    for (to, byte) in to.fw_ver.iter_mut().zip(b"1.0.0") {
        *to = *byte as std::ffi::c_char;
    }
    to.node_guid = device.guid.to_be();
    to.sys_image_guid = device.guid.to_be();
    to.max_mr_size = u64::MAX;
    to.page_size_cap = 0xffff_f000;
    to.vendor_id = 0x00ff_ffff;
    to.hw_ver = 1;
    to.max_qp = 8191;
    to.max_qp_wr = limits.work_requests as c_int;
    to.device_cap_flags = abi::IBV_DEVICE_MEM_WINDOW
        | abi::IBV_DEVICE_MEM_WINDOW_TYPE_2B
        | abi::IBV_DEVICE_RC_RNR_NAK_GEN
        | abi::IBV_DEVICE_PORT_ACTIVE_EVENT
        | abi::IBV_DEVICE_CURR_QP_STATE_MOD;
    to.max_sge = limits.entries as c_int;
    to.max_sge_rd = limits.entries as c_int;
    to.max_cq = 4095;
    to.max_cqe = limits.completions as c_int;
    to.max_mr = 65535;
    to.max_pd = 65535;
    to.max_qp_rd_atom = limits.reads as c_int;
    to.max_res_rd_atom = 8191 * limits.reads as c_int;
    to.max_qp_init_rd_atom = limits.reads as c_int;
    to.atomic_cap = abi::IBV_ATOMIC_HCA;
    to.max_mw = 65535;
    to.max_ah = 65535;
    to.max_srq = 1023;
    to.max_srq_wr = limits.shared_receives as c_int;
    to.max_srq_sge = limits.entries as c_int;
    to.max_pkeys = 1;
    to.local_ca_ack_delay = 15;
    to.phys_port_cnt = device.port_count as u8;
    to
}

pub(super) extern "C" fn query_device_ex(
    pointer: *mut abi::ibv_context,
    input: *const abi::ibv_query_device_ex_input,
    attributes: *mut abi::ibv_device_attr_ex,
    size: usize,
) -> c_int {
    if !input.is_null() && given!(input).comp_mask != 0 {
        return misuse!(libc::EINVAL, "ibv_query_device_ex: bits of comp_mask that do not exist");
    }
    if size < size_of::<abi::ibv_device_attr>() {
        return misuse!(libc::EINVAL, "ibv_query_device_ex: the structure is too small");
    }
    let it = context(pointer);
    if let Err(errno) = it.check() {
        return errno;
    }
    // SAFETY: numbers that are 0 are valid.
    let mut to: abi::ibv_device_attr_ex = unsafe { zeroed() };
    it.with_device(|device| {
        to.orig_attr = device_attributes(device);
        to.phys_port_cnt_ex = device.port_count;
    });
    to.device_cap_flags_ex = u64::from(to.orig_attr.device_cap_flags);
    to.completion_timestamp_mask = u64::MAX;
    to.hca_core_clock = 1_000_000;
    let size = size.min(size_of::<abi::ibv_device_attr_ex>());
    // SAFETY: the caller's structure has at least this size.
    unsafe { std::ptr::copy_nonoverlapping((&raw const to).cast(), attributes.cast::<u8>(), size) };
    0
}

fn with_port<R>(
    pointer: *mut abi::ibv_context,
    number: u32,
    use_it: impl FnOnce(&Port) -> R,
) -> Result<R, c_int> {
    let it = context(pointer);
    it.check()?;
    let network = fabric().network.lock();
    let port = network.devices[it.device as usize].port(number);
    port.map(use_it).ok_or_else(|| misuse!(libc::EINVAL, "the device has no port {number}"))
}

/// The speed of four lanes, as the old fields encode it.
fn encoded_speed(gigabits: u32) -> u8 {
    match gigabits {
        0..=10 => 1,
        11..=20 => 2,
        21..=40 => 4,
        41..=56 => 16,
        57..=100 => 32,
        101..=200 => 64,
        _ => 128,
    }
}

pub(super) extern "C" fn query_port(
    pointer: *mut abi::ibv_context,
    number: u8,
    attributes: *mut abi::ibv_port_attr,
    size: usize,
) -> c_int {
    // SAFETY: numbers that are 0 are valid.
    let mut to: abi::ibv_port_attr = unsafe { zeroed() };
    let filled = with_port(pointer, u32::from(number), |port| {
        to.state = port.state;
        to.max_mtu = abi::IBV_MTU_4096;
        to.active_mtu = port.mtu;
        to.gid_tbl_len = MOST_GIDS as c_int;
        to.port_cap_flags = abi::IBV_PORT_CM_SUP | abi::IBV_PORT_IP_BASED_GIDS;
        to.pkey_tbl_len = 1;
        to.lid = port.lid as u16;
        to.sm_lid = u16::from(port.lid != 0);
        to.active_width = 2;
        to.active_speed = encoded_speed(port.speed);
        // 5 is "link up", 3 is "disabled".
        to.phys_state = if port.state == abi::IBV_PORT_ACTIVE { 5 } else { 3 };
        to.link_layer = port.link_layer as u8;
        // IBV_QPF_GRH_REQUIRED
        to.flags = u8::from(port.link_layer == abi::IBV_LINK_LAYER_ETHERNET);
    });
    if let Err(errno) = filled {
        return errno;
    }
    let it = context(pointer);
    to.max_msg_sz = it.with_device(|device| device.limits.message);
    let size = size.min(size_of::<abi::ibv_port_attr>());
    // SAFETY: the caller's structure has at least this size.
    unsafe { std::ptr::copy_nonoverlapping((&raw const to).cast(), attributes.cast::<u8>(), size) };
    0
}

/// What `struct ibv_port_attr` was before its last field but one was added.
#[unsafe(no_mangle)]
extern "C" fn ibv_query_port(
    pointer: *mut abi::ibv_context,
    number: u8,
    attributes: *mut abi::ibv_port_attr,
) -> c_int {
    let size = std::mem::offset_of!(abi::ibv_port_attr, flags);
    query_port(pointer, number, attributes, size)
}

fn gid(network: &Network, device: u32, port: u32, index: u32) -> Option<Gid> {
    network.devices[device as usize].port(port)?.gids.get(index as usize).copied()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_gid(
    pointer: *mut abi::ibv_context,
    port: u8,
    index: c_int,
    to: *mut abi::ibv_gid,
) -> c_int {
    let it = context(pointer);
    let found = gid(&fabric().network.lock(), it.device, u32::from(port), index as u32);
    let Some(found) = found.filter(|_| it.check().is_ok()) else {
        crate::misuse::set_errno(libc::EINVAL);
        return -1;
    };
    // An entry that is empty reads as zeros.
    given_mut!(to).raw = found.raw;
    0
}

/// The type of an entry: 0 for InfiniBand and version 1 of RoCE, 1 for version 2. A private
/// function that the tests of rdma-core use.
#[unsafe(no_mangle)]
extern "C" fn ibv_query_gid_type(
    pointer: *mut abi::ibv_context,
    port: u8,
    index: u32,
    to: *mut u32,
) -> c_int {
    let it = context(pointer);
    let Some(found) = gid(&fabric().network.lock(), it.device, u32::from(port), index) else {
        crate::misuse::set_errno(libc::EINVAL);
        return -1;
    };
    *given_mut!(to) = u32::from(found.kind == crate::fabric::network::ROCE_2);
    0
}

fn entry(found: Gid, port: u32, index: u32) -> abi::ibv_gid_entry {
    abi::ibv_gid_entry {
        gid: abi::ibv_gid { raw: found.raw },
        gid_index: index,
        port_num: port,
        gid_type: found.kind - 1,
        ndev_ifindex: found.interface,
    }
}

#[unsafe(no_mangle)]
extern "C" fn _ibv_query_gid_ex(
    pointer: *mut abi::ibv_context,
    port: u32,
    index: u32,
    to: *mut abi::ibv_gid_entry,
    flags: u32,
    size: usize,
) -> c_int {
    if flags != 0 || size != size_of::<abi::ibv_gid_entry>() {
        return misuse!(libc::EOPNOTSUPP, "ibv_query_gid_ex: unknown flags or size");
    }
    let it = context(pointer);
    if let Err(errno) = it.check() {
        return errno;
    }
    match gid(&fabric().network.lock(), it.device, port, index) {
        None => misuse!(libc::EINVAL, "ibv_query_gid_ex: no index {index} at port {port}"),
        // An entry that is empty is normal.
        Some(found) if found.kind == NO_GID => libc::ENODATA,
        Some(found) => {
            *given_mut!(to) = entry(found, port, index);
            0
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn _ibv_query_gid_table(
    pointer: *mut abi::ibv_context,
    to: *mut abi::ibv_gid_entry,
    room: usize,
    flags: u32,
    size: usize,
) -> isize {
    if flags != 0 || size != size_of::<abi::ibv_gid_entry>() {
        return -(misuse!(libc::EOPNOTSUPP, "ibv_query_gid_table: unknown flags or size") as isize);
    }
    let it = context(pointer);
    if let Err(errno) = it.check() {
        return -(errno as isize);
    }
    let network = fabric().network.lock();
    let device = &network.devices[it.device as usize];
    let mut count = 0;
    for port in 1..=device.port_count {
        for index in 0..MOST_GIDS as u32 {
            let found = gid(&network, it.device, port, index).unwrap_or_default();
            if found.kind == NO_GID {
                continue;
            }
            if count == room {
                return -(libc::EINVAL as isize);
            }
            // SAFETY: the caller's list has room for so many.
            unsafe { *to.add(count) = entry(found, port, index) };
            count += 1;
        }
    }
    count as isize
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_pkey(
    pointer: *mut abi::ibv_context,
    port: u8,
    index: c_int,
    to: *mut u16,
) -> c_int {
    if index != 0 || with_port(pointer, u32::from(port), |_| ()).is_err() {
        crate::misuse::set_errno(libc::EINVAL);
        return -1;
    }
    *given_mut!(to) = PARTITION.to_be();
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_pkey_index(_: *mut abi::ibv_context, _port: u8, key: u16) -> c_int {
    if u16::from_be(key) == PARTITION { 0 } else { -1 }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_fork_init() -> c_int {
    0
}

/// Memory is never pinned, so that forks need no care.
#[unsafe(no_mangle)]
extern "C" fn ibv_is_fork_initialized() -> abi::ibv_fork_status {
    abi::IBV_FORK_UNNEEDED
}

/// Objects of other processes cannot be imported.
#[unsafe(no_mangle)]
extern "C" fn ibv_import_device(_descriptor: c_int) -> *mut abi::ibv_context {
    null!(libc::EOPNOTSUPP)
}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn ibv_import_pd(_: *mut abi::ibv_context, _handle: u32) -> *mut abi::ibv_pd {
    null!(libc::EOPNOTSUPP)
}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn ibv_unimport_pd(_: *mut abi::ibv_pd) {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn ibv_import_mr(_: *mut abi::ibv_pd, _handle: u32) -> *mut abi::ibv_mr {
    null!(libc::EOPNOTSUPP)
}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn ibv_unimport_mr(_: *mut abi::ibv_mr) {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn ibv_import_dm(_: *mut abi::ibv_context, _handle: u32) -> *mut abi::ibv_dm {
    null!(libc::EOPNOTSUPP)
}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn ibv_unimport_dm(_: *mut abi::ibv_dm) {}
