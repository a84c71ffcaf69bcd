//! Segments: memory of this process that ranks in other processes of the host can map, so that they
//! read or write it in place.
//!
//! A segment is an anonymous file of its own. It holds the memory and a page in which the owner
//! records that the segment is freed. A peer gets the file's descriptor when memory of the segment
//! is first to be lent to it (see `shm::sharing`). A segment's number is never reused. A lent
//! message names the number, so memory that is freed and allocated again at the same address is
//! another segment.
//!
//! Freeing a segment releases its memory at once, even where it is mapped. A peer's mapping then
//! reads as zeros; the peer drops it when it maps another segment or when its communicator ends.
//!
//! The table of segments belongs to the process, because addresses do.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::LinkError;
use crate::memory::{self, Mapping, MappingAccess};
use crate::process::PerProcess;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The number of a segment, from 1. Unique within its owner's process for the life of the process.
pub(crate) type SegmentId = u64;

/// Memory that peers can map. Dropping it frees it.
///
/// A child made by fork does not have the memory, and dropping the segment there does nothing.
#[derive(Debug)]
pub struct Segment(Arc<SegmentMemory>);

/// The file and the mapping of a segment, which exist while anything uses one of them.
#[derive(Debug)]
pub(crate) struct SegmentMemory {
    id: SegmentId,
    file: OwnedFd,
    mapping: Mapping,
    bytes: usize,
}

/// What has become of an offer of a segment to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OfferState {
    /// The peer has not answered.
    Pending,
    /// The peer has mapped the segment, and keeps it until the segment is freed.
    Accepted,
    /// The peer has not mapped the segment, and will not.
    Refused,
}

/// All segments of this process, by the address of their first byte.
static SEGMENTS: PerProcess<Mutex<BTreeMap<usize, Arc<SegmentMemory>>>> = PerProcess::new();
/// Grows with every change of the table.
static VERSION: AtomicU64 = AtomicU64::new(1);
static LAST_ID: AtomicU64 = AtomicU64::new(0);

impl Segment {
    /// Makes a segment of `bytes` zeros, aligned to a page, which take no memory until they are
    /// touched. It takes a file descriptor while it lives.
    ///
    /// # Errors
    /// `bytes` is 0; or memory, address space or descriptors are exhausted; or the process already
    /// uses the lower half of the descriptors that it may have. The upper half is left for others.
    pub fn new(bytes: usize) -> Result<Self, LinkError> {
        let page = memory::page_size();
        let total = bytes.checked_next_multiple_of(page).filter(|total| *total > 0);
        let Some(total) = total.and_then(|bytes| bytes.checked_add(page)) else {
            return Err(LinkError::Misuse { what: "a segment of no bytes, or of too many" });
        };
        let file = memory::create_memfd(total)?;
        if file.as_raw_fd() as u64 >= descriptor_limit() / 2 {
            return Err(LinkError::system("memfd_create", Errno::MFILE));
        }
        if memory::overcommit_is_off() {
            // Otherwise too little memory would end the process by SIGBUS at an access.
            memory::allocate_pages(file.as_fd(), 0, total)?;
        }
        let mapping = Mapping::new(file.as_fd(), 0, total, MappingAccess::ReadWrite)?;
        // Relaxed: only the number counts.
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        let memory = Arc::new(SegmentMemory { id, file, mapping, bytes });
        let mut segments = lock_segments();
        segments.insert(memory.mapping.start().addr(), memory.clone());
        advance_version();
        Ok(Self(memory))
    }

    /// The first byte; aligned to a page.
    pub fn start(&self) -> *mut u8 {
        self.0.mapping.start()
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.0.belongs_to_this_process() {
            return;
        }
        let mut segments = lock_segments();
        segments.remove(&self.start().addr());
        advance_version();
        drop(segments);
        // Release, paired as `segment-freed`.
        freed_word(&self.0.mapping, self.0.bytes).store(1, Ordering::Release);
        let pages = self.0.bytes.next_multiple_of(memory::page_size());
        memory::free_pages(self.0.file.as_fd(), pages);
    }
}

impl SegmentMemory {
    pub(crate) fn id(&self) -> SegmentId {
        self.id
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn belongs_to_this_process(&self) -> bool {
        self.mapping.belongs_to_this_process()
    }
}

/// The word that is not 0 once the owner has freed the segment. `mapping` is of a segment of
/// `bytes` bytes.
fn freed_word(mapping: &Mapping, bytes: usize) -> &AtomicU32 {
    let offset = bytes.next_multiple_of(memory::page_size());
    // SAFETY: every mapping of a segment includes the page after its memory, whose size is sealed.
    // That page is zeroed when it is made and holds only this word.
    unsafe { &*mapping.start().add(offset).cast() }
}

/// The address of `len` bytes from `offset`; `None` if they do not lie within the segment.
fn address_within(mapping: &Mapping, bytes: usize, offset: usize, len: usize) -> Option<*mut u8> {
    let end = offset.checked_add(len)?;
    (end <= bytes).then(|| mapping.start().wrapping_add(offset))
}

/// A segment of another process, mapped into this one.
#[derive(Debug)]
pub(crate) struct MappedSegment {
    mapping: Mapping,
    bytes: usize,
}

impl MappedSegment {
    /// Maps the segment of `bytes` bytes in `file`. `None` if the file is not such a segment or
    /// cannot be mapped.
    pub(crate) fn map(file: BorrowedFd<'_>, bytes: usize, access: MappingAccess) -> Option<Self> {
        let page = memory::page_size();
        let total = bytes.checked_next_multiple_of(page)?.checked_add(page)?;
        if bytes == 0 || !memory::is_sealed(file, total) {
            return None;
        }
        let mapping = Mapping::new(file, 0, total, access).ok()?;
        Some(Self { mapping, bytes })
    }

    /// The address of `len` bytes from `offset`; `None` if they do not lie within the segment.
    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<*mut u8> {
        address_within(&self.mapping, self.bytes, offset, len)
    }

    /// Whether the owner has freed the segment.
    pub(crate) fn is_freed(&self) -> bool {
        // Acquire, paired as `segment-freed`.
        freed_word(&self.mapping, self.bytes).load(Ordering::Acquire) != 0
    }
}

/// A peer's segment that this rank may write to. The memory stays mapped while this lives, whatever
/// the peer does.
#[derive(Clone, Debug)]
pub struct PeerSegment(PeerSegmentMemory);

#[derive(Clone, Debug)]
enum PeerSegmentMemory {
    /// The peer is in another process.
    Mapped(Arc<MappedSegment>),
    /// The peer is in this process.
    SameProcess(Arc<SegmentMemory>),
}

impl PeerSegment {
    /// A segment of another process.
    pub(crate) fn mapped(segment: Arc<MappedSegment>) -> Self {
        Self(PeerSegmentMemory::Mapped(segment))
    }

    /// The segment of this process with that number.
    pub(crate) fn in_same_process(id: SegmentId) -> Option<Self> {
        get(id).map(|memory| Self(PeerSegmentMemory::SameProcess(memory)))
    }

    /// The address of `len` bytes from `offset`; `None` if they do not lie within the segment.
    pub fn address(&self, offset: usize, len: usize) -> Option<*mut u8> {
        match &self.0 {
            PeerSegmentMemory::Mapped(segment) => segment.address(offset, len),
            PeerSegmentMemory::SameProcess(memory) => {
                address_within(&memory.mapping, memory.bytes, offset, len)
            }
        }
    }
}

/// The number of the segment that contains all these bytes, and their offset in it. Peers reach the
/// bytes by these two numbers. `None` if no segment contains them.
pub fn locate(data: *const u8, len: usize) -> Option<(u64, usize)> {
    find(data, len).map(|(memory, offset)| (memory.id, offset))
}

/// The addresses and the number of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentExtent {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) id: SegmentId,
}

/// A number that changes whenever a segment is made or freed.
#[inline]
pub(crate) fn version() -> u64 {
    // Acquire, paired as `segments`.
    VERSION.load(Ordering::Acquire)
}

/// All segments of this process, sorted by address, and the version of that list.
pub(crate) fn extents() -> (u64, Vec<SegmentExtent>) {
    let segments = lock_segments();
    let ours = segments.values().filter(|memory| memory.belongs_to_this_process());
    let extent = |memory: &Arc<SegmentMemory>| {
        let start = memory.mapping.start().addr();
        SegmentExtent { start, end: start + memory.bytes, id: memory.id }
    };
    (version(), ours.map(extent).collect())
}

/// The segment that contains all these bytes, and their offset in it.
pub(crate) fn find(data: *const u8, len: usize) -> Option<(Arc<SegmentMemory>, usize)> {
    let segments = lock_segments();
    let (start, memory) = segments.range(..=data.addr()).next_back()?;
    let offset = data.addr() - start;
    let within = offset.checked_add(len).is_some_and(|end| end <= memory.bytes);
    (within && memory.belongs_to_this_process()).then(|| (memory.clone(), offset))
}

/// The segment of this process with that number.
pub(crate) fn get(id: SegmentId) -> Option<Arc<SegmentMemory>> {
    let segments = lock_segments();
    let found = segments.values().find(|memory| memory.id == id);
    found.filter(|memory| memory.belongs_to_this_process()).cloned()
}

/// The numbers of all segments of this process.
pub(crate) fn ids() -> HashSet<SegmentId> {
    extents().1.into_iter().map(|extent| extent.id).collect()
}

fn lock_segments() -> MutexGuard<'static, BTreeMap<usize, Arc<SegmentMemory>>> {
    SEGMENTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called while the table is locked.
fn advance_version() {
    // Release, paired as `segments`.
    VERSION.fetch_add(1, Ordering::Release);
}

/// The number of file descriptors that the process may have.
fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_within_a_segment_are_found() {
        let segment = Segment::new(10_000).unwrap();
        let start = segment.start();
        let (memory, offset) = find(start.wrapping_add(77), 9_923).unwrap();
        assert_eq!((memory.id(), offset), (segment.0.id, 77));
        assert!(find(start, 10_001).is_none() && find(start.wrapping_sub(1), 2).is_none());
        assert!(find(start.wrapping_add(10_000), 1).is_none());
        assert!(find(start, usize::MAX).is_none());
        let on_stack = 0u8;
        assert!(find(&raw const on_stack, 1).is_none());
        let known = extents().1;
        assert!(known.iter().any(|e| e.id == memory.id() && e.end - e.start == 10_000));
        assert!(Segment::new(0).is_err() && Segment::new(usize::MAX).is_err());
    }

    #[test]
    fn another_mapping_sees_the_memory_and_that_it_is_freed() {
        let segment = Segment::new(5_000).unwrap();
        let memory = segment.0.clone();
        let [read, write] = [MappingAccess::Read, MappingAccess::ReadWrite]
            .map(|access| MappedSegment::map(memory.file(), 5_000, access).unwrap());
        assert!(read.address(0, 5_000).is_some() && read.address(5_000, 0).is_some());
        assert!(read.address(4_999, 2).is_none() && read.address(usize::MAX, 2).is_none());
        // SAFETY: all three are the same byte, used only by this thread.
        unsafe {
            segment.start().add(4_999).write(7);
            assert_eq!(read.address(4_999, 1).unwrap().read(), 7);
            write.address(4_999, 1).unwrap().write(8);
            assert_eq!(segment.start().add(4_999).read(), 8);
        }
        assert!(!read.is_freed());
        let version = version();
        drop(segment);
        assert!(read.is_freed() && super::version() > version && get(memory.id()).is_none());
        // Only the page of the word is still allocated.
        assert!(memory::allocated_bytes(memory.file()) <= memory::page_size());
        // SAFETY: the mapping is alive.
        assert_eq!(unsafe { read.address(4_999, 1).unwrap().read() }, 0);
    }

    #[test]
    fn a_file_that_is_not_a_segment_of_that_size_is_not_mapped() {
        let segment = Segment::new(4096).unwrap();
        for bytes in [0, 4097, 1 << 40, usize::MAX] {
            assert!(MappedSegment::map(segment.0.file(), bytes, MappingAccess::Read).is_none());
        }
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(MappedSegment::map(file.as_fd(), 1, MappingAccess::Read).is_none());
    }

    #[test]
    fn numbers_are_not_reused() {
        let mut last = 0;
        for _ in 0..50 {
            let segment = Segment::new(1).unwrap();
            assert!(segment.0.id > last);
            last = segment.0.id;
        }
    }
}
