//! Memory that processes share: anonymous files and their mappings. It has no name in a file
//! system and is freed with its last user.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

use crate::error::LinkError;
use crate::process::occupy_standard_streams;
use crate::sync::{AtomicU32, Ordering};

/// Bytes of a page of this host.
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Creates an anonymous file of `bytes` zeros, which take no memory until they are touched. The
/// size is sealed, so no peer can shrink the file under a mapping.
///
/// # Errors
/// Descriptors or memory are exhausted, or a rule of the system forbids the file: see
/// [`is_forbidden`].
pub(crate) fn create_memfd(bytes: usize) -> Result<OwnedFd, LinkError> {
    // A longer file than the limit (ulimit -f) allows would end the process by SIGXFSZ.
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| bytes as u64 > limit) {
        return Err(LinkError::system("ftruncate", Errno::FBIG));
    }
    let file = open_memfd().map_err(|errno| LinkError::system("memfd_create", errno))?;
    let file = File::from(file);
    file.set_len(bytes as u64).map_err(|error| LinkError::system("ftruncate", error))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)
        .map_err(|errno| LinkError::system("fcntl(F_ADD_SEALS)", errno))?;
    Ok(file.into())
}

/// An anonymous file that cannot be executed: `vm.memfd_noexec` may forbid all others.
fn open_memfd() -> rustix::io::Result<OwnedFd> {
    occupy_standard_streams();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"maypole", flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"maypole", flags),
        made => made,
    }
}

/// Whether [`create_memfd`] failed because a rule forbids such a file: a filter of system calls, or
/// the limit on the size of files. Memory of the process alone is still available.
pub(crate) fn is_forbidden(error: &LinkError) -> bool {
    let LinkError::System { errno, .. } = error else { return false };
    [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EFBIG].contains(errno)
}

/// Whether the system counts all memory that could be touched (`vm.overcommit_memory=2`). If there
/// is none left it ends the process by SIGBUS at the first access to a page of a file.
pub(crate) fn overcommit_is_off() -> bool {
    /// 0 before it is known, then 1 for no and 2 for yes.
    static KNOWN: AtomicU32 = AtomicU32::new(0);
    if KNOWN.load(Ordering::Relaxed) == 0 {
        let mode = std::fs::read_to_string("/proc/sys/vm/overcommit_memory");
        let is_off = mode.is_ok_and(|mode| mode.trim() == "2");
        KNOWN.store(if is_off { 2 } else { 1 }, Ordering::Relaxed);
    }
    KNOWN.load(Ordering::Relaxed) == 2
}

/// Takes the memory of a part of a file of [`create_memfd`], so that an access cannot fail.
///
/// # Errors
/// The system has not so much memory left.
pub(crate) fn allocate_pages(
    file: BorrowedFd<'_>,
    offset: usize,
    bytes: usize,
) -> Result<(), LinkError> {
    loop {
        let allocated =
            rustix::fs::fallocate(file, FallocateFlags::empty(), offset as u64, bytes as u64);
        match allocated {
            Err(Errno::INTR) => {}
            other => return other.map_err(|errno| LinkError::system("fallocate", errno)),
        }
    }
}

/// Bytes of memory that a file of [`create_memfd`] takes by now.
pub(crate) fn allocated_bytes(file: BorrowedFd<'_>) -> usize {
    // Blocks have 512 bytes, whatever the file.
    rustix::fs::fstat(file).map_or(0, |stat| stat.st_blocks as usize * 512)
}

/// Frees the memory of the first `bytes` bytes of a file of [`create_memfd`], even where it is
/// mapped. It reads as zeros afterwards.
pub(crate) fn free_pages(file: BorrowedFd<'_>, bytes: usize) {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // If this fails, the memory is only freed with the last mapping.
    let _ = rustix::fs::fallocate(file, mode, 0, bytes as u64);
}

/// Another descriptor of a file of [`create_memfd`], by which it can only be read. None if there is
/// no /proc.
pub(crate) fn reopen_read_only(file: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Whether a file that a peer sent has at least `bytes` bytes and cannot shrink.
pub(crate) fn is_sealed(file: BorrowedFd<'_>, bytes: usize) -> bool {
    let seals = rustix::fs::fcntl_get_seals(file);
    let stat = rustix::fs::fstat(file);
    seals.is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
        && stat.is_ok_and(|stat| stat.st_size as u64 >= bytes as u64)
}

/// What may be done with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MappingAccess {
    Read,
    ReadWrite,
}

/// A part of a file, mapped into this process.
///
/// A child made by fork does not get the mapping, so that it does not hold memory it never asked
/// for.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    /// The process that made the mapping.
    owner: u32,
}

// SAFETY: a mapping is plain memory. The protocols in it decide who may access it when.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes from `offset`, a multiple of the page size.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        access: MappingAccess,
    ) -> Result<Self, LinkError> {
        let protection = match access {
            MappingAccess::Read => ProtFlags::READ,
            MappingAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel picks the address, so no other mapping is replaced.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, protection, flags, file, offset as u64)
        };
        Self::of_pages(start, bytes)
    }

    /// Memory of this process alone: `bytes` zeros.
    pub(crate) fn private(bytes: usize) -> Result<Self, LinkError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel picks the address, so no other mapping is replaced.
        let start =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, protection, flags) };
        Self::of_pages(start, bytes)
    }

    /// Owns the pages that a call has mapped.
    fn of_pages(start: rustix::io::Result<*mut c_void>, bytes: usize) -> Result<Self, LinkError> {
        let start = start.map_err(|errno| LinkError::system("mmap", errno))?;
        // If this is refused, children merely hold the memory too.
        // SAFETY: exactly the pages that were just mapped; the advice does not change them here.
        let _ = unsafe { rustix::mm::madvise(start, bytes, Advice::LinuxDontFork) };
        let start = NonNull::new(start.cast())
            .ok_or(LinkError::Misuse { what: "a mapping at address 0" })?;
        Ok(Self { start, bytes, owner: std::process::id() })
    }

    /// Bytes of the mapping that are in memory by now.
    pub(crate) fn resident_bytes(&self) -> usize {
        let page = page_size();
        let mut pages = vec![0_u8; self.bytes.div_ceil(page)];
        // SAFETY: exactly the pages of this mapping, and one byte for each.
        let status =
            unsafe { libc::mincore(self.start.as_ptr().cast(), self.bytes, pages.as_mut_ptr()) };
        let resident = pages.iter().filter(|page| **page & 1 == 1).count();
        if status == 0 { resident * page } else { 0 }
    }

    /// The first byte; aligned to a page.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Whether this process made the mapping. False in a child made by fork.
    pub(crate) fn belongs_to_this_process(&self) -> bool {
        std::process::id() == self.owner
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a child made by fork, these addresses may be in use for something else.
        if self.belongs_to_this_process() {
            // SAFETY: exactly the pages that `new` mapped; all borrows of `self` have ended.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_created_file_keeps_its_size() {
        let file = create_memfd(1 << 40).unwrap();
        assert!(is_sealed(file.as_fd(), 1 << 40));
        assert!(!is_sealed(file.as_fd(), (1 << 40) + 1));
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!(stat.st_blocks, 0, "an untouched file takes memory");
        let file = File::from(file);
        assert!(file.set_len(1 << 20).is_err());
    }

    #[test]
    fn pages_that_are_allocated_take_memory_at_once() {
        let (file, page) = (create_memfd(1 << 20).unwrap(), page_size());
        allocate_pages(file.as_fd(), page, 3 * page).unwrap();
        assert_eq!(allocated_bytes(file.as_fd()), 3 * page);
        assert!(allocate_pages(file.as_fd(), 0, 2 << 20).is_err(), "beyond the sealed size");
    }

    #[test]
    fn private_memory_is_zeroed_and_counted() {
        let memory = Mapping::private(10 * page_size()).unwrap();
        assert_eq!(memory.resident_bytes(), 0);
        // SAFETY: the first byte of the mapping, which this thread alone uses.
        assert_eq!(unsafe { memory.start().read() }, 0);
        // SAFETY: as above.
        unsafe { memory.start().write(1) };
        assert_eq!(memory.resident_bytes(), page_size());
    }

    #[test]
    fn an_unsealed_file_is_not_trusted() {
        let file = rustix::fs::memfd_create(c"open", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(4096).unwrap();
        assert!(!is_sealed(file.as_fd(), 4096));
        assert!(!is_sealed(File::open("/dev/null").unwrap().as_fd(), 0));
    }
}
