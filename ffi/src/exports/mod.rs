//! The exported functions: each checks its arguments and calls the layers below.
//!
//! | file | functions |
//! |---|---|
//! | `identity` | version, unique ids, rank, device and state of a communicator |
//! | `errors` | texts of results, the last error |
//! | `init` | communicators from unique ids |
//! | `split` | communicators from a parent: split, shrink, grow |
//! | `destroy` | finalize, destroy, abort, revoke |
//! | `collective` | collectives, with and without a configuration |
//! | `vector` | `maypole.h`: barrier and vector collectives |
//! | `transfer` | send and receive |
//! | `window` | windows and one-sided calls |
//! | `group` | groups, and the prediction of their time |
//! | `operator` | reduction operators with a factor |
//! | `memory` | memory, registered buffers, suspend and resume |
//! | `stream` | `maypole.h`: host streams |
//! | `parameter` | settings by name |
//! | `logging` | logs and encryption |
//! | `device` | the host's side of the device API |

mod collective;
mod destroy;
mod device;
mod errors;
mod group;
mod identity;
mod init;
mod logging;
mod macros;
mod memory;
mod operator;
mod parameter;
mod split;
mod stream;
mod transfer;
mod unique_id;
mod vector;
mod window;
