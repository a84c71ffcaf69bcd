//! `ncclSend` and `ncclRecv`: arguments are checked, made a [`Transfer`], and run, or queued while a group is open.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;
use maypole::device::Queued;
use maypole::{Call, Collective, DType, RedOp, Transfer};

use crate::boundary::{NcclResult, answer, decided, invalid};
use crate::collective::{broken, data_type, usable};
use crate::cuda;
use crate::export::abi;
use crate::group;
use crate::registry::{self, Entered, Handle, Running};
use crate::stream::{self, On, Stream};

/// Runs transfers all at once.
pub(crate) fn run(transfers: &[Transfer], on: &mut Running<'_>) -> Result<(), ResultCode> {
    // SAFETY: the client promised, by the terms of nccl.h, buffers that are valid for the call.
    match unsafe { on.comm.exchange(transfers) } {
        Ok(()) => Ok(()),
        Err(error) => Err(broken(&error, on)),
    }
}

/// Microseconds that the cost model expects of transfers that run at once: what it expects of an exchange of everything with
/// everybody, in pieces as large as the largest.
pub(crate) fn predict(transfers: &[Transfer], entered: &Entered) -> Result<f64, ResultCode> {
    let bytes = |transfer: &Transfer| match *transfer {
        Transfer::Send { bytes, .. } | Transfer::Receive { bytes, .. } => bytes,
    };
    let call = Call {
        collective: Collective::AllToAll,
        send: std::ptr::null(),
        recv: std::ptr::null_mut(),
        count: transfers.iter().map(bytes).max().unwrap_or(0),
        dtype: DType::Uint8,
        reduction: RedOp::Sum.into(),
    };
    if call.count == 0 {
        return Ok(0.0);
    }
    entered.comm.explain(&call).map(|choice| choice.predicted).map_err(|error| decided(&error))
}

/// A transfer on its way to the thread that runs it.
struct Lent([Transfer; 1]);

// SAFETY: the client lends the buffer to the call until it is over, on whatever thread it runs.
unsafe impl Send for Lent {}

impl Lent {
    fn run(self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        run(&self.0, on)
    }
}

fn submit(
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: Handle,
    stream: Stream,
    buffer: *const c_void,
    make: impl FnOnce(usize, u32) -> Transfer,
) -> NcclResult {
    answer(|| {
        let submitted = registry::visit(comm).and_then(|visitor| {
            usable(&visitor)?;
            let (_, nranks) = visitor.identity();
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
            let on = stream::on(&visitor, stream)?;
            if group::is_open() {
                group::agree(visitor.blocks())?;
                group::queue_transfer(comm, on, transfer);
                return Ok(());
            }
            let calls = Lent([transfer]);
            match on {
                On::Caller => visitor.run(None, move |running| calls.run(running)),
                On::Host(on) => visitor.run(Some(on), move |running| calls.run(running)),
                On::Cuda(on) => cuda::launch_one(visitor.alone()?, Queued::Transfers(&calls.0), on),
            }
        });
        group::note(submitted)
    })
}

abi! {
    /// `ncclSend`
    fn ncclSend(
        send: *const c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let data = send.cast();
        submit(count, dtype, peer, comm, stream, send, |bytes, peer| Transfer::Send {
            data,
            bytes,
            peer,
        })
    }

    /// `ncclRecv`
    fn ncclRecv(
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let data = recv.cast();
        let make = |bytes, peer| Transfer::Receive { data, bytes, peer };
        submit(count, dtype, peer, comm, stream, recv, make)
    }
}
