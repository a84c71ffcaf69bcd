//! Ranks on other hosts, or wherever memory cannot be shared: messages travel over one or several TCP streams per peer.
//!
//! There is no memory that both ends could poll, so the link has slots and no lines. A message is one frame on one stream;
//! the streams take turns. Each side puts what comes into sequence by the numbers of the messages and takes each once, and
//! keeps what it sent until its release is acknowledged. So a stream that breaks loses nothing: the others carry its messages
//! again, and the lower rank dials a new one.
//!
//! | file | idea |
//! |---|---|
//! | `frame` | what travels |
//! | `ring` | the slots of one link: what is under way, what has come |
//! | `stream` | frames into and out of one stream |
//! | `pair` | a peer: streams, links, who reads and writes when |
//! | `ends` | the contract of links |
//! | `connect` | the handshake of a new stream, from either end |
//! | `listener` | the thread that accepts, dials, and serves ranks that sleep |

mod connect;
mod ends;
mod frame;
pub(crate) mod listener;
mod pair;
mod ring;
mod socket;
mod stream;

use std::net::IpAddr;

pub(crate) use ends::ends;
pub(crate) use pair::TcpPair;

/// Most streams of a pair of ranks.
pub const MOST_STREAMS: u32 = 64;

/// How a rank uses TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// The addresses of this host at which to listen, in the order in which peers shall try them.
    pub addresses: Vec<IpAddr>,
    /// TCP streams per peer, at most [`MOST_STREAMS`]; of two ranks that differ the smaller number counts.
    pub streams: u32,
}
