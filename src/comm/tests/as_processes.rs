//! Ranks as processes: each is this program again, running one test that is otherwise ignored.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::bootstrap::UniqueId;

/// Runs `test` as each of `nranks` processes, which get what `session` says of their rank, and an
/// id, from [`session`]. If one fails or takes longer than `patience`, all are ended and the test
/// fails with `what`.
pub(super) fn run(
    test: &str,
    nranks: u32,
    patience: Duration,
    what: &dyn Debug,
    session: impl Fn(u32) -> String,
) {
    let id = UniqueId::create().expect("a unique id");
    let start = |rank: u32| {
        // Not by its path: a build may replace what lies there.
        let mut child = Command::new("/proc/self/exe")
            .args(["--exact", test, "--ignored", "--test-threads=1"])
            .env("MAYPOLE_TEST_SESSION", session(rank))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a rank process");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(&id.to_bytes()).expect("the rank reads its id");
        child
    };
    let children: Vec<Child> = (0..nranks).map(start).collect();
    let pids: Vec<u32> = children.iter().map(Child::id).collect();
    let (done, all) = mpsc::channel();
    for child in children {
        let done = done.clone();
        std::thread::spawn(move || {
            let output = child.wait_with_output().expect("a child");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let _ = done.send((output.status.success(), said));
        });
    }
    for _ in 0..nranks {
        let ended = all.recv_timeout(patience);
        if !matches!(ended, Ok((true, _))) {
            for pid in &pids {
                // SAFETY: `kill` touches no memory. The process is a child that was not waited for,
                // so its number is not used again. If it has ended, the signal has no effect.
                unsafe { libc::kill(*pid as libc::pid_t, libc::SIGKILL) };
            }
        }
        let (well, said) = ended.unwrap_or_else(|_| panic!("{what:?}: a rank hangs"));
        assert!(well && said.contains("1 passed"), "{what:?}: {said}");
    }
}

/// In a process that [`run`] started, the words of its session and the id; None in any other
/// process.
pub(super) fn session() -> Option<(String, UniqueId)> {
    let text = std::env::var("MAYPOLE_TEST_SESSION").ok()?;
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("an id");
    Some((text, UniqueId::from_bytes(bytes).expect("an id")))
}
