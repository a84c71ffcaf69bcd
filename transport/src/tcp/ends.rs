//! The two ends of a link over TCP.

use std::sync::Arc;

use super::pair::TcpPair;
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::link::{ReceiveSlots, ReceivedMessage, SendSlots, Sequence, SlotMut};

/// The sending end.
pub(crate) struct TcpSender {
    pair: Arc<TcpPair>,
    layout: InboxLayout,
    channel: u16,
    reserved: bool,
}

/// The receiving end.
pub(crate) struct TcpReceiver {
    pair: Arc<TcpPair>,
    channel: u16,
    received: bool,
}

/// Both ends that this rank has on a channel.
pub(crate) fn ends(
    pair: Arc<TcpPair>,
    layout: InboxLayout,
    channel: u16,
) -> (TcpSender, TcpReceiver) {
    let sender = TcpSender { pair: pair.clone(), layout, channel, reserved: false };
    (sender, TcpReceiver { pair, channel, received: false })
}

impl SendSlots for TcpSender {
    fn capacity(&self) -> usize {
        self.layout.slot_bytes
    }

    fn credits(&self) -> u32 {
        self.layout.depth
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        let slot = self.pair.reserve(self.channel)?;
        self.reserved = slot.is_some();
        Ok(slot)
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        assert!(len <= self.layout.slot_bytes, "a message longer than its slot");
        self.reserved = false;
        self.pair.send(self.channel, len, tag)
    }

    fn released(&mut self) -> Sequence {
        self.pair.released(self.channel)
    }
}

impl ReceiveSlots for TcpReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let message = self.pair.receive(self.channel)?;
        self.received = message.is_some();
        Ok(message)
    }

    fn release(&mut self) {
        assert!(self.received, "release without a received message");
        self.received = false;
        self.pair.release(self.channel);
    }
}
