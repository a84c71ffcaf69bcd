//! `maypole.h`: the barrier, and collectives whose blocks differ in length from rank to rank.

use std::ffi::{c_int, c_void};

use maypole::Collective;
use maypole::ResultCode;

use super::macros::extension;
use crate::arguments::root;
use crate::boundary::NcclResult;
use crate::group;
use crate::registry::CommHandle;
use crate::request::{BarrierRequest, BlockTable, VectorArguments, VectorRequest};
use crate::stream::StreamHandle;

/// Runs or queues a vector collective. `blocks` returns the blocks of the send and of the receive
/// buffer for a rank and a number of ranks.
fn submit(
    collective: Collective,
    arguments: VectorArguments,
    comm: CommHandle,
    stream: StreamHandle,
    blocks: impl FnOnce(u32, u32) -> Result<(BlockTable, BlockTable), ResultCode>,
) -> NcclResult {
    group::submit(comm, stream, |comm| VectorRequest::check(collective, arguments, comm, blocks))
}

extension! {
    /// `maypoleBarrier`: returns when all ranks have called it.
    fn maypoleBarrier(comm: CommHandle, stream: StreamHandle) -> NcclResult {
        group::submit(comm, stream, |_| Ok(BarrierRequest))
    }

    /// `maypoleAllGatherV`: all ranks get the blocks of all ranks.
    fn maypoleAllGatherV(
        send: *const c_void,
        count: usize,
        recv: *mut c_void,
        counts: *const usize,
        displacements: *const usize,
        dtype: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let arguments = VectorArguments { send, recv, dtype, op: None };
        submit(Collective::AllGather, arguments, comm, stream, |_, nranks| {
            // SAFETY: the client promised tables of one number per rank.
            let received = unsafe { BlockTable::read(counts, displacements, nranks) }?;
            Ok((BlockTable::single(count), received))
        })
    }

    /// `maypoleReduceScatterV`: each rank gets its block of the reduction of all send buffers.
    fn maypoleReduceScatterV(
        send: *const c_void,
        counts: *const usize,
        displacements: *const usize,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let arguments = VectorArguments { send, recv, dtype, op: Some(op) };
        submit(Collective::ReduceScatter, arguments, comm, stream, |_, nranks| {
            // SAFETY: the client promised tables of one number per rank.
            let sent = unsafe { BlockTable::read(counts, displacements, nranks) }?;
            Ok((sent, BlockTable::single(count)))
        })
    }

    /// `maypoleAlltoAllV`: each rank gets one block of each rank.
    fn maypoleAlltoAllV(
        send: *const c_void,
        send_counts: *const usize,
        send_displacements: *const usize,
        recv: *mut c_void,
        recv_counts: *const usize,
        recv_displacements: *const usize,
        dtype: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let arguments = VectorArguments { send, recv, dtype, op: None };
        submit(Collective::AllToAll, arguments, comm, stream, |_, nranks| {
            // SAFETY: the client promised tables of one number per rank.
            let sent = unsafe { BlockTable::read(send_counts, send_displacements, nranks) }?;
            // SAFETY: as above.
            let received = unsafe { BlockTable::read(recv_counts, recv_displacements, nranks) }?;
            Ok((sent, received))
        })
    }

    /// `maypoleGatherV`: the root gets the blocks of all ranks. `recv` and its tables are used on
    /// the root alone.
    fn maypoleGatherV(
        send: *const c_void,
        count: usize,
        recv: *mut c_void,
        counts: *const usize,
        displacements: *const usize,
        dtype: c_int,
        root: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let root = self::root(root);
        let arguments = VectorArguments { send, recv, dtype, op: None };
        submit(Collective::Gather { root }, arguments, comm, stream, |rank, nranks| {
            let received = if rank == root {
                // SAFETY: the client promised tables of one number per rank, on the root.
                unsafe { BlockTable::read(counts, displacements, nranks) }?
            } else {
                BlockTable::unused()
            };
            Ok((BlockTable::single(count), received))
        })
    }

    /// `maypoleScatterV`: each rank gets its block of the root's send buffer. `send` and its
    /// tables are used on the root alone.
    fn maypoleScatterV(
        send: *const c_void,
        counts: *const usize,
        displacements: *const usize,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let root = self::root(root);
        let arguments = VectorArguments { send, recv, dtype, op: None };
        submit(Collective::Scatter { root }, arguments, comm, stream, |rank, nranks| {
            let sent = if rank == root {
                // SAFETY: the client promised tables of one number per rank, on the root.
                unsafe { BlockTable::read(counts, displacements, nranks) }?
            } else {
                BlockTable::unused()
            };
            Ok((sent, BlockTable::single(count)))
        })
    }
}
