//! The boundary between the C ABI and the library: no panic crosses it, and errors become result
//! codes and the text of the last error.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole::Error;
use maypole::ResultCode;
use maypole::internal::logger;

/// `ncclResult_t`, which nearly every function of the ABI returns.
pub(crate) type NcclResult = c_int;

/// Runs the body of a function of the ABI: an error becomes its code, a panic an internal error.
#[inline]
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), ResultCode>) -> NcclResult {
    // State that a panic leaves half changed is behind the registry, whose entries stay consistent:
    // a guard gives back a communicator that was in use.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => ResultCode::Success as c_int,
        Ok(Err(code)) => code as c_int,
        Err(_) => panicked(),
    }
}

#[cold]
fn panicked() -> NcclResult {
    // To report the panic may panic as well.
    let _ = catch_unwind(|| {
        refuse(ResultCode::InternalError, "a panic in the library; please report it")
    });
    ResultCode::InternalError as c_int
}

/// Refuses a call: logs the text and keeps it as the last error.
#[cold]
pub(crate) fn refuse(code: ResultCode, text: &str) -> ResultCode {
    log::warn!("{text}");
    logger::set_last_error(text);
    code
}

/// Refuses a call with a wrong argument.
#[cold]
pub(crate) fn invalid_argument(text: &str) -> ResultCode {
    refuse(ResultCode::InvalidArgument, text)
}

/// Logs an error that the library returned without logging it, and keeps its text.
#[cold]
pub(crate) fn log_error(error: &Error) -> ResultCode {
    refuse(error.code(), &error.to_string())
}

/// Keeps the text of an error that the library has logged itself: one that failed a communicator,
/// or its creation.
#[cold]
pub(crate) fn keep_error(error: &Error) -> ResultCode {
    logger::set_last_error(&error.to_string());
    error.code()
}

/// Writes the result of `value` to `out`. Refuses the call if `out` is NULL.
///
/// # Safety
/// `out` is NULL or writable.
pub(crate) unsafe fn write_result<T>(
    function: &str,
    out: *mut T,
    value: impl FnOnce() -> Result<T, ResultCode>,
) -> Result<(), ResultCode> {
    if out.is_null() {
        return Err(invalid_argument(&format!("{function}: the pointer for the result is NULL")));
    }
    let value = value()?;
    // SAFETY: `out` is writable, as the caller promises of a pointer that is not NULL.
    unsafe { out.write(value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_internal_errors() {
        assert_eq!(guarded(|| panic!("on purpose")), 3);
        assert_eq!(guarded(|| Err(invalid_argument("x"))), 4);
        assert_eq!(guarded(|| Ok(())), 0);
    }
}
