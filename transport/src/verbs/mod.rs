//! Links between ranks on different hosts over RDMA: InfiniBand and RoCE, by libibverbs.
//!
//! Two ranks first make a TCP connection, with its handshake. Over it, sealed, they exchange what
//! their queue pairs need, and try a write in each direction. From then on messages travel by RDMA,
//! and the TCP connection carries what ends something: aborts, leaves, and the end of a process.
//! Liveness is therefore decided as it is for TCP.
//!
//! Each link has slots in registered memory of its receiver, which grants them to the sender when
//! it opens the link. A message is an RDMA write of its header and its payload with an immediate
//! value, which names the channel and the message. Where packets may arrive out of order, the
//! payload of a long message is a write of its own, in front of that of the header. A release is an
//! immediate value alone, or travels in the header of a message in the other direction.
//!
//! Every immediate value takes a receive of the peer. Of a link in both directions, at most twice
//! its depth are under way: a message more needs a release that was polled, and a release more
//! needs a message that was polled. So many receives are posted for each peer beforehand.
//!
//! * `settings`: what the user can choose;
//! * `gid`: which GID of a port is used;
//! * `domain`: the device and port, and the memory for trials;
//! * `group`: a completion queue and a shared receive queue, for several peers;
//! * `ring`: the slots of one link, in registered memory;
//! * `state`: what is known of a peer: its queue pairs and links;
//! * `pair`: a peer, as its links use it;
//! * `message`: the control messages;
//! * `connect`: how queue pairs are made and tried;
//! * `listener`: the thread behind the connections;
//! * `ends`: the contract of links.

mod connect;
mod domain;
mod ends;
mod gid;
mod group;
pub(crate) mod listener;
mod message;
mod pair;
mod ring;
mod settings;
mod state;

pub(crate) use self::domain::VerbsDomain;
pub use self::gid::{GidPreference, choose_gid};
pub use self::settings::{AdapterFilter, VerbsConfig};
