//! What two processes have mapped of each other's segments, and how they agree on it.
//!
//! Either end *offers* a segment: a frame with its descriptor on the connection that the handshake left open. The other end's listening
//! thread maps it and answers that it has taken it, or refuses; not before that is anything lent of it. So a peer that is short of
//! descriptors or address space costs nothing but copies.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::socket;
use crate::memory::Access;
use crate::segment::{self, Body, Foreign, SegmentId};

/// Bytes of a frame.
pub(crate) const FRAME: usize = 32;

/// How many mappings a peer may ask for at a time; what is more is refused.
const MOST: usize = 4096;

/// What is shared with one peer.
#[derive(Debug)]
pub(crate) struct Sharing {
    stream: Arc<UnixStream>,
    given: Mutex<HashMap<(SegmentId, Access), Given>>,
    taken: Mutex<HashMap<(SegmentId, Access), Arc<Foreign>>>,
}

/// What has become of an offer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// The peer has not answered.
    Offered,
    /// The peer has mapped it, until it is freed.
    Taken,
    /// The peer has not, and will not.
    Refused,
}

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Offer { id: SegmentId, access: Access, bytes: u64 },
    Answer { id: SegmentId, access: Access, taken: bool },
}

impl Frame {
    fn encode(self) -> [u8; FRAME] {
        let (kind, id, access, last) = match self {
            Self::Offer { id, access, bytes } => (1, id, access, bytes),
            Self::Answer { id, access, taken } => (2, id, access, taken.into()),
        };
        let mut frame = [0; FRAME];
        (frame[0], frame[1]) = (kind, (access == Access::Write).into());
        frame[8..16].copy_from_slice(&id.to_le_bytes());
        frame[16..24].copy_from_slice(&last.to_le_bytes());
        frame
    }

    /// None if no correct peer writes this.
    fn decode(frame: &[u8; FRAME]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(*frame[at..].first_chunk()?));
        let access = [Access::Read, Access::Write].into_iter().nth(frame[1].into())?;
        let (id, last) = (word(8).filter(|id| *id > 0)?, word(16)?);
        match (frame[0], last) {
            (1, bytes) => Some(Self::Offer { id, access, bytes }),
            (2, 0 | 1) => Some(Self::Answer { id, access, taken: last == 1 }),
            _ => None,
        }
    }
}

impl Sharing {
    /// Nothing yet, over this connection, which does not block.
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self { stream, given: Mutex::default(), taken: Mutex::default() }
    }

    /// The connection, of which its listening thread reads.
    pub(crate) fn stream(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    /// Complete at all times, so that a panic elsewhere under the lock does no harm; so is `taken`.
    fn given(&self) -> MutexGuard<'_, HashMap<(SegmentId, Access), Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<(SegmentId, Access), Arc<Foreign>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a segment unless that was done. Returns at once.
    pub(crate) fn give(&self, body: &Body, access: Access) -> Given {
        let mut given = self.given();
        if let Some(known) = given.get(&(body.id(), access)) {
            return *known;
        }
        // What was freed is forgotten on this occasion.
        let live = segment::ids();
        given.retain(|(id, _), _| live.contains(id));
        let frame = Frame::Offer { id: body.id(), access, bytes: body.bytes() as u64 };
        match socket::send(&self.stream, &frame.encode(), body.file()) {
            Ok(()) => {
                given.insert((body.id(), access), Given::Offered);
                Given::Offered
            }
            // The connection is full of offers: again another time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Given::Offered,
            // It is gone, or such descriptors cannot be passed.
            Err(_) => {
                given.insert((body.id(), access), Given::Refused);
                Given::Refused
            }
        }
    }

    /// What the peer has given, if it has.
    pub(crate) fn get(&self, id: SegmentId, access: Access) -> Option<Arc<Foreign>> {
        self.taken().get(&(id, access)).cloned()
    }

    /// Does what the peer's frame says. False if no correct peer sends it.
    pub(crate) fn serve(&self, frame: &[u8; FRAME], file: Option<OwnedFd>) -> bool {
        match Frame::decode(frame) {
            Some(Frame::Offer { id, access, bytes }) => {
                let taken = self.take(id, access, bytes, file);
                let answer = Frame::Answer { id, access, taken };
                // Without an answer nothing is lent; a connection that takes none is about to end, or of a peer that reads nothing.
                let _ = socket::tell(&self.stream, &answer.encode());
                true
            }
            Some(Frame::Answer { id, access, taken }) => {
                let answer = if taken { Given::Taken } else { Given::Refused };
                if let Some(given) = self.given().get_mut(&(id, access)) {
                    *given = answer;
                }
                true
            }
            None => false,
        }
    }

    /// Maps what was offered; false if that cannot be.
    fn take(&self, id: SegmentId, access: Access, bytes: u64, file: Option<OwnedFd>) -> bool {
        let mut taken = self.taken();
        taken.retain(|_, foreign| !foreign.is_freed());
        if taken.len() >= MOST || taken.contains_key(&(id, access)) {
            return false;
        }
        let Some(file) = file else { return false };
        let foreign =
            usize::try_from(bytes).ok().and_then(|bytes| Foreign::map(file.as_fd(), bytes, access));
        let Some(foreign) = foreign else { return false };
        taken.insert((id, access), Arc::new(foreign));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Segment, find};

    fn pair() -> [Sharing; 2] {
        let (here, there) = UnixStream::pair().unwrap();
        [here, there].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            Sharing::new(Arc::new(stream))
        })
    }

    /// Serves all frames that have come.
    fn serve(sharing: &Sharing) -> usize {
        let mut served = 0;
        let mut frame = [0; FRAME];
        while let Ok((FRAME, file)) = socket::receive(&sharing.stream, &mut frame) {
            assert!(sharing.serve(&frame, file));
            served += 1;
        }
        served
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let all = [Access::Read, Access::Write].into_iter().flat_map(|access| {
            let offer = Frame::Offer { id: 7, access, bytes: 1 << 40 };
            [offer, Frame::Answer { id: 1, access, taken: access == Access::Read }]
        });
        for frame in all {
            let bytes = frame.encode();
            assert_eq!(Frame::decode(&bytes), Some(frame));
            for (at, wrong) in [(0, 0), (0, 3), (1, 2), (8, 0)] {
                let mut bytes = bytes;
                bytes[at] = wrong;
                assert_eq!(Frame::decode(&bytes), None);
            }
        }
    }

    #[test]
    fn a_segment_is_lent_once_it_is_taken_and_dropped_after_its_end() {
        let [here, there] = pair();
        let segment = Segment::new(1000).unwrap();
        let (body, _) = find(segment.start(), 1000).unwrap();
        assert_eq!(here.give(&body, Access::Read), Given::Offered);
        assert_eq!(here.give(&body, Access::Read), Given::Offered);
        assert_eq!((serve(&there), serve(&here)), (1, 1), "offered once, answered once");
        assert_eq!(here.give(&body, Access::Read), Given::Taken);
        assert!(there.get(body.id(), Access::Read).is_some());
        assert!(there.get(body.id(), Access::Write).is_none());
        drop(segment);
        let next = Segment::new(1000).unwrap();
        here.give(&find(next.start(), 1).unwrap().0, Access::Write);
        assert_eq!((serve(&there), serve(&here)), (1, 1));
        assert!(there.get(body.id(), Access::Read).is_none(), "the mapping of a freed segment");
        assert_eq!((here.given().len(), there.taken().len()), (1, 1));
    }

    #[test]
    fn what_cannot_be_mapped_is_refused_and_asked_for_no_more() {
        let [here, there] = pair();
        let segment = Segment::new(1000).unwrap();
        let (body, _) = find(segment.start(), 1000).unwrap();
        // A wrong size, no descriptor, and the same number twice.
        let offer = |bytes| Frame::Offer { id: body.id(), access: Access::Read, bytes }.encode();
        for (bytes, with_file) in [(5000, true), (1000, false), (0, true), (u64::MAX, true)] {
            let file = with_file.then(|| body.file().try_clone_to_owned().unwrap());
            assert!(there.serve(&offer(bytes), file));
            assert!(there.get(body.id(), Access::Read).is_none());
        }
        assert!(there.serve(&offer(1000), Some(body.file().try_clone_to_owned().unwrap())));
        assert!(there.serve(&offer(1000), Some(body.file().try_clone_to_owned().unwrap())));
        let mut answers = Vec::new();
        let mut frame = [0; FRAME];
        while let Ok((FRAME, None)) = socket::receive(&here.stream, &mut frame) {
            answers.push(Frame::decode(&frame).unwrap());
        }
        let taken = |frame: &Frame| matches!(frame, Frame::Answer { taken: true, .. });
        assert_eq!(
            answers.iter().map(taken).collect::<Vec<_>>(),
            [0, 0, 0, 0, 1, 0].map(|b| b == 1)
        );
        // An answer to what was not asked changes nothing.
        let answer = Frame::Answer { id: 1 << 60, access: Access::Read, taken: true };
        assert!(here.serve(&answer.encode(), None));
        assert!(here.given().is_empty());
        assert!(!here.serve(&[0xff; FRAME], None));
        drop(there);
        assert_eq!(here.give(&body, Access::Read), Given::Refused);
    }
}
