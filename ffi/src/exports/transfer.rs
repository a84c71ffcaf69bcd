//! `ncclSend` and `ncclRecv`.

use std::ffi::{c_int, c_void};

use maypole::Transfer;

use super::macros::abi;
use crate::boundary::NcclResult;
use crate::group;
use crate::registry::CommHandle;
use crate::request::TransferRequest;
use crate::stream::StreamHandle;

abi! {
    /// `ncclSend`
    fn ncclSend(
        send: *const c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        group::submit(comm, stream, |comm| {
            TransferRequest::check(send, count, dtype, peer, comm, |bytes, peer| {
                Transfer::Send { data: send.cast(), bytes, peer }
            })
        })
    }

    /// `ncclRecv`
    fn ncclRecv(
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        group::submit(comm, stream, |comm| {
            TransferRequest::check(recv, count, dtype, peer, comm, |bytes, peer| {
                Transfer::Receive { data: recv.cast(), bytes, peer }
            })
        })
    }
}
