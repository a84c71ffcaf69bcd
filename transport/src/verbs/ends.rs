//! The ends of links over RDMA.

use std::sync::Arc;

use super::pair::VerbsPair;
use crate::error::LinkError;
use crate::link::{
    HeaderDamage, Incoming, Outgoing, ReceiveSlots, ReceivedMessage, SendSlots, SlotMut,
};
use crate::peers::{MessagesUnderWay, PeerConnection};
use crate::{Rank, Sequence};

/// A connected peer that is reached over RDMA.
#[derive(Debug)]
pub(super) struct VerbsPeer {
    pair: Arc<VerbsPair>,
}

impl VerbsPeer {
    pub(super) fn new(pair: Arc<VerbsPair>) -> Self {
        Self { pair }
    }
}

impl PeerConnection for VerbsPeer {
    fn abort(&self, by: Rank, reason: u32) {
        self.pair.control.abort(by, reason);
    }

    fn gone(&self) -> Option<LinkError> {
        self.pair.control.gone()
    }

    fn leave(&self) {
        self.pair.leave();
    }

    fn process_ended(&self) {
        // What arrived before is still received.
        self.pair.control.declare_dead();
    }

    fn begin_flush(&self) {
        self.pair.begin_flush();
    }

    fn under_way(&self) -> Option<MessagesUnderWay> {
        let (messages, bytes) = self.pair.under_way();
        (messages > 0).then_some(MessagesUnderWay { peer: self.pair.peer, messages, bytes })
    }

    unsafe fn open(&self, channel: u16) -> (Outgoing, Incoming) {
        self.pair.open(channel);
        let sender = VerbsSender { pair: self.pair.clone(), channel, reserved: false };
        let receiver = VerbsReceiver { pair: self.pair.clone(), channel, received: false };
        (
            Outgoing { slots: Box::new(sender), ll: None },
            Incoming { slots: Box::new(receiver), ll: None },
        )
    }
}

/// The sending end.
struct VerbsSender {
    pair: Arc<VerbsPair>,
    channel: u16,
    reserved: bool,
}

/// The receiving end.
struct VerbsReceiver {
    pair: Arc<VerbsPair>,
    channel: u16,
    received: bool,
}

impl SendSlots for VerbsSender {
    fn capacity(&self) -> usize {
        self.pair.shared().layout.slot_bytes
    }

    fn credits(&self) -> u32 {
        self.pair.shared().layout.depth
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        let slot = self.pair.reserve(self.channel)?;
        self.reserved = slot.is_some();
        Ok(slot)
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        assert!(len <= self.pair.shared().layout.slot_bytes, "a message longer than its slot");
        self.reserved = false;
        self.pair.send(self.channel, len, tag, None)
    }

    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        self.reserved = false;
        self.pair.send(self.channel, len, tag, Some(damage))
    }

    fn released(&mut self) -> Sequence {
        self.pair.released(self.channel)
    }
}

impl ReceiveSlots for VerbsReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let message = self.pair.receive(self.channel)?;
        self.received = message.is_some();
        Ok(message)
    }

    fn release(&mut self) {
        self.release_damaged(0);
    }

    fn release_damaged(&mut self, excess: u64) {
        assert!(self.received, "release without a received message");
        self.received = false;
        self.pair.release(self.channel, excess);
    }
}
