//! Address handles of datagrams.

use std::ffi::c_int;
use std::mem::zeroed;

use super::context::context;
use super::protection::domain;
use super::queue_pair_states::resolve;
use super::{given, given_mut, null};
use crate::abi;
use crate::fabric::network::{Address, MOST_GIDS, NO_GID};
use crate::misuse::misuse;
use crate::sync::AcqRel;

/// An address handle.
#[repr(C)]
struct Handle {
    base: abi::ibv_ah,
    address: Address,
}

/// The address of a handle.
pub(super) fn address(pointer: *mut abi::ibv_ah) -> Address {
    given!(pointer.cast::<Handle>()).address
}

#[unsafe(no_mangle)]
extern "C" fn ibv_create_ah(
    domain_of: *mut abi::ibv_pd,
    attributes: *mut abi::ibv_ah_attr,
) -> *mut abi::ibv_ah {
    let owner = domain(domain_of);
    let context_of = given!(domain_of).context;
    let it = context(context_of);
    if let Err(errno) = it.check() {
        null!(errno);
    }
    match resolve(it, given!(attributes)) {
        Ok(address) => {
            owner.users.fetch_add(1, AcqRel);
            let base = abi::ibv_ah { context: context_of, pd: domain_of, handle: 0 };
            Box::into_raw(Box::new(Handle { base, address })).cast()
        }
        Err(errno) => null!(errno),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_destroy_ah(pointer: *mut abi::ibv_ah) -> c_int {
    domain(given!(pointer).pd).users.fetch_sub(1, AcqRel);
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<Handle>()) });
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_init_ah_from_wc(
    pointer: *mut abi::ibv_context,
    port: u8,
    completion: *mut abi::ibv_wc,
    header: *mut abi::ibv_grh,
    attributes: *mut abi::ibv_ah_attr,
) -> c_int {
    let completion = given!(completion);
    let to = given_mut!(attributes);
    // SAFETY: numbers that are 0 are valid.
    *to = unsafe { zeroed() };
    to.port_num = port;
    (to.dlid, to.sl) = (completion.slid, completion.sl);
    if completion.wc_flags & abi::IBV_WC_GRH == 0 {
        return 0;
    }
    let header = given!(header);
    // SAFETY: both parts of the union are 16 bytes, of which any value is valid.
    let own = unsafe { header.dgid.raw };
    let index = context(pointer).with_device(|device| {
        let gids = &device.port(u32::from(port))?.gids;
        (0..MOST_GIDS).find(|i| gids[*i].kind != NO_GID && gids[*i].raw == own)
    });
    let Some(index) = index else {
        crate::misuse::set_errno(misuse!(libc::EINVAL, "the datagram was not for this port"));
        return -1;
    };
    to.is_global = 1;
    to.grh.dgid = header.sgid;
    to.grh.sgid_index = index as u8;
    to.grh.hop_limit = 0xff;
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_create_ah_from_wc(
    domain_of: *mut abi::ibv_pd,
    completion: *mut abi::ibv_wc,
    header: *mut abi::ibv_grh,
    port: u8,
) -> *mut abi::ibv_ah {
    // SAFETY: numbers that are 0 are valid.
    let mut attributes: abi::ibv_ah_attr = unsafe { zeroed() };
    let context = given!(domain_of).context;
    if ibv_init_ah_from_wc(context, port, completion, header, &raw mut attributes) != 0 {
        return std::ptr::null_mut();
    }
    ibv_create_ah(domain_of, &raw mut attributes)
}

/// There are no groups.
#[unsafe(no_mangle)]
extern "C" fn ibv_attach_mcast(_: *mut abi::ibv_qp, _: *const abi::ibv_gid, _lid: u16) -> c_int {
    libc::EOPNOTSUPP
}

/// There are no groups.
#[unsafe(no_mangle)]
extern "C" fn ibv_detach_mcast(_: *mut abi::ibv_qp, _: *const abi::ibv_gid, _lid: u16) -> c_int {
    libc::EOPNOTSUPP
}
