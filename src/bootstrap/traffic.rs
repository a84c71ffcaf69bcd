//! What the control plane costs, counted.

use super::stream::Framed;

/// Connections and messages of one rank in the control plane. Each connection's handshake is four more messages of 161
/// bytes together; strangers are not counted.
///
/// Messages, not bytes: to join takes each rank a number of messages that depends on the number of its neighbours alone,
/// but every rank learns every other's card, so its bytes grow with the number of ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlTraffic {
    /// Connections made, those included that are closed.
    pub connections: u32,
    /// Messages sent over them.
    pub sent: u64,
    /// Messages received.
    pub received: u64,
}

impl ControlTraffic {
    /// Adds what went over one connection so far.
    pub(super) fn add(&mut self, framed: &Framed) {
        let (sent, received) = framed.frames();
        self.connections += 1;
        self.sent += sent;
        self.received += received;
    }
}
