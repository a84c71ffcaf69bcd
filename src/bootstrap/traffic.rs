//! Counts of the connections and messages of the control plane.

use super::frame_stream::FrameStream;

/// Connections and messages of one rank in the control plane. The handshake of each connection is
/// four more messages of 240 bytes together. Connections of strangers are not counted.
///
/// Messages are counted, not bytes: the messages that a rank needs to join depend on the number of
/// its neighbours alone, but every rank learns the rank info of all others, so its bytes grow with
/// the number of ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlTraffic {
    /// Connections that were made, closed ones included.
    pub connections: u32,
    /// Messages sent over these connections.
    pub sent: u64,
    /// Messages received over these connections.
    pub received: u64,
}

impl ControlTraffic {
    /// Adds the messages of one connection so far.
    pub(super) fn add(&mut self, connection: &FrameStream) {
        let (sent, received) = connection.frame_counts();
        self.connections += 1;
        self.sent += sent;
        self.received += received;
    }
}
