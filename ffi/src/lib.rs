//! libnccl.so.2: NCCL's C ABI on the maypole library, and nothing else.
//!
//! * `answer`: results, their texts, and the boundary that no panic crosses
//! * `registry`: communicator handles, which are checked numbers and not pointers
//! * `communicator`, `collective`, `group`, `operator`: the functions of `nccl.h`
//!
//! Communicators are of host memory: a call, or the outermost group end, returns when its result is there. The header is
//! `include/nccl.h`.

#![expect(unreachable_pub, reason = "what is exported is found by its name, not by a path")]

mod answer;
mod collective;
mod communicator;
mod group;
mod operator;
mod registry;
mod transfer;
