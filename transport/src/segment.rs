//! Segments: memory of this process that ranks of other processes of the host can map, so that what lies in it is read, or written, in
//! place.
//!
//! A segment is an anonymous file of its own: the memory, and a page in which its owner says when it is freed. A peer gets its descriptor
//! when something of it is first to be lent (`shm::sharing`). Segments have numbers that are never given twice; a message that was lent
//! names one, so an address that is freed and allocated anew is another segment's.
//!
//! Freeing gives the memory back at once, whoever has it mapped: a mapping that a peer still has reads as zeros, and is dropped when that
//! peer maps something else or its communicator ends.
//!
//! The table of them is the process', as addresses are.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::LinkError;
use crate::memory::{self, Access, Mapping};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What a segment is called; from 1. Its owner's process has only one of that number, ever.
pub(crate) type SegmentId = u64;

/// Memory that peers can map. Dropping it frees it.
///
/// A child made by fork does not have the memory, and dropping it there does nothing.
#[derive(Debug)]
pub struct Segment(Arc<Body>);

/// A segment, as long as somebody needs its file or its mapping.
#[derive(Debug)]
pub(crate) struct Body {
    id: SegmentId,
    file: OwnedFd,
    memory: Mapping,
    bytes: usize,
}

/// By first byte.
static LIVE: Mutex<BTreeMap<usize, Arc<Body>>> = Mutex::new(BTreeMap::new());
/// Grows whenever that changes.
static VERSION: AtomicU64 = AtomicU64::new(1);
static LAST: AtomicU64 = AtomicU64::new(0);

fn live() -> MutexGuard<'static, BTreeMap<usize, Arc<Body>>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Segment {
    /// `bytes` bytes of zeros, from a page boundary on, which cost nothing until they are touched. Takes a file descriptor as long as it
    /// lives.
    ///
    /// # Errors
    /// No bytes; no memory, address space or descriptors; or only descriptors of the upper half of those that the process may have, which
    /// are left to others.
    pub fn new(bytes: usize) -> Result<Self, LinkError> {
        let total = bytes.checked_next_multiple_of(memory::page()).filter(|total| *total > 0);
        let Some(total) = total.and_then(|bytes| bytes.checked_add(memory::page())) else {
            return Err(LinkError::Misuse { what: "a segment of no bytes, or of too many" });
        };
        let file = memory::create(total)?;
        if file.as_raw_fd() as u64 >= descriptors() / 2 {
            let error = std::io::Error::from_raw_os_error(libc::EMFILE);
            return Err(LinkError::system("memfd_create", &error));
        }
        let memory = Mapping::new(file.as_fd(), 0, total)?;
        // Only counted.
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let body = Arc::new(Body { id, file, memory, bytes });
        let mut live = live();
        // What was there in a process that this one was forked from is not here.
        if live.values().next().is_some_and(|body| !body.memory.is_ours()) {
            live.clear();
        }
        live.insert(body.memory.start().addr(), body.clone());
        changed();
        Ok(Self(body))
    }

    /// First byte; aligned to a page.
    pub fn start(&self) -> *mut u8 {
        self.0.memory.start()
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.0.memory.is_ours() {
            return;
        }
        let mut live = live();
        live.remove(&self.start().addr());
        changed();
        drop(live);
        self.0.end().store(1, Ordering::Release);
        memory::punch(self.0.file.as_fd(), self.0.bytes.next_multiple_of(memory::page()));
    }
}

impl Body {
    pub(crate) fn id(&self) -> SegmentId {
        self.id
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn end(&self) -> &AtomicU32 {
        let offset = self.bytes.next_multiple_of(memory::page());
        // SAFETY: `new` mapped a page after the memory, zeroed, which nothing but this word is in.
        unsafe { &*self.memory.start().add(offset).cast() }
    }
}

/// What a process has mapped of a segment of another one.
#[derive(Debug)]
pub(crate) struct Foreign {
    memory: Mapping,
    bytes: usize,
}

impl Foreign {
    /// Maps the segment of `bytes` bytes that is in `file`. None if it is not what it is said to be, or there is no room for it.
    pub(crate) fn map(file: BorrowedFd<'_>, bytes: usize, access: Access) -> Option<Self> {
        let page = memory::page();
        let total = bytes.checked_next_multiple_of(page)?.checked_add(page)?;
        if bytes == 0 || !memory::is_sealed(file, total) {
            return None;
        }
        let memory = Mapping::with(file, 0, total, access).ok()?;
        Some(Self { memory, bytes })
    }

    /// Where `len` bytes from `offset` on are; None if they are not within.
    pub(crate) fn get(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= self.bytes).then(|| self.memory.start().wrapping_add(offset))
    }

    /// Whether the owner has freed it.
    pub(crate) fn is_freed(&self) -> bool {
        let offset = self.bytes.next_multiple_of(memory::page());
        // SAFETY: `map` has mapped a page after the memory; its size is sealed.
        let end: &AtomicU32 = unsafe { &*self.memory.start().add(offset).cast() };
        end.load(Ordering::Acquire) != 0
    }
}

/// Memory of a peer's segment, to be written to as long as this lives, whatever the peer does.
#[derive(Clone, Debug)]
pub struct PeerSegment(Target);

#[derive(Clone, Debug)]
enum Target {
    /// Of another process.
    Foreign(Arc<Foreign>),
    /// Of a rank of this process.
    Own(Arc<Body>),
}

impl PeerSegment {
    pub(crate) fn foreign(foreign: Arc<Foreign>) -> Self {
        Self(Target::Foreign(foreign))
    }

    /// The segment of this process that has that number.
    pub(crate) fn own(id: SegmentId) -> Option<Self> {
        get(id).map(|body| Self(Target::Own(body)))
    }

    /// Where `len` bytes from `offset` on are; None if they are not within.
    pub fn address(&self, offset: usize, len: usize) -> Option<*mut u8> {
        match &self.0 {
            Target::Foreign(foreign) => foreign.get(offset, len),
            Target::Own(body) => {
                let end = offset.checked_add(len)?;
                (end <= body.bytes).then(|| body.memory.start().wrapping_add(offset))
            }
        }
    }
}

/// The number of the segment that these bytes lie in, all of them, and where: by that peers can reach them.
pub fn locate(data: *const u8, len: usize) -> Option<(u64, usize)> {
    find(data, len).map(|(body, offset)| (body.id, offset))
}

/// Where a segment lies, for who looks for addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) id: SegmentId,
}

/// Changes whenever a segment is made or freed.
#[inline]
pub(crate) fn version() -> u64 {
    // Pairs as `segments`.
    VERSION.load(Ordering::Acquire)
}

/// All segments of this process by address, and the version of that.
pub(crate) fn extents() -> (u64, Vec<Extent>) {
    let live = live();
    let ours = live.values().filter(|body| body.memory.is_ours());
    let extent = |body: &Arc<Body>| {
        let start = body.memory.start().addr();
        Extent { start, end: start + body.bytes, id: body.id }
    };
    (version(), ours.map(extent).collect())
}

/// The segment that these bytes lie in, all of them, and where.
pub(crate) fn find(data: *const u8, len: usize) -> Option<(Arc<Body>, usize)> {
    let live = live();
    let (start, body) = live.range(..=data.addr()).next_back()?;
    let offset = data.addr() - start;
    let within = offset.checked_add(len).is_some_and(|end| end <= body.bytes);
    (within && body.memory.is_ours()).then(|| (body.clone(), offset))
}

/// The segment of that number.
pub(crate) fn get(id: SegmentId) -> Option<Arc<Body>> {
    live().values().find(|body| body.id == id && body.memory.is_ours()).cloned()
}

/// The numbers of all segments of this process.
pub(crate) fn ids() -> HashSet<SegmentId> {
    extents().1.into_iter().map(|extent| extent.id).collect()
}

/// With the table locked.
fn changed() {
    // Pairs as `segments`.
    VERSION.fetch_add(1, Ordering::Release);
}

/// How many descriptors the process may have.
fn descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is alive and of the type that the call writes.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    if known { limit.rlim_cur } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_within_is_found() {
        let segment = Segment::new(10_000).unwrap();
        let start = segment.start();
        let (body, offset) = find(start.wrapping_add(77), 9_923).unwrap();
        assert_eq!((body.id(), offset), (segment.0.id, 77));
        assert!(find(start, 10_001).is_none() && find(start.wrapping_sub(1), 2).is_none());
        assert!(find(start.wrapping_add(10_000), 1).is_none());
        assert!(find(start, usize::MAX).is_none());
        let on_stack = 0u8;
        assert!(find(&raw const on_stack, 1).is_none());
        let known = extents().1;
        assert!(known.iter().any(|e| e.id == body.id() && e.end - e.start == 10_000));
        assert!(Segment::new(0).is_err() && Segment::new(usize::MAX).is_err());
    }

    #[test]
    fn another_mapping_sees_the_memory_and_its_end() {
        let segment = Segment::new(5_000).unwrap();
        let body = segment.0.clone();
        let [read, write] =
            [Access::Read, Access::Write].map(|a| Foreign::map(body.file(), 5_000, a).unwrap());
        assert!(read.get(0, 5_000).is_some() && read.get(5_000, 0).is_some());
        assert!(read.get(4_999, 2).is_none() && read.get(usize::MAX, 2).is_none());
        // SAFETY: all three are the same byte, used by this thread alone.
        unsafe {
            segment.start().add(4_999).write(7);
            assert_eq!(read.get(4_999, 1).unwrap().read(), 7);
            write.get(4_999, 1).unwrap().write(8);
            assert_eq!(segment.start().add(4_999).read(), 8);
        }
        assert!(!read.is_freed());
        let version = version();
        drop(segment);
        assert!(read.is_freed() && super::version() > version && get(body.id()).is_none());
        // Nothing but the page of the word is held.
        assert!(memory::held(body.file()) <= memory::page());
        // SAFETY: the mapping is alive.
        assert_eq!(unsafe { read.get(4_999, 1).unwrap().read() }, 0);
    }

    #[test]
    fn what_is_no_segment_of_that_size_is_not_mapped() {
        let segment = Segment::new(4096).unwrap();
        for bytes in [0, 4097, 1 << 40, usize::MAX] {
            assert!(Foreign::map(segment.0.file(), bytes, Access::Read).is_none());
        }
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(Foreign::map(file.as_fd(), 1, Access::Read).is_none());
    }

    #[test]
    fn numbers_are_not_given_twice() {
        let mut last = 0;
        for _ in 0..50 {
            let segment = Segment::new(1).unwrap();
            assert!(segment.0.id > last);
            last = segment.0.id;
        }
    }
}
