//! Links between ranks on different hosts, or wherever memory cannot be shared: messages travel
//! over one or several TCP streams per peer.
//!
//! The two ranks have no memory that both could poll, so these links have slots and no LL protocol.
//! A message is one frame on one stream, and the streams take turns. Each side puts arriving
//! messages into sequence by their numbers, takes each once, and keeps what it sent until the
//! release is acknowledged. A stream that breaks therefore loses nothing: other streams carry its
//! messages again, and the lower rank dials a new stream.
//!
//! The lower rank dials. If it does not reach the higher one, that dials too, after a while: a
//! firewall may let connections through in one direction only. If both succeed, both keep the
//! stream that the lower rank has dialed.
//!
//! * `frame`: the format on the stream;
//! * `ring`: the slots of one link: messages in transit, messages that have arrived;
//! * `stream`: reads frames from one stream and writes them to it;
//! * `pair`: a peer: its streams and links, and which thread reads and writes when;
//! * `ends`: the contract of links;
//! * `connect`: the handshake of a new stream, from either end;
//! * `listener`: the listening sockets, and the thread behind them;
//! * `service`: the thread that accepts, dials, and serves ranks that do not do so themselves;
//! * `watch`: how a rank sleeps on its doorbell and its sockets at once.
//!
//! Pairs whose messages travel over RDMA have one stream, which only carries control messages and
//! ends: see `pair::upgrade`.

mod connect;
mod ends;
mod frame;
pub(crate) mod listener;
pub(crate) mod pair;
mod poller;
mod ring;
mod service;
mod socket;
mod stream;
pub(crate) mod watch;

use std::net::IpAddr;

/// Maximum number of streams between two ranks.
pub const MOST_STREAMS: u32 = 64;

/// How a rank uses TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// The addresses of this host at which to listen, in the order in which peers try them.
    pub addresses: Vec<IpAddr>,
    /// TCP streams per peer, at most [`MOST_STREAMS`]. Two ranks use the smaller of their numbers.
    pub streams: u32,
}
