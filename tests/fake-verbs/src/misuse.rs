//! What happens when a program uses the interface wrongly: an error number, as the specification
//! demands, or the end of the process with an explanation.

use std::fmt;
use std::sync::OnceLock;

use crate::fabric::fabric;
use crate::sync::Relaxed;

/// With this variable, what is refused or lost is written to the standard error stream.
const LOG: &str = "MAYPOLE_FAKE_VERBS_LOG";

/// Reports a misuse. Returns the error number, for the caller.
pub(crate) fn report(errno: i32, why: fmt::Arguments<'_>) -> i32 {
    if fabric().settings.abort_on_misuse.load(Relaxed) != 0 {
        eprintln!("maypole-fake-verbs: misuse: {why}");
        std::process::abort();
    }
    log(format_args!("refused with error {errno}: {why}"));
    errno
}

/// Writes a line, if that was asked for.
pub(crate) fn log(what: fmt::Arguments<'_>) {
    static WANTED: OnceLock<bool> = OnceLock::new();
    if *WANTED.get_or_init(|| std::env::var_os(LOG).is_some()) {
        eprintln!("maypole-fake-verbs: {what}");
    }
}

/// Sets the error number of the thread.
pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the pointer is to the thread's own number.
    unsafe { *libc::__errno_location() = errno };
}

/// Reports a misuse: `misuse!(libc::EINVAL, "a text about {this}")`.
macro_rules! misuse {
    ($errno:expr, $($text:tt)+) => {
        $crate::misuse::report($errno, format_args!($($text)+))
    };
}
pub(crate) use misuse;
