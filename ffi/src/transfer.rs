//! `ncclSend` and `ncclRecv`: arguments are checked, made a [`Transfer`], and run, or queued while a group is open.

use std::ffi::{c_int, c_void};

use maypole::Transfer;
use maypole::error::ResultCode;

use crate::answer::{NcclResult, answer, failed, invalid};
use crate::collective::{data_type, usable};
use crate::group;
use crate::registry::{self, Entered, Handle};

/// Runs transfers all at once.
pub(crate) fn run(transfers: &[Transfer], entered: &mut Entered) -> Result<(), ResultCode> {
    // SAFETY: the client promised, by the terms of nccl.h, buffers that are valid for the call.
    unsafe { entered.comm.exchange(transfers) }.map_err(|error| failed(&error))
}

fn submit(
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: Handle,
    stream: *mut c_void,
    buffer: *const c_void,
    make: impl FnOnce(usize, u32) -> Transfer,
) -> NcclResult {
    answer(|| {
        let submitted = registry::enter(comm).and_then(|mut entered| {
            usable(&entered, stream)?;
            let nranks = entered.comm.nranks();
            let peer = u32::try_from(peer).ok().filter(|p| *p < nranks).ok_or_else(|| {
                invalid(&format!("peer {peer} in a communicator of {nranks} ranks"))
            })?;
            let bytes = count.checked_mul(data_type(dtype)?.size());
            let bytes = bytes.filter(|b| *b <= isize::MAX as usize);
            let bytes = bytes.ok_or_else(|| invalid("the count is larger than any memory"))?;
            if buffer.is_null() && bytes != 0 {
                return Err(invalid("a buffer is NULL"));
            }
            let transfer = make(bytes, peer);
            if group::is_open() {
                group::queue_transfer(comm, transfer);
                return Ok(());
            }
            run(&[transfer], &mut entered)
        });
        group::note(submitted)
    })
}

/// `ncclSend`
///
/// # Safety
/// `send` holds `count` elements, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    send: *const c_void,
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    let data = send.cast();
    submit(count, dtype, peer, comm, stream, send, |bytes, peer| Transfer::Send {
        data,
        bytes,
        peer,
    })
}

/// `ncclRecv`
///
/// # Safety
/// `recv` holds `count` elements, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    let data = recv.cast();
    let make = |bytes, peer| Transfer::Receive { data, bytes, peer };
    submit(count, dtype, peer, comm, stream, recv, make)
}
