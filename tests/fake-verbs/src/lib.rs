//! A `libibverbs.so.1` for tests: RDMA devices that exist in shared memory only.
//!
//! The library has the functions and the structures of the real one, so that a program that loads
//! or links libibverbs runs with it unchanged, between the processes of one host and between the
//! threads of one process. What real adapters reject, it rejects.
//!
//! # Use
//!
//! Build it with `cargo build -p maypole-fake-verbs`, which makes `libmaypole_fake_verbs.so` in the
//! folder of the profile, and load that file instead of `libibverbs.so.1`: by its path (dlopen), by
//! `LD_PRELOAD`, or under the name `libibverbs.so.1` in a folder of `LD_LIBRARY_PATH`.
//!
//! - `MAYPOLE_FAKE_VERBS=NAME`: the namespace. All processes of the user with the same name share
//!   devices and networks. Choose a name that no other test uses, for example with the id of the
//!   process. Without the variable, a process is alone. Nothing has to be removed afterwards.
//! - `MAYPOLE_FAKE_VERBS_SETUP=COMMANDS`: commands for the first process of the namespace. Without
//!   the variable: `device fake0; device fake1`.
//! - `MAYPOLE_FAKE_VERBS_LOG=1`: writes what is refused and lost to the standard error stream.
//!
//! `int maypole_fake_verbs_control(const char *commands)` runs commands at any time, in any process
//! of the namespace, and `int64_t maypole_fake_verbs_count(const char *name)` reads a counter of
//! the fabric: `posted`, `doorbells`, `bytes`, `polled` or `registered`.
//!
//! # Commands
//!
//! They are separated by semicolons or line ends. PORT is the name of a device and the number of a
//! port, as in `fake0/1`.
//!
//! - `device NAME [ports N] [infiniband|roce]`: adds a device, with RoCE unless told otherwise.
//!   Each port of it has, as on Linux, at 0 and 1 a link-local address as RoCE v1 and v2, and at 2
//!   and 3 the IPv4 address 10.77.D.P of device number D and port P; with InfiniBand, a local
//!   identifier and one address.
//! - `remove NAME`, `return NAME`: the device vanishes (IBV_EVENT_DEVICE_FATAL, queue pairs fail,
//!   calls return EIO), and comes back for those that open it again.
//! - `limit NAME WHAT NUMBER`: WHAT is work-requests, entries, inline, completions,
//!   shared-receives, reads, message (bytes), dmabuf (0 or 1), or extended (0 or 1: whether there
//!   are extended queues).
//! - `port PORT down|up`: with the event IBV_EVENT_PORT_ERR or IBV_EVENT_PORT_ACTIVE.
//! - `drop PORT on|off`: a pulled cable somewhere in the network: everything is lost, without an
//!   event.
//! - `hold PORT on|off`: what the port sends waits, without timeouts, until this is off.
//! - `loss PORT N`: of a million messages, N are lost at random.
//! - `segment PORT N`: link-local addresses and local identifiers reach ports of the same segment
//!   only.
//! - `speed PORT GBITS`, `mtu PORT BYTES`: what queries say.
//! - `gid PORT INDEX ADDRESS ib|v1|v2 [INTERFACE]`, `gid PORT INDEX none`, `gids PORT clear`, `gids
//!   PORT reverse`: change the table of addresses (IBV_EVENT_GID_CHANGE). A connection keeps the
//!   index of its own address; it works as long as that entry has the same content.
//! - `qp-error NUMBER|NAME`: the queue pair of this number fails (IBV_EVENT_QP_FATAL), or all
//!   connected ones of a device.
//! - `not-ready COUNT`: receivers answer the next messages that they have no receive.
//! - `fail STATUS [COUNT]`: the next work requests complete with this `ibv_wc_status`.
//! - `refuse ERRNO [COUNT]`: the next registrations of memory fail.
//! - `memlock BYTES`: how much each process may register; 0 is no limit.
//! - `order posted|placement|messages [SEED]`: how work is executed. `posted` executes it in the
//!   call that posts it. `placement` lets queue pairs overtake each other, and data of RDMA writes
//!   those in front of them; `messages` lets whole messages of one queue pair, as networks without
//!   ordering do.
//! - `hurry N`: timers of connections run N times faster.
//! - `misuse abort|errno`: whether a wrong call ends the process with an explanation, or returns
//!   the error of the specification.
//!
//! # What differs from an adapter
//!
//! Work is executed in the thread that posts it: it checks keys and states at both ends, copies
//! from process to process, and writes both completions. A thread of the library exists only while
//! work waits. Local keys and remote keys are different numbers, completion queues and receive
//! queues have exactly the size that was asked for, and places in queues become free when
//! completions are polled.

#![cfg(target_os = "linux")]

use std::path::PathBuf;

use maypole_verbs::sys as abi;

mod exports;
mod fabric;
mod memory;
mod misuse;
mod requester;
mod sync;
#[cfg(test)]
mod tests;

/// The path of the shared library, for a test whose crate has this one among its
/// `dev-dependencies`: cargo puts it beside the test.
///
/// # Panics
/// Panics if there is no such file.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running program");
    let file = "libmaypole_fake_verbs.so";
    let mut found = test.ancestors().skip(1).take(2).map(|folder| folder.join(file));
    let found = found.find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{file} is not beside {}", test.display()))
}
