//! Communicators of a communicator: its parts, what is left of it, what it grows to.

use std::ffi::c_int;

use maypole::ResultCode;

use crate::boundary::{NcclResult, answer, invalid, refuse};
use crate::config::{Settings, read};
use crate::create::{Of, Source, make};
use crate::destroy::stop;
use crate::export::abi;
use crate::group;
use crate::identity::{new_unique_id, put, unique_id};
use crate::layout::{NcclConfig, NcclUniqueId};
use crate::registry::{self, Handle, Stage};

/// `NCCL_SPLIT_NOCOLOR`
const NO_COLOR: c_int = -1;
/// `NCCL_SHRINK_ABORT`
const SHRINK_ABORT: c_int = 1;

/// What an offspring of `parent` is to be like, and on whose memory, if the parent may have any.
///
/// # Safety
/// As for [`read`].
unsafe fn inherit(
    function: &str,
    parent: Handle,
    revoked: bool,
    config: *const NcclConfig,
) -> Result<(Settings, Of), ResultCode> {
    let visitor = registry::visit(parent)?;
    match visitor.stage() {
        Stage::Open => {}
        Stage::Revoked if revoked => {}
        stage => {
            return Err(refuse(
                ResultCode::InvalidUsage,
                &format!("{function}: the communicator is {}", stage.name()),
            ));
        }
    }
    // SAFETY: the caller's promise.
    let settings = unsafe { read(config, Some(visitor.settings())) }?;
    // As NCCL has it: whatever device the calling thread has chosen.
    Ok((settings, visitor.device().map_or(Of::Host(-1), Of::Cuda)))
}

fn place(function: &str, new: *mut Handle) -> Result<(), ResultCode> {
    if new.is_null() {
        return Err(invalid(&format!("{function}: newcomm is NULL")));
    }
    Ok(())
}

abi! {
    /// `ncclCommSplit`
    fn ncclCommSplit(
        comm: Handle,
        color: c_int,
        key: c_int,
        new: *mut Handle,
        config: *mut NcclConfig,
    ) -> NcclResult {
        answer(|| {
            let checked = || {
                place("ncclCommSplit", new)?;
                if color < NO_COLOR {
                    return Err(invalid(&format!("ncclCommSplit: color {color} is less than NCCL_SPLIT_NOCOLOR")));
                }
                // SAFETY: the caller's promise.
                let (settings, of) = unsafe { inherit("ncclCommSplit", comm, true, config) }?;
                let source = Source::Split { color: u32::try_from(color).ok(), key };
                // SAFETY: the caller's promise.
                unsafe { make(source, settings, Some(comm), new, of) }
            };
            group::note(checked())
        })
    }

    /// `ncclCommShrink`: the excluded ranks do not call it, and may be dead.
    fn ncclCommShrink(
        comm: Handle,
        exclude: *mut c_int,
        count: c_int,
        new: *mut Handle,
        config: *mut NcclConfig,
        flags: c_int,
    ) -> NcclResult {
        answer(|| {
            let checked = || {
                place("ncclCommShrink", new)?;
                let (rank, nranks) = registry::identity(comm)?;
                if count < 1 || exclude.is_null() {
                    return Err(invalid("ncclCommShrink: no rank is excluded"));
                }
                if flags & !SHRINK_ABORT != 0 {
                    return Err(invalid(&format!("ncclCommShrink: unknown flags {flags:#x}")));
                }
                if count as u32 >= nranks {
                    return Err(invalid(&format!("ncclCommShrink: {count} of {nranks} ranks are excluded")));
                }
                // SAFETY: the caller's promise.
                let listed = unsafe { std::slice::from_raw_parts(exclude, count as usize) };
                let mut excluded = Vec::with_capacity(listed.len());
                for &listed in listed {
                    match u32::try_from(listed) {
                        Ok(listed) if listed == rank => {
                            return Err(invalid("ncclCommShrink: the calling rank is among the excluded ones"));
                        }
                        Ok(listed) if listed < nranks && !excluded.contains(&listed) => excluded.push(listed),
                        _ => {
                            return Err(invalid(&format!(
                                "ncclCommShrink: rank {listed} in a communicator of {nranks} ranks, or twice"
                            )));
                        }
                    }
                }
                if flags & SHRINK_ABORT != 0 {
                    stop("ncclCommShrink", comm)?;
                }
                // SAFETY: the caller's promise.
                let (settings, of) = unsafe { inherit("ncclCommShrink", comm, true, config) }?;
                // SAFETY: the caller's promise.
                unsafe { make(Source::Shrink { excluded }, settings, Some(comm), new, of) }
            };
            group::note(checked())
        })
    }

    /// `ncclCommGetUniqueId`: for [`ncclCommGrow`].
    fn ncclCommGetUniqueId(comm: Handle, id: *mut NcclUniqueId) -> NcclResult {
        answer(|| {
            put("ncclCommGetUniqueId", id, || {
                registry::identity(comm)?;
                new_unique_id()
            })
        })
    }

    /// `ncclCommGrow`: members pass the communicator and rank -1, one of them at least the id; new ranks the id and their rank.
    fn ncclCommGrow(
        comm: Handle,
        nranks: c_int,
        id: *const NcclUniqueId,
        rank: c_int,
        new: *mut Handle,
        config: *mut NcclConfig,
    ) -> NcclResult {
        answer(|| {
            let checked = || {
                place("ncclCommGrow", new)?;
                // SAFETY: the caller's promise.
                let id = unsafe { id.as_ref() }.map(unique_id).transpose()?;
                if comm.is_null() {
                    crate::debug::begin();
                    let id = id.ok_or_else(|| invalid("ncclCommGrow: a new rank needs an id"))?;
                    if nranks < 2 || !(1..nranks).contains(&rank) {
                        return Err(invalid(&format!("ncclCommGrow: new rank {rank} of {nranks}")));
                    }
                    // SAFETY: the caller's promise.
                    let settings = unsafe { read(config, None) }?;
                    let (nranks, rank) = (nranks as u32, rank as u32);
                    let source = Source::Ids { ids: vec![id], nranks, rank };
                    // SAFETY: the caller's promise.
                    return unsafe { make(source, settings, None, new, Of::chosen()?) };
                }
                let (_, members) = registry::identity(comm)?;
                if rank != -1 {
                    return Err(invalid("ncclCommGrow: a member keeps its rank and passes -1"));
                }
                if nranks < 1 || nranks as u32 <= members {
                    return Err(invalid(&format!(
                        "ncclCommGrow: {nranks} ranks are no more than the {members} there are"
                    )));
                }
                // SAFETY: the caller's promise.
                let (settings, of) = unsafe { inherit("ncclCommGrow", comm, false, config) }?;
                let source = Source::Grow { id, nranks: nranks as u32 };
                // SAFETY: the caller's promise.
                unsafe { make(source, settings, Some(comm), new, of) }
            };
            group::note(checked())
        })
    }
}
