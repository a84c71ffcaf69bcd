//! Builds the simulated GPU, starts processes that use it, and reads its counts of calls.

use std::ffi::{CStr, c_char, c_void};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

/// The folder in which it is built, once per content of its sources.
pub(crate) fn folder() -> &'static str {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/simulated-gpu");
        let done = Command::new(script).arg(&built).output().expect("bash runs the script");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "the simulated GPU (it needs g++) cannot be built:\n{said}");
        built
    });
    FOLDER.to_str().expect("a path of text")
}

/// How a scene ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
}

impl Ending {
    /// Killed by the watchdog.
    pub(crate) fn hung(&self) -> bool {
        self.status.signal() == Some(libc::SIGKILL)
    }

    /// The text that it printed, if it succeeded.
    pub(crate) fn well(self) -> String {
        assert!(!self.hung(), "the scene hangs:\n{}", self.said);
        assert!(self.status.success(), "{}\n{}", self.status, self.said);
        self.said
    }
}

/// Runs a scene (see `main.rs`) in a process with these settings.
pub(crate) fn play(scene: &str, settings: &[(&str, &str)]) -> Ending {
    play_with(folder(), scene, settings)
}

/// Runs a scene with the driver in `folder`. It is killed after some minutes.
pub(crate) fn play_with(folder: &str, scene: &str, settings: &[(&str, &str)]) -> Ending {
    play_for(Duration::from_secs(240), folder, scene, settings)
}

/// A scene that takes longer is killed.
pub(crate) fn play_for(
    patience: Duration,
    folder: &str,
    scene: &str,
    settings: &[(&str, &str)],
) -> Ending {
    let child = Command::new("/proc/self/exe")
        .args(["--exact", "scene", "--ignored", "--nocapture", "--test-threads=1"])
        .env("MAYPOLE_TEST_ALONE", scene)
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let pid = child.id();
    let (leash, free) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if free.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // SAFETY: the call takes no pointers. The process is a child that is not reaped before
            // this thread is told.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        }
    });
    let done = child.wait_with_output().expect("a child");
    drop(leash);
    watchdog.join().expect("the watchdog");
    let said = [done.stdout, done.stderr].concat();
    Ending { status: done.status, said: String::from_utf8_lossy(&said).into_owned() }
}

/// The arguments of the scene in the process of a scene; `None` elsewhere.
pub(crate) fn scene() -> Option<Vec<String>> {
    let scene = std::env::var("MAYPOLE_TEST_ALONE").ok()?;
    Some(scene.split(' ').map(str::to_owned).collect())
}

fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: both strings end in a zero byte. The library is loaded already, so this only finds
    // it.
    let address = unsafe {
        libc::dlsym(libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW), name.as_ptr())
    };
    assert!(!address.is_null(), "{name:?}");
    address
}

/// The calls of the driver that `what` makes in this process, by name.
pub(crate) fn calls(what: impl FnOnce()) -> Vec<(String, u64)> {
    // SAFETY: cuda/sim/calls.cpp defines the function with this signature.
    let reset =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(c"simCallsReset")) };
    reset();
    what();
    calls_so_far()
}

/// The calls of the driver of this process since the last [`calls`] or its beginning, by name.
pub(crate) fn calls_so_far() -> Vec<(String, u64)> {
    // SAFETY: cuda/sim/calls.cpp defines the function with this signature.
    let report = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_char, usize) -> usize>(symbol(
            c"simCallsReport",
        ))
    };
    let mut text = vec![0u8; 1 << 16];
    let bytes = report(text.as_mut_ptr().cast(), text.len());
    let text = String::from_utf8_lossy(&text[..bytes]).into_owned();
    let line = |line: &str| {
        let (name, count) = line.split_once(' ').expect("name and count");
        (name.to_owned(), count.parse().expect("a number"))
    };
    text.lines().map(line).collect()
}
