//! The two ends of a link through shared memory: slots, and messages that lie in segments.

use std::sync::Arc;

use super::sharing::{Given, Sharing};
use crate::error::LinkError;
use crate::link::{Lendable, ReceiveSlots, ReceivedMessage, SendSlots, Sequence, SlotMut};
use crate::memory::Access;
use crate::segment::{self, Extent, Foreign, SegmentId};
use crate::slots::{SlotReceiver, SlotSender};

/// The sending end.
pub(crate) struct ShmSender {
    slots: SlotSender,
    sharing: Arc<Sharing>,
    /// The segments of this process, as of that version, and whether the peer has mapped them.
    version: u64,
    known: Vec<(Extent, Given)>,
}

/// The receiving end.
pub(crate) struct ShmReceiver {
    slots: SlotReceiver,
    sharing: Arc<Sharing>,
    /// Segments of the peer that were used last. The message that is not released lies in one of them, if in any.
    recent: Vec<(SegmentId, Arc<Foreign>)>,
}

/// How many of them are kept.
const RECENT: usize = 8;

impl ShmSender {
    pub(crate) fn new(slots: SlotSender, sharing: Arc<Sharing>) -> Self {
        Self { slots, sharing, version: 0, known: Vec::new() }
    }

    /// The segment that these bytes are in and where, if the peer has mapped it.
    fn find(&mut self, data: *const u8, len: usize) -> Option<(SegmentId, usize)> {
        let version = segment::version();
        if version != self.version {
            let (version, extents) = segment::extents();
            self.known = extents.into_iter().map(|extent| (extent, Given::Offered)).collect();
            self.version = version;
        }
        let start = data.addr();
        let after = self.known.partition_point(|(extent, _)| extent.start <= start);
        let (extent, given) = self.known.get_mut(after.checked_sub(1)?)?;
        start.checked_add(len).filter(|end| *end <= extent.end)?;
        if *given == Given::Offered {
            *given = segment::get(extent.id)
                .map_or(Given::Refused, |body| self.sharing.give(&body, Access::Read));
        }
        (*given == Given::Taken).then(|| (extent.id, start - extent.start))
    }
}

impl SendSlots for ShmSender {
    fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    fn credits(&self) -> u32 {
        self.slots.credits()
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.slots.reserve()
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        self.slots.send(len, tag)
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
        self.slots.lend_of(segment, offset, len, tag)
    }

    fn released(&mut self) -> Sequence {
        self.slots.released()
    }
}

impl ShmReceiver {
    pub(crate) fn new(slots: SlotReceiver, sharing: Arc<Sharing>) -> Self {
        Self { slots, sharing, recent: Vec::new() }
    }
}

/// Where a message is that the peer says lies there.
fn look_up(
    recent: &mut Vec<(SegmentId, Arc<Foreign>)>,
    sharing: &Sharing,
    (id, offset, len): (SegmentId, usize, usize),
) -> Result<*const u8, &'static str> {
    let at = match recent.iter().position(|(known, _)| *known == id) {
        Some(at) => at,
        None => {
            let foreign = sharing.get(id, Access::Read);
            let foreign = foreign.ok_or("a message lies in memory that was not given")?;
            recent.retain(|(_, foreign)| !foreign.is_freed());
            recent.truncate(RECENT - 1);
            recent.insert(0, (id, foreign));
            0
        }
    };
    let data = recent[at].1.get(offset, len);
    data.map(<*mut u8>::cast_const).ok_or("a message lies beyond the memory that was given")
}

impl ReceiveSlots for ShmReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let Self { slots, sharing, recent } = self;
        slots.receive_with(|id, offset, len| look_up(recent, sharing, (id, offset, len)))
    }

    fn release(&mut self) {
        self.slots.release();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::segment::Segment;
    use crate::shm::sharing::FRAME;
    use crate::shm::socket;
    use crate::slots::tests::ends;

    const LEN: usize = 5000;

    fn sharings() -> [Arc<Sharing>; 2] {
        let (here, there) = UnixStream::pair().unwrap();
        [here, there].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            Arc::new(Sharing::new(Arc::new(stream)))
        })
    }

    fn serve(sharing: &Sharing) {
        let mut frame = [0; FRAME];
        while let Ok((FRAME, file)) = socket::receive(sharing.stream(), &mut frame) {
            assert!(sharing.serve(&frame, file));
        }
    }

    /// A correct sender never makes these.
    #[test]
    fn a_message_beyond_its_segment_is_told() {
        let segment = Segment::new(10_000).unwrap();
        let (body, _) = segment::find(segment.start(), 1).unwrap();
        for (id, offset, len, good) in [
            (body.id(), 0, 10_000, true),
            (body.id(), 9_999, 1, true),
            (body.id(), 0, 10_001, false),
            (body.id(), 10_000, 1, false),
            (body.id(), usize::MAX, 2, false),
            (body.id(), 1, usize::MAX, false),
            (body.id() + 1, 0, 1, false),
            (u64::MAX, 0, 1, false),
        ] {
            let [here, there] = sharings();
            assert_eq!(here.give(&body, Access::Read), Given::Offered);
            serve(&there);
            let (_memory, mut sender, receiver) = ends(false);
            let mut receiver = ShmReceiver::new(receiver, there);
            sender.lend_of(id, offset, len, 0).unwrap().unwrap();
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
    fn nothing_is_lent_before_the_peer_has_it() {
        let [here, there] = sharings();
        let segment = Segment::new(LEN * 2).unwrap();
        let (_memory, sender, _) = ends(false);
        let mut sender = ShmSender::new(sender, here.clone());
        let data = segment.start().cast_const();
        assert!(!sender.can_lend(data, LEN), "it was just offered");
        serve(&there);
        assert!(!sender.can_lend(data, LEN), "its answer was not read");
        serve(&here);
        assert!(sender.can_lend(data, LEN) && sender.can_lend(data, 2 * LEN));
        assert!(sender.can_lend(data, 0) && !sender.can_lend(data, 2 * LEN + 1));
        // Other segments come and go.
        for _ in 0..3 {
            let other = Segment::new(LEN).unwrap();
            assert!(!sender.can_lend(other.start(), LEN));
            assert!(sender.can_lend(data, LEN));
        }
        // The connection is gone: what was taken stays so, and nothing more is.
        drop(there);
        let other = Segment::new(LEN).unwrap();
        assert!(!sender.can_lend(other.start(), LEN));
        assert!(sender.can_lend(data, LEN));
        assert!(segment::find(data, 1).unwrap().0.file().as_fd().try_clone_to_owned().is_ok());
    }

    #[test]
    fn mappings_beyond_those_kept_at_hand_are_found_again() {
        let [here, there] = sharings();
        let (_memory, mut sender, receiver) = ends(false);
        let mut receiver = ShmReceiver::new(receiver, there.clone());
        let segments: Vec<Segment> = (0..3 * RECENT).map(|_| Segment::new(1000).unwrap()).collect();
        for round in 0..3 {
            for (number, segment) in segments.iter().enumerate() {
                let (body, _) = segment::find(segment.start(), 1).unwrap();
                here.give(&body, Access::Read);
                serve(&there);
                let value = (round * 50 + number) as u8;
                // SAFETY: the segment is alive and used by this thread alone.
                unsafe { segment.start().add(999).write(value) };
                sender.lend_of(body.id(), 999, 1, 0).unwrap().unwrap();
                let message = receiver.receive().unwrap().unwrap();
                // SAFETY: the message is not released.
                assert_eq!(unsafe { message.data.read() }, value);
                receiver.release();
            }
        }
        assert!(receiver.recent.len() <= RECENT);
    }
}
