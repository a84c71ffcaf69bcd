//! Work requests about memory windows: binding and invalidation.

use super::queue::{Bind, Core};
use super::timers::Outcome;
use crate::abi;
use crate::fabric::{Entries, fabric, process, region};

/// Binds a window to a part of a region.
pub(super) fn bind(core: &Core, bind: Option<&Bind>) -> Outcome {
    let Some(bind) = bind else { return Outcome::Failed(abi::IBV_WC_LOC_QP_OP_ERR) };
    let failed = Outcome::Failed(abi::IBV_WC_MW_BIND_ERR);
    let Some((_, window)) = region::find(bind.window) else { return failed };
    let data = *window.data();
    if window.process() != Some(process::me()) || data.window == 0 || data.domain != core.domain {
        return failed;
    }
    let mut new = data;
    (new.length, new.access, new.parent) = (0, 0, 0);
    if bind.length != 0 {
        let Some((parent, memory)) = region::find(bind.region) else { return failed };
        let of = *memory.data();
        let writes = abi::IBV_ACCESS_REMOTE_WRITE | abi::IBV_ACCESS_REMOTE_ATOMIC;
        let not_writable =
            bind.access & writes != 0 && of.access & abi::IBV_ACCESS_LOCAL_WRITE == 0;
        let not_bindable = of.window != 0 || of.access & abi::IBV_ACCESS_MW_BIND == 0;
        let offset = bind.address.wrapping_sub(of.virtual_address);
        let inside = offset.checked_add(bind.length).is_some_and(|end| end <= of.length);
        if not_writable || not_bindable || !inside || of.domain != core.domain {
            return failed;
        }
        new.address = of.address + offset;
        new.virtual_address = bind.address;
        new.length = bind.length;
        new.access = bind.access;
        new.parent = parent;
        memory.data().windows += 1;
    }
    if let Some(old) = fabric().regions.get(data.parent as usize)
        && data.parent != 0
    {
        let mut old = old.data();
        old.windows = old.windows.saturating_sub(1);
    }
    new.queue_pair = if data.window == 2 { core.number } else { 0 };
    *window.data() = new;
    window.allow(bind.new_key);
    Outcome::Done
}

/// Invalidates a window of type 2 of this process.
pub(super) fn invalidate(core: &Core, key: u32) -> Outcome {
    if !invalidate_remotely(process::me(), core.number, key) {
        return Outcome::Failed(abi::IBV_WC_LOC_PROT_ERR);
    }
    process::wait_for_transfers();
    Outcome::Done
}

/// Invalidates a window of type 2 of a process, that is bound to the queue pair. False if there is
/// no such window.
pub(super) fn invalidate_remotely(owner: u32, queue_pair: u32, key: u32) -> bool {
    let Some((_, window)) = region::find(key) else { return false };
    let mut data = window.data();
    let right =
        window.process() == Some(owner) && data.window == 2 && data.queue_pair == queue_pair;
    if right {
        (data.length, data.access) = (0, 0);
        let parent = data.parent;
        data.parent = 0;
        drop(data);
        if parent != 0 {
            let mut of = fabric().regions[parent as usize].data();
            of.windows = of.windows.saturating_sub(1);
        }
    }
    right
}
