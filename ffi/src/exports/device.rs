//! The device API of `nccl.h`: answers queries, and refuses what kernels would need.
//!
//! Kernels of programs cannot communicate here, on CUDA devices neither. The properties say so, the
//! teams are those of ranks that share no device memory, and functions that would prepare kernels
//! are refused as NCCL refuses them where the hardware cannot do it.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;

use super::macros::abi;
use crate::arguments::check_not_null;
use crate::boundary::{NcclResult, guarded, invalid_argument, refuse};
use crate::layout::{API_MAGIC, NcclCommProperties, NcclMultimemHandle, NcclTeam};
use crate::registry::{self, CommHandle, WindowHandle, check_offset};

/// The bytes of `ncclCommProperties_t` that every version has.
const SMALLEST_PROPERTIES: usize = 56;

/// Checks the arguments of a function that needs the device API, and refuses it.
fn unsupported(function: &str, check: impl FnOnce() -> Result<(), ResultCode>) -> NcclResult {
    guarded(|| {
        check()?;
        Err(refuse(
            ResultCode::InvalidUsage,
            &format!(
                "{function}: kernels of programs cannot communicate here; \
                 ncclCommQueryProperties says deviceApiSupport = false"
            ),
        ))
    })
}

/// Refuses a function that would return a pointer into a window.
fn unsupported_pointer(
    function: &str,
    window: WindowHandle,
    offset: usize,
    out: *mut *mut c_void,
) -> NcclResult {
    unsupported(function, || {
        check_not_null(function, out)?;
        check_offset(window, offset)
    })
}

/// Refuses a function that would return an endpoint and its offset.
fn unsupported_endpoint(
    function: &str,
    window: WindowHandle,
    offset: usize,
    (id, endpoint_offset): (*mut u32, *mut usize),
) -> NcclResult {
    unsupported(function, || {
        check_not_null(function, id)?;
        check_not_null(function, endpoint_offset)?;
        check_offset(window, offset)
    })
}

/// Refuses a function that would say what kernels require.
fn unsupported_requirement(
    function: &str,
    out: *mut c_void,
    requirement: *mut c_void,
) -> NcclResult {
    unsupported(function, || {
        check_not_null(function, out)?;
        check_not_null(function, requirement)
    })
}

/// A team of the communicator; an empty team if the handle is not live.
fn team(comm: CommHandle, team: impl FnOnce(c_int, c_int) -> NcclTeam) -> NcclTeam {
    let mut found = NcclTeam::default();
    // A function that returns a team has no result code.
    guarded(|| {
        let (rank, nranks) = registry::identity(comm)?;
        found = team(rank as c_int, nranks as c_int);
        Ok(())
    });
    found
}

/// The team of all ranks.
const fn all_ranks(rank: c_int, n_ranks: c_int) -> NcclTeam {
    NcclTeam { n_ranks, rank, stride: 1 }
}

/// The team of this rank alone: no other rank shares device memory with it.
const fn only_this_rank(_rank: c_int, _nranks: c_int) -> NcclTeam {
    NcclTeam { n_ranks: 1, rank: 0, stride: 1 }
}

/// The rank of the communicator that is `rank` in `team`; -1 if there is none.
fn to_world(comm: CommHandle, team: NcclTeam, rank: c_int) -> c_int {
    let mut found = -1;
    guarded(|| {
        let (own, nranks) = registry::identity(comm)?;
        let steps = i64::from(rank) - i64::from(team.rank);
        let world = i64::from(own) + steps * i64::from(team.stride);
        if !(0..i64::from(nranks)).contains(&world) {
            return Err(invalid_argument(&format!(
                "rank {rank} of the team is none of the {nranks} ranks of the communicator"
            )));
        }
        found = world as c_int;
        Ok(())
    });
    found
}

/// Writes the properties of the communicator, as many bytes as the client's version has.
///
/// # Safety
/// `properties` is NULL, or readable for 16 bytes and, if these are the start of properties,
/// writable for as many bytes as their size says.
unsafe fn write_properties(
    comm: CommHandle,
    properties: *mut NcclCommProperties,
) -> Result<(), ResultCode> {
    check_not_null("ncclCommQueryProperties", properties)?;
    // SAFETY: the caller promises that the 16 bytes of the header are readable.
    let (size, magic, version) = unsafe {
        (
            (&raw const (*properties).size).read(),
            (&raw const (*properties).magic).read(),
            (&raw const (*properties).version).read(),
        )
    };
    if magic != API_MAGIC || size < SMALLEST_PROPERTIES {
        return Err(invalid_argument(
            "ncclCommQueryProperties: the properties were not initialised by \
             NCCL_COMM_PROPERTIES_INITIALIZER",
        ));
    }
    let (rank, nranks) = registry::identity(comm)?;
    let device = registry::device(comm)?;
    let found = NcclCommProperties {
        size,
        magic,
        version,
        rank: rank as c_int,
        n_ranks: nranks as c_int,
        cuda_dev: device,
        nvml_dev: -1,
        device_api_support: false,
        multimem_support: false,
        gin_type: 0,
        n_lsa_teams: nranks as c_int,
        host_rma_support: !registry::is_on_device(comm)?,
        railed_gin_type: 0,
        comm_hash: comm.addr() as u64,
        gin_min_stride: 0,
        gin_connection_type: 0,
        gin_support: [false; 64],
        dev_comm_runtime_version_size: 0,
        cft_support: false,
        cft_multicast_support: false,
        cft_counted_support: false,
    };
    let len = size.min(size_of::<NcclCommProperties>());
    // SAFETY: the caller promises that the client's structure is that long.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const found).cast::<u8>(), properties.cast(), len);
    }
    Ok(())
}

abi! {
    /// `ncclCommQueryProperties`
    fn ncclCommQueryProperties(
        comm: CommHandle,
        properties: *mut NcclCommProperties,
    ) -> NcclResult {
        // SAFETY: the client promised such properties.
        guarded(|| unsafe { write_properties(comm, properties) })
    }

    /// `ncclDevCommCreate`
    fn ncclDevCommCreate(
        comm: CommHandle,
        requirements: *const c_void,
        out: *mut c_void,
    ) -> NcclResult {
        unsupported("ncclDevCommCreate", || {
            registry::identity(comm)?;
            check_not_null("ncclDevCommCreate", requirements)?;
            check_not_null("ncclDevCommCreate", out)
        })
    }

    /// `ncclDevCommDestroy`: no device communicator was ever created.
    fn ncclDevCommDestroy(comm: CommHandle, device: *const c_void) -> NcclResult {
        unsupported("ncclDevCommDestroy", || {
            registry::identity(comm)?;
            check_not_null("ncclDevCommDestroy", device)
        })
    }

    /// `ncclGetLsaMultimemDevicePointer`
    fn ncclGetLsaMultimemDevicePointer(
        window: WindowHandle,
        offset: usize,
        out: *mut *mut c_void,
    ) -> NcclResult {
        unsupported_pointer("ncclGetLsaMultimemDevicePointer", window, offset, out)
    }

    /// `ncclGetMultimemDevicePointer`
    fn ncclGetMultimemDevicePointer(
        window: WindowHandle,
        offset: usize,
        _multimem: NcclMultimemHandle,
        out: *mut *mut c_void,
    ) -> NcclResult {
        unsupported_pointer("ncclGetMultimemDevicePointer", window, offset, out)
    }

    /// `ncclGetLsaDevicePointer`
    fn ncclGetLsaDevicePointer(
        window: WindowHandle,
        offset: usize,
        _rank: c_int,
        out: *mut *mut c_void,
    ) -> NcclResult {
        unsupported_pointer("ncclGetLsaDevicePointer", window, offset, out)
    }

    /// `ncclGetPeerDevicePointer`
    fn ncclGetPeerDevicePointer(
        window: WindowHandle,
        offset: usize,
        _peer: c_int,
        out: *mut *mut c_void,
    ) -> NcclResult {
        unsupported_pointer("ncclGetPeerDevicePointer", window, offset, out)
    }

    /// `ncclGetMultimemDeviceLeInfo`
    fn ncclGetMultimemDeviceLeInfo(
        window: WindowHandle,
        offset: usize,
        id: *mut u32,
        endpoint_offset: *mut usize,
    ) -> NcclResult {
        unsupported_endpoint("ncclGetMultimemDeviceLeInfo", window, offset, (id, endpoint_offset))
    }

    /// `ncclGetCftDeviceLeInfo`
    fn ncclGetCftDeviceLeInfo(
        window: WindowHandle,
        offset: usize,
        _peer: c_int,
        _team: NcclTeam,
        id: *mut u32,
        endpoint_offset: *mut usize,
    ) -> NcclResult {
        unsupported_endpoint("ncclGetCftDeviceLeInfo", window, offset, (id, endpoint_offset))
    }

    /// `ncclGetPeerDeviceLeInfo`
    fn ncclGetPeerDeviceLeInfo(
        window: WindowHandle,
        offset: usize,
        _peer: c_int,
        id: *mut u32,
        endpoint_offset: *mut usize,
    ) -> NcclResult {
        unsupported_endpoint("ncclGetPeerDeviceLeInfo", window, offset, (id, endpoint_offset))
    }

    /// `ncclTeamWorld`: all ranks.
    fn ncclTeamWorld(comm: CommHandle) -> NcclTeam {
        team(comm, all_ranks)
    }

    /// `ncclTeamLsa`: this rank alone.
    fn ncclTeamLsa(comm: CommHandle) -> NcclTeam {
        team(comm, only_this_rank)
    }

    /// `ncclTeamRail`: all ranks, as teams that share device memory have one rank each.
    fn ncclTeamRail(comm: CommHandle) -> NcclTeam {
        team(comm, all_ranks)
    }

    /// `ncclTeamCft`: this rank alone, in every mode.
    fn ncclTeamCft(comm: CommHandle, mode: c_int) -> NcclTeam {
        if (0..3).contains(&mode) { team(comm, only_this_rank) } else { NcclTeam::default() }
    }

    /// `ncclTeamCftMultimem`: this rank alone.
    fn ncclTeamCftMultimem(comm: CommHandle) -> NcclTeam {
        team(comm, only_this_rank)
    }

    /// `ncclTeamRankToWorld`: -1 if there is no such rank.
    fn ncclTeamRankToWorld(comm: CommHandle, team: NcclTeam, rank: c_int) -> c_int {
        to_world(comm, team, rank)
    }

    /// `ncclTeamRankToLsa`: 0 for this rank, -1 for all others.
    fn ncclTeamRankToLsa(comm: CommHandle, team: NcclTeam, rank: c_int) -> c_int {
        match registry::identity(comm) {
            Ok((own, _)) if to_world(comm, team, rank) == own as c_int => 0,
            _ => -1,
        }
    }

    /// `ncclLsaBarrierCreateRequirement`
    fn ncclLsaBarrierCreateRequirement(
        _team: NcclTeam,
        _count: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        unsupported_requirement("ncclLsaBarrierCreateRequirement", out, requirement)
    }

    /// `ncclGinBarrierCreateRequirement`
    fn ncclGinBarrierCreateRequirement(
        comm: CommHandle,
        _team: NcclTeam,
        _count: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        unsupported("ncclGinBarrierCreateRequirement", || {
            registry::identity(comm)?;
            check_not_null("ncclGinBarrierCreateRequirement", out)?;
            check_not_null("ncclGinBarrierCreateRequirement", requirement)
        })
    }

    /// `ncclLLA2ACalcSlots`: 0, as there is no kernel that would use slots.
    fn ncclLLA2ACalcSlots(_elements: c_int, _size: c_int) -> c_int {
        0
    }

    /// `ncclLLA2ACreateRequirement`
    fn ncclLLA2ACreateRequirement(
        _blocks: c_int,
        _slots: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        unsupported_requirement("ncclLLA2ACreateRequirement", out, requirement)
    }

    /// `ncclGinOutboxCreateRequirement`
    fn ncclGinOutboxCreateRequirement(
        _blocks: c_int,
        _size: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        unsupported_requirement("ncclGinOutboxCreateRequirement", out, requirement)
    }

    /// `ncclGinInboxA2ACreateRequirement`
    fn ncclGinInboxA2ACreateRequirement(
        _peers: NcclTeam,
        _blocks: c_int,
        _size: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        unsupported_requirement("ncclGinInboxA2ACreateRequirement", out, requirement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_that_is_not_live_has_no_team() {
        let none = CommHandle::NULL;
        assert_eq!(team(none, all_ranks), NcclTeam::default());
        assert_eq!(to_world(none, all_ranks(0, 2), 1), -1);
    }
}
