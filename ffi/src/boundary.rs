//! What calls answer: result codes, their texts, the last error; and the boundary that no panic crosses.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole::Error;
use maypole::ResultCode;
use maypole::internal::logger;

use crate::export::abi;
use crate::registry::Handle;

/// What every function of the ABI returns: `ncclResult_t`.
pub(crate) type NcclResult = c_int;

/// Runs the body of an ABI function: an error becomes its code, a panic an internal error.
#[inline]
pub(crate) fn answer(body: impl FnOnce() -> Result<(), ResultCode>) -> NcclResult {
    // What a panic leaves half done is behind the registry, whose entries stay consistent: a communicator that was in use is
    // given back by its guard.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => ResultCode::Success as c_int,
        Ok(Err(code)) => code as c_int,
        Err(_) => panicked(),
    }
}

#[cold]
fn panicked() -> NcclResult {
    // Saying so may panic as well.
    let _ = catch_unwind(|| {
        refuse(ResultCode::InternalError, "a panic in the library; please report it")
    });
    ResultCode::InternalError as c_int
}

/// Decides an error here, at the ABI: logs it and keeps its text.
#[cold]
pub(crate) fn refuse(code: ResultCode, text: &str) -> ResultCode {
    log::warn!("{text}");
    logger::set_last_error(text);
    code
}

/// An argument that is not what it should be.
#[cold]
pub(crate) fn invalid(text: &str) -> ResultCode {
    refuse(ResultCode::InvalidArgument, text)
}

/// Logs an error of the library that it has left to its caller, and keeps its text.
#[cold]
pub(crate) fn decided(error: &Error) -> ResultCode {
    refuse(error.code(), &error.to_string())
}

/// Passes on an error of the library, which has logged it: one that has failed a communicator, or the making of one.
#[cold]
pub(crate) fn failed(error: &Error) -> ResultCode {
    logger::set_last_error(&error.to_string());
    error.code()
}

abi! {
    /// `ncclGetErrorString`
    fn ncclGetErrorString(result: NcclResult) -> *const c_char {
        let text: &'static CStr = match result {
            0 => c"no error",
            1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
            2 => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
            3 => c"internal error - please report it, with the output of NCCL_DEBUG=INFO",
            4 => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
            5 => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
            6 => c"remote process exited or there was a network error",
            7 => c"NCCL operation in progress",
            8 => c"timeout",
            _ => c"unknown result code",
        };
        text.as_ptr()
    }

    /// `ncclGetLastError`: of the whole process; the communicator is not looked at. The text is valid until the same thread
    /// asks again.
    fn ncclGetLastError(_comm: Handle) -> *const c_char {
        thread_local! {
            static TEXT: RefCell<CString> = RefCell::default();
        }
        let text = || {
            let text = CString::new(logger::last_error().replace('\0', " ")).unwrap_or_default();
            TEXT.with_borrow_mut(|kept| {
                *kept = text;
                kept.as_ptr()
            })
        };
        catch_unwind(text).unwrap_or(c"".as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_internal_errors() {
        assert_eq!(answer(|| panic!("on purpose")), 3);
        assert_eq!(answer(|| Err(invalid("x"))), 4);
        assert_eq!(answer(|| Ok(())), 0);
    }

    #[test]
    fn every_code_has_a_text() {
        // SAFETY: the texts are static and end in a zero.
        let text = |code| unsafe { CStr::from_ptr(ncclGetErrorString(code)) }.to_str().unwrap();
        let texts: std::collections::HashSet<_> = (0..10).map(text).collect();
        assert_eq!(texts.len(), 10);
        assert_eq!((text(9), text(-1)), ("unknown result code", "unknown result code"));
    }
}
