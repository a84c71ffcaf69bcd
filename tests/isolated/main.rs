//! Tests that count what their process holds or that need the whole machine: they run one at a
//! time.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[path = "../support/intruders.rs"]
mod intruders;
#[path = "../support/ranks.rs"]
mod ranks;
#[path = "../support/splitmix.rs"]
mod splitmix;

mod abort;
mod capture;
mod growth;
mod limits;
mod scale;
mod strangers;

/// Waits until no other test of this binary runs; the caller's test runs alone while it keeps the
/// guard.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
