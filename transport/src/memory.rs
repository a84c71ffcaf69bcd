//! Memory that processes share: anonymous files and their mappings. It has no name in a file
//! system and is freed with its last user.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::LinkError;

/// Bytes of a page of this host.
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Creates an anonymous file of `bytes` zeros, which take no memory until they are touched. The
/// size is sealed, so no peer can shrink the file under a mapping.
pub(crate) fn create_memfd(bytes: usize) -> Result<OwnedFd, LinkError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(c"maypole", flags)
        .map_err(|errno| LinkError::system("memfd_create", errno))?;
    let file = File::from(file);
    file.set_len(bytes as u64).map_err(|error| LinkError::system("ftruncate", error))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)
        .map_err(|errno| LinkError::system("fcntl(F_ADD_SEALS)", errno))?;
    Ok(file.into())
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
        let start = start.map_err(|errno| LinkError::system("mmap", errno))?;
        // If this is refused, children merely hold the memory too.
        // SAFETY: exactly the pages that were just mapped; the advice does not change them here.
        let _ = unsafe { rustix::mm::madvise(start, bytes, Advice::LinuxDontFork) };
        let start = NonNull::new(start.cast())
            .ok_or(LinkError::Misuse { what: "a mapping at address 0" })?;
        Ok(Self { start, bytes, owner: std::process::id() })
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
    fn an_unsealed_file_is_not_trusted() {
        let file = rustix::fs::memfd_create(c"open", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(4096).unwrap();
        assert!(!is_sealed(file.as_fd(), 4096));
        assert!(!is_sealed(File::open("/dev/null").unwrap().as_fd(), 0));
    }
}
