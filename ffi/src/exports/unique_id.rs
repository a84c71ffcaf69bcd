//! Converts unique ids between the structure of `nccl.h` and `maypole::UniqueId`.

use maypole::ResultCode;
use maypole::UniqueId;

use crate::boundary::log_error;
use crate::layout::NcclUniqueId;

/// The client's unique id. An error if the bytes are none.
pub(super) fn from_client(id: &NcclUniqueId) -> Result<UniqueId, ResultCode> {
    UniqueId::from_bytes(id.to_bytes()).map_err(|error| log_error(&error.into()))
}

/// A new unique id for the client. Its bootstrap root runs in this process.
pub(super) fn create() -> Result<NcclUniqueId, ResultCode> {
    let id = UniqueId::create().map_err(|error| log_error(&error.into()))?;
    Ok(NcclUniqueId::from_bytes(id.to_bytes()))
}
