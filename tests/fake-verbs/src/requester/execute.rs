//! Executes the work requests of a send queue.

use std::time::Instant;

use super::deliver::{self, Target};
use super::gather::local;
use super::queue::{Core, SendQueue, Work};
use super::timers::{Outcome, TICK, lost};
use super::windows;
use crate::abi;
use crate::fabric::network::Path;
use crate::fabric::process::{self, Transfer};
use crate::fabric::{Entries, Entry, Settings, Source, fabric, queue_pair};
use crate::memory;
use crate::misuse::log;
use crate::sync::Relaxed;

/// Executes what waits, in the order in which it was posted. Returns when to look again.
pub(super) fn run(core: &Core, queue: &mut SendQueue) -> Option<Instant> {
    while step(core, queue, 0) {}
    if queue.waiting.is_empty() {
        return None;
    }
    Some(queue.attempt.not_before.unwrap_or_else(|| Instant::now() + TICK))
}

/// Executes the work request at `index`. False if nothing can be done now.
pub(super) fn step(core: &Core, queue: &mut SendQueue, index: usize) -> bool {
    if queue.waiting.is_empty() {
        return false;
    }
    match core.shared().state() {
        abi::IBV_QPS_RTS => {}
        abi::IBV_QPS_ERR | abi::IBV_QPS_SQE => {
            let work = queue.waiting.pop_front().expect("it is not empty");
            finish(core, queue, &work, abi::IBV_WC_WR_FLUSH_ERR);
            return true;
        }
        _ => return false,
    }
    if queue.attempt.not_before.is_some_and(|time| Instant::now() < time) {
        return false;
    }
    let work = queue.waiting.remove(index).expect("the index is inside");
    match execute(core, queue, &work) {
        Outcome::Done => finish(core, queue, &work, abi::IBV_WC_SUCCESS),
        Outcome::Failed(status) => fail(core, queue, &work, status),
        Outcome::Wait(duration) => {
            queue.waiting.insert(index, work);
            queue.attempt.not_before = Some(Instant::now() + duration);
            return false;
        }
    }
    true
}

/// Completes a work request.
pub(super) fn finish(core: &Core, queue: &mut SendQueue, work: &Work, status: abi::ibv_wc_status) {
    queue.attempt = super::queue::Attempt::default();
    let signaled = queue.all_signaled || work.flags & abi::IBV_SEND_SIGNALED != 0;
    if !signaled && status == abi::IBV_WC_SUCCESS {
        queue.unreported += 1;
        return;
    }
    queue.unreported += 1;
    let entry = Entry {
        wr_id: work.wr_id,
        status,
        opcode: opcode(work.opcode),
        byte_len: memory::total(&work.entries) as u32 + work.inline.len() as u32,
        number: core.number,
        queue_pair: core.place,
        source: Source::Send(queue.unreported),
        time: deliver::now(),
        ..Entry::default()
    };
    queue.unreported = 0;
    let completions = &fabric().completion_queues[core.completions as usize];
    if completions.push(entry, false).is_err() {
        log(format_args!("a completion of queue pair {} is lost: the queue is full", core.number));
        core.shared().fail(core.place, Some(abi::IBV_EVENT_QP_FATAL));
    }
}

fn opcode(of: abi::ibv_wr_opcode) -> abi::ibv_wc_opcode {
    match of {
        abi::IBV_WR_RDMA_WRITE | abi::IBV_WR_RDMA_WRITE_WITH_IMM => abi::IBV_WC_RDMA_WRITE,
        abi::IBV_WR_RDMA_READ => abi::IBV_WC_RDMA_READ,
        abi::IBV_WR_ATOMIC_CMP_AND_SWP => abi::IBV_WC_COMP_SWAP,
        abi::IBV_WR_ATOMIC_FETCH_AND_ADD => abi::IBV_WC_FETCH_ADD,
        abi::IBV_WR_LOCAL_INV => abi::IBV_WC_LOCAL_INV,
        abi::IBV_WR_BIND_MW => abi::IBV_WC_BIND_MW,
        _ => abi::IBV_WC_SEND,
    }
}

/// Completes a work request that failed. What follows it is flushed.
pub(super) fn fail(core: &Core, queue: &mut SendQueue, work: &Work, status: abi::ibv_wc_status) {
    log(format_args!("work {:#x} of queue pair {} fails: {status}", work.wr_id, core.number));
    // The state first: a reader of the completion finds the queue pair failed.
    if core.kind == abi::IBV_QPT_RC {
        core.shared().fail_quietly();
    } else if core.shared().state() == abi::IBV_QPS_RTS {
        core.shared().set_state(abi::IBV_QPS_SQE);
    }
    finish(core, queue, work, status);
    core.shared().flush_if_failed(core.place);
}

/// Places data of one of the RDMA writes that wait before those in front of it.
pub(super) fn place_early(core: &Core, queue: &mut SendQueue) {
    let writes = |work: &&Work| work.opcode == abi::IBV_WR_RDMA_WRITE;
    let count = queue.waiting.iter().take_while(writes).count();
    let ready = core.shared().state() == abi::IBV_QPS_RTS && queue.attempt.not_before.is_none();
    if count < 2 || !ready || core.kind == abi::IBV_QPT_UD {
        return;
    }
    let path = queue.path();
    let Ok(target) = find(queue, path) else { return };
    let _transfer = Transfer::begin(target.process);
    let index = fabric().settings.random(count as u64) as usize;
    let work = &queue.waiting[index];
    if let Ok(local) = local(core, work) {
        deliver::place_early(core, queue, work, &local, &target);
    }
}

fn execute(core: &Core, queue: &mut SendQueue, work: &Work) -> Outcome {
    let settings = &fabric().settings;
    if Settings::take(&settings.failures) {
        return Outcome::Failed(settings.failure.load(Relaxed));
    }
    match work.opcode {
        abi::IBV_WR_LOCAL_INV => windows::invalidate(core, work.immediate),
        abi::IBV_WR_BIND_MW => windows::bind(core, work.bind.as_ref()),
        _ if core.kind == abi::IBV_QPT_UD => deliver::datagram(core, queue, work),
        _ => connected(core, queue, work),
    }
}

fn connected(core: &Core, queue: &mut SendQueue, work: &Work) -> Outcome {
    let path = queue.path();
    if path == Path::Held {
        return Outcome::Wait(TICK);
    }
    let target = match find(queue, path) {
        Ok(target) => target,
        Err(why) => {
            // A fault of the work request itself comes before one of the network.
            let _transfer = Transfer::begin(process::me());
            if let Err(status) = local(core, work) {
                return Outcome::Failed(status);
            }
            return lost(core, queue, why);
        }
    };
    let _transfer = Transfer::begin(target.process);
    match local(core, work) {
        Ok(local) => deliver::message(core, queue, work, &local, &target),
        Err(status) => Outcome::Failed(status),
    }
}

fn find(queue: &SendQueue, path: Path) -> Result<Target, &'static str> {
    let (device, port, loss) = match path {
        Path::To { device, port, loss } => (device, port, loss),
        Path::Lost(why) => return Err(why),
        Path::Held => return Err("it is held"),
    };
    if loss != 0 && fabric().settings.random(1_000_000) < u64::from(loss) {
        return Err("the network loses some");
    }
    let number = queue.attributes.dest_qp_num;
    let (place, pair) = queue_pair::find(number).ok_or("there is no such queue pair")?;
    let process = pair.process().ok_or("there is no such queue pair")?;
    Ok(Target { place, pair, process, number, device, port })
}
