//! Memory that processes share: anonymous files and their mappings. Nothing of it has a name or outlives its users.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use crate::error::LinkError;

/// Bytes of a page of this host.
pub(crate) fn page() -> usize {
    // SAFETY: a call without conditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// A file of `bytes` zeros that cost nothing until they are touched, and whose size is sealed: no peer can cut the
/// memory off under our feet.
pub(crate) fn create(bytes: usize) -> Result<OwnedFd, LinkError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"maypole".as_ptr(), flags) };
    if fd < 0 {
        return Err(LinkError::last("memfd_create"));
    }
    // SAFETY: a descriptor just made, owned by nobody else.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes as u64).map_err(|error| LinkError::system("ftruncate", &error))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open; no memory is involved.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(LinkError::last("fcntl(F_ADD_SEALS)"));
    }
    Ok(file.into())
}

/// Bytes of a file of [`create`] that take memory.
pub(crate) fn held(file: BorrowedFd<'_>) -> usize {
    let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the descriptor is open, and there is room for the result.
    let result = unsafe { libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) };
    if result != 0 {
        return 0;
    }
    // SAFETY: it was zeroed, and fstat has filled it. Blocks are of 512 bytes whatever the file.
    unsafe { status.assume_init().st_blocks as usize * 512 }
}

/// Gives the memory of the first `bytes` bytes of a file of [`create`] back, whoever has them mapped: they read as zeros then.
pub(crate) fn punch(file: BorrowedFd<'_>, bytes: usize) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open. If it fails, the memory is held until the last mapping goes.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, bytes as libc::off_t) };
}

/// Whether a file that came from elsewhere has `bytes` bytes and will keep them.
pub(crate) fn is_sealed(file: BorrowedFd<'_>, bytes: usize) -> bool {
    // SAFETY: the descriptor is open; no memory is involved. Not a memfd gives -1, with all bits set, hence the sign.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    // SAFETY: all zeros is a valid stat, which is only written to.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `stat` is alive.
    let known = unsafe { libc::fstat(file.as_raw_fd(), &mut stat) } == 0;
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0 && known && stat.st_size as u64 >= bytes as u64
}

/// A part of a file in this process' memory. A child made by fork does not have it: its memory is not held by a child
/// that never asked for it.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    owner: u32,
}

/// What may be done with shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// It is read.
    Read,
    /// It is written too.
    Write,
}

// SAFETY: a mapping is memory; who may access it is the business of the protocols in it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes from `offset`, a multiple of the page size.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
    ) -> Result<Self, LinkError> {
        Self::with(file, offset, bytes, Access::Write)
    }

    /// The same, to be used as `access` says.
    pub(crate) fn with(
        file: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> Result<Self, LinkError> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| LinkError::Misuse { what: "an inbox beyond the size of files" })?;
        // SAFETY: the kernel picks the address, so nothing else is overlaid; the result is checked.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(LinkError::last("mmap"));
        }
        // SAFETY: exactly the pages mapped above. If it is refused, children merely hold the memory too.
        unsafe { libc::madvise(start, bytes, libc::MADV_DONTFORK) };
        let start = NonNull::new(start.cast())
            .ok_or(LinkError::Misuse { what: "a mapping at address 0" })?;
        Ok(Self { start, bytes, owner: std::process::id() })
    }

    /// First byte; aligned to a page.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Whether it is of this process, and not of one that this one was forked from.
    pub(crate) fn is_ours(&self) -> bool {
        std::process::id() == self.owner
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a child made by fork these addresses may belong to someone else by now.
        if self.is_ours() {
            // SAFETY: exactly the pages that `new` mapped; whoever borrowed from it is gone.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], LinkError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is writable for its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(LinkError::system("getrandom", &error));
                }
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_created_file_keeps_its_size() {
        let file = create(1 << 40).unwrap();
        assert!(is_sealed(file.as_fd(), 1 << 40));
        assert!(!is_sealed(file.as_fd(), (1 << 40) + 1));
        let file = File::from(file);
        assert!(file.set_len(1 << 20).is_err());
        // SAFETY: all zeros is a valid stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and `stat` is alive.
        assert_eq!(unsafe { libc::fstat(file.as_raw_fd(), &mut stat) }, 0);
        assert_eq!(stat.st_blocks, 0, "an untouched file costs memory");
    }

    #[test]
    fn an_unsealed_file_is_not_trusted() {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"open".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: a descriptor just made.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(4096).unwrap();
        assert!(!is_sealed(file.as_fd(), 4096));
        assert!(!is_sealed(File::open("/dev/null").unwrap().as_fd(), 0));
    }
}
