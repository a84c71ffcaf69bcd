//! The protocol of NCCL's RAS service, so that programs that read it learn what communicators do.
//!
//! A process with communicators listens at the address of `NCCL_RAS_ADDR`, localhost:28028, if it
//! is told to: another NCCL in the same process would use the port too. All processes of a host
//! share the port, and the kernel chooses the one that answers. It asks the others as `maypole ps`
//! does, so its answer is about the processes of one user on one host. A rank of another host
//! appears when it has ended the communicator by its death.
//!
//! | file | purpose |
//! |---|---|
//! | `server` | the thread that listens and answers |
//! | `session` | the commands of a client |
//! | `caller` | whose connection it is |
//! | `job` | the communicators, from what the processes say |
//! | `text`, `json` | the two forms of an answer |

mod caller;
mod job;
mod json;
mod server;
mod session;
mod text;

pub(super) use server::RasServer;

/// The version of NCCL whose functions this library has, as text.
const NCCL_VERSION: &str = "2.32.3";
