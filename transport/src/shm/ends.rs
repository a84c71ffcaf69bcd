//! The ends of links through shared memory: slots and LL in the inboxes, and lent messages that lie
//! in segments.

use std::sync::Arc;

use super::sharing::SegmentSharing;
use crate::error::LinkError;
use crate::inbox::{Inbox, InboxEnds, PeerInbox};
use crate::link::{
    HeaderDamage, Incoming, Lendable, Outgoing, ReceiveSlots, ReceivedMessage, SendSlots, SlotMut,
};
use crate::memory::MappingAccess;
use crate::peers::PeerConnection;
use crate::segment::{
    self, MappedSegment, OfferState, PeerSegment, SegmentExtent, SegmentId, SegmentMemory,
};
use crate::slots::{SlotReceiver, SlotSender};
use crate::{Rank, Sequence};

/// A connected peer in another process of the host.
#[derive(Debug)]
pub(crate) struct ShmPeer {
    rank: Rank,
    own: Arc<Inbox>,
    inbox: Arc<PeerInbox>,
    sharing: Arc<SegmentSharing>,
}

impl ShmPeer {
    /// The peer `rank` with inbox `inbox`, as seen by the rank with inbox `own`.
    pub(crate) fn new(
        rank: Rank,
        own: Arc<Inbox>,
        inbox: PeerInbox,
        sharing: Arc<SegmentSharing>,
    ) -> Self {
        Self { rank, own, inbox: Arc::new(inbox), sharing }
    }
}

impl PeerConnection for ShmPeer {
    fn abort(&self, by: Rank, reason: u32) {
        self.inbox.header().abort(by, reason);
    }

    fn gone(&self) -> Option<LinkError> {
        self.inbox.header().gone(self.rank)
    }

    fn ring(&self) {
        self.inbox.header().doorbell.ring();
    }

    fn connection_ended(&self) {
        self.inbox.header().die();
    }

    fn is_reading(&self) -> bool {
        self.inbox.header().is_reading()
    }

    fn is_asleep(&self) -> bool {
        self.inbox.header().is_asleep()
    }

    fn offer(&self, memory: &SegmentMemory, access: MappingAccess) -> Option<OfferState> {
        Some(self.sharing.offer(memory, access))
    }

    fn segment(&self, id: SegmentId) -> Option<PeerSegment> {
        self.sharing.mapped_segment(id, MappingAccess::ReadWrite).map(PeerSegment::mapped)
    }

    fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        self.inbox.misbehave(random);
        self.inbox.header().doorbell.ring();
    }

    unsafe fn open(&self, channel: u16) -> (Outgoing, Incoming) {
        // SAFETY: the caller's promise.
        let ends = unsafe { InboxEnds::new(&self.own, &self.inbox, self.rank, channel) };
        let InboxEnds { slot_sender, slot_receiver, ll_sender, ll_receiver } = ends;
        let sender = ShmSender::new(slot_sender, self.sharing.clone());
        let receiver = ShmReceiver::new(slot_receiver, self.sharing.clone());
        (
            Outgoing { slots: Box::new(sender), ll: Some(ll_sender) },
            Incoming { slots: Box::new(receiver), ll: Some(ll_receiver) },
        )
    }
}

/// The sending end.
struct ShmSender {
    slots: SlotSender,
    sharing: Arc<SegmentSharing>,
    /// The version of the table of segments when `segments` was filled.
    version: u64,
    /// The segments of this process, sorted by address, and whether the peer has mapped them.
    segments: Vec<(SegmentExtent, OfferState)>,
}

/// The receiving end.
struct ShmReceiver {
    slots: SlotReceiver,
    sharing: Arc<SegmentSharing>,
    /// The segments of the peer that were used last. If the message that is not released lies in a
    /// segment, it is one of these.
    recent: Vec<(SegmentId, Arc<MappedSegment>)>,
}

/// Maximum length of `recent`.
const MAX_RECENT: usize = 8;

impl ShmSender {
    fn new(slots: SlotSender, sharing: Arc<SegmentSharing>) -> Self {
        Self { slots, sharing, version: 0, segments: Vec::new() }
    }

    /// The segment that contains these bytes and their offset in it, if the peer has mapped it.
    fn find(&mut self, data: *const u8, len: usize) -> Option<(SegmentId, usize)> {
        if segment::version() != self.version {
            let (version, extents) = segment::extents();
            self.segments =
                extents.into_iter().map(|extent| (extent, OfferState::Pending)).collect();
            self.version = version;
        }
        let start = data.addr();
        let after = self.segments.partition_point(|(extent, _)| extent.start <= start);
        let (extent, offer) = self.segments.get_mut(after.checked_sub(1)?)?;
        start.checked_add(len).filter(|end| *end <= extent.end)?;
        if *offer == OfferState::Pending {
            *offer = segment::get(extent.id).map_or(OfferState::Refused, |memory| {
                self.sharing.offer(&memory, MappingAccess::Read)
            });
        }
        (*offer == OfferState::Accepted).then(|| (extent.id, start - extent.start))
    }
}

impl SendSlots for ShmSender {
    fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    fn credits(&self) -> u32 {
        self.slots.credits()
    }

    fn set_cycle(&mut self, messages: u32) {
        self.slots.set_cycle(messages);
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.slots.reserve()
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        self.slots.send(len, tag)
    }

    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence {
        self.slots.send_damaged(len, tag, damage)
    }

    fn lendable(&self) -> Lendable {
        Lendable::Segments
    }

    fn can_lend(&mut self, data: *const u8, len: usize) -> bool {
        self.find(data, len).is_some()
    }

    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        let (segment, offset) = self.find(data, len).expect("the peer has mapped what is lent");
        self.slots.lend_segment(segment, offset, len, tag)
    }

    fn released(&mut self) -> Sequence {
        self.slots.released()
    }
}

impl ShmReceiver {
    fn new(slots: SlotReceiver, sharing: Arc<SegmentSharing>) -> Self {
        Self { slots, sharing, recent: Vec::new() }
    }
}

/// The address of a lent message of `len` bytes that lies at `offset` in segment `id`.
fn look_up(
    recent: &mut Vec<(SegmentId, Arc<MappedSegment>)>,
    sharing: &SegmentSharing,
    (id, offset, len): (SegmentId, usize, usize),
) -> Result<*const u8, &'static str> {
    let index = match recent.iter().position(|(known, _)| *known == id) {
        Some(index) => index,
        None => {
            let segment = sharing.mapped_segment(id, MappingAccess::Read);
            let segment = segment.ok_or("a message lies in a segment that was not offered")?;
            recent.retain(|(_, segment)| !segment.is_freed());
            recent.truncate(MAX_RECENT - 1);
            recent.insert(0, (id, segment));
            0
        }
    };
    let data = recent[index].1.address(offset, len);
    data.map(<*mut u8>::cast_const).ok_or("a message lies beyond the end of its segment")
}

impl ReceiveSlots for ShmReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let Self { slots, sharing, recent } = self;
        slots.receive_with(|id, offset, len| look_up(recent, sharing, (id, offset, len)))
    }

    fn release(&mut self) {
        self.slots.release();
    }

    fn release_damaged(&mut self, excess: u64) {
        self.slots.release_damaged(excess);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::segment::Segment;
    use crate::shm::sharing::SEGMENT_FRAME_BYTES;
    use crate::shm::socket;
    use crate::slots::tests::ends;

    const LEN: usize = 5000;

    fn sharing_pair() -> [Arc<SegmentSharing>; 2] {
        let (own, other) = UnixStream::pair().unwrap();
        [own, other].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            Arc::new(SegmentSharing::new(Arc::new(stream)))
        })
    }

    fn handle_all(sharing: &SegmentSharing) {
        let mut frame = [0; SEGMENT_FRAME_BYTES];
        while let Ok((SEGMENT_FRAME_BYTES, file)) = socket::receive(sharing.stream(), &mut frame) {
            assert!(sharing.handle_frame(&frame, file));
        }
    }

    /// A correct sender never sends such messages.
    #[test]
    fn a_message_beyond_its_segment_is_reported() {
        let segment = Segment::new(10_000).unwrap();
        let (memory, _) = segment::find(segment.start(), 1).unwrap();
        for (id, offset, len, good) in [
            (memory.id(), 0, 10_000, true),
            (memory.id(), 9_999, 1, true),
            (memory.id(), 0, 10_001, false),
            (memory.id(), 10_000, 1, false),
            (memory.id(), usize::MAX, 2, false),
            (memory.id(), 1, usize::MAX, false),
            (memory.id() + 1, 0, 1, false),
            (u64::MAX, 0, 1, false),
        ] {
            let [lender, reader] = sharing_pair();
            assert_eq!(lender.offer(&memory, MappingAccess::Read), OfferState::Pending);
            handle_all(&reader);
            let (_ring, mut sender, receiver) = ends(false);
            let mut receiver = ShmReceiver::new(receiver, reader);
            sender.lend_segment(id, offset, len, 0).unwrap().unwrap();
            match receiver.receive() {
                Ok(Some(message)) => {
                    assert!(good && message.in_other_process && message.len == len)
                }
                Err(LinkError::Corrupt { peer: 5, .. }) => assert!(!good),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_segment_is_not_lent_before_the_peer_has_mapped_it() {
        let [lender, reader] = sharing_pair();
        let segment = Segment::new(LEN * 2).unwrap();
        let (_ring, sender, _) = ends(false);
        let mut sender = ShmSender::new(sender, lender.clone());
        let data = segment.start().cast_const();
        assert!(!sender.can_lend(data, LEN), "it was only offered");
        handle_all(&reader);
        assert!(!sender.can_lend(data, LEN), "its answer was not read");
        handle_all(&lender);
        assert!(sender.can_lend(data, LEN) && sender.can_lend(data, 2 * LEN));
        assert!(sender.can_lend(data, 0) && !sender.can_lend(data, 2 * LEN + 1));
        // Other segments are made and freed.
        for _ in 0..3 {
            let other = Segment::new(LEN).unwrap();
            assert!(!sender.can_lend(other.start(), LEN));
            assert!(sender.can_lend(data, LEN));
        }
        // The connection has ended: mapped segments can still be lent, new ones cannot.
        drop(reader);
        let other = Segment::new(LEN).unwrap();
        assert!(!sender.can_lend(other.start(), LEN));
        assert!(sender.can_lend(data, LEN));
        assert!(segment::find(data, 1).unwrap().0.file().as_fd().try_clone_to_owned().is_ok());
    }

    #[test]
    fn mappings_beyond_the_recent_ones_are_found_again() {
        let [lender, reader] = sharing_pair();
        let (_ring, mut sender, receiver) = ends(false);
        let mut receiver = ShmReceiver::new(receiver, reader.clone());
        let segments: Vec<Segment> =
            (0..3 * MAX_RECENT).map(|_| Segment::new(1000).unwrap()).collect();
        for round in 0..3 {
            for (number, segment) in segments.iter().enumerate() {
                let (memory, _) = segment::find(segment.start(), 1).unwrap();
                lender.offer(&memory, MappingAccess::Read);
                handle_all(&reader);
                let value = (round * 50 + number) as u8;
                // SAFETY: the segment is alive and used only by this thread.
                unsafe { segment.start().add(999).write(value) };
                sender.lend_segment(memory.id(), 999, 1, 0).unwrap().unwrap();
                let message = receiver.receive().unwrap().unwrap();
                // SAFETY: the message is not released.
                assert_eq!(unsafe { message.data.read() }, value);
                receiver.release();
            }
        }
        assert!(receiver.recent.len() <= MAX_RECENT);
    }
}
