//! The memory of this process that a work request names.

use super::queue::{Core, Work};
use crate::abi;
use crate::fabric::{fabric, process, region};
use crate::memory::{self, Segments};
use crate::misuse::log;

/// The memory of this process that a work request names, if it may use it. A transfer has begun.
pub(super) fn local(core: &Core, work: &Work) -> Result<Segments, abi::ibv_wc_status> {
    if work.is_inline() {
        return Ok(memory::of_bytes(&work.inline));
    }
    let writes = matches!(
        work.opcode,
        abi::IBV_WR_RDMA_READ | abi::IBV_WR_ATOMIC_CMP_AND_SWP | abi::IBV_WR_ATOMIC_FETCH_AND_ADD
    );
    let access = if writes { region::LOCAL_WRITE } else { 0 };
    let mut segments = Segments::new();
    for entry in &work.entries {
        if entry.length == 0 {
            continue;
        }
        let bytes = (entry.addr, u64::from(entry.length));
        let me = process::me();
        match region::check(entry.lkey, false, me, core.domain, core.number, bytes, access) {
            Ok(address) => segments.push(address, bytes.1),
            Err(fault) => {
                log(format_args!("local key {:#x} at {:#x}: {fault:?}", entry.lkey, entry.addr));
                return Err(abi::IBV_WC_LOC_PROT_ERR);
            }
        }
    }
    let limit = fabric().network.lock().devices[core.device as usize].limits.message;
    if segments.length() > u64::from(limit) {
        return Err(abi::IBV_WC_LOC_LEN_ERR);
    }
    Ok(segments)
}
