//! The collectives with a configuration of their own. NULL is the plain call.
//!
//! The configuration is checked. Of its fields `algSelection` has a meaning on host memory: with `forceAlgSelection` the call runs by one of the
//! named algorithms, by the protocol at the end of its name if there is one, or is refused; without it the names are a wish that is not followed. The others steer GPU kernels and profilers.

use std::ffi::{CStr, c_int, c_void};

use maypole::AlgorithmFilter;
use maypole::Collective;
use maypole::ResultCode;

use crate::boundary::{NcclResult, decided, invalid};
use crate::collective::{Arguments, root, submit};
use crate::export::abi;
use crate::layout::{API_MAGIC, NcclCollConfig, UNDEFINED};
use crate::registry::Handle;
use crate::stream::Stream;

/// The algorithms that a call may use.
#[derive(Clone)]
pub(crate) struct Selection(pub(crate) AlgorithmFilter);

/// The smallest configuration there ever was.
const LEAST: usize = 64;

/// Reads the client's configuration.
///
/// # Safety
/// `config` is NULL, or readable for 16 bytes, and if these are the start of a configuration, for as many as it says; its
/// string is NULL or ends in a zero.
unsafe fn read(
    config: *const NcclCollConfig,
    collective: Collective,
) -> Result<Option<Box<Selection>>, ResultCode> {
    if config.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let (size, magic) =
        unsafe { ((&raw const (*config).size).read(), (&raw const (*config).magic).read()) };
    if magic != API_MAGIC {
        return Err(invalid(
            "the configuration was not initialised by NCCL_COLLCONFIG_INITIALIZER",
        ));
    }
    if size < LEAST {
        return Err(invalid(&format!(
            "a configuration of {size} bytes is smaller than any NCCL had"
        )));
    }
    // SAFETY: integers, and pointers that are NULL.
    let mut ours: NcclCollConfig = unsafe { std::mem::zeroed() };
    // SAFETY: the caller's promise; no more than there is room for.
    unsafe {
        std::ptr::copy_nonoverlapping(
            config.cast::<u8>(),
            (&raw mut ours).cast::<u8>(),
            size.min(size_of::<NcclCollConfig>()),
        );
    }
    let wrong = |field: &str, value: c_int, expected: &str| {
        Err(invalid(&format!("the configuration's {field} is {value}; it must be {expected}")))
    };
    let known = |value: c_int| value != UNDEFINED;
    let NcclCollConfig { min_ctas, max_ctas, nvls_ctas, cga_cluster_size, .. } = ours;
    for (field, value) in [("minCTAs", min_ctas), ("maxCTAs", max_ctas), ("nvlsCTAs", nvls_ctas)] {
        if known(value) && value < 1 {
            return wrong(field, value, "1 or more");
        }
    }
    if known(min_ctas) && known(max_ctas) && min_ctas > max_ctas {
        return wrong("minCTAs", min_ctas, "no more than maxCTAs");
    }
    if known(cga_cluster_size) && cga_cluster_size < 0 {
        return wrong("cgaClusterSize", cga_cluster_size, "0 or more");
    }
    if !(0..=1).contains(&ours.force_alg_selection) {
        return wrong("forceAlgSelection", ours.force_alg_selection, "0 or 1");
    }
    if known(ours.cta_policy) && !(0..4).contains(&ours.cta_policy) {
        return wrong("CTAPolicy", ours.cta_policy, "NCCL_CTA_POLICY_*");
    }
    if ours.alg_selection.is_null() || ours.force_alg_selection == 0 {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let names = unsafe { CStr::from_ptr(ours.alg_selection) }.to_string_lossy().into_owned();
    let filter = AlgorithmFilter::select(collective, &names).map_err(|error| decided(&error))?;
    Ok(Some(Box::new(Selection(filter))))
}

abi! {
    /// `ncclAllReduceConfig`
    fn ncclAllReduceConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::AllReduce;
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op, comm, stream }, selection)
    }

    /// `ncclBroadcastConfig`
    fn ncclBroadcastConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::Broadcast { root: self::root(root) };
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, selection)
    }

    /// `ncclReduceConfig`
    fn ncclReduceConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::Reduce { root: self::root(root) };
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op, comm, stream }, selection)
    }

    /// `ncclAllGatherConfig`
    fn ncclAllGatherConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::AllGather;
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, selection)
    }

    /// `ncclReduceScatterConfig`
    fn ncclReduceScatterConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        op: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::ReduceScatter;
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op, comm, stream }, selection)
    }

    /// `ncclAlltoAllConfig`
    fn ncclAlltoAllConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::AllToAll;
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, selection)
    }

    /// `ncclGatherConfig`
    fn ncclGatherConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::Gather { root: self::root(root) };
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, selection)
    }

    /// `ncclScatterConfig`
    fn ncclScatterConfig(
        send: *const c_void,
        recv: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: Handle,
        stream: Stream,
        config: *const NcclCollConfig,
    ) -> NcclResult {
        let collective = Collective::Scatter { root: self::root(root) };
        // SAFETY: the caller's promise.
        let selection = unsafe { read(config, collective) };
        submit(collective, Arguments { send, recv, count, dtype, op: 0, comm, stream }, selection)
    }
}
