//! Texts of results and the last error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::catch_unwind;

use maypole::internal::logger;

use super::macros::abi;
use crate::boundary::NcclResult;
use crate::registry::CommHandle;

abi! {
    /// `ncclGetErrorString`: the text of a result.
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

    /// `ncclGetLastError`: the last error of the whole process; the communicator is ignored. The
    /// text is valid until the same thread calls this function again.
    fn ncclGetLastError(_comm: CommHandle) -> *const c_char {
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_result_has_a_text() {
        // SAFETY: the texts are static and end in a zero.
        let text = |code| unsafe { CStr::from_ptr(ncclGetErrorString(code)) }.to_str().unwrap();
        let texts: HashSet<_> = (0..10).map(text).collect();
        assert_eq!(texts.len(), 10);
        assert_eq!((text(9), text(-1)), ("unknown result code", "unknown result code"));
    }
}
