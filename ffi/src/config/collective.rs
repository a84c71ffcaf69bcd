//! `ncclCollConfig_t`, the configuration of one collective: which algorithms the call may use.
//!
//! All fields are checked. Only `algSelection` has a meaning on host memory, and only with
//! `forceAlgSelection`: the call then runs by one of the named algorithms, and by the protocol at
//! the end of a name if there is one, or is refused. The other fields steer GPU kernels and
//! profilers.

use std::ffi::{CStr, c_int};

use maypole::AlgorithmFilter;
use maypole::Collective;
use maypole::ResultCode;

use super::{copy_known_fields, wrong_field};
use crate::boundary::log_error;
use crate::layout::{NcclCollConfig, UNDEFINED};

/// The bytes of the smallest configuration of a collective, that of 2.31.
const SMALLEST_CONFIG: usize = 64;

/// Reads the algorithms that a call may use; None if it may use all of them.
///
/// # Safety
/// `config` is NULL, or readable for 16 bytes and, if these are the start of a configuration, for
/// as many bytes as its size says; its string is NULL or ends in a zero.
pub(crate) unsafe fn read_algorithms(
    config: *const NcclCollConfig,
    collective: Collective,
) -> Result<Option<Box<AlgorithmFilter>>, ResultCode> {
    if config.is_null() {
        return Ok(None);
    }
    // SAFETY: the structure holds integers and pointers, for which zeros are valid.
    let mut ours: NcclCollConfig = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has the header and holds integers and raw pointers alone; the caller
    // promises that `config` is as long as its size says.
    unsafe {
        copy_known_fields(config, &mut ours, SMALLEST_CONFIG, "NCCL_COLLCONFIG_INITIALIZER")
    }?;
    check_fields(&ours)?;
    if ours.alg_selection.is_null() || ours.force_alg_selection == 0 {
        return Ok(None);
    }
    // SAFETY: the caller promises that the string ends in a zero.
    let names = unsafe { CStr::from_ptr(ours.alg_selection) }.to_string_lossy().into_owned();
    let filter = AlgorithmFilter::select(collective, &names).map_err(|error| log_error(&error))?;
    Ok(Some(Box::new(filter)))
}

fn check_fields(config: &NcclCollConfig) -> Result<(), ResultCode> {
    let is_set = |value: c_int| value != UNDEFINED;
    let &NcclCollConfig { min_ctas, max_ctas, nvls_ctas, cga_cluster_size, .. } = config;
    for (field, value) in [("minCTAs", min_ctas), ("maxCTAs", max_ctas), ("nvlsCTAs", nvls_ctas)] {
        if is_set(value) && value < 1 {
            return Err(wrong_field(field, value, "1 or more"));
        }
    }
    if is_set(min_ctas) && is_set(max_ctas) && min_ctas > max_ctas {
        return Err(wrong_field("minCTAs", min_ctas, "no more than maxCTAs"));
    }
    if is_set(cga_cluster_size) && cga_cluster_size < 0 {
        return Err(wrong_field("cgaClusterSize", cga_cluster_size, "0 or more"));
    }
    if !(0..=1).contains(&config.force_alg_selection) {
        return Err(wrong_field("forceAlgSelection", config.force_alg_selection, "0 or 1"));
    }
    if is_set(config.cta_policy) && !(0..4).contains(&config.cta_policy) {
        return Err(wrong_field("CTAPolicy", config.cta_policy, "NCCL_CTA_POLICY_*"));
    }
    Ok(())
}
