//! libnccl.so.2: NCCL's C ABI on the maypole library, and nothing else.
//!
//! The modules form layers; each uses those below it:
//!
//! | module | content |
//! |---|---|
//! | `exports` | the exported functions |
//! | `group` | runs calls at once, queues them, and runs groups |
//! | `request` | checked calls of each kind |
//! | `startup` | what is logged at first use |
//! | `cuda` | communicators of CUDA devices |
//! | `registry` | communicator handles, and what belongs to a communicator |
//! | `config`, `arguments`, `stream` | configurations, common arguments and streams of clients |
//! | `boundary` | no panic crosses it; results and the last error |
//! | `layout` | the structures of `nccl.h` |
//!
//! On host memory a call on a default stream, or the outermost group end, returns when its result
//! is there. On a CUDA device calls are queued on its streams. The headers are in `include/`;
//! `docs/abi.md` says what each function does.

extern crate maypole_ffi_names as _;

mod arguments;
mod boundary;
mod config;
mod cuda;
mod exports;
mod group;
mod layout;
mod registry;
mod request;
mod startup;
mod stream;
