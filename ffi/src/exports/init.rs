//! Communicators from unique ids: `ncclCommInitRank`, with a configuration, with several ids, and
//! all ranks at once.

use std::collections::HashSet;
use std::ffi::c_int;

use maypole::ResultCode;
use maypole::config;

use super::macros::abi;
use super::unique_id;
use crate::boundary::{NcclResult, guarded, invalid_argument, refuse};
use crate::config::{CommSettings, read_settings};
use crate::cuda::CommMemory;
use crate::group;
use crate::layout::{NcclConfig, NcclUniqueId};
use crate::registry::CommHandle;
use crate::request::CreationSource;
use crate::startup;

/// Creates one rank of a communicator.
///
/// # Safety
/// `comm` is NULL or writable until the call, or its group, has ended; `ids` is NULL or readable
/// for `id_count` ids; `config` is as [`read_settings`] demands.
unsafe fn init_rank(
    function: &str,
    comm: *mut CommHandle,
    (nranks, rank): (c_int, c_int),
    (ids, id_count): (*const NcclUniqueId, c_int),
    config: *const NcclConfig,
) -> NcclResult {
    guarded(|| {
        startup::log_once();
        let check_and_create = || {
            if comm.is_null() {
                return Err(invalid_argument(&format!("{function}: comm is NULL")));
            }
            if nranks < 1 || !(0..nranks).contains(&rank) {
                return Err(invalid_argument(&format!("{function}: rank {rank} of {nranks}")));
            }
            if !(1..=nranks).contains(&id_count) {
                return Err(invalid_argument(&format!(
                    "{function}: {id_count} ids for {nranks} ranks"
                )));
            }
            if ids.is_null() {
                return Err(invalid_argument(&format!("{function}: the ids are NULL")));
            }
            // SAFETY: the caller promises `id_count` readable ids, and the pointer is not NULL.
            let ids = unsafe { std::slice::from_raw_parts(ids, id_count as usize) };
            let ids = ids.iter().map(unique_id::from_client).collect::<Result<Vec<_>, _>>()?;
            // SAFETY: the caller promises such a configuration.
            let settings = unsafe { read_settings(config, None) }?;
            let (nranks, rank) = (nranks as u32, rank as u32);
            let source = CreationSource::Ids { ids, nranks, rank };
            let memory = CommMemory::of_this_thread()?;
            // SAFETY: the caller promises that `comm` is writable, and it is not NULL.
            unsafe { group::create(source, settings, None, memory, comm) }
        };
        group::keep_first_error(check_and_create())
    })
}

/// Creates all ranks of a communicator in this process, in the open group.
///
/// # Safety
/// `comms` is writable for as many handles as there are devices, until the end of the group.
unsafe fn init_all_ranks(comms: *mut CommHandle, devices: &[c_int]) -> Result<(), ResultCode> {
    let nranks = devices.len() as u32;
    // The devices are checked before any rank is created.
    let memories = devices.iter().map(|&number| CommMemory::of_device("ncclCommInitAll", number));
    let memories = memories.collect::<Result<Vec<_>, _>>()?;
    let id = unique_id::from_client(&unique_id::create()?)?;
    for (rank, memory) in memories.into_iter().enumerate() {
        let source = CreationSource::Ids { ids: vec![id], nranks, rank: rank as u32 };
        let settings = CommSettings::default();
        // SAFETY: the caller promises that this many handles can be written.
        unsafe { group::create(source, settings, None, memory, comms.add(rank)) }?;
    }
    Ok(())
}

fn check_devices(devices: &[c_int]) -> Result<(), ResultCode> {
    if let Some(bad) = devices.iter().find(|device| **device < 0) {
        return Err(invalid_argument(&format!("ncclCommInitAll: there is no device {bad}")));
    }
    let mut seen = HashSet::new();
    let repeated = devices.iter().find(|device| !seen.insert(**device));
    match repeated {
        Some(device) if !config::Config::get().multi_rank_gpu => Err(refuse(
            ResultCode::InvalidUsage,
            &format!(
                "ncclCommInitAll: device {device} is listed twice; \
                 NCCL_MULTI_RANK_GPU_ENABLE=1 allows that"
            ),
        )),
        _ => Ok(()),
    }
}

abi! {
    /// `ncclCommInitRank`
    fn ncclCommInitRank(
        comm: *mut CommHandle,
        nranks: c_int,
        id: NcclUniqueId,
        rank: c_int,
    ) -> NcclResult {
        let ids = (&raw const id, 1);
        let config = std::ptr::null();
        // SAFETY: the client promised that `comm` is NULL or writable; `id` is a local variable.
        unsafe { init_rank("ncclCommInitRank", comm, (nranks, rank), ids, config) }
    }

    /// `ncclCommInitRankConfig`
    fn ncclCommInitRankConfig(
        comm: *mut CommHandle,
        nranks: c_int,
        id: NcclUniqueId,
        rank: c_int,
        config: *mut NcclConfig,
    ) -> NcclResult {
        let ids = (&raw const id, 1);
        // SAFETY: the client promised that `comm` is NULL or writable, and such a configuration;
        // `id` is a local variable.
        unsafe { init_rank("ncclCommInitRankConfig", comm, (nranks, rank), ids, config) }
    }

    /// `ncclCommInitRankScalable`: the bootstrap root of each id serves a block of ranks.
    fn ncclCommInitRankScalable(
        comm: *mut CommHandle,
        nranks: c_int,
        rank: c_int,
        id_count: c_int,
        ids: *mut NcclUniqueId,
        config: *mut NcclConfig,
    ) -> NcclResult {
        let ids = (ids.cast_const(), id_count);
        // SAFETY: the client promised that `comm` is NULL or writable, such ids and such a
        // configuration.
        unsafe { init_rank("ncclCommInitRankScalable", comm, (nranks, rank), ids, config) }
    }

    /// `ncclCommInitAll`: on host memory the numbers of devices have no meaning;
    /// `ncclCommCuDevice` gives them back.
    fn ncclCommInitAll(
        comms: *mut CommHandle,
        count: c_int,
        devices: *const c_int,
    ) -> NcclResult {
        guarded(|| {
            startup::log_once();
            let check_and_create = || {
                let Ok(len) = usize::try_from(count) else {
                    return Err(invalid_argument(&format!("ncclCommInitAll: {count} devices")));
                };
                if comms.is_null() {
                    return Err(invalid_argument("ncclCommInitAll: comm is NULL"));
                }
                let devices: Vec<c_int> = if devices.is_null() {
                    (0..count).collect()
                } else {
                    // SAFETY: the client promised that `devices` is NULL or readable for `count`.
                    unsafe { std::slice::from_raw_parts(devices, len) }.to_vec()
                };
                check_devices(&devices)?;
                if devices.is_empty() {
                    return Ok(());
                }
                group::start();
                // SAFETY: the client promised that `comms` is writable for `count` handles.
                let queued = unsafe { init_all_ranks(comms, &devices) };
                let ended = group::end();
                queued.and(ended)
            };
            group::keep_first_error(check_and_create())
        })
    }
}
