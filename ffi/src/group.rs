//! Groups: between start and end, calls are queued by the thread; the outermost end runs them.
//!
//! Collectives of one communicator run in their order, then its puts and signals, then its sends and receives all at once, then its waits
//! for signals. Different communicators of one thread
//! are run by a thread each, since peers may be in either: the first by this one, the others by those that streams have. So are communicators
//! to be, unless they have a parent in common. One thread can so be several ranks. On host streams the calls of a communicator are one
//! piece of work, which begins when all of the streams that they are on have come to it, and which all of these wait for. Communicators of
//! CUDA devices are queued before all others, in one launch, which waits for nobody.
//!
//! Where the communicators do not block, those to be are made, and calls run, after the end has returned `ncclInProgress`.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;

use maypole::ResultCode;
use maypole::Transfer;
use maypole::device::{self, CudaStream};
use maypole::stream::{Stream, Work};

use crate::boundary::{NcclResult, answer, decided, invalid, refuse};
use crate::collective::Request;
use crate::create::{Litter, Making, Parent};
use crate::cuda;
use crate::export::abi;
use crate::layout::{NcclSimInfo, SIMULATION_MAGIC};
use crate::registry::{self, Entered, Handle, Running};
use crate::stream::{self, On};
use crate::transfer;
use crate::vector::{self, VectorRequest};
use crate::window::{OneSided, Registration};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static WORK: RefCell<Contents> = const { RefCell::new(Contents::new()) };
}

/// What a thread's open group holds.
struct Contents {
    makings: Vec<Litter>,
    /// By communicator, in the order of the first call.
    calls: Vec<(Communicator, Calls)>,
    /// The first error.
    error: Option<ResultCode>,
    /// Whether its communicators block; they must agree.
    blocking: Option<bool>,
}

/// A call that waits for the end of its group.
pub(crate) enum Queued {
    /// A collective of `nccl.h`.
    Even(Request),
    /// One whose blocks differ.
    Vector(VectorRequest),
    /// `maypoleBarrier`
    Barrier,
    /// `ncclCommWindowRegister`
    Window(Registration),
}

impl Queued {
    /// Runs it; returns when its result is there.
    pub(crate) fn run(self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        match self {
            Self::Even(request) => request.run(on),
            Self::Vector(request) => request.run(on),
            Self::Barrier => vector::barrier(on),
            Self::Window(registration) => registration.run(on),
        }
    }

    /// Queues it on a stream of a device.
    pub(crate) fn launch(&self, entered: Entered, stream: CudaStream) -> Result<(), ResultCode> {
        match self.on_device() {
            Some(call) => cuda::launch_one(entered, call, stream),
            None => Ok(()),
        }
    }

    fn on_device(&self) -> Option<device::Queued<'_>> {
        match self {
            Self::Even(request) => Some(request.on_device()),
            Self::Vector(request) => Some(request.on_device()),
            Self::Barrier => Some(device::Queued::Barrier),
            // There are none on a device: who registers one gets NULL before this.
            Self::Window(_) => None,
        }
    }

    /// Microseconds that the cost model expects; it has nothing to say of the calls of `maypole.h`.
    fn predict(&self, entered: &Entered) -> Result<f64, ResultCode> {
        match self {
            Self::Even(request) => request.predict(entered),
            Self::Vector(_) | Self::Barrier | Self::Window(_) => Ok(0.0),
        }
    }
}

/// The calls of one communicator.
#[derive(Default)]
pub(crate) struct Calls {
    collectives: Vec<Queued>,
    transfers: Vec<Transfer>,
    one_sided: Vec<OneSided>,
    /// The host streams that they are on.
    streams: Vec<Stream>,
    /// The streams of a CUDA device that they are on, each once.
    cuda: Vec<CudaStream>,
    /// Some are on a default stream: the end of the group waits for all of them.
    waits: bool,
}

// SAFETY: the client lends the buffers to the group until its end, on whatever thread its calls run.
unsafe impl Send for Calls {}

impl Calls {
    /// Whether windows are registered among them.
    fn register_windows(&self) -> bool {
        self.collectives.iter().any(|call| matches!(call, Queued::Window(_)))
    }

    /// Runs them; returns when their results are there.
    fn run(self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        self.collectives.into_iter().try_for_each(|request| request.run(on))?;
        // Others may wait for what this rank puts and sends; what it waits for itself comes last.
        let (waits, puts): (Vec<_>, _) = self.one_sided.into_iter().partition(OneSided::waits);
        puts.into_iter().try_for_each(|call| call.run(on))?;
        if !self.transfers.is_empty() {
            transfer::run(&self.transfers, on)?;
        }
        waits.into_iter().try_for_each(|call| call.run(on))
    }

    /// The streams of a CUDA device that they are on.
    pub(crate) fn cuda(&self) -> &[CudaStream] {
        &self.cuda
    }

    /// The calls for a device, in their order.
    pub(crate) fn on_device(&self) -> Vec<device::Queued<'_>> {
        let transfers =
            (!self.transfers.is_empty()).then(|| device::Queued::Transfers(&self.transfers));
        self.collectives.iter().filter_map(Queued::on_device).chain(transfers).collect()
    }

    fn put_on(&mut self, on: On) {
        match on {
            On::Caller => self.waits = true,
            On::Host(stream) => self.streams.push(stream),
            On::Cuda(stream) if self.cuda.contains(&stream) => {}
            On::Cuda(stream) => self.cuda.push(stream),
        }
    }

    /// Microseconds that the cost model expects.
    fn predict(&self, entered: &Entered) -> Result<f64, ResultCode> {
        let mut total = 0.0;
        for request in &self.collectives {
            total += request.predict(entered)?;
        }
        Ok(total + transfer::predict(&self.transfers, entered)?)
    }
}

/// A handle on its way to another thread.
#[derive(Clone, Copy, PartialEq)]
struct Communicator(Handle);

// SAFETY: a handle is a number, not an address.
unsafe impl Send for Communicator {}

impl Contents {
    const fn new() -> Self {
        Self { makings: Vec::new(), calls: Vec::new(), error: None, blocking: None }
    }

    fn run(self) -> Result<(), ResultCode> {
        let Self { makings, calls, error, blocking } = self;
        if let Some(code) = error {
            makings.into_iter().for_each(Litter::cancel);
            return Err(code);
        }
        let made = if blocking == Some(false) {
            first_failure(makings.into_iter().map(Litter::start))
        } else {
            side_by_side(makings, Litter::run)
        };
        match made {
            Ok(()) | Err(ResultCode::InProgress) => {}
            Err(code) => return Err(code),
        }
        match run_calls(calls, blocking != Some(false)) {
            Ok(()) => made,
            result => result,
        }
    }

    /// Drops the work; how long it would have taken, in microseconds: as long as the slowest communicator.
    fn predict(self) -> Result<f64, ResultCode> {
        let Self { makings, calls, error, .. } = self;
        makings.into_iter().for_each(Litter::cancel);
        if let Some(code) = error {
            return Err(code);
        }
        let mut slowest: f64 = 0.0;
        for (Communicator(handle), calls) in calls {
            let entered: Entered = registry::enter(handle)?;
            slowest = slowest.max(calls.predict(&entered)?);
        }
        Ok(slowest)
    }
}

/// Runs the calls, those of a communicator that has some on host streams behind this thread's back. They are issued
/// first and at once: the others may be ranks that they wait for. Of communicators that do not block all are run so, unless windows
/// are registered, whose handles the client expects.
fn run_calls(calls: Vec<(Communicator, Calls)>, blocking: bool) -> Result<(), ResultCode> {
    let (queued, calls): (Vec<_>, _) =
        calls.into_iter().partition(|(_, calls)| !calls.cuda.is_empty());
    if !queued.is_empty() {
        let queued: Vec<_> = queued.into_iter().map(|(of, calls)| (of.0, calls)).collect();
        cuda::launch_group(&queued)?;
    }
    let waits = blocking || calls.iter().any(|(_, calls)| calls.register_windows());
    let (on_streams, on_default): (Vec<_>, _) =
        calls.into_iter().partition(|(_, calls)| !calls.streams.is_empty());
    let mut behind = Vec::new();
    if !waits {
        // Before anything is begun: nothing is if one of them cannot be.
        for (Communicator(handle), _) in &on_default {
            behind.push(registry::visit(*handle)?);
        }
    }
    let (mut launches, mut visitors) = (Vec::new(), Vec::new());
    for (Communicator(handle), mut calls) in on_streams {
        let visitor = registry::visit(handle)?;
        visitors.push((visitor, calls.waits));
        let visitor = &visitors[visitors.len() - 1].0;
        let streams = std::mem::take(&mut calls.streams);
        launches.push(visitor.launch(streams, move |running| calls.run(running)));
    }
    let tickets = if launches.is_empty() { Vec::new() } else { registry::issue(launches)? };
    let waited = visitors.into_iter().zip(tickets).filter(|((_, waits), _)| *waits);
    if waits {
        let waited: Vec<_> = waited.map(|(_, ticket)| ticket).collect();
        let result = side_by_side(on_default, |(Communicator(handle), calls)| {
            let mut entered = registry::enter(handle)?;
            calls.run(&mut entered.running())
        });
        return result.and(stream::wait_for(&waited));
    }
    let waited = waited.map(|((visitor, _), ticket)| visitor.defer().start(move |_| ticket.wait()));
    let behind = behind.into_iter().zip(on_default).map(|(visitor, (_, calls))| {
        visitor.defer().start(move |entered| calls.run(&mut entered.running()))
    });
    first_failure(waited.chain(behind))
}

/// Begins all of them, even if one cannot be; the first failure, else `ncclInProgress` if one of them is.
fn first_failure(begun: impl Iterator<Item = Result<(), ResultCode>>) -> Result<(), ResultCode> {
    let mut first = Ok(());
    for next in begun {
        if next.is_err() && matches!(first, Ok(()) | Err(ResultCode::InProgress)) {
            first = next;
        }
    }
    first
}

/// Runs every item on a thread of its own, the first on this; returns the first error in the order of the items.
fn side_by_side<T: Send + 'static>(
    mut items: Vec<T>,
    run: impl Fn(T) -> Result<(), ResultCode> + Copy + Send + 'static,
) -> Result<(), ResultCode> {
    if items.len() <= 1 {
        return items.pop().map_or(Ok(()), run);
    }
    let works = items.into_iter().map(|item| Box::new(move || run(item)) as Work).collect();
    let results = maypole::stream::side_by_side(works).map_err(|error| decided(&error))?;
    results.into_iter().collect()
}

/// True if this thread is in a group.
#[inline]
pub(crate) fn is_open() -> bool {
    DEPTH.get() > 0
}

/// Keeps an error for the end of the group, if one is open; returns what it was given.
pub(crate) fn note(result: Result<(), ResultCode>) -> Result<(), ResultCode> {
    if let (Err(code), true) = (result, is_open()) {
        WORK.with_borrow_mut(|work| work.error.get_or_insert(code).to_owned());
    }
    result
}

/// Whether a communicator that blocks, or does not, may be in the open group with those that are.
pub(crate) fn agree(blocking: bool) -> Result<(), ResultCode> {
    if !is_open() {
        return Ok(());
    }
    let others = WORK.with_borrow_mut(|work| *work.blocking.get_or_insert(blocking));
    if others == blocking {
        return Ok(());
    }
    Err(invalid(
        "a group holds communicators that block and such that do not; use a group for each kind",
    ))
}

/// Queues a collective of the open group.
pub(crate) fn queue(comm: Handle, on: On, queued: Queued) {
    with_calls(comm, |calls| {
        calls.put_on(on);
        calls.collectives.push(queued);
    });
}

/// Queues a send or a receive of the open group.
pub(crate) fn queue_transfer(comm: Handle, on: On, transfer: Transfer) {
    with_calls(comm, |calls| {
        calls.put_on(on);
        calls.transfers.push(transfer);
    });
}

/// Queues a one-sided call of the open group.
pub(crate) fn queue_one_sided(comm: Handle, on: On, call: OneSided) {
    with_calls(comm, |calls| {
        calls.put_on(on);
        calls.one_sided.push(call);
    });
}

fn with_calls(comm: Handle, add: impl FnOnce(&mut Calls)) {
    let comm = Communicator(comm);
    WORK.with_borrow_mut(|work| {
        let at = work.calls.iter().position(|(of, _)| *of == comm).unwrap_or_else(|| {
            work.calls.push((comm, Calls::default()));
            work.calls.len() - 1
        });
        add(&mut work.calls[at].1);
    });
}

/// Queues a communicator to be of the open group. Those of one parent are made in order, all others at once.
pub(crate) fn queue_making(parent: Option<Parent>, making: Making) {
    WORK.with_borrow_mut(|work| {
        let siblings = work.makings.iter_mut().find(|l| parent.is_some() && l.parent == parent);
        match siblings {
            Some(litter) => litter.makings.push(making),
            None => work.makings.push(Litter { parent, makings: vec![making] }),
        }
    });
}

/// Opens a group in the open one, if there is one.
pub(crate) fn start() {
    DEPTH.set(DEPTH.get() + 1);
}

/// Closes the innermost group; the outermost runs.
pub(crate) fn end() -> Result<(), ResultCode> {
    close("ncclGroupEnd", Contents::run).map(|run| run.unwrap_or(()))
}

/// Closes the innermost group; what `run` makes of the outermost one.
fn close<T>(
    function: &str,
    run: impl FnOnce(Contents) -> Result<T, ResultCode>,
) -> Result<Option<T>, ResultCode> {
    match DEPTH.get() {
        0 => Err(refuse(ResultCode::InvalidUsage, &format!("{function} without ncclGroupStart"))),
        1 => {
            DEPTH.set(0);
            run(WORK.replace(Contents::new())).map(Some)
        }
        depth => {
            DEPTH.set(depth - 1);
            Ok(None)
        }
    }
}

abi! {
    /// `ncclGroupStart`
    fn ncclGroupStart() -> NcclResult {
        start();
        ResultCode::Success as c_int
    }

    /// `ncclGroupEnd`
    fn ncclGroupEnd() -> NcclResult {
        answer(end)
    }

    /// `ncclGroupSimulateEnd`: the group is dropped, and what the cost model expects of it told.
    fn ncclGroupSimulateEnd(info: *mut NcclSimInfo) -> NcclResult {
        answer(|| {
            let expected = close("ncclGroupSimulateEnd", Contents::predict)?;
            if info.is_null() {
                return Err(invalid("ncclGroupSimulateEnd: simInfo is NULL"));
            }
            // SAFETY: the caller's promise.
            let (size, magic) = unsafe { ((&raw const (*info).size).read(), (&raw const (*info).magic).read()) };
            if magic != SIMULATION_MAGIC || size < size_of::<NcclSimInfo>() {
                return Err(invalid("ncclGroupSimulateEnd: simInfo was not initialised by NCCL_SIM_INFO_INITIALIZER"));
            }
            if let Some(expected) = expected {
                // SAFETY: the caller's promise.
                unsafe { (&raw mut (*info).estimated_time).write(expected as f32) };
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_match_starts() {
        assert_eq!(end(), Err(ResultCode::InvalidUsage));
        start();
        start();
        assert_eq!(end(), Ok(()));
        assert!(is_open());
        assert_eq!(end(), Ok(()));
        assert!(!is_open());
    }

    #[test]
    fn the_first_error_of_a_group_is_its_end() {
        start();
        assert!(note(Err(ResultCode::InvalidArgument)).is_err());
        assert!(note(Err(ResultCode::InvalidUsage)).is_err());
        assert_eq!(end(), Err(ResultCode::InvalidArgument));
        assert!(note(Err(ResultCode::SystemError)).is_err());
        start();
        assert_eq!(end(), Ok(()));
    }

    #[test]
    fn kinds_do_not_mix_in_a_group() {
        assert!(agree(true).is_ok() && agree(false).is_ok());
        start();
        assert!(agree(false).is_ok() && agree(false).is_ok());
        assert_eq!(agree(true), Err(ResultCode::InvalidArgument));
        assert_eq!(end(), Ok(()));
    }

    #[test]
    fn the_first_failure_counts_and_else_what_is_in_progress() {
        use ResultCode::{InProgress, SystemError, Timeout};
        let of = |codes: &[Option<ResultCode>]| {
            first_failure(codes.iter().map(|code| code.map_or(Ok(()), Err)))
        };
        assert_eq!(of(&[]), Ok(()));
        assert_eq!(of(&[None, Some(InProgress), None]), Err(InProgress));
        assert_eq!(of(&[Some(InProgress), Some(Timeout), Some(SystemError)]), Err(Timeout));
    }

    #[test]
    fn items_run_side_by_side_and_the_first_error_counts() {
        static BARRIER: std::sync::LazyLock<std::sync::Barrier> =
            std::sync::LazyLock::new(|| std::sync::Barrier::new(3));
        let run = |code: Option<ResultCode>| {
            BARRIER.wait();
            code.map_or(Ok(()), Err)
        };
        let codes = vec![None, Some(ResultCode::Timeout), Some(ResultCode::SystemError)];
        assert_eq!(side_by_side(codes, run), Err(ResultCode::Timeout));
    }
}
