//! The collectives of `nccl.h`, each with and without a configuration.

use std::ffi::{c_int, c_void};
use std::ptr::null;

use maypole::Collective;

use super::macros::abi;
use crate::arguments::root;
use crate::boundary::NcclResult;
use crate::config::read_algorithms;
use crate::group;
use crate::layout::NcclCollConfig;
use crate::registry::CommHandle;
use crate::request::{CollectiveArguments, CollectiveRequest};
use crate::stream::StreamHandle;

/// The operator of a collective that reduces nothing; it is not looked at.
const NO_OPERATOR: c_int = 0;

/// Runs or queues a collective.
///
/// # Safety
/// `config` is as [`read_algorithms`] demands. Buffers are as `nccl.h` says until the call has
/// ended.
#[inline]
unsafe fn submit(
    collective: Collective,
    arguments: CollectiveArguments,
    comm: CommHandle,
    stream: StreamHandle,
    config: *const NcclCollConfig,
) -> NcclResult {
    group::submit(comm, stream, |comm| {
        // SAFETY: the caller promises such a configuration.
        let algorithms = unsafe { read_algorithms(config, collective) }?;
        CollectiveRequest::check(collective, arguments, algorithms, comm)
    })
}

/// Declares collectives from a table: the name of the plain function, that of the function with a
/// configuration, the arguments that only some collectives have, the collective, and the operator.
macro_rules! collectives {
    ($(
        $(#[$attribute:meta])*
        $plain:ident, $configured:ident($($extra:ident),*) => $collective:expr, $op:expr;
    )*) => {abi! {$(
        $(#[$attribute])*
        fn $plain(
            send: *const c_void,
            recv: *mut c_void,
            count: usize,
            dtype: c_int,
            $($extra: c_int,)*
            comm: CommHandle,
            stream: StreamHandle,
        ) -> NcclResult {
            let arguments = CollectiveArguments { send, recv, count, dtype, op: $op };
            // SAFETY: the client promised such buffers; there is no configuration.
            unsafe { submit($collective, arguments, comm, stream, null()) }
        }

        $(#[$attribute])*
        ///
        /// The call uses the algorithms that the configuration names; NULL means no restriction.
        fn $configured(
            send: *const c_void,
            recv: *mut c_void,
            count: usize,
            dtype: c_int,
            $($extra: c_int,)*
            comm: CommHandle,
            stream: StreamHandle,
            config: *const NcclCollConfig,
        ) -> NcclResult {
            let arguments = CollectiveArguments { send, recv, count, dtype, op: $op };
            // SAFETY: the client promised such buffers and such a configuration.
            unsafe { submit($collective, arguments, comm, stream, config) }
        }
    )*}};
}

collectives! {
    /// All ranks get the reduction of all send buffers.
    ncclAllReduce, ncclAllReduceConfig(op) => Collective::AllReduce, op;
    /// The root gets the reduction of all send buffers. `recv` is used on the root alone.
    ncclReduce, ncclReduceConfig(op, root) => Collective::Reduce { root: self::root(root) }, op;
    /// All ranks get the root's send buffer. `send` is used on the root alone.
    ncclBroadcast, ncclBroadcastConfig(root) =>
        Collective::Broadcast { root: self::root(root) }, NO_OPERATOR;
    /// Each rank gets its block of the reduction of all send buffers.
    ncclReduceScatter, ncclReduceScatterConfig(op) => Collective::ReduceScatter, op;
    /// All ranks get the send buffers of all ranks.
    ncclAllGather, ncclAllGatherConfig() => Collective::AllGather, NO_OPERATOR;
    /// Each rank gets one block of each rank.
    ncclAlltoAll, ncclAlltoAllConfig() => Collective::AllToAll, NO_OPERATOR;
    /// The root gets the send buffers of all ranks. `recv` is used on the root alone.
    ncclGather, ncclGatherConfig(root) =>
        Collective::Gather { root: self::root(root) }, NO_OPERATOR;
    /// Each rank gets its block of the root's send buffer. `send` is used on the root alone.
    ncclScatter, ncclScatterConfig(root) =>
        Collective::Scatter { root: self::root(root) }, NO_OPERATOR;
}

abi! {
    /// `ncclBcast`: [`ncclBroadcast`] in place.
    fn ncclBcast(
        buffer: *mut c_void,
        count: usize,
        dtype: c_int,
        root: c_int,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let send = buffer.cast_const();
        let arguments =
            CollectiveArguments { send, recv: buffer, count, dtype, op: NO_OPERATOR };
        let collective = Collective::Broadcast { root: self::root(root) };
        // SAFETY: the client promised such a buffer; there is no configuration.
        unsafe { submit(collective, arguments, comm, stream, null()) }
    }
}
