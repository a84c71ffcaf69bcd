//! The collectives of `nccl.h`: arguments are checked, made a [`Call`], and run, or queued while a group is open.

use std::ffi::{c_int, c_void};

use maypole::error::ResultCode;
use maypole::{Call, Collective, DType, RedOp};

use crate::answer::{NcclResult, answer, failed, invalid};
use crate::group;
use crate::operator::Operation;
use crate::registry::{self, Entered, Handle};

/// A checked call; only its factor may still have to be read.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    call: Call,
    operation: Operation,
}

// SAFETY: the client lends the buffers to the call until it is over, on whatever thread it runs.
unsafe impl Send for Request {}

impl Request {
    /// Runs the call; returns when its result is there.
    #[inline]
    pub(crate) fn run(mut self, entered: &mut Entered) -> Result<(), ResultCode> {
        self.call.reduction = self.operation.resolve(self.call.dtype);
        // SAFETY: the client promised, by the terms of nccl.h, buffers that are valid for the call.
        unsafe { entered.comm.run(&self.call) }.map_err(|error| failed(&error))
    }
}

/// What the client gave, apart from the collective.
struct Arguments {
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: Handle,
    stream: *mut c_void,
}

/// The element type of that code.
#[inline]
pub(crate) fn data_type(code: c_int) -> Result<DType, ResultCode> {
    DType::from_code(code).ok_or_else(|| invalid(&format!("{code} is not a data type")))
}

#[inline]
fn submit(collective: Collective, arguments: Arguments) -> NcclResult {
    let Arguments { comm, .. } = arguments;
    answer(|| {
        if group::is_open() {
            return group::note(enqueue(collective, &arguments));
        }
        let mut entered = registry::enter(comm)?;
        let request = check(collective, &arguments, &entered)?;
        request.run(&mut entered)
    })
}

#[cold]
fn enqueue(collective: Collective, arguments: &Arguments) -> Result<(), ResultCode> {
    let entered = registry::enter(arguments.comm)?;
    let request = check(collective, arguments, &entered)?;
    group::queue(arguments.comm, request);
    Ok(())
}

#[inline]
fn check(
    collective: Collective,
    arguments: &Arguments,
    entered: &Entered,
) -> Result<Request, ResultCode> {
    let &Arguments { send, recv, count, dtype, op, stream, .. } = arguments;
    let dtype = data_type(dtype)?;
    let operation = entered.operators.find(op, dtype)?;
    usable(entered, stream)?;
    let (rank, nranks) = (entered.comm.rank(), entered.comm.nranks());
    let send = match collective.root() {
        Some(root) if root >= nranks => {
            return Err(invalid(&format!("root {root} in a communicator of {nranks} ranks")));
        }
        // The send buffer is the root's alone; elsewhere the call is as if in place.
        Some(root) if root != rank => recv.cast_const(),
        _ => send,
    };
    if (send.is_null() || recv.is_null()) && count != 0 {
        return Err(invalid("a buffer is NULL"));
    }
    let blocks = if collective == Collective::AllReduce { 1 } else { nranks as usize };
    if count.checked_mul(blocks * dtype.size()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(invalid("the count is larger than any memory"));
    }
    let call = Call {
        collective,
        send: send.cast(),
        recv: recv.cast(),
        count,
        dtype,
        reduction: RedOp::Sum.into(),
    };
    Ok(Request { call, operation })
}

/// Whether the communicator takes calls, and on that stream.
#[inline]
pub(crate) fn usable(entered: &Entered, stream: *mut c_void) -> Result<(), ResultCode> {
    // NULL, cudaStreamLegacy and cudaStreamPerThread are the default streams.
    if stream.addr() > 2 {
        return Err(invalid("a communicator of host memory takes no stream but the default ones"));
    }
    if entered.finalized {
        return Err(invalid("the communicator was finalized; it can only be destroyed"));
    }
    Ok(())
}

/// A root that no communicator has, where the client's is negative.
fn root(root: c_int) -> u32 {
    u32::try_from(root).unwrap_or(u32::MAX)
}

/// `ncclAllReduce`
///
/// # Safety
/// The buffers hold `count` elements, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    submit(Collective::AllReduce, Arguments { send, recv, count, dtype, op, comm, stream })
}

/// `ncclReduceScatter`
///
/// # Safety
/// `send` holds `count` elements for each rank, `recv` `count`, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    submit(Collective::ReduceScatter, Arguments { send, recv, count, dtype, op, comm, stream })
}

/// `ncclAllGather`
///
/// # Safety
/// `send` holds `count` elements, `recv` `count` of each rank, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    submit(Collective::AllGather, Arguments { send, recv, count, dtype, op: 0, comm, stream })
}

/// `ncclBroadcast`
///
/// # Safety
/// `recv`, and on the root `send`, hold `count` elements, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    root: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    let collective = Collective::Broadcast { root: self::root(root) };
    submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream })
}

/// `ncclBcast`: [`ncclBroadcast`] in place.
///
/// # Safety
/// `buffer` holds `count` elements, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBcast(
    buffer: *mut c_void,
    count: usize,
    dtype: c_int,
    root: c_int,
    comm: Handle,
    stream: *mut c_void,
) -> NcclResult {
    // SAFETY: the caller's promise.
    unsafe { ncclBroadcast(buffer, buffer, count, dtype, root, comm, stream) }
}
