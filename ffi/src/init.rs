//! Communicators of an id: `ncclCommInitRank`, with a configuration, with several ids, and all ranks at once.

use std::collections::HashSet;
use std::ffi::c_int;

use maypole::ResultCode;
use maypole::config;
use maypole::internal::logger;

use crate::boundary::{NcclResult, answer, invalid, refuse};
use crate::config::{Settings, read};
use crate::create::{Of, Source, make};
use crate::debug;
use crate::export::abi;
use crate::group;
use crate::identity::{new_unique_id, unique_id};
use crate::layout::{NcclConfig, NcclUniqueId};
use crate::registry::Handle;

/// # Safety
/// As `nccl.h` says: `comm` is NULL or writable, `ids` readable for `count`, `config` as for [`read`].
unsafe fn init(
    function: &str,
    comm: *mut Handle,
    (nranks, rank): (c_int, c_int),
    (ids, count): (*const NcclUniqueId, c_int),
    config: *const NcclConfig,
) -> NcclResult {
    answer(|| {
        debug::begin();
        let checked = || {
            if comm.is_null() {
                return Err(invalid(&format!("{function}: comm is NULL")));
            }
            if nranks < 1 || !(0..nranks).contains(&rank) {
                return Err(invalid(&format!("{function}: rank {rank} of {nranks}")));
            }
            if !(1..=nranks).contains(&count) {
                return Err(invalid(&format!("{function}: {count} ids for {nranks} ranks")));
            }
            if ids.is_null() {
                return Err(invalid(&format!("{function}: the ids are NULL")));
            }
            // SAFETY: the caller's promise.
            let ids = unsafe { std::slice::from_raw_parts(ids, count as usize) };
            let ids = ids.iter().map(unique_id).collect::<Result<Vec<_>, _>>()?;
            // SAFETY: the caller's promise.
            let settings = unsafe { read(config, None) }?;
            let source = Source::Ids { ids, nranks: nranks as u32, rank: rank as u32 };
            // SAFETY: the caller's promise.
            unsafe { make(source, settings, None, comm, Of::chosen()?) }
        };
        group::note(checked())
    })
}

/// All ranks of a new communicator, in this process.
///
/// # Safety
/// `comms` is writable for as many as there are devices.
unsafe fn init_all(comms: *mut Handle, devices: &[c_int]) -> Result<(), ResultCode> {
    let nranks = devices.len() as u32;
    // All of them before any is made.
    let of = devices.iter().map(|&device| Of::listed("ncclCommInitAll", device));
    let of = of.collect::<Result<Vec<_>, _>>()?;
    let id = unique_id(&new_unique_id()?)?;
    for (rank, of) in of.into_iter().enumerate() {
        let source = Source::Ids { ids: vec![id], nranks, rank: rank as u32 };
        // SAFETY: the caller's promise.
        unsafe { make(source, Settings::default(), None, comms.add(rank), of) }?;
    }
    Ok(())
}

fn check_devices(devices: &[c_int]) -> Result<(), ResultCode> {
    if let Some(bad) = devices.iter().find(|device| **device < 0) {
        return Err(invalid(&format!("ncclCommInitAll: there is no device {bad}")));
    }
    let mut seen = HashSet::new();
    let repeated = devices.iter().find(|device| !seen.insert(**device));
    match repeated {
        Some(device) if !config::Config::get().multi_rank_gpu => Err(refuse(
            ResultCode::InvalidUsage,
            &format!(
                "ncclCommInitAll: device {device} is listed twice; NCCL_MULTI_RANK_GPU_ENABLE=1 allows that"
            ),
        )),
        _ => Ok(()),
    }
}

abi! {
    /// `ncclCommInitRank`
    fn ncclCommInitRank(comm: *mut Handle, nranks: c_int, id: NcclUniqueId, rank: c_int) -> NcclResult {
        // SAFETY: the caller's promise.
        unsafe { init("ncclCommInitRank", comm, (nranks, rank), (&raw const id, 1), std::ptr::null()) }
    }

    /// `ncclCommInitRankConfig`
    fn ncclCommInitRankConfig(
        comm: *mut Handle,
        nranks: c_int,
        id: NcclUniqueId,
        rank: c_int,
        config: *mut NcclConfig,
    ) -> NcclResult {
        // SAFETY: the caller's promise.
        unsafe { init("ncclCommInitRankConfig", comm, (nranks, rank), (&raw const id, 1), config) }
    }

    /// `ncclCommInitRankScalable`: the root of each id serves a block of ranks.
    fn ncclCommInitRankScalable(
        comm: *mut Handle,
        nranks: c_int,
        rank: c_int,
        count: c_int,
        ids: *mut NcclUniqueId,
        config: *mut NcclConfig,
    ) -> NcclResult {
        // SAFETY: the caller's promise.
        unsafe { init("ncclCommInitRankScalable", comm, (nranks, rank), (ids, count), config) }
    }

    /// `ncclCommInitAll`: on host memory devices are numbers without a meaning, which `ncclCommCuDevice` gives back.
    fn ncclCommInitAll(comms: *mut Handle, count: c_int, devices: *const c_int) -> NcclResult {
        answer(|| {
            logger::install();
            debug::begin();
            let checked = || {
                let Ok(len) = usize::try_from(count) else {
                    return Err(invalid(&format!("ncclCommInitAll: {count} devices")));
                };
                if comms.is_null() {
                    return Err(invalid("ncclCommInitAll: comm is NULL"));
                }
                let list: Vec<c_int> = if devices.is_null() {
                    (0..count).collect()
                } else {
                    // SAFETY: the caller's promise.
                    unsafe { std::slice::from_raw_parts(devices, len) }.to_vec()
                };
                check_devices(&list)?;
                if list.is_empty() {
                    return Ok(());
                }
                group::start();
                // SAFETY: the caller's promise.
                let queued = group::note(unsafe { init_all(comms, &list) });
                let ended = group::end();
                queued.and(ended)
            };
            group::note(checked())
        })
    }
}
