//! libnccl.so.2: NCCL's C ABI on the maypole library, and nothing else.
//!
//! | file | functions |
//! |---|---|
//! | `identity` | version, unique ids, what a communicator says of itself |
//! | `init`, `split` | communicators of an id, and of a communicator; `create` is how both come to be |
//! | `destroy` | finalize, destroy, abort, revoke |
//! | `collective`, `configured`, `transfer` | collectives, those with a configuration, send and receive |
//! | `group` | groups, and what they would cost |
//! | `operator` | operators with a factor |
//! | `memory`, `window` | memory, registered buffers, windows, one-sided calls |
//! | `parameter`, `debug` | settings, logs, encryption |
//! | `vector` | `maypole.h`: the barrier, collectives with blocks of different length |
//! | `device` | the host's side of the device API |
//!
//! Below them: `export` (a name and its `p` twin), `boundary` (results, their texts, and the boundary that no panic crosses), `layout` (the
//! structures of `nccl.h`), `config` (`ncclConfig_t`), `registry` (communicator handles, which are checked numbers and not
//! pointers), `stream` (host streams, of `maypole.h`, and which streams there are), `cuda` (communicators of CUDA devices).
//!
//! On a communicator of host memory a call on a default stream, or the outermost group end, returns when its result is there; on one of a CUDA
//! device calls are queued on its streams. The headers are in `include/`; `docs/abi.md` says what each function does.

mod boundary;
mod collective;
mod config;
mod configured;
mod create;
mod cuda;
mod debug;
mod destroy;
mod device;
mod export;
mod group;
mod identity;
mod init;
mod layout;
mod memory;
mod operator;
mod parameter;
mod registry;
mod split;
mod stream;
mod transfer;
mod vector;
mod window;
