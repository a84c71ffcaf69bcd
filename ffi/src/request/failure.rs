//! Logs the error of a failed call and records it if the communicator is broken.

use maypole::ResultCode;

use crate::boundary::{keep_error, log_error};
use crate::registry::CallContext;

/// Logs the error of a call, unless the library has, and records it with the communicator if it
/// broke that.
#[cold]
pub(super) fn failed_call(error: &maypole::Error, context: &CallContext<'_>) -> ResultCode {
    // The library logs once what fails a communicator. Other errors are refusals that it has only
    // returned.
    let code = if context.comm.has_failed() { keep_error(error) } else { log_error(error) };
    if !error.is_harmless() {
        context.record_failure(code);
    }
    code
}
