//! `maypole.h`: the barrier, and collectives whose blocks differ in length from rank to rank.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;
use maypole::device::Queued as DeviceCall;
use maypole::{Blocks, Collective, DType, RedOp, Reduction, VectorCall};

use crate::boundary::{NcclResult, answer, invalid};
use crate::collective::{broken, data_type, root, usable};
use crate::export::extension;
use crate::group::{self, Queued};
use crate::operator::Operation;
use crate::registry::{self, Handle, Running, Visitor};
use crate::stream::{self, On, Stream};

/// Counts and displacements of a buffer's blocks.
struct Table {
    counts: Vec<usize>,
    displacements: Vec<usize>,
}

impl Table {
    /// Blocks that lie one after the other where `displacements` is NULL.
    ///
    /// # Safety
    /// Both are NULL or readable for `len` numbers.
    unsafe fn read(
        counts: *const usize,
        displacements: *const usize,
        len: u32,
    ) -> Result<Self, ResultCode> {
        if counts.is_null() {
            return Err(invalid("the counts are NULL"));
        }
        let len = len as usize;
        // SAFETY: the caller's promise.
        let counts = unsafe { std::slice::from_raw_parts(counts, len) }.to_vec();
        let displacements = if displacements.is_null() {
            let mut next = 0_usize;
            let place = |count: &usize| {
                let at = next;
                next = next.saturating_add(*count);
                at
            };
            counts.iter().map(place).collect()
        } else {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts(displacements, len) }.to_vec()
        };
        Ok(Self { counts, displacements })
    }

    fn one(count: usize) -> Self {
        Self { counts: vec![count], displacements: vec![0] }
    }

    const fn none() -> Self {
        Self { counts: Vec::new(), displacements: Vec::new() }
    }

    fn blocks(&self) -> Blocks<'_> {
        Blocks { counts: &self.counts, displacements: &self.displacements }
    }

    /// Whether the buffer may be this one, and there can be one.
    fn check(&self, buffer: *const c_void, dtype: DType) -> Result<(), ResultCode> {
        let ends = self.counts.iter().zip(&self.displacements).filter(|(count, _)| **count != 0);
        for (count, displacement) in ends {
            if buffer.is_null() {
                return Err(invalid("a buffer is NULL"));
            }
            let bytes =
                count.checked_add(*displacement).and_then(|end| end.checked_mul(dtype.size()));
            if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                return Err(invalid("the count is larger than any memory"));
            }
        }
        Ok(())
    }
}

/// A checked call.
pub(crate) struct VectorRequest {
    collective: Collective,
    send: *const u8,
    sends: Table,
    recv: *mut u8,
    recvs: Table,
    dtype: DType,
    operation: Operation,
}

// SAFETY: the client lends the buffers to the call until it is over, on whatever thread it runs.
unsafe impl Send for VectorRequest {}

impl VectorRequest {
    /// Runs the call; returns when its result is there.
    pub(crate) fn run(&self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        let call = self.call(self.operation.resolve(self.dtype));
        // SAFETY: the client promised, by the terms of maypole.h, buffers that are valid for the call.
        unsafe { on.comm.run_vector(&call) }.map_err(|error| broken(&error, on))
    }

    /// The call for a device. A factor in memory is read there.
    pub(crate) fn on_device(&self) -> DeviceCall<'_> {
        DeviceCall::Vector(self.call(self.operation.on_device()))
    }

    fn call(&self, reduction: Reduction) -> VectorCall<'_> {
        VectorCall {
            collective: self.collective,
            send: self.send,
            sends: self.sends.blocks(),
            recv: self.recv,
            recvs: self.recvs.blocks(),
            dtype: self.dtype,
            reduction,
        }
    }
}

/// Waits for all ranks.
pub(crate) fn barrier(on: &mut Running<'_>) -> Result<(), ResultCode> {
    on.comm.barrier().map_err(|error| broken(&error, on))
}

/// Runs what `make` makes, or queues it.
fn submit(
    comm: Handle,
    stream: Stream,
    make: impl FnOnce(&Visitor) -> Result<Queued, ResultCode>,
) -> NcclResult {
    answer(|| {
        let submitted = registry::visit(comm).and_then(|visitor| {
            usable(&visitor)?;
            let queued = make(&visitor)?;
            let on = stream::on(&visitor, stream)?;
            if group::is_open() {
                group::agree(visitor.blocks())?;
                group::queue(comm, on, queued);
                return Ok(());
            }
            match on {
                On::Caller => visitor.run(None, move |running| queued.run(running)),
                On::Host(on) => visitor.run(Some(on), move |running| queued.run(running)),
                On::Cuda(on) => queued.launch(visitor.alone()?, on),
            }
        });
        group::note(submitted)
    })
}

/// What every uneven call has.
struct Common {
    dtype: c_int,
    comm: Handle,
    stream: Stream,
}

type Side = Result<Table, ResultCode>;

/// `sides` are told the rank and the number of ranks.
fn submit_vector(
    collective: Collective,
    (send, recv): (*const c_void, *mut c_void),
    common: Common,
    op: Option<c_int>,
    sides: impl FnOnce(u32, u32) -> (Side, Side),
) -> NcclResult {
    let Common { dtype, comm, stream } = common;
    submit(comm, stream, |visitor| {
        let dtype = data_type(dtype)?;
        let (rank, nranks) = visitor.identity();
        if let Some(root) = collective.root().filter(|root| *root >= nranks) {
            let root = root as c_int;
            return Err(invalid(&format!("root {root} in a communicator of {nranks} ranks")));
        }
        let operation = match op {
            Some(op) => visitor.operators().find(op, dtype)?,
            None => Operation::Known(Reduction::from(RedOp::Sum)),
        };
        let (sends, recvs) = sides(rank, nranks);
        let (sends, recvs) = (sends?, recvs?);
        sends.check(send, dtype)?;
        recvs.check(recv, dtype)?;
        let (send, recv) = (send.cast(), recv.cast());
        Ok(Queued::Vector(VectorRequest { collective, send, sends, recv, recvs, dtype, operation }))
    })
}

extension! {
    /// `maypoleBarrier`
    fn maypoleBarrier(comm: Handle, stream: Stream) -> NcclResult {
        submit(comm, stream, |_| Ok(Queued::Barrier))
    }

    /// `maypoleAllGatherV`
    fn maypoleAllGatherV(
        send: *const c_void,
        count: usize,
        recv: *mut c_void,
        counts: *const usize,
        displacements: *const usize,
        dtype: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        submit_vector(Collective::AllGather, (send, recv), Common { dtype, comm, stream }, None, |_, n| {
            // SAFETY: the caller's promise.
            (Ok(Table::one(count)), unsafe { Table::read(counts, displacements, n) })
        })
    }

    /// `maypoleReduceScatterV`
    fn maypoleReduceScatterV(
        send: *const c_void,
        counts: *const usize,
        displacements: *const usize,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let common = Common { dtype, comm, stream };
        submit_vector(Collective::ReduceScatter, (send, recv), common, Some(op), |_, n| {
            // SAFETY: the caller's promise.
            (unsafe { Table::read(counts, displacements, n) }, Ok(Table::one(count)))
        })
    }

    /// `maypoleAlltoAllV`
    fn maypoleAlltoAllV(
        send: *const c_void,
        send_counts: *const usize,
        send_displacements: *const usize,
        recv: *mut c_void,
        recv_counts: *const usize,
        recv_displacements: *const usize,
        dtype: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        submit_vector(Collective::AllToAll, (send, recv), Common { dtype, comm, stream }, None, |_, n| {
            // SAFETY: the caller's promise.
            let sends = unsafe { Table::read(send_counts, send_displacements, n) };
            // SAFETY: the caller's promise.
            (sends, unsafe { Table::read(recv_counts, recv_displacements, n) })
        })
    }

    /// `maypoleGatherV`: what belongs to `recv` is used on the root alone.
    fn maypoleGatherV(
        send: *const c_void,
        count: usize,
        recv: *mut c_void,
        counts: *const usize,
        displacements: *const usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let root = self::root(root);
        let common = Common { dtype, comm, stream };
        submit_vector(Collective::Gather { root }, (send, recv), common, None, |rank, n| {
            // SAFETY: the caller's promise.
            let all = || unsafe { Table::read(counts, displacements, n) };
            (Ok(Table::one(count)), if rank == root { all() } else { Ok(Table::none()) })
        })
    }

    /// `maypoleScatterV`: what belongs to `send` is used on the root alone.
    fn maypoleScatterV(
        send: *const c_void,
        counts: *const usize,
        displacements: *const usize,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let root = self::root(root);
        let common = Common { dtype, comm, stream };
        submit_vector(Collective::Scatter { root }, (send, recv), common, None, |rank, n| {
            // SAFETY: the caller's promise.
            let all = || unsafe { Table::read(counts, displacements, n) };
            (if rank == root { all() } else { Ok(Table::none()) }, Ok(Table::one(count)))
        })
    }
}
