//! The output of the `log` crate, as lines in the format of NCCL under `NCCL_DEBUG`.
//!
//! * error and warn, printed from level WARN: `host:pid:tid [0] file:line NCCL WARN text`, after an
//!   empty line, as NCCL does;
//! * info, printed from level INFO: `host:pid:tid [0] NCCL INFO text`;
//! * debug and trace, printed at level TRACE: `host:pid:tid [0] NCCL TRACE text`.
//!
//! Scripts look for these formats. The number in brackets is the device in NCCL; host memory has
//! none, and 0 is printed because such scripts expect a digit. Info and trace lines are filtered by
//! `NCCL_DEBUG_SUBSYS`: the subsystem of a record is its target if that names one, or else follows
//! from the module that logs. Lines go to standard output or to `NCCL_DEBUG_FILE`. A line that
//! cannot be written is lost, because logging never fails a call.
//!
//! The text of the last error ([`last_error`], for `ncclGetLastError`) is kept here too. Every
//! warning sets it, printed or not, except those about strangers. An error is logged once, by the
//! code that detects it.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use maypole_transport::strangers;

use crate::config::{Config, DebugLevel};
use crate::process::{LazyValue, PerProcess, occupy_standard_streams};

/// Installs the logger. It may be called repeatedly. If the application has installed a logger of
/// its own, records go there, in its format and under its filter, and nothing is printed here.
pub fn install() {
    static LOGGER: NcclLogger = NcclLogger;
    if log::set_logger(&LOGGER).is_ok() {
        // This comes before the configuration is read, so that warnings about it are printed.
        log::set_max_level(LevelFilter::Warn);
        log::set_max_level(match Config::get().debug {
            // Warnings always pass, because they set `last_error`.
            DebugLevel::None | DebugLevel::Version | DebugLevel::Warn => LevelFilter::Warn,
            DebugLevel::Info => LevelFilter::Info,
            DebugLevel::Trace => LevelFilter::Trace,
        });
    }
}

/// Prints the version line without a prefix, if `NCCL_DEBUG` is VERSION or a higher level.
pub fn version(line: &str) {
    if Config::get().debug >= DebugLevel::Version {
        write(&format!("{line}\n"));
    }
}

/// The text of the last error of this process, empty if there was none.
pub fn last_error() -> String {
    LAST_ERROR.get().lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Sets the text of [`last_error`]. Warnings that are logged here set it by themselves; this
/// function is for errors that are returned without a log line, and for applications with a logger
/// of their own.
pub fn set_last_error(text: &str) {
    text.clone_into(&mut LAST_ERROR.get().lock().unwrap_or_else(PoisonError::into_inner));
}

/// The name of this host up to the first dot, as it appears in log lines and errors.
pub fn host_name() -> &'static str {
    static NAME: LazyValue<String> = LazyValue::new(|| {
        let mut name = [0_u8; 256];
        // SAFETY: the buffer is writable for the given length, which is one less than its size, so
        // that the name always ends with a zero.
        let status = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
        let text = match CStr::from_bytes_until_nul(&name) {
            Ok(text) if status == 0 => text.to_string_lossy().into_owned(),
            _ => String::from("unknown"),
        };
        text.split('.').next().unwrap_or_default().to_owned()
    });
    &NAME
}

static LAST_ERROR: PerProcess<Mutex<String>> = PerProcess::new();

struct NcclLogger;

impl Log for NcclLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let config = Config::get();
        match metadata.level() {
            Level::Error | Level::Warn => true,
            Level::Info => {
                config.debug >= DebugLevel::Info
                    && config.debug_subsystems.contains(subsystem(metadata.target()))
            }
            Level::Debug | Level::Trace => {
                config.debug >= DebugLevel::Trace
                    && config.debug_subsystems.contains(subsystem(metadata.target()))
            }
        }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if record.level() <= Level::Warn {
            // What strangers do is no failure of a call.
            if record.target() != strangers::LOG_TARGET {
                set_last_error(&text);
            }
            if Config::get().debug < DebugLevel::Warn {
                return;
            }
        }
        let place = record.file().map(|file| (file, record.line().unwrap_or(0)));
        write(&line(record.level(), place, &text));
    }

    fn flush(&self) {}
}

fn line(level: Level, place: Option<(&str, u32)>, text: &str) -> String {
    // SAFETY: gettid has no preconditions.
    let thread = unsafe { libc::gettid() };
    let head = format!("{}:{}:{thread} [0]", host_name(), std::process::id());
    match (level, place) {
        (Level::Error | Level::Warn, Some((file, line))) => {
            let file = file.rsplit('/').next().unwrap_or(file);
            format!("\n{head} {file}:{line} NCCL WARN {text}\n")
        }
        (Level::Error | Level::Warn, None) => format!("\n{head} NCCL WARN {text}\n"),
        (Level::Info, _) => format!("{head} NCCL INFO {text}\n"),
        (Level::Debug | Level::Trace, _) => format!("{head} NCCL TRACE {text}\n"),
    }
}

/// NCCL's name of the subsystem to which a log target belongs.
fn subsystem(target: &str) -> &str {
    const BY_MODULE: [(&str, &str); 11] = [
        ("::bootstrap", "BOOTSTRAP"),
        ("::config", "ENV"),
        ("::tune", "TUNING"),
        ("::engine", "COLL"),
        ("::plan", "COLL"),
        ("::memory", "ALLOC"),
        ("::proxy", "PROXY"),
        ("::control", "RAS"),
        ("::shm", "SHM"),
        ("::local", "P2P"),
        ("maypole_transport", "NET"),
    ];
    if !target.contains("::") && !target.starts_with("maypole") {
        return target;
    }
    BY_MODULE.iter().find(|(part, _)| target.contains(part)).map_or("INIT", |&(_, name)| name)
}

/// The file that `NCCL_DEBUG_FILE` names; None if it names none, or if that cannot be opened.
struct DebugFile(Option<File>);

impl Default for DebugFile {
    fn default() -> Self {
        let Some(path) = Config::get().debug_file.as_deref().map(expand) else {
            return Self(None);
        };
        occupy_standard_streams();
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let file = opened.inspect_err(|error| {
            let text = format!(
                "NCCL_DEBUG_FILE is \"{path}\", which cannot be opened: {error}; log lines go to \
                 standard output"
            );
            write_to(&standard_output(), &line(Level::Warn, None, &text));
        });
        Self(file.ok())
    }
}

/// Writes a whole line by one system call, so that lines of threads and processes do not mix.
fn write(line: &str) {
    static FILE: PerProcess<DebugFile> = PerProcess::new();
    match &FILE.get().0 {
        Some(file) => write_to(file, line),
        None => write_to(&standard_output(), line),
    }
}

/// Standard output without the lock and the buffer of the standard library: in a child made by
/// fork, a thread that does not exist there may hold the lock.
fn standard_output() -> ManuallyDrop<File> {
    // SAFETY: the file is never dropped, so that the descriptor is only used and not closed.
    ManuallyDrop::new(unsafe { File::from_raw_fd(libc::STDOUT_FILENO) })
}

/// If the disk is full or the output is closed, the line is lost.
fn write_to(mut file: &File, line: &str) {
    without_size_signal(|| drop(file.write_all(line.as_bytes())));
}

/// Runs `write`, in which this thread gets no SIGXFSZ: a file that has reached the limit of
/// `ulimit -f` must not end the process.
fn without_size_signal(write: impl FnOnce()) {
    // SAFETY: all sets and results are local variables, and all zeros is a valid set.
    unsafe {
        let (mut size, mut before, mut pending) = std::mem::zeroed::<[libc::sigset_t; 3]>().into();
        libc::sigemptyset(&raw mut size);
        libc::sigaddset(&raw mut size, libc::SIGXFSZ);
        libc::sigpending(&raw mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const size, &raw mut before);
        write();
        // One that was pending before is the program's.
        if libc::sigismember(&raw const pending, libc::SIGXFSZ) == 0 {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&raw const size, std::ptr::null_mut(), &raw const now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
}

/// Replaces %h by the host name, %p by the process id and %% by a percent sign.
fn expand(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path.chars();
    while let Some(next) = rest.next() {
        match (next, rest.as_str().chars().next()) {
            ('%', Some('h')) => out.push_str(host_name()),
            ('%', Some('p')) => out.push_str(&std::process::id().to_string()),
            ('%', Some('%')) => out.push('%'),
            _ => {
                out.push(next);
                continue;
            }
        }
        rest.next();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_format_that_scripts_look_for() {
        let pid = std::process::id();
        let info = line(Level::Info, Some(("src/a.rs", 3)), "hello");
        assert!(info.starts_with(&format!("{}:{pid}:", host_name())));
        assert!(info.ends_with(" [0] NCCL INFO hello\n"));
        let warn = line(Level::Warn, Some(("src/a.rs", 3)), "oh");
        assert!(warn.starts_with('\n') && warn.ends_with(" [0] a.rs:3 NCCL WARN oh\n"));
    }

    #[test]
    fn paths_are_expanded() {
        let pid = std::process::id();
        assert_eq!(expand("/tmp/%h-%p%%.%x%"), format!("/tmp/{}-{pid}%.%x%", host_name()));
    }

    #[test]
    fn targets_name_subsystems() {
        assert_eq!(subsystem("maypole::bootstrap::root"), "BOOTSTRAP");
        assert_eq!(subsystem("maypole_transport::shm::link"), "SHM");
        assert_eq!(subsystem("maypole::control::status"), "RAS");
        assert_eq!(subsystem("maypole::comm"), "INIT");
        assert_eq!(subsystem("NET"), "NET");
    }

    #[test]
    fn warnings_set_the_last_error_even_when_nothing_is_printed() {
        let record = |text: &str| {
            NcclLogger
                .log(&Record::builder().level(Level::Warn).args(format_args!("{text}")).build());
        };
        record("first");
        record("second");
        assert_eq!(last_error(), "second");
        let stranger = format_args!("a stranger");
        let builder = |target| {
            NcclLogger
                .log(&Record::builder().level(Level::Warn).target(target).args(stranger).build());
        };
        builder(strangers::LOG_TARGET);
        assert_eq!(last_error(), "second", "strangers change the error of a call");
    }
}
