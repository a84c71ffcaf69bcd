//! Windows, and one-sided transfers over them.
//!
//! A window is registered and gives its memory back, which is what a collective needs of it; that peers reach into it is to come, and
//! until then puts and signals answer as NCCL does where the hardware cannot: `ncclInvalidUsage`, and
//! `hostRmaSupport` is false in `ncclCommQueryProperties`.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use maypole::config::Config;
use maypole::error::ResultCode;

use crate::answer::{NcclResult, answer, invalid, refuse};
use crate::collective::{data_type, usable};
use crate::export::abi;
use crate::group;
use crate::identity::put;
use crate::layout::NcclWaitSignalDesc;
use crate::registry::{self, Handle, Visitor};
use crate::stream::{self, Stream};

/// `ncclWindow_t` as the client holds it: a number in the shape of a pointer, never given twice.
pub(crate) type Window = *mut c_void;

/// `NCCL_WIN_*`, all of them.
const FLAGS: c_int = 0b1111;

/// Every window of the process: the functions of the device API have no communicator to look in.
static LIVE: LazyLock<Mutex<(HashMap<usize, Extent>, usize)>> = LazyLock::new(Mutex::default);

/// A window's memory.
#[derive(Clone, Copy)]
struct Extent {
    at: usize,
    size: usize,
}

fn live() -> MutexGuard<'static, (HashMap<usize, Extent>, usize)> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The windows registered with a communicator. They end with it.
#[derive(Default)]
pub(crate) struct Windows {
    numbers: Vec<usize>,
}

impl Windows {
    fn add(&mut self, extent: Extent) -> Window {
        let (windows, made) = &mut *live();
        *made += 1;
        windows.insert(*made, extent);
        self.numbers.push(*made);
        std::ptr::without_provenance_mut(*made << 4)
    }

    fn find(&self, window: Window) -> Result<usize, ResultCode> {
        let number = window.addr() >> 4;
        let at = self.numbers.iter().position(|known| *known == number);
        at.filter(|_| window.addr() & 0xf == 0).ok_or_else(unknown)
    }

    fn remove(&mut self, window: Window) -> Result<(), ResultCode> {
        let number = self.numbers.swap_remove(self.find(window)?);
        live().0.remove(&number);
        Ok(())
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        let mut live = live();
        for number in &self.numbers {
            live.0.remove(number);
        }
    }
}

fn unknown() -> ResultCode {
    invalid("the window is not registered with this communicator, or not any more")
}

/// Whether the process has that window, and that many bytes before its end.
pub(crate) fn check(window: Window, offset: usize) -> Result<(), ResultCode> {
    let number = window.addr() >> 4;
    let extent = live().0.get(&number).copied().filter(|_| window.addr() & 0xf == 0);
    let extent = extent.ok_or_else(|| invalid("the window is not a registered one"))?;
    if offset >= extent.size {
        return Err(invalid(&format!("offset {offset} in a window of {} bytes", extent.size)));
    }
    Ok(())
}

/// What one-sided calls answer until there are any.
fn unsupported(function: &str) -> ResultCode {
    refuse(
        ResultCode::InvalidUsage,
        &format!(
            "{function}: one-sided transfers are not in this version; ncclCommQueryProperties says hostRmaSupport = false"
        ),
    )
}

fn one_sided(
    function: &str,
    comm: Handle,
    stream: Stream,
    check: impl FnOnce(&Visitor) -> Result<(), ResultCode>,
) -> NcclResult {
    answer(|| {
        let checked = registry::visit(comm).and_then(|visitor| {
            usable(&visitor)?;
            stream::find(stream)?;
            check(&visitor)?;
            Err(unsupported(function))
        });
        group::note(checked)
    })
}

fn check_peer(visitor: &Visitor, peer: c_int) -> Result<(), ResultCode> {
    let (_, nranks) = visitor.identity();
    if u32::try_from(peer).is_ok_and(|peer| peer < nranks) {
        return Ok(());
    }
    Err(invalid(&format!("peer {peer} in a communicator of {nranks} ranks")))
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
    /// `ncclCommWindowRegister`
    fn ncclCommWindowRegister(
        comm: Handle,
        buffer: *mut c_void,
        size: usize,
        window: *mut Window,
        flags: c_int,
    ) -> NcclResult {
        answer(|| {
            put("ncclCommWindowRegister", window, || {
                let mut entered = registry::enter(comm)?;
                if buffer.is_null() || size == 0 {
                    return Err(invalid("ncclCommWindowRegister: the buffer is NULL or of no bytes"));
                }
                if flags & !FLAGS != 0 {
                    return Err(invalid(&format!("ncclCommWindowRegister: unknown flags {flags:#x}")));
                }
                if !Config::get().windows {
                    return Ok(std::ptr::null_mut());
                }
                Ok(entered.windows.add(Extent { at: buffer.expose_provenance(), size }))
            })
        })
    }

    /// `ncclCommWindowDeregister`
    fn ncclCommWindowDeregister(comm: Handle, window: Window) -> NcclResult {
        answer(|| {
            let mut entered = registry::enter(comm)?;
            if window.is_null() { Ok(()) } else { entered.windows.remove(window) }
        })
    }

    /// `ncclWinGetUserPtr`
    fn ncclWinGetUserPtr(comm: Handle, window: Window, out: *mut *mut c_void) -> NcclResult {
        answer(|| {
            put("ncclWinGetUserPtr", out, || {
                let entered = registry::enter(comm)?;
                if window.is_null() {
                    return Ok(std::ptr::null_mut());
                }
                entered.windows.find(window)?;
                let extent = live().0.get(&(window.addr() >> 4)).copied().ok_or_else(unknown)?;
                Ok(std::ptr::with_exposed_provenance_mut(extent.at))
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
        one_sided("ncclPutSignal", comm, stream, |visitor| {
            check_peer(visitor, peer)?;
            check_signal(signal, context, flags)?;
            let size = data_type(dtype)?.size();
            visitor.windows().find(window)?;
            if local.is_null() && count != 0 {
                return Err(invalid("ncclPutSignal: the buffer is NULL"));
            }
            match count.checked_mul(size).and_then(|bytes| offset.checked_add(bytes)) {
                Some(0) => Ok(()),
                Some(end) => check(window, end - 1),
                None => Err(invalid("ncclPutSignal: the count is larger than any memory")),
            }
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
        one_sided("ncclSignal", comm, stream, |visitor| {
            check_peer(visitor, peer)?;
            check_signal(signal, context, flags)
        })
    }

    /// `ncclWaitSignal`
    fn ncclWaitSignal(count: c_int, waits: *mut NcclWaitSignalDesc, comm: Handle, stream: Stream) -> NcclResult {
        one_sided("ncclWaitSignal", comm, stream, |visitor| {
            if count < 1 || waits.is_null() {
                return Err(invalid("ncclWaitSignal: there is nothing to wait for"));
            }
            // SAFETY: the caller's promise.
            for wait in unsafe { std::slice::from_raw_parts(waits, count as usize) } {
                check_peer(visitor, wait.peer)?;
                check_signal(wait.sig_idx, wait.ctx, 0)?;
                if wait.op_cnt < 1 {
                    return Err(invalid(&format!("ncclWaitSignal: opCnt is {}", wait.op_cnt)));
                }
            }
            Ok(())
        })
    }
}
