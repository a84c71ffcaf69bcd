//! `ncclGroupStart`, `ncclGroupEnd`, and the prediction of a group's time.

use std::ffi::c_int;

use maypole::ResultCode;

use super::macros::abi;
use crate::boundary::{NcclResult, guarded, invalid_argument};
use crate::group;
use crate::layout::{NcclSimInfo, SIMULATION_MAGIC, read_header};

abi! {
    /// `ncclGroupStart`: the calls that follow are queued.
    fn ncclGroupStart() -> NcclResult {
        group::start();
        ResultCode::Success as c_int
    }

    /// `ncclGroupEnd`: the outermost end runs the queued calls.
    fn ncclGroupEnd() -> NcclResult {
        guarded(group::end)
    }

    /// `ncclGroupSimulateEnd`: drops the group, and returns how long the cost model predicts that
    /// it would have taken.
    fn ncclGroupSimulateEnd(info: *mut NcclSimInfo) -> NcclResult {
        guarded(|| {
            let predicted = group::predict_and_drop()?;
            if info.is_null() {
                return Err(invalid_argument("ncclGroupSimulateEnd: simInfo is NULL"));
            }
            // SAFETY: the client promised that `info` is readable for its header.
            let (size, magic) = unsafe { read_header(info) };
            if magic != SIMULATION_MAGIC || size < size_of::<NcclSimInfo>() {
                return Err(invalid_argument(
                    "ncclGroupSimulateEnd: simInfo was not initialised by \
                     NCCL_SIM_INFO_INITIALIZER",
                ));
            }
            if let Some(microseconds) = predicted {
                // SAFETY: the client promised that `info` is as long as its size says.
                unsafe { (&raw mut (*info).estimated_time).write(microseconds as f32) };
            }
            Ok(())
        })
    }
}
