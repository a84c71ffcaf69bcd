//! The vector collectives of `maypole.h`, whose blocks differ in length from rank to rank.

use std::ffi::{c_int, c_void};

use maypole::DeviceCall;
use maypole::ResultCode;
use maypole::{Blocks, Collective, DType, RedOp, Reduction, VectorCall};

use super::failure::failed_call;
use super::{OrderedRequest, QueuedRequest, Request};
use crate::arguments::{buffer_bytes, check_buffer, check_root, data_type};
use crate::boundary::invalid_argument;
use crate::registry::{CallContext, CommGuard, ReductionOperator};

/// The blocks of a buffer: how many elements each has, and at which element it begins.
pub(crate) struct BlockTable {
    counts: Vec<usize>,
    displacements: Vec<usize>,
}

/// The arguments of the client, except the collective and the blocks.
pub(crate) struct VectorArguments {
    pub(crate) send: *const c_void,
    pub(crate) recv: *mut c_void,
    /// `ncclDataType_t`
    pub(crate) dtype: c_int,
    /// `ncclRedOp_t`, for a collective that reduces.
    pub(crate) op: Option<c_int>,
}

/// A checked vector collective. Only a factor in memory is still to be read.
pub(crate) struct VectorRequest {
    collective: Collective,
    send: *const u8,
    send_blocks: BlockTable,
    recv: *mut u8,
    recv_blocks: BlockTable,
    dtype: DType,
    operator: ReductionOperator,
}

// SAFETY: the client lends the buffers to the call until it is over, on any thread.
unsafe impl Send for VectorRequest {}

impl BlockTable {
    /// Reads the tables of the client. Where `displacements` is NULL the blocks lie one after the
    /// other.
    ///
    /// # Safety
    /// Both pointers are NULL or readable for `len` numbers.
    pub(crate) unsafe fn read(
        counts: *const usize,
        displacements: *const usize,
        len: u32,
    ) -> Result<Self, ResultCode> {
        if counts.is_null() {
            return Err(invalid_argument("the counts are NULL"));
        }
        let len = len as usize;
        // SAFETY: the caller promises `len` readable numbers, and the pointer is not NULL.
        let counts = unsafe { std::slice::from_raw_parts(counts, len) }.to_vec();
        let displacements = if displacements.is_null() {
            let mut next = 0_usize;
            let displacement = |count: &usize| {
                let begin = next;
                next = next.saturating_add(*count);
                begin
            };
            counts.iter().map(displacement).collect()
        } else {
            // SAFETY: as for the counts.
            unsafe { std::slice::from_raw_parts(displacements, len) }.to_vec()
        };
        Ok(Self { counts, displacements })
    }

    /// One block of `count` elements.
    pub(crate) fn single(count: usize) -> Self {
        Self { counts: vec![count], displacements: vec![0] }
    }

    /// No blocks: this rank does not use the buffer.
    pub(crate) const fn unused() -> Self {
        Self { counts: Vec::new(), displacements: Vec::new() }
    }

    fn blocks(&self) -> Blocks<'_> {
        Blocks { counts: &self.counts, displacements: &self.displacements }
    }

    /// Refuses a buffer that cannot hold the blocks.
    fn check(&self, buffer: *const c_void, dtype: DType) -> Result<(), ResultCode> {
        for (count, displacement) in self.counts.iter().zip(&self.displacements) {
            if *count != 0 {
                check_buffer(buffer, *count)?;
                // A sum that overflows is larger than any memory, too.
                buffer_bytes(count.saturating_add(*displacement), dtype.size())?;
            }
        }
        Ok(())
    }
}

impl VectorRequest {
    /// Checks the arguments. `blocks` returns the blocks of the send and of the receive buffer for
    /// a rank and a number of ranks.
    pub(crate) fn check(
        collective: Collective,
        arguments: VectorArguments,
        comm: &CommGuard,
        blocks: impl FnOnce(u32, u32) -> Result<(BlockTable, BlockTable), ResultCode>,
    ) -> Result<Self, ResultCode> {
        let VectorArguments { send, recv, dtype, op } = arguments;
        let dtype = data_type(dtype)?;
        let (rank, nranks) = comm.identity();
        if let Some(root) = collective.root() {
            check_root(root, nranks)?;
        }
        let operator = match op {
            Some(op) => comm.operators().find(op, dtype)?,
            None => ReductionOperator::Known(Reduction::from(RedOp::Sum)),
        };
        let (send_blocks, recv_blocks) = blocks(rank, nranks)?;
        send_blocks.check(send, dtype)?;
        recv_blocks.check(recv, dtype)?;
        let (send, recv) = (send.cast(), recv.cast());
        Ok(Self { collective, send, send_blocks, recv, recv_blocks, dtype, operator })
    }

    fn call(&self, reduction: Reduction) -> VectorCall<'_> {
        VectorCall {
            collective: self.collective,
            send: self.send,
            sends: self.send_blocks.blocks(),
            recv: self.recv,
            recvs: self.recv_blocks.blocks(),
            dtype: self.dtype,
            reduction,
        }
    }
}

impl Request for VectorRequest {
    fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        let call = self.call(self.operator.resolve(self.dtype));
        // SAFETY: by the terms of maypole.h the client promised buffers that are valid for the
        // call.
        unsafe { context.comm.run_vector(&call) }.map_err(|error| failed_call(&error, context))
    }

    fn device_call(&self) -> Option<DeviceCall<'_>> {
        Some(DeviceCall::Vector(self.call(self.operator.for_device())))
    }

    fn into_queued(self) -> QueuedRequest {
        QueuedRequest::Ordered(OrderedRequest::Vector(self))
    }
}
