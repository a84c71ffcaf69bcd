//! The sending side of queue pairs: work requests that wait, and their execution.

mod deliver;
mod engine;
mod execute;
mod gather;
mod queue;
mod timers;
mod windows;

use std::sync::Arc;

pub(crate) use self::queue::{Bind, Core, Datagram, SendQueue, Work};
use crate::fabric::{Order, fabric};

/// Executes what waits, as far as that is possible now, or leaves it to the engine.
pub(crate) fn progress(core: &Arc<Core>, queue: &mut SendQueue) {
    if fabric().settings.order() == Order::Posted {
        execute::run(core, queue);
    }
    if !queue.waiting.is_empty() && !queue.watched {
        queue.watched = true;
        engine::watch(core.clone());
    }
}
