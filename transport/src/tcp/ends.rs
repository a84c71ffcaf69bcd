//! The ends of links over TCP.

use std::sync::Arc;

use super::pair::TcpPair;
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::link::{
    HeaderDamage, Incoming, Lendable, Outgoing, PostedMemory, ReceiveSlots, ReceivedMessage,
    SendSlots, SlotMut,
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

    fn read_stream(&self, number: usize) {
        self.pair.read_stream(number);
    }

    fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        self.pair.misbehave(random);
    }

    unsafe fn open(&self, channel: u16) -> (Outgoing, Incoming) {
        let Self { pair, layout } = self;
        let sender = TcpSender {
            pair: pair.clone(),
            layout: *layout,
            channel,
            reserved: false,
            puts_off: false,
        };
        let receiver = TcpReceiver { pair: pair.clone(), channel, received: false, owes: false };
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
    /// What was lent is perhaps not sent yet.
    puts_off: bool,
}

/// The receiving end.
struct TcpReceiver {
    pair: Arc<TcpPair>,
    channel: u16,
    received: bool,
    /// The peer waits for a release, and was perhaps not told of it.
    owes: bool,
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

    fn lendable(&self) -> Lendable {
        Lendable::ForSending
    }

    fn can_lend(&mut self, _data: *const u8, len: usize) -> bool {
        len <= self.layout.slot_bytes
    }

    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        assert!(len <= self.layout.slot_bytes, "a message longer than its slot");
        self.reserved = false;
        self.puts_off = true;
        // SAFETY: the caller's promise.
        unsafe { self.pair.lend(self.channel, data, len, tag) }
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.puts_off) {
            self.pair.flush_queued();
        }
    }

    fn withdraw(&mut self) {
        self.pair.withdraw(self.channel);
    }

    fn released(&mut self) -> Sequence {
        self.pair.released(self.channel, !self.puts_off)
    }
}

impl ReceiveSlots for TcpReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let message = self.pair.receive(self.channel)?;
        self.received = message.is_some();
        Ok(message)
    }

    fn takes_posts(&self) -> bool {
        true
    }

    unsafe fn post(&mut self, memory: PostedMemory) {
        // SAFETY: the caller's promise.
        unsafe { self.pair.post(self.channel, memory) }
    }

    fn withdraw(&mut self) {
        self.pair.withdraw_posted(self.channel);
    }

    fn release(&mut self) {
        self.release_damaged(0);
    }

    fn acknowledge(&mut self) {
        if std::mem::take(&mut self.owes) {
            self.pair.acknowledge();
        }
    }

    fn release_damaged(&mut self, excess: u64) {
        assert!(self.received, "release without a received message");
        self.received = false;
        self.owes |= self.pair.release(self.channel, excess);
    }
}
