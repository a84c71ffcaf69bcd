//! The host's side of the device API. It is not there, on CUDA devices neither: properties say so, teams are those of ranks that share no device memory, and
//! what would prepare kernels is refused as NCCL refuses it where the hardware cannot.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;

use crate::boundary::{NcclResult, answer, invalid, refuse};
use crate::export::abi;
use crate::layout::{API_MAGIC, NcclCommProperties, NcclMultimemHandle, NcclTeam};
use crate::registry::{self, Handle};
use crate::window::{self, Window};

/// Bytes of `ncclCommProperties_t` that every version has.
const LEAST: usize = 56;

fn unsupported(function: &str) -> ResultCode {
    refuse(
        ResultCode::InvalidUsage,
        &format!(
            "{function}: kernels of programs cannot communicate here; ncclCommQueryProperties says deviceApiSupport = false"
        ),
    )
}

/// What needs a device, after its arguments were looked at.
fn refused(function: &str, check: impl FnOnce() -> Result<(), ResultCode>) -> NcclResult {
    answer(|| {
        check()?;
        Err(unsupported(function))
    })
}

fn not_null<T>(function: &str, pointer: *const T) -> Result<(), ResultCode> {
    if pointer.is_null() { Err(invalid(&format!("{function}: a pointer is NULL"))) } else { Ok(()) }
}

fn pointer_of(function: &str, window: Window, offset: usize, out: *mut *mut c_void) -> NcclResult {
    refused(function, || {
        not_null(function, out)?;
        window::check(window, offset)
    })
}

fn endpoint_of(
    function: &str,
    window: Window,
    offset: usize,
    (id, place): (*mut u32, *mut usize),
) -> NcclResult {
    refused(function, || {
        not_null(function, id)?;
        not_null(function, place)?;
        window::check(window, offset)
    })
}

/// A team, or an empty one where the communicator is none.
fn team(comm: Handle, team: impl FnOnce(c_int, c_int) -> NcclTeam) -> NcclTeam {
    let mut found = NcclTeam::default();
    // The answer of a function that returns a team is the team.
    answer(|| {
        let (rank, nranks) = registry::identity(comm)?;
        found = team(rank as c_int, nranks as c_int);
        Ok(())
    });
    found
}

/// Everybody.
const fn everybody(rank: c_int, n_ranks: c_int) -> NcclTeam {
    NcclTeam { n_ranks, rank, stride: 1 }
}

/// This rank alone: no other shares device memory with it.
const fn alone(_: c_int, _: c_int) -> NcclTeam {
    NcclTeam { n_ranks: 1, rank: 0, stride: 1 }
}

/// The rank of the communicator that is `rank` in `team`; -1 where there is none.
fn to_world(comm: Handle, team: NcclTeam, rank: c_int) -> c_int {
    let mut found = -1;
    answer(|| {
        let (own, nranks) = registry::identity(comm)?;
        let steps = i64::from(rank) - i64::from(team.rank);
        let world = i64::from(own) + steps * i64::from(team.stride);
        if !(0..i64::from(nranks)).contains(&world) {
            return Err(invalid(&format!(
                "rank {rank} of the team is none of the {nranks} of the communicator"
            )));
        }
        found = world as c_int;
        Ok(())
    });
    found
}

abi! {
    /// `ncclCommQueryProperties`
    fn ncclCommQueryProperties(comm: Handle, properties: *mut NcclCommProperties) -> NcclResult {
        answer(|| {
            not_null("ncclCommQueryProperties", properties)?;
            // SAFETY: the caller's promise.
            let (size, magic, version) = unsafe {
                (
                    (&raw const (*properties).size).read(),
                    (&raw const (*properties).magic).read(),
                    (&raw const (*properties).version).read(),
                )
            };
            if magic != API_MAGIC || size < LEAST {
                return Err(invalid(
                    "ncclCommQueryProperties: the properties were not initialised by NCCL_COMM_PROPERTIES_INITIALIZER",
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
                host_rma_support: !registry::is_of_cuda(comm)?,
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
            // SAFETY: the caller's promise: the client's structure is that long.
            unsafe {
                std::ptr::copy_nonoverlapping((&raw const found).cast::<u8>(), properties.cast(), len);
            }
            Ok(())
        })
    }

    /// `ncclDevCommCreate`
    fn ncclDevCommCreate(comm: Handle, requirements: *const c_void, out: *mut c_void) -> NcclResult {
        refused("ncclDevCommCreate", || {
            registry::identity(comm)?;
            not_null("ncclDevCommCreate", requirements)?;
            not_null("ncclDevCommCreate", out)
        })
    }

    /// `ncclDevCommDestroy`: none was ever made.
    fn ncclDevCommDestroy(comm: Handle, device: *const c_void) -> NcclResult {
        refused("ncclDevCommDestroy", || {
            registry::identity(comm)?;
            not_null("ncclDevCommDestroy", device)
        })
    }

    /// `ncclGetLsaMultimemDevicePointer`
    fn ncclGetLsaMultimemDevicePointer(window: Window, offset: usize, out: *mut *mut c_void) -> NcclResult {
        pointer_of("ncclGetLsaMultimemDevicePointer", window, offset, out)
    }

    /// `ncclGetMultimemDevicePointer`
    fn ncclGetMultimemDevicePointer(
        window: Window,
        offset: usize,
        _multimem: NcclMultimemHandle,
        out: *mut *mut c_void,
    ) -> NcclResult {
        pointer_of("ncclGetMultimemDevicePointer", window, offset, out)
    }

    /// `ncclGetLsaDevicePointer`
    fn ncclGetLsaDevicePointer(window: Window, offset: usize, _rank: c_int, out: *mut *mut c_void) -> NcclResult {
        pointer_of("ncclGetLsaDevicePointer", window, offset, out)
    }

    /// `ncclGetPeerDevicePointer`
    fn ncclGetPeerDevicePointer(window: Window, offset: usize, _peer: c_int, out: *mut *mut c_void) -> NcclResult {
        pointer_of("ncclGetPeerDevicePointer", window, offset, out)
    }

    /// `ncclGetMultimemDeviceLeInfo`
    fn ncclGetMultimemDeviceLeInfo(window: Window, offset: usize, id: *mut u32, place: *mut usize) -> NcclResult {
        endpoint_of("ncclGetMultimemDeviceLeInfo", window, offset, (id, place))
    }

    /// `ncclGetCftDeviceLeInfo`
    fn ncclGetCftDeviceLeInfo(
        window: Window,
        offset: usize,
        _peer: c_int,
        _team: NcclTeam,
        id: *mut u32,
        place: *mut usize,
    ) -> NcclResult {
        endpoint_of("ncclGetCftDeviceLeInfo", window, offset, (id, place))
    }

    /// `ncclGetPeerDeviceLeInfo`
    fn ncclGetPeerDeviceLeInfo(
        window: Window,
        offset: usize,
        _peer: c_int,
        id: *mut u32,
        place: *mut usize,
    ) -> NcclResult {
        endpoint_of("ncclGetPeerDeviceLeInfo", window, offset, (id, place))
    }

    /// `ncclTeamWorld`: everybody.
    fn ncclTeamWorld(comm: Handle) -> NcclTeam {
        team(comm, everybody)
    }

    /// `ncclTeamLsa`: this rank alone.
    fn ncclTeamLsa(comm: Handle) -> NcclTeam {
        team(comm, alone)
    }

    /// `ncclTeamRail`: everybody, as teams of device memory have one rank each.
    fn ncclTeamRail(comm: Handle) -> NcclTeam {
        team(comm, everybody)
    }

    /// `ncclTeamCft`: this rank alone, in every mode.
    fn ncclTeamCft(comm: Handle, mode: c_int) -> NcclTeam {
        if (0..3).contains(&mode) { team(comm, alone) } else { NcclTeam::default() }
    }

    /// `ncclTeamCftMultimem`: this rank alone.
    fn ncclTeamCftMultimem(comm: Handle) -> NcclTeam {
        team(comm, alone)
    }

    /// `ncclTeamRankToWorld`: -1 where there is none.
    fn ncclTeamRankToWorld(comm: Handle, team: NcclTeam, rank: c_int) -> c_int {
        to_world(comm, team, rank)
    }

    /// `ncclTeamRankToLsa`: 0 for this rank, -1 for all others.
    fn ncclTeamRankToLsa(comm: Handle, team: NcclTeam, rank: c_int) -> c_int {
        match registry::identity(comm) {
            Ok((own, _)) if to_world(comm, team, rank) == own as c_int => 0,
            _ => -1,
        }
    }

    /// `ncclLsaBarrierCreateRequirement`
    fn ncclLsaBarrierCreateRequirement(_team: NcclTeam, _count: c_int, out: *mut c_void, requirement: *mut c_void) -> NcclResult {
        requirement_of("ncclLsaBarrierCreateRequirement", out, requirement)
    }

    /// `ncclGinBarrierCreateRequirement`
    fn ncclGinBarrierCreateRequirement(
        comm: Handle,
        _team: NcclTeam,
        _count: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        refused("ncclGinBarrierCreateRequirement", || {
            registry::identity(comm)?;
            not_null("ncclGinBarrierCreateRequirement", out)?;
            not_null("ncclGinBarrierCreateRequirement", requirement)
        })
    }

    /// `ncclLLA2ACalcSlots`: none, there is no kernel that would use them.
    fn ncclLLA2ACalcSlots(_elements: c_int, _size: c_int) -> c_int {
        0
    }

    /// `ncclLLA2ACreateRequirement`
    fn ncclLLA2ACreateRequirement(_blocks: c_int, _slots: c_int, out: *mut c_void, requirement: *mut c_void) -> NcclResult {
        requirement_of("ncclLLA2ACreateRequirement", out, requirement)
    }

    /// `ncclGinOutboxCreateRequirement`
    fn ncclGinOutboxCreateRequirement(_blocks: c_int, _size: c_int, out: *mut c_void, requirement: *mut c_void) -> NcclResult {
        requirement_of("ncclGinOutboxCreateRequirement", out, requirement)
    }

    /// `ncclGinInboxA2ACreateRequirement`
    fn ncclGinInboxA2ACreateRequirement(
        _peers: NcclTeam,
        _blocks: c_int,
        _size: c_int,
        out: *mut c_void,
        requirement: *mut c_void,
    ) -> NcclResult {
        requirement_of("ncclGinInboxA2ACreateRequirement", out, requirement)
    }
}

fn requirement_of(function: &str, out: *mut c_void, requirement: *mut c_void) -> NcclResult {
    refused(function, || {
        not_null(function, out)?;
        not_null(function, requirement)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_communicator_has_no_team() {
        let none = std::ptr::null_mut();
        assert_eq!(team(none, everybody), NcclTeam::default());
        assert_eq!(to_world(none, everybody(0, 2), 1), -1);
    }
}
