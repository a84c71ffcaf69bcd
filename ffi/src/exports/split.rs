//! Communicators from a parent: split, shrink and grow.

use std::ffi::c_int;

use maypole::{AbortHandle, ResultCode};

use super::macros::abi;
use super::unique_id;
use crate::boundary::{NcclResult, guarded, invalid_argument, refuse, write_result};
use crate::config::{CommSettings, read_settings};
use crate::cuda::CommMemory;
use crate::group;
use crate::layout::{NcclConfig, NcclUniqueId};
use crate::registry::{self, CommHandle, CommStage};
use crate::request::CreationSource;
use crate::startup;

/// `NCCL_SPLIT_NOCOLOR`
const NO_COLOR: c_int = -1;
/// `NCCL_SHRINK_ABORT`
const SHRINK_ABORT: c_int = 1;

/// The settings and the memory for a child of `parent`. An error if the parent may have no child;
/// `revoked` says whether a revoked one may.
///
/// # Safety
/// `config` is as [`read_settings`] demands.
unsafe fn inherit(
    function: &str,
    parent: CommHandle,
    revoked: bool,
    config: *const NcclConfig,
) -> Result<(CommSettings, CommMemory), ResultCode> {
    let parent = registry::acquire(parent)?;
    match parent.stage() {
        CommStage::Open => {}
        CommStage::Revoked if revoked => {}
        stage => {
            return Err(refuse(
                ResultCode::InvalidUsage,
                &format!("{function}: the communicator is {}", stage.name()),
            ));
        }
    }
    // SAFETY: the caller promises such a configuration.
    let settings = unsafe { read_settings(config, Some(parent.settings())) }?;
    // As in NCCL the device that the calling thread has chosen does not matter.
    Ok((settings, parent.device().map_or(CommMemory::Host(-1), CommMemory::Cuda)))
}

fn check_newcomm(function: &str, newcomm: *mut CommHandle) -> Result<(), ResultCode> {
    if newcomm.is_null() {
        return Err(invalid_argument(&format!("{function}: newcomm is NULL")));
    }
    Ok(())
}

/// The ranks that a shrink excludes.
fn check_excluded(listed: &[c_int], rank: u32, nranks: u32) -> Result<Vec<u32>, ResultCode> {
    let mut excluded = Vec::with_capacity(listed.len());
    for &number in listed {
        match u32::try_from(number) {
            Ok(number) if number == rank => {
                return Err(invalid_argument(
                    "ncclCommShrink: the calling rank is among the excluded ones",
                ));
            }
            Ok(number) if number < nranks && !excluded.contains(&number) => excluded.push(number),
            _ => {
                return Err(invalid_argument(&format!(
                    "ncclCommShrink: the list of excluded ranks has rank {number} twice, or it is \
                     none of the {nranks} ranks"
                )));
            }
        }
    }
    Ok(excluded)
}

abi! {
    /// `ncclCommSplit`
    fn ncclCommSplit(
        comm: CommHandle,
        color: c_int,
        key: c_int,
        newcomm: *mut CommHandle,
        config: *mut NcclConfig,
    ) -> NcclResult {
        guarded(|| {
            let check_and_create = || {
                check_newcomm("ncclCommSplit", newcomm)?;
                if color < NO_COLOR {
                    return Err(invalid_argument(&format!(
                        "ncclCommSplit: color {color} is less than NCCL_SPLIT_NOCOLOR"
                    )));
                }
                // SAFETY: the client promised such a configuration.
                let inherited = unsafe { inherit("ncclCommSplit", comm, true, config) };
                let (settings, memory) = inherited?;
                let source = CreationSource::Split { color: u32::try_from(color).ok(), key };
                // SAFETY: the client promised that `newcomm` is writable, and it is not NULL.
                unsafe { group::create(source, settings, Some(comm), memory, newcomm) }
            };
            group::keep_first_error(check_and_create())
        })
    }

    /// `ncclCommShrink`: the excluded ranks do not call it, and may be dead.
    fn ncclCommShrink(
        comm: CommHandle,
        exclude: *mut c_int,
        count: c_int,
        newcomm: *mut CommHandle,
        config: *mut NcclConfig,
        flags: c_int,
    ) -> NcclResult {
        guarded(|| {
            let check_and_create = || {
                check_newcomm("ncclCommShrink", newcomm)?;
                let (rank, nranks) = registry::identity(comm)?;
                if count < 1 || exclude.is_null() {
                    return Err(invalid_argument("ncclCommShrink: no rank is excluded"));
                }
                if flags & !SHRINK_ABORT != 0 {
                    return Err(invalid_argument(&format!(
                        "ncclCommShrink: unknown flags {flags:#x}"
                    )));
                }
                if count as u32 >= nranks {
                    return Err(invalid_argument(&format!(
                        "ncclCommShrink: {count} of {nranks} ranks are excluded"
                    )));
                }
                // SAFETY: the client promised `count` readable ranks, and the pointer is not NULL.
                let listed = unsafe { std::slice::from_raw_parts(exclude, count as usize) };
                let excluded = check_excluded(listed, rank, nranks)?;
                if flags & SHRINK_ABORT != 0 {
                    registry::interrupt_and_wait("ncclCommShrink", comm, AbortHandle::abort)?;
                }
                // SAFETY: the client promised such a configuration.
                let inherited = unsafe { inherit("ncclCommShrink", comm, true, config) };
                let (settings, memory) = inherited?;
                let source = CreationSource::Shrink { excluded };
                // SAFETY: the client promised that `newcomm` is writable, and it is not NULL.
                unsafe { group::create(source, settings, Some(comm), memory, newcomm) }
            };
            group::keep_first_error(check_and_create())
        })
    }

    /// `ncclCommGetUniqueId`: a unique id for [`ncclCommGrow`].
    fn ncclCommGetUniqueId(comm: CommHandle, id: *mut NcclUniqueId) -> NcclResult {
        let create = || {
            registry::identity(comm)?;
            unique_id::create()
        };
        // SAFETY: the client promised that `id` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommGetUniqueId", id, create) })
    }

    /// `ncclCommGrow`: ranks of the parent pass the communicator and rank -1, at least one of them
    /// also the id; new ranks pass the id and their rank.
    fn ncclCommGrow(
        comm: CommHandle,
        nranks: c_int,
        id: *const NcclUniqueId,
        rank: c_int,
        newcomm: *mut CommHandle,
        config: *mut NcclConfig,
    ) -> NcclResult {
        guarded(|| {
            let check_and_create = || {
                check_newcomm("ncclCommGrow", newcomm)?;
                // SAFETY: the client promised that `id` is NULL or readable.
                let id = unsafe { id.as_ref() }.map(unique_id::from_client).transpose()?;
                if comm.is_null() {
                    startup::log_once();
                    let id =
                        id.ok_or_else(|| invalid_argument("ncclCommGrow: a new rank needs an id"))?;
                    if nranks < 2 || !(1..nranks).contains(&rank) {
                        return Err(invalid_argument(&format!(
                            "ncclCommGrow: new rank {rank} of {nranks}"
                        )));
                    }
                    // SAFETY: the client promised such a configuration.
                    let settings = unsafe { read_settings(config, None) }?;
                    let (nranks, rank) = (nranks as u32, rank as u32);
                    let source = CreationSource::Ids { ids: vec![id], nranks, rank };
                    let memory = CommMemory::of_this_thread()?;
                    // SAFETY: the client promised that `newcomm` is writable, and it is not NULL.
                    return unsafe { group::create(source, settings, None, memory, newcomm) };
                }
                let (_, old_nranks) = registry::identity(comm)?;
                if rank != -1 {
                    return Err(invalid_argument(
                        "ncclCommGrow: a rank of the communicator keeps its rank and passes -1",
                    ));
                }
                if nranks < 1 || nranks as u32 <= old_nranks {
                    return Err(invalid_argument(&format!(
                        "ncclCommGrow: {nranks} ranks are no more than the {old_nranks} there are"
                    )));
                }
                // SAFETY: the client promised such a configuration.
                let inherited = unsafe { inherit("ncclCommGrow", comm, false, config) };
                let (settings, memory) = inherited?;
                let source = CreationSource::Grow { id, nranks: nranks as u32 };
                // SAFETY: the client promised that `newcomm` is writable, and it is not NULL.
                unsafe { group::create(source, settings, Some(comm), memory, newcomm) }
            };
            group::keep_first_error(check_and_create())
        })
    }
}
