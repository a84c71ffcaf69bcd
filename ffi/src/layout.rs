//! The structures of `nccl.h`, with the layout that clients were compiled for.
//!
//! Sizes and offsets are asserted here at compile time, and for clients by `tests/abi/layout.c`, in
//! C and in C++.

use std::ffi::{c_char, c_float, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};

/// The version of NCCL whose interface this library has: 2.32.3.
pub(crate) const VERSION: c_int = 23203;
/// `NCCL_API_MAGIC`, with which configuration structures are marked.
pub(crate) const API_MAGIC: c_uint = 0xcafe_beef;
/// The magic number of `ncclSimInfo_t`.
pub(crate) const SIMULATION_MAGIC: c_uint = 0x7468_5283;
/// `NCCL_CONFIG_UNDEF_INT`
pub(crate) const UNDEFINED: c_int = c_int::MIN;

/// `ncclUniqueId`
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NcclUniqueId {
    internal: [c_char; 128],
}

impl NcclUniqueId {
    /// The id in the bytes of the library.
    pub(crate) fn to_bytes(self) -> [u8; 128] {
        self.internal.map(|byte| byte as u8)
    }

    /// The id in the bytes of `nccl.h`.
    pub(crate) fn from_bytes(bytes: [u8; 128]) -> Self {
        Self { internal: bytes.map(|byte| byte as c_char) }
    }
}

/// `ncclConfig_t` of 2.32.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NcclConfig {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) blocking: c_int,
    pub(crate) cga_cluster_size: c_int,
    pub(crate) min_ctas: c_int,
    pub(crate) max_ctas: c_int,
    pub(crate) net_name: *const c_char,
    pub(crate) split_share: c_int,
    pub(crate) traffic_class: c_int,
    pub(crate) comm_name: *const c_char,
    pub(crate) collnet_enable: c_int,
    pub(crate) cta_policy: c_int,
    pub(crate) shrink_share: c_int,
    pub(crate) nvls_ctas: c_int,
    pub(crate) n_channels_per_net_peer: c_int,
    pub(crate) nvlink_centric_sched: c_int,
    pub(crate) graph_usage_mode: c_int,
    pub(crate) num_rma_ctx: c_int,
    pub(crate) max_p2p_peers: c_int,
    pub(crate) graph_stream_ordering: c_int,
    pub(crate) launch_order_implicit: c_int,
    pub(crate) num_rma_sig: c_int,
    pub(crate) rma_eager_init: c_int,
    pub(crate) host_cft_mode: c_int,
    pub(crate) nvls_host_mode: c_int,
}

/// `ncclCollConfig_t` of 2.32.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NcclCollConfig {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) ext: *const c_void,
    pub(crate) min_ctas: c_int,
    pub(crate) max_ctas: c_int,
    pub(crate) nvls_ctas: c_int,
    pub(crate) cga_cluster_size: c_int,
    pub(crate) alg_selection: *const c_char,
    pub(crate) force_alg_selection: c_int,
    pub(crate) cta_policy: c_int,
    pub(crate) user_profiler_tag: u64,
    pub(crate) launch_completion_event: *const c_void,
}

/// `ncclSimInfo_t`
#[repr(C)]
pub(crate) struct NcclSimInfo {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    /// Microseconds.
    pub(crate) estimated_time: c_float,
}

/// `ncclWaitSignalDesc_t`
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NcclWaitSignalDesc {
    pub(crate) op_cnt: c_int,
    pub(crate) peer: c_int,
    pub(crate) sig_idx: c_int,
    pub(crate) ctx: c_int,
}

/// `ncclEncryptionConfig_t`
#[repr(C)]
pub(crate) struct NcclEncryptionConfig {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) mode: c_int,
    pub(crate) psk: *const c_char,
}

/// `ncclCommProperties_t`. Clients of 2.29 have the first 56 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NcclCommProperties {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) rank: c_int,
    pub(crate) n_ranks: c_int,
    pub(crate) cuda_dev: c_int,
    pub(crate) nvml_dev: c_int,
    pub(crate) device_api_support: bool,
    pub(crate) multimem_support: bool,
    pub(crate) gin_type: c_int,
    pub(crate) n_lsa_teams: c_int,
    pub(crate) host_rma_support: bool,
    pub(crate) railed_gin_type: c_int,
    pub(crate) comm_hash: u64,
    pub(crate) gin_min_stride: c_int,
    pub(crate) gin_connection_type: c_int,
    pub(crate) gin_support: [bool; 64],
    pub(crate) dev_comm_runtime_version_size: usize,
    pub(crate) cft_support: bool,
    pub(crate) cft_multicast_support: bool,
    pub(crate) cft_counted_support: bool,
}

/// `ncclTeam_t`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct NcclTeam {
    pub(crate) n_ranks: c_int,
    pub(crate) rank: c_int,
    pub(crate) stride: c_int,
}

/// `ncclMultimemHandle_t`
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NcclMultimemHandle {
    base: *const c_void,
}

/// Reads size and magic number of a structure of the client that begins with `size: usize` and
/// `magic: c_uint`.
///
/// # Safety
/// `structure` is readable for 16 bytes.
pub(crate) unsafe fn read_header<T>(structure: *const T) -> (usize, c_uint) {
    let header = structure.cast::<StructureHeader>();
    // SAFETY: the caller promises that the 16 bytes are readable.
    let StructureHeader { size, magic } = unsafe { header.read() };
    (size, magic)
}

/// What the versioned structures of `nccl.h` begin with.
#[repr(C)]
struct StructureHeader {
    size: usize,
    magic: c_uint,
}

macro_rules! assert_layout {
    ($type:ident: $size:literal, $($field:ident $at:literal),*) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(offset_of!($type, $field) == $at);)*
        };
    };
}

assert_layout!(NcclUniqueId: 128, internal 0);
assert_layout!(NcclConfig: 120, size 0, magic 8, version 12, blocking 16, cga_cluster_size 20,
    min_ctas 24, max_ctas 28, net_name 32, split_share 40, traffic_class 44, comm_name 48,
    collnet_enable 56, cta_policy 60, shrink_share 64, nvls_ctas 68, n_channels_per_net_peer 72,
    nvlink_centric_sched 76, graph_usage_mode 80, num_rma_ctx 84, max_p2p_peers 88,
    graph_stream_ordering 92, launch_order_implicit 96, num_rma_sig 100, rma_eager_init 104,
    host_cft_mode 108, nvls_host_mode 112);
assert_layout!(NcclCollConfig: 72, size 0, magic 8, version 12, ext 16, min_ctas 24, max_ctas 28,
    nvls_ctas 32, cga_cluster_size 36, alg_selection 40, force_alg_selection 48, cta_policy 52,
    user_profiler_tag 56, launch_completion_event 64);
assert_layout!(NcclSimInfo: 24, size 0, magic 8, version 12, estimated_time 16);
assert_layout!(NcclWaitSignalDesc: 16, op_cnt 0, peer 4, sig_idx 8, ctx 12);
assert_layout!(NcclEncryptionConfig: 32, size 0, magic 8, version 12, mode 16, psk 24);
assert_layout!(NcclCommProperties: 152, size 0, magic 8, version 12, rank 16, n_ranks 20, cuda_dev
    24, nvml_dev 28, device_api_support 32, multimem_support 33, gin_type 36, n_lsa_teams 40,
    host_rma_support 44, railed_gin_type 48, comm_hash 56, gin_min_stride 64, gin_connection_type
    68, gin_support 72, dev_comm_runtime_version_size 136, cft_support 144, cft_counted_support
    146);
assert_layout!(NcclTeam: 12, n_ranks 0, rank 4, stride 8);
assert_layout!(NcclMultimemHandle: 8, base 0);
