//! How two processes agree on which of each other's segments they have mapped.
//!
//! Each end *offers* segments: a frame with the segment's descriptor, on the connection that the
//! handshake left open. The other end's listener thread maps the segment and answers whether it
//! did. Memory of the segment is only lent after a positive answer, so a peer that is short of
//! descriptors or address space costs only copies.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::socket;
use crate::closed_in_child::ClosedInChild;
use crate::memory::{self, MappingAccess};
use crate::segment::{MappedSegment, OfferState, SegmentId, SegmentMemory, ids};

/// Bytes of a frame.
pub(crate) const SEGMENT_FRAME_BYTES: usize = 32;

/// How many mappings one peer may ask for at a time. Further offers are refused.
const MAX_MAPPINGS: usize = 4096;

type OfferKey = (SegmentId, MappingAccess);

/// The segments shared with one peer.
#[derive(Debug)]
pub(crate) struct SegmentSharing {
    _closed_in_child: ClosedInChild,
    stream: Arc<UnixStream>,
    /// This rank's segments that were offered to the peer.
    offers: Mutex<HashMap<OfferKey, OfferState>>,
    /// The peer's segments that this rank has mapped.
    mapped: Mutex<HashMap<OfferKey, Arc<MappedSegment>>>,
}

/// A message between the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentFrame {
    Offer { id: SegmentId, access: MappingAccess, bytes: u64 },
    Answer { id: SegmentId, access: MappingAccess, accepted: bool },
}

impl SegmentFrame {
    fn encode(self) -> [u8; SEGMENT_FRAME_BYTES] {
        let (kind, id, access, last) = match self {
            Self::Offer { id, access, bytes } => (1, id, access, bytes),
            Self::Answer { id, access, accepted } => (2, id, access, accepted.into()),
        };
        let mut frame = [0; SEGMENT_FRAME_BYTES];
        (frame[0], frame[1]) = (kind, (access == MappingAccess::ReadWrite).into());
        frame[8..16].copy_from_slice(&id.to_le_bytes());
        frame[16..24].copy_from_slice(&last.to_le_bytes());
        frame
    }

    /// `None` if no correct peer sends this frame.
    fn decode(frame: &[u8; SEGMENT_FRAME_BYTES]) -> Option<Self> {
        let word = |offset: usize| Some(u64::from_le_bytes(*frame[offset..].first_chunk()?));
        let accesses = [MappingAccess::Read, MappingAccess::ReadWrite];
        let access = accesses.into_iter().nth(frame[1].into())?;
        let (id, last) = (word(8).filter(|id| *id > 0)?, word(16)?);
        match (frame[0], last) {
            (1, bytes) => Some(Self::Offer { id, access, bytes }),
            (2, 0 | 1) => Some(Self::Answer { id, access, accepted: last == 1 }),
            _ => None,
        }
    }
}

impl SegmentSharing {
    /// Shares no segments yet. `stream` is the connection to the peer, which must not block.
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        let _closed_in_child = ClosedInChild::new(&*stream);
        Self { _closed_in_child, stream, offers: Mutex::default(), mapped: Mutex::default() }
    }

    /// The connection, from which the listener thread of this rank reads.
    pub(crate) fn stream(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    /// The map is consistent at all times, so a panic elsewhere under the lock does no harm. The
    /// same holds for `mapped`.
    fn offers(&self) -> MutexGuard<'_, HashMap<OfferKey, OfferState>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapped(&self) -> MutexGuard<'_, HashMap<OfferKey, Arc<MappedSegment>>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a segment, unless that was done before. Returns at once.
    pub(crate) fn offer(&self, segment: &SegmentMemory, access: MappingAccess) -> OfferState {
        let mut offers = self.offers();
        if let Some(known) = offers.get(&(segment.id(), access)) {
            return *known;
        }
        // Offers of freed segments are forgotten on this occasion.
        let live = ids();
        offers.retain(|(id, _), _| live.contains(id));
        let bytes = segment.bytes() as u64;
        let frame = SegmentFrame::Offer { id: segment.id(), access, bytes };
        // By a descriptor for reading a peer cannot write by mistake what is only lent to it.
        let read_only = match access {
            MappingAccess::Read => memory::reopen_read_only(segment.file()),
            MappingAccess::ReadWrite => None,
        };
        let file = read_only.as_ref().map_or_else(|| segment.file(), OwnedFd::as_fd);
        match socket::send_with_descriptor(&self.stream, &frame.encode(), file) {
            Ok(()) => {
                offers.insert((segment.id(), access), OfferState::Pending);
                OfferState::Pending
            }
            // The connection is full of offers: the next call tries again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => OfferState::Pending,
            // The connection has ended, or such descriptors cannot be passed.
            Err(_) => {
                offers.insert((segment.id(), access), OfferState::Refused);
                OfferState::Refused
            }
        }
    }

    /// The peer's segment, if this rank has mapped it.
    pub(crate) fn mapped_segment(
        &self,
        id: SegmentId,
        access: MappingAccess,
    ) -> Option<Arc<MappedSegment>> {
        self.mapped().get(&(id, access)).cloned()
    }

    /// Handles a frame from the peer. False if no correct peer sends it.
    pub(crate) fn handle_frame(
        &self,
        frame: &[u8; SEGMENT_FRAME_BYTES],
        file: Option<OwnedFd>,
    ) -> bool {
        match SegmentFrame::decode(frame) {
            Some(SegmentFrame::Offer { id, access, bytes }) => {
                let accepted = self.map_offered(id, access, bytes, file);
                let answer = SegmentFrame::Answer { id, access, accepted };
                // Without an answer nothing is lent. A connection that takes no answer is about to
                // end, or its peer does not read.
                let _ = socket::send(&self.stream, &answer.encode());
                true
            }
            Some(SegmentFrame::Answer { id, access, accepted }) => {
                let answer = if accepted { OfferState::Accepted } else { OfferState::Refused };
                if let Some(offer) = self.offers().get_mut(&(id, access)) {
                    *offer = answer;
                }
                true
            }
            None => false,
        }
    }

    /// Maps a segment that was offered. False if that is not possible.
    fn map_offered(
        &self,
        id: SegmentId,
        access: MappingAccess,
        bytes: u64,
        file: Option<OwnedFd>,
    ) -> bool {
        let mut mapped = self.mapped();
        mapped.retain(|_, segment| !segment.is_freed());
        if mapped.len() >= MAX_MAPPINGS || mapped.contains_key(&(id, access)) {
            return false;
        }
        let Some(file) = file else { return false };
        let Ok(bytes) = usize::try_from(bytes) else { return false };
        let Some(segment) = MappedSegment::map(file.as_fd(), bytes, access) else { return false };
        mapped.insert((id, access), Arc::new(segment));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Segment, find};

    fn sharing_pair() -> [SegmentSharing; 2] {
        let (own, other) = UnixStream::pair().unwrap();
        [own, other].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            SegmentSharing::new(Arc::new(stream))
        })
    }

    /// Handles all frames that have arrived; returns their number.
    fn handle_all(sharing: &SegmentSharing) -> usize {
        let mut handled = 0;
        let mut frame = [0; SEGMENT_FRAME_BYTES];
        while let Ok((SEGMENT_FRAME_BYTES, file)) = socket::receive(&sharing.stream, &mut frame) {
            assert!(sharing.handle_frame(&frame, file));
            handled += 1;
        }
        handled
    }

    #[test]
    fn frames_decode_to_themselves() {
        let all = [MappingAccess::Read, MappingAccess::ReadWrite].into_iter().flat_map(|access| {
            let offer = SegmentFrame::Offer { id: 7, access, bytes: 1 << 40 };
            [offer, SegmentFrame::Answer { id: 1, access, accepted: access == MappingAccess::Read }]
        });
        for frame in all {
            let bytes = frame.encode();
            assert_eq!(SegmentFrame::decode(&bytes), Some(frame));
            for (index, wrong) in [(0, 0), (0, 3), (1, 2), (8, 0)] {
                let mut bytes = bytes;
                bytes[index] = wrong;
                assert_eq!(SegmentFrame::decode(&bytes), None);
            }
        }
    }

    #[test]
    fn an_accepted_segment_is_mapped_and_dropped_after_it_is_freed() {
        let [owner, receiver] = sharing_pair();
        let segment = Segment::new(1000).unwrap();
        let (memory, _) = find(segment.start(), 1000).unwrap();
        assert_eq!(owner.offer(&memory, MappingAccess::Read), OfferState::Pending);
        assert_eq!(owner.offer(&memory, MappingAccess::Read), OfferState::Pending);
        assert_eq!(
            (handle_all(&receiver), handle_all(&owner)),
            (1, 1),
            "offered once, answered once"
        );
        assert_eq!(owner.offer(&memory, MappingAccess::Read), OfferState::Accepted);
        assert!(receiver.mapped_segment(memory.id(), MappingAccess::Read).is_some());
        assert!(receiver.mapped_segment(memory.id(), MappingAccess::ReadWrite).is_none());
        drop(segment);
        let next = Segment::new(1000).unwrap();
        owner.offer(&find(next.start(), 1).unwrap().0, MappingAccess::ReadWrite);
        assert_eq!((handle_all(&receiver), handle_all(&owner)), (1, 1));
        assert!(
            receiver.mapped_segment(memory.id(), MappingAccess::Read).is_none(),
            "the mapping of a freed segment"
        );
        assert_eq!((owner.offers().len(), receiver.mapped().len()), (1, 1));
    }

    #[test]
    fn memory_that_is_lent_is_passed_for_reading_alone() {
        let [owner, receiver] = sharing_pair();
        let segment = Segment::new(1000).unwrap();
        let (memory, _) = find(segment.start(), 1000).unwrap();
        for (access, writable) in [(MappingAccess::Read, false), (MappingAccess::ReadWrite, true)] {
            owner.offer(&memory, access);
            let mut frame = [0; SEGMENT_FRAME_BYTES];
            let (_, file) = socket::receive(&receiver.stream, &mut frame).unwrap();
            let file = file.unwrap();
            assert!(MappedSegment::map(file.as_fd(), 1000, MappingAccess::Read).is_some());
            let mapped = MappedSegment::map(file.as_fd(), 1000, MappingAccess::ReadWrite);
            assert_eq!(mapped.is_some(), writable);
        }
    }

    #[test]
    fn a_segment_that_cannot_be_mapped_is_refused_for_good() {
        let [owner, receiver] = sharing_pair();
        let segment = Segment::new(1000).unwrap();
        let (memory, _) = find(segment.start(), 1000).unwrap();
        // A wrong size, no descriptor, no bytes and too many; then the same number twice.
        let offer = |bytes| {
            SegmentFrame::Offer { id: memory.id(), access: MappingAccess::Read, bytes }.encode()
        };
        for (bytes, with_file) in [(5000, true), (1000, false), (0, true), (u64::MAX, true)] {
            let file = with_file.then(|| memory.file().try_clone_to_owned().unwrap());
            assert!(receiver.handle_frame(&offer(bytes), file));
            assert!(receiver.mapped_segment(memory.id(), MappingAccess::Read).is_none());
        }
        assert!(
            receiver.handle_frame(&offer(1000), Some(memory.file().try_clone_to_owned().unwrap()))
        );
        assert!(
            receiver.handle_frame(&offer(1000), Some(memory.file().try_clone_to_owned().unwrap()))
        );
        let mut answers = Vec::new();
        let mut frame = [0; SEGMENT_FRAME_BYTES];
        while let Ok((SEGMENT_FRAME_BYTES, None)) = socket::receive(&owner.stream, &mut frame) {
            answers.push(SegmentFrame::decode(&frame).unwrap());
        }
        let accepted =
            |frame: &SegmentFrame| matches!(frame, SegmentFrame::Answer { accepted: true, .. });
        assert_eq!(
            answers.iter().map(accepted).collect::<Vec<_>>(),
            [0, 0, 0, 0, 1, 0].map(|b| b == 1)
        );
        // An answer without an offer changes nothing.
        let answer =
            SegmentFrame::Answer { id: 1 << 60, access: MappingAccess::Read, accepted: true };
        assert!(owner.handle_frame(&answer.encode(), None));
        assert!(owner.offers().is_empty());
        assert!(!owner.handle_frame(&[0xff; SEGMENT_FRAME_BYTES], None));
        drop(receiver);
        assert_eq!(owner.offer(&memory, MappingAccess::Read), OfferState::Refused);
    }
}
