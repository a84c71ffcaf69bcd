//! The collectives of `nccl.h`: arguments are checked, made a [`Call`], and run, or queued while a group is open.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;
use maypole::device::Queued as DeviceCall;
use maypole::{Call, Collective, DType, RedOp};

use crate::boundary::{NcclResult, answer, decided, failed, invalid};
use crate::configured::Selection;
use crate::cuda;
use crate::export::abi;
use crate::group::{self, Queued};
use crate::operator::Operation;
use crate::registry::{self, Entered, Handle, Running, Stage, Visitor};
use crate::stream::{self, On, Stream};

/// A checked call; only its factor may still have to be read.
#[derive(Clone)]
pub(crate) struct Request {
    call: Call,
    operation: Operation,
    selection: Option<Box<Selection>>,
}

// SAFETY: the client lends the buffers to the call until it is over, on whatever thread it runs.
unsafe impl Send for Request {}

impl Request {
    /// Runs the call; returns when its result is there.
    #[inline]
    pub(crate) fn run(mut self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        self.call.reduction = self.operation.resolve(self.call.dtype);
        let result = match &self.selection {
            // SAFETY: the client promised, by the terms of nccl.h, buffers that are valid for the call.
            None => unsafe { on.comm.run(&self.call) },
            // SAFETY: likewise.
            Some(selection) => unsafe { on.comm.run_among(&self.call, &selection.0) },
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(broken(&error, on)),
        }
    }

    /// The call for a device. A factor in memory is read there.
    pub(crate) fn on_device(&self) -> DeviceCall<'_> {
        let call = Call { reduction: self.operation.on_device(), ..self.call };
        match &self.selection {
            None => DeviceCall::Collective(call),
            Some(selection) => DeviceCall::Among(call, selection.0.clone()),
        }
    }

    /// Microseconds that the cost model expects.
    pub(crate) fn predict(&self, entered: &Entered) -> Result<f64, ResultCode> {
        if self.call.count == 0 {
            return Ok(0.0);
        }
        let choice = entered.comm.explain(&self.call).map_err(|error| decided(&error))?;
        Ok(choice.predicted)
    }
}

/// A call failed.
#[cold]
pub(crate) fn broken(error: &maypole::Error, on: &Running<'_>) -> ResultCode {
    // What fails the communicator it logs itself, once; other errors are refusals that nobody has heard of.
    let code = if on.comm.has_failed() { failed(error) } else { decided(error) };
    if !error.is_harmless() {
        on.broke(code);
    }
    code
}

/// What the client gave, apart from the collective.
pub(crate) struct Arguments {
    pub(crate) send: *const c_void,
    pub(crate) recv: *mut c_void,
    pub(crate) count: usize,
    pub(crate) dtype: c_int,
    pub(crate) op: c_int,
    pub(crate) comm: Handle,
    pub(crate) stream: Stream,
}

/// The element type of that code.
#[inline]
pub(crate) fn data_type(code: c_int) -> Result<DType, ResultCode> {
    DType::from_code(code).ok_or_else(|| invalid(&format!("{code} is not a data type")))
}

/// Runs the call, or queues it.
#[inline]
pub(crate) fn submit(
    collective: Collective,
    arguments: Arguments,
    selection: Result<Option<Box<Selection>>, ResultCode>,
) -> NcclResult {
    let Arguments { comm, .. } = arguments;
    answer(|| {
        if group::is_open() {
            return group::note(selection.and_then(|s| enqueue(collective, &arguments, s)));
        }
        let selection = selection?;
        let visitor = registry::visit(comm)?;
        let request = check(collective, &arguments, selection, &visitor)?;
        match stream::on(&visitor, arguments.stream)? {
            On::Caller => visitor.run(None, move |running| request.run(running)),
            On::Host(on) => visitor.run(Some(on), move |running| request.run(running)),
            On::Cuda(on) => cuda::launch_one(visitor.alone()?, request.on_device(), on),
        }
    })
}

#[cold]
fn enqueue(
    collective: Collective,
    arguments: &Arguments,
    selection: Option<Box<Selection>>,
) -> Result<(), ResultCode> {
    let visitor = registry::visit(arguments.comm)?;
    group::agree(visitor.blocks())?;
    let request = check(collective, arguments, selection, &visitor)?;
    let on = stream::on(&visitor, arguments.stream)?;
    group::queue(arguments.comm, on, Queued::Even(request));
    Ok(())
}

#[inline]
fn check(
    collective: Collective,
    arguments: &Arguments,
    selection: Option<Box<Selection>>,
    visitor: &Visitor,
) -> Result<Request, ResultCode> {
    let &Arguments { mut send, recv, count, dtype, op, .. } = arguments;
    let dtype = data_type(dtype)?;
    let operation = visitor.operators().find(op, dtype)?;
    usable(visitor)?;
    let (rank, nranks) = visitor.identity();
    // A buffer that the rank has no use for may be anything.
    let (mut sends, mut receives) = (true, true);
    if let Some(root) = collective.root() {
        if root >= nranks {
            let root = root as c_int;
            return Err(invalid(&format!("root {root} in a communicator of {nranks} ranks")));
        }
        match collective {
            Collective::Reduce { .. } | Collective::Gather { .. } => receives = rank == root,
            Collective::Scatter { .. } => sends = rank == root,
            // As if in place.
            _ if root != rank => send = recv.cast_const(),
            _ => {}
        }
    }
    if (send.is_null() && sends || recv.is_null() && receives) && count != 0 {
        return Err(invalid("a buffer is NULL"));
    }
    let blocks = match collective {
        Collective::AllReduce | Collective::Broadcast { .. } | Collective::Reduce { .. } => 1,
        _ => nranks as usize,
    };
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
    Ok(Request { call, operation, selection })
}

/// Whether the communicator takes calls.
#[inline]
pub(crate) fn usable(visitor: &Visitor) -> Result<(), ResultCode> {
    if visitor.stage() != Stage::Open {
        return Err(closed(visitor.stage()));
    }
    Ok(())
}

#[cold]
fn closed(stage: Stage) -> ResultCode {
    let code = match stage {
        Stage::Finalized => ResultCode::InvalidArgument,
        _ => ResultCode::InvalidUsage,
    };
    crate::boundary::refuse(code, &format!("the communicator is {}", stage.name()))
}

/// A root that no communicator has, where the client's is negative.
pub(crate) fn root(root: c_int) -> u32 {
    root as u32
}

abi! {
    /// `ncclAllReduce`
    fn ncclAllReduce(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        submit(Collective::AllReduce, Arguments { send, recv, count, dtype, op, comm, stream }, Ok(None))
    }

    /// `ncclReduce`: `recv` is used on the root alone.
    fn ncclReduce(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let collective = Collective::Reduce { root: self::root(root) };
        submit(collective, Arguments { send, recv, count, dtype, op, comm, stream }, Ok(None))
    }

    /// `ncclReduceScatter`
    fn ncclReduceScatter(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        submit(Collective::ReduceScatter, Arguments { send, recv, count, dtype, op, comm, stream }, Ok(None))
    }

    /// `ncclAllGather`
    fn ncclAllGather(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        submit(Collective::AllGather, Arguments { send, recv, count, dtype, op: 0, comm, stream }, Ok(None))
    }

    /// `ncclAlltoAll`
    fn ncclAlltoAll(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        submit(Collective::AllToAll, Arguments { send, recv, count, dtype, op: 0, comm, stream }, Ok(None))
    }

    /// `ncclGather`: `recv` is used on the root alone.
    fn ncclGather(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let collective = Collective::Gather { root: self::root(root) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, Ok(None))
    }

    /// `ncclScatter`: `send` is used on the root alone.
    fn ncclScatter(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let collective = Collective::Scatter { root: self::root(root) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, Ok(None))
    }

    /// `ncclBroadcast`: `send` is used on the root alone.
    fn ncclBroadcast(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let collective = Collective::Broadcast { root: self::root(root) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, Ok(None))
    }

    /// `ncclBcast`: [`ncclBroadcast`] in place.
    fn ncclBcast(
        buffer: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        let collective = Collective::Broadcast { root: self::root(root) };
        let send = buffer.cast_const();
        submit(collective, Arguments { send, recv: buffer, count, dtype, op: 0, comm, stream }, Ok(None))
    }
}
