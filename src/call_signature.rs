//! The signatures of calls: what the control plane compares between ranks, and whose hash travels
//! with every message as its tag.

pub(crate) use maypole_control::call_signature::CallSignature;

use crate::call::{Extents, Task};

/// The signature of `task`.
pub(crate) fn signature_of(task: &Task) -> CallSignature {
    let (collective, dtype, op) = (task.collective, task.dtype, task.reduction().op);
    match &task.extents {
        _ if task.barrier => CallSignature::barrier(),
        Extents::Even(count) => CallSignature::even(collective, dtype, op, *count as u64),
        Extents::Vector(extents) => {
            let lengths = extents.iter().map(|extent| extent.len as u64);
            CallSignature::of_lengths(collective, dtype, op, lengths)
        }
    }
}
