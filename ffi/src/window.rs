//! Windows, and one-sided transfers over them. `docs/abi.md` says what holds; the library's `window` does it.
//!
//! In a group, puts and signals come after its collectives, and waits for signals after everything else: so two ranks may put
//! to each other and wait in one group.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::WindowId;
use maypole::config::Config;
use maypole::stream::PerProcess;

use crate::boundary::{NcclResult, answer, decided, invalid, refuse};
use crate::collective::{broken, data_type, usable};
use crate::export::abi;
use crate::group;
use crate::identity::put;
use crate::layout::NcclWaitSignalDesc;
use crate::registry::{self, Handle, Running, Visitor};
use crate::stream::{self, On, Stream};

/// `ncclWindow_t` as the client holds it: a number in the shape of a pointer, never given twice.
pub(crate) type Window = *mut c_void;

/// `NCCL_WIN_*`, all of them.
const FLAGS: c_int = 0b1111;

/// Every window of the process, by number: the functions of the device API have no communicator to look in. A child made by fork begins
/// with none, as it has no communicators.
static LIVE: PerProcess<Mutex<HashMap<usize, Live>>> = PerProcess::new();

/// How many were made. A child goes on from there: what it makes is no window of its parent's.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// A window, and this rank's memory of it.
#[derive(Clone, Copy)]
struct Live {
    at: usize,
    size: usize,
    /// The communicator's handle.
    owner: usize,
    id: WindowId,
}

fn live() -> MutexGuard<'static, HashMap<usize, Live>> {
    LIVE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The windows registered with a communicator. They end with it.
pub(crate) struct Windows {
    owner: usize,
}

impl Windows {
    /// None yet, of the communicator with that handle.
    pub(crate) fn of(comm: Handle) -> Self {
        Self { owner: comm.addr() }
    }

    fn find(&self, window: Window) -> Result<Live, ResultCode> {
        find(window).filter(|live| live.owner == self.owner).ok_or_else(unknown)
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        live().retain(|_, window| window.owner != self.owner);
    }
}

fn find(window: Window) -> Option<Live> {
    let number = window.addr() >> 4;
    live().get(&number).copied().filter(|_| window.addr() & 0xf == 0)
}

fn unknown() -> ResultCode {
    invalid("the window is not registered with this communicator, or not any more")
}

/// Whether the process has that window, and that many bytes before its end.
pub(crate) fn check(window: Window, offset: usize) -> Result<(), ResultCode> {
    let live = find(window).ok_or_else(|| invalid("the window is not a registered one"))?;
    if offset >= live.size {
        return Err(invalid(&format!("offset {offset} in a window of {} bytes", live.size)));
    }
    Ok(())
}

/// A window to be registered by all ranks.
pub(crate) struct Registration {
    comm: Handle,
    buffer: *mut c_void,
    size: usize,
    out: *mut Window,
}

// SAFETY: the client lends the buffer to the window, and the place for the handle to the call or its group, whatever the thread.
unsafe impl Send for Registration {}

impl Registration {
    /// Registers it; returns when all ranks have.
    pub(crate) fn run(self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        let Self { comm, buffer, size, out } = self;
        // SAFETY: the client promised, by the terms of nccl.h, memory that is the window's until it is deregistered.
        let registered = unsafe { on.comm.register_window(buffer.cast(), size) };
        let id = registered.map_err(|error| broken(&error, on))?;
        // Relaxed: only that no two are the same.
        let number = MADE.fetch_add(1, Ordering::Relaxed) + 1;
        let at = buffer.expose_provenance();
        live().insert(number, Live { at, size, owner: comm.addr(), id });
        // SAFETY: the client promised it to be writable.
        unsafe { out.write(std::ptr::without_provenance_mut(number << 4)) };
        Ok(())
    }
}

/// A one-sided call, checked as far as that needs no look at the communicator's other ranks.
pub(crate) enum OneSided {
    /// `ncclPutSignal`
    Put { local: *const u8, bytes: usize, peer: u32, window: WindowId, offset: usize },
    /// `ncclSignal`
    Signal { peer: u32 },
    /// `ncclWaitSignal`: rank and number of signals.
    Wait(Vec<(u32, u64)>),
}

// SAFETY: the client lends the buffer to the call until it is over, on whatever thread it runs.
unsafe impl Send for OneSided {}

impl OneSided {
    /// Whether it waits for others.
    pub(crate) fn waits(&self) -> bool {
        matches!(self, Self::Wait(_))
    }

    /// Runs it.
    pub(crate) fn run(self, on: &mut Running<'_>) -> Result<(), ResultCode> {
        let result = match self {
            Self::Put { local, bytes, peer, window, offset } => {
                // SAFETY: the client promised, by the terms of nccl.h, a buffer that is valid for the call.
                unsafe { on.comm.put(local, bytes, peer, window, offset) }
            }
            Self::Signal { peer } => on.comm.signal(peer),
            Self::Wait(waits) => on.comm.wait_signals(&waits),
        };
        result.map_err(|error| broken(&error, on))
    }
}

/// Runs what `make` makes, issues it, or queues it.
fn one_sided(
    comm: Handle,
    stream: Stream,
    make: impl FnOnce(&Visitor) -> Result<OneSided, ResultCode>,
) -> NcclResult {
    answer(|| {
        let submitted = registry::visit(comm).and_then(|visitor| {
            usable(&visitor)?;
            let call = make(&visitor)?;
            let on = stream::on(&visitor, stream)?;
            if let (On::Cuda(_), Some(device)) = (&on, visitor.device()) {
                return Err(refuse(
                    ResultCode::InvalidUsage,
                    &format!(
                        "a one-sided call on a communicator of CUDA device {device}; ncclCommQueryProperties says hostRmaSupport = false"
                    ),
                ));
            }
            if group::is_open() {
                group::agree(visitor.blocks())?;
                group::queue_one_sided(comm, on, call);
                return Ok(());
            }
            match on {
                On::Host(on) => visitor.run(Some(on), move |running| call.run(running)),
                _ => visitor.run(None, move |running| call.run(running)),
            }
        });
        group::note(submitted)
    })
}

fn check_peer(visitor: &Visitor, peer: c_int) -> Result<u32, ResultCode> {
    let (_, nranks) = visitor.identity();
    u32::try_from(peer)
        .ok()
        .filter(|peer| *peer < nranks)
        .ok_or_else(|| invalid(&format!("peer {peer} in a communicator of {nranks} ranks")))
}

fn check_signal(signal: c_int, context: c_int, flags: c_uint) -> Result<(), ResultCode> {
    if (signal, context, flags) == (0, 0, 0) {
        return Ok(());
    }
    Err(invalid(&format!(
        "signal {signal}, context {context}, flags {flags:#x}: all of them must be 0"
    )))
}

abi! {
    /// `ncclCommWindowRegister`: of all ranks together.
    fn ncclCommWindowRegister(
        comm: Handle,
        buffer: *mut c_void,
        size: usize,
        window: *mut Window,
        flags: c_int,
    ) -> NcclResult {
        answer(|| {
            let registered = registry::visit(comm).and_then(|visitor| {
                usable(&visitor)?;
                if window.is_null() {
                    return Err(invalid("ncclCommWindowRegister: the place for the result is NULL"));
                }
                if buffer.is_null() || size == 0 {
                    return Err(invalid("ncclCommWindowRegister: the buffer is NULL or of no bytes"));
                }
                if flags & !FLAGS != 0 {
                    return Err(invalid(&format!("ncclCommWindowRegister: unknown flags {flags:#x}")));
                }
                // As NCCL where the hardware has no symmetric memory.
                if !Config::get().windows || visitor.device().is_some() {
                    // SAFETY: the client promised it to be writable.
                    unsafe { window.write(std::ptr::null_mut()) };
                    return Ok(());
                }
                let registration = Registration { comm, buffer, size, out: window };
                if group::is_open() {
                    group::agree(visitor.blocks())?;
                    group::queue(comm, On::Caller, group::Queued::Window(registration));
                    return Ok(());
                }
                registration.run(&mut visitor.alone()?.running())
            });
            group::note(registered)
        })
    }

    /// `ncclCommWindowDeregister`: of this rank's memory alone.
    fn ncclCommWindowDeregister(comm: Handle, window: Window) -> NcclResult {
        answer(|| {
            let mut entered = registry::enter(comm)?;
            if window.is_null() {
                return Ok(());
            }
            let Live { id, .. } = entered.windows.find(window)?;
            live().remove(&(window.addr() >> 4));
            entered.comm.deregister_window(id).map_err(|error| decided(&error))
        })
    }

    /// `ncclWinGetUserPtr`
    fn ncclWinGetUserPtr(comm: Handle, window: Window, out: *mut *mut c_void) -> NcclResult {
        answer(|| {
            put("ncclWinGetUserPtr", out, || {
                let visitor = registry::visit(comm)?;
                if window.is_null() {
                    return Ok(std::ptr::null_mut());
                }
                let Live { at, .. } = visitor.windows().find(window)?;
                Ok(std::ptr::with_exposed_provenance_mut(at))
            })
        })
    }

    /// `ncclPutSignal`
    fn ncclPutSignal(
        local: *const c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        window: Window,
        offset: usize,
        signal: c_int,
        context: c_int,
        flags: c_uint,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        one_sided(comm, stream, |visitor| {
            let peer = check_peer(visitor, peer)?;
            check_signal(signal, context, flags)?;
            let size = data_type(dtype)?.size();
            let Live { id, .. } = visitor.windows().find(window)?;
            if local.is_null() && count != 0 {
                return Err(invalid("ncclPutSignal: the buffer is NULL"));
            }
            let bytes = count.checked_mul(size).filter(|bytes| *bytes <= isize::MAX as usize);
            let bytes = bytes.ok_or_else(|| invalid("ncclPutSignal: the count is larger than any memory"))?;
            Ok(OneSided::Put { local: local.cast(), bytes, peer, window: id, offset })
        })
    }

    /// `ncclSignal`
    fn ncclSignal(
        peer: c_int,
        signal: c_int,
        context: c_int,
        flags: c_uint,
        comm: Handle,
        stream: Stream,
    ) -> NcclResult {
        one_sided(comm, stream, |visitor| {
            check_signal(signal, context, flags)?;
            Ok(OneSided::Signal { peer: check_peer(visitor, peer)? })
        })
    }

    /// `ncclWaitSignal`
    fn ncclWaitSignal(count: c_int, waits: *mut NcclWaitSignalDesc, comm: Handle, stream: Stream) -> NcclResult {
        one_sided(comm, stream, |visitor| {
            if count < 1 || waits.is_null() {
                return Err(invalid("ncclWaitSignal: there is nothing to wait for"));
            }
            // SAFETY: the caller's promise.
            let waits = unsafe { std::slice::from_raw_parts(waits, count as usize) };
            let checked = waits.iter().map(|wait| {
                check_signal(wait.sig_idx, wait.ctx, 0)?;
                if wait.op_cnt < 1 {
                    return Err(invalid(&format!("ncclWaitSignal: opCnt is {}", wait.op_cnt)));
                }
                Ok((check_peer(visitor, wait.peer)?, wait.op_cnt as u64))
            });
            Ok(OneSided::Wait(checked.collect::<Result<_, _>>()?))
        })
    }
}
