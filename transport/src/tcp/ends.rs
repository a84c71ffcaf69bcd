//! The ends of links over TCP.

use std::sync::Arc;

use super::pair::TcpPair;
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::link::{
    HeaderDamage, Incoming, Outgoing, ReceiveSlots, ReceivedMessage, SendSlots, SlotMut,
};
use crate::peers::{MessagesUnderWay, PeerConnection};
use crate::{Rank, Sequence};

/// A connected peer that is reached over TCP.
#[derive(Debug)]
pub(crate) struct TcpPeer {
    pair: Arc<TcpPair>,
    layout: InboxLayout,
}

impl TcpPeer {
    pub(crate) fn new(pair: Arc<TcpPair>, layout: InboxLayout) -> Self {
        Self { pair, layout }
    }
}

impl PeerConnection for TcpPeer {
    fn abort(&self, by: Rank, reason: u32) {
        self.pair.abort(by, reason);
    }

    fn gone(&self) -> Option<LinkError> {
        self.pair.gone()
    }

    fn leave(&self) {
        self.pair.leave();
    }

    fn process_ended(&self) {
        self.pair.process_ended();
    }

    fn begin_flush(&self) {
        self.pair.begin_flush();
    }

    fn under_way(&self) -> Option<MessagesUnderWay> {
        let (messages, bytes) = self.pair.under_way();
        (messages > 0).then_some(MessagesUnderWay { peer: self.pair.peer, messages, bytes })
    }

    fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        self.pair.misbehave(random);
    }

    unsafe fn open(&self, channel: u16) -> (Outgoing, Incoming) {
        let Self { pair, layout } = self;
        let sender = TcpSender { pair: pair.clone(), layout: *layout, channel, reserved: false };
        let receiver = TcpReceiver { pair: pair.clone(), channel, received: false };
        (
            Outgoing { slots: Box::new(sender), ll: None },
            Incoming { slots: Box::new(receiver), ll: None },
        )
    }
}

/// The sending end.
struct TcpSender {
    pair: Arc<TcpPair>,
    layout: InboxLayout,
    channel: u16,
    reserved: bool,
}

/// The receiving end.
struct TcpReceiver {
    pair: Arc<TcpPair>,
    channel: u16,
    received: bool,
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
        self.pair.send(self.channel, len, tag, None)
    }

    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        self.reserved = false;
        match damage {
            // A stream whose frame has fewer bytes than its header says just seems slow.
            HeaderDamage::Length(len) if len <= self.layout.slot_bytes => {
                self.pair.send(self.channel, len, tag, None)
            }
            _ => self.pair.send(self.channel, len, tag, Some(damage)),
        }
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
        self.release_damaged(0);
    }

    fn release_damaged(&mut self, excess: u64) {
        assert!(self.received, "release without a received message");
        self.received = false;
        self.pair.release(self.channel, excess);
    }
}
