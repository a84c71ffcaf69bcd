//! Links between ranks on different hosts over RDMA: InfiniBand and RoCE, by libibverbs.
//!
//! Two ranks first make a TCP connection, with its handshake. Over it, sealed, they exchange what
//! their queue pairs need, and try a write in each direction. From then on messages travel by RDMA,
//! and the TCP connection carries what ends something: aborts, leaves, and the end of a process.
//! Liveness is therefore decided as it is for TCP.
//!
//! There are as many paths between two ranks as the one with more ports has: port 0 of one is
//! connected to port 0 of the other, and so on. Each message goes over the path on which the least
//! is under way. If a path is lost, its messages go over another, or over TCP, and the lower rank
//! makes it again in the background. See `state`.
//!
//! Each link has slots in registered memory of its receiver, which grants them to the sender when
//! it opens the link. A message is an RDMA write of its header and its payload with an immediate
//! value, which names the channel and the message. Where packets may arrive out of order, the
//! payload of a long message is a write of its own, in front of that of the header. A release is an
//! immediate value alone, or travels in the header of a message in the other direction.
//!
//! Every immediate value takes a receive of the peer. Of a link in both directions, at most twice
//! its depth are under way: a message more needs a release that was polled, and a release more
//! needs a message that was polled. So many receives are posted for each peer beforehand, at each
//! port, because all may come over one.
//!
//! * `settings`: what the user can choose, and what is known of paths;
//! * `gid`: which GID of a port is used;
//! * `domain`: a device and port, and the memory for trials;
//! * `group`: a completion queue and a shared receive queue of a port, for several peers;
//! * `message`: the control messages;
//! * `connect`: how the queue pairs of a path are made and tried;
//! * `work`: a queue pair and its work, and which path a message goes over;
//! * `path`: a path, from its first attempt to its loss and back;
//! * `ring`: the slots of one link, in registered memory;
//! * `fallback`: messages over TCP while there is no path;
//! * `shared`: what all connections of an endpoint share;
//! * `state`: what is known of a peer: its paths and links;
//! * `table`: all peers under one lock, and their completions;
//! * `pair`: a peer, as its links use it;
//! * `listener`: the thread behind the connections;
//! * `ends`: the contract of links.

mod connect;
mod domain;
mod ends;
mod error_text;
mod fallback;
mod gid;
mod group;
pub(crate) mod listener;
mod message;
mod pair;
mod path;
mod ring;
mod settings;
mod shared;
mod state;
mod table;
mod work;

pub(crate) use self::domain::VerbsDomain;
pub use self::gid::{GidPreference, choose_gid};
pub use self::settings::{AdapterFilter, RdmaPath, RdmaReport, VerbsConfig};
