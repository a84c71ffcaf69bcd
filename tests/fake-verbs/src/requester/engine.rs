//! The thread that looks after work that waits: for a retry, for the end of a hold, or because the
//! order of execution is not that of posting. It starts when it is needed for the first time.

use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::execute::{place_early, run, step};
use super::queue::Core;
use super::timers::TICK;
use crate::abi;
use crate::fabric::{Order, fabric};

#[derive(Default)]
struct Engine {
    /// Queue pairs that the thread does not know yet.
    added: Mutex<Vec<Arc<Core>>>,
    changed: Condvar,
}

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let name = String::from("fake-verbs");
    let started = std::thread::Builder::new().name(name).spawn(look_after);
    if started.is_err() {
        eprintln!("maypole-fake-verbs: no thread can be started");
        std::process::abort();
    }
    Engine::default()
});

/// Looks after a queue pair until nothing waits. Called with its queue locked, whose mark
/// `watched` the caller has set.
pub(super) fn watch(core: Arc<Core>) {
    let mut added = ENGINE.added.lock().unwrap_or_else(PoisonError::into_inner);
    added.push(core);
    ENGINE.changed.notify_one();
}

fn look_after() {
    let mut cores: Vec<Arc<Core>> = Vec::new();
    let mut pause = Duration::ZERO;
    loop {
        let mut added = ENGINE.added.lock().unwrap_or_else(PoisonError::into_inner);
        while added.is_empty() && cores.is_empty() {
            added = ENGINE.changed.wait(added).unwrap_or_else(PoisonError::into_inner);
        }
        // A queue pair can be made to fail by another process, which does not wake this thread.
        if added.is_empty() && !pause.is_zero() {
            let wait = ENGINE.changed.wait_timeout(added, pause.min(TICK));
            added = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        cores.append(&mut added);
        drop(added);
        pause = turn(&cores);
        cores.retain(|core| {
            let mut queue = core.queue();
            queue.watched = !queue.waiting.is_empty();
            queue.watched
        });
    }
}

/// Does what can be done, and returns for how long there is nothing to do.
fn turn(cores: &[Arc<Core>]) -> Duration {
    let settings = &fabric().settings;
    let order = settings.order();
    if order == Order::Posted {
        let next = cores.iter().filter_map(|core| run(core, &mut core.queue())).min();
        return next.map_or(TICK, |next| next.saturating_duration_since(Instant::now()));
    }
    let mut progress = false;
    for _ in 0..cores.len() {
        let core = &cores[settings.random(cores.len() as u64) as usize];
        let mut queue = core.queue();
        if order == Order::Placement {
            for _ in 0..settings.random(4) {
                place_early(core, &mut queue);
            }
        }
        let last = match order {
            Order::Messages => movable(core, queue.waiting.len()),
            _ => 0,
        };
        let index = settings.random(last as u64 + 1) as usize;
        progress |= step(core, &mut queue, index);
    }
    if progress { Duration::ZERO } else { TICK }
}

/// The index of the last work request that may be executed first.
fn movable(core: &Core, waiting: usize) -> usize {
    if core.kind == abi::IBV_QPT_RC && core.shared().state() == abi::IBV_QPS_RTS {
        waiting.saturating_sub(1)
    } else {
        0
    }
}
