//! Copies between registered memory of this process and of another one.

use crate::abi;
use crate::fabric::process;

/// Bytes of the memory of one process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) length: u64,
}

/// The most segments of one message: the entries of a work request, or of a receive and a header.
pub(crate) const MOST_SEGMENTS: usize = 33;

/// A list of segments without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    list: [Segment; MOST_SEGMENTS],
    count: usize,
}

impl Segments {
    pub(crate) fn new() -> Self {
        Self { list: [Segment::default(); MOST_SEGMENTS], count: 0 }
    }

    pub(crate) fn one(address: u64, length: u64) -> Self {
        let mut segments = Self::new();
        segments.push(address, length);
        segments
    }

    pub(crate) fn push(&mut self, address: u64, length: u64) {
        if length != 0 {
            self.list[self.count] = Segment { address, length };
            self.count += 1;
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.as_slice().iter().map(|segment| segment.length).sum()
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.list[..self.count]
    }

    /// The `length` bytes from `skip` on.
    pub(crate) fn part(&self, mut skip: u64, mut length: u64) -> Self {
        let mut part = Self::new();
        for segment in self.as_slice() {
            if skip >= segment.length {
                skip -= segment.length;
                continue;
            }
            let here = (segment.length - skip).min(length);
            part.push(segment.address + skip, here);
            length -= here;
            skip = 0;
            if length == 0 {
                break;
            }
        }
        part
    }
}

/// Why a copy was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyError {
    /// The other process is dead.
    Dead,
    /// Memory that is registered is not mapped any more.
    Unmapped,
}

/// Copies bytes of this process to the process `other`.
pub(crate) fn write(other: u32, own: &Segments, theirs: &Segments) -> Result<(), CopyError> {
    if other == process::me() {
        copy_within(own, theirs);
        return Ok(());
    }
    across(other, own, theirs, |pid, own, theirs| {
        let (own_count, their_count) = (own.len() as u64, theirs.len() as u64);
        // SAFETY: the lists are valid, and their entries are memory that both owners have
        // registered and keep registered while a transfer runs.
        unsafe {
            libc::process_vm_writev(pid, own.as_ptr(), own_count, theirs.as_ptr(), their_count, 0)
        }
    })
}

/// Copies bytes of the process `other` to this one.
pub(crate) fn read(other: u32, theirs: &Segments, own: &Segments) -> Result<(), CopyError> {
    if other == process::me() {
        copy_within(theirs, own);
        return Ok(());
    }
    across(other, own, theirs, |pid, own, theirs| {
        let (own_count, their_count) = (own.len() as u64, theirs.len() as u64);
        // SAFETY: as above.
        unsafe {
            libc::process_vm_readv(pid, own.as_ptr(), own_count, theirs.as_ptr(), their_count, 0)
        }
    })
}

/// Bytes that one system call copies at most; the kernel's limit is a little less than 2 GiB.
const MOST_PER_CALL: u64 = 1 << 30;

fn across(
    other: u32,
    own: &Segments,
    theirs: &Segments,
    call: impl Fn(libc::pid_t, &[libc::iovec], &[libc::iovec]) -> isize,
) -> Result<(), CopyError> {
    let pid = process::pid(other) as libc::pid_t;
    let total = own.length().min(theirs.length());
    let mut done = 0;
    while done < total {
        let count = (total - done).min(MOST_PER_CALL);
        let own = vectors(&own.part(done, count));
        let theirs = vectors(&theirs.part(done, count));
        let copied = call(pid, &own.0[..own.1], &theirs.0[..theirs.1]);
        if copied > 0 {
            done += copied as u64;
            continue;
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EPERM) => {
                eprintln!(
                    "maypole-fake-verbs: this process must not access the memory of process {pid}: \
                     both need the same user, or CAP_SYS_PTRACE"
                );
                std::process::abort();
            }
            Some(libc::ESRCH) => return Err(CopyError::Dead),
            // A process that is about to end has no memory any more.
            _ if !process::is_alive(other) => return Err(CopyError::Dead),
            _ => return Err(CopyError::Unmapped),
        }
    }
    Ok(())
}

fn vectors(segments: &Segments) -> ([libc::iovec; MOST_SEGMENTS], usize) {
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut vectors = [empty; MOST_SEGMENTS];
    for (vector, segment) in vectors.iter_mut().zip(segments.as_slice()) {
        vector.iov_base = std::ptr::without_provenance_mut(segment.address as usize);
        vector.iov_len = segment.length as usize;
    }
    (vectors, segments.as_slice().len())
}

fn copy_within(from: &Segments, to: &Segments) {
    let mut done = 0;
    let total = from.length().min(to.length());
    let (mut source, mut target) = (0usize, 0usize);
    let (mut source_at, mut target_at) = (0u64, 0u64);
    while done < total {
        let (a, b) = (from.as_slice()[source], to.as_slice()[target]);
        let count = (a.length - source_at).min(b.length - target_at);
        let source_address = (a.address + source_at) as usize;
        let target_address = (b.address + target_at) as usize;
        // SAFETY: both are registered memory of this process, or bytes of a work request, and stay
        // so while a transfer runs. Other threads may use the bytes; what they get is then as
        // undefined as with an adapter.
        unsafe {
            std::ptr::copy(
                std::ptr::with_exposed_provenance::<u8>(source_address),
                std::ptr::with_exposed_provenance_mut::<u8>(target_address),
                count as usize,
            );
        }
        done += count;
        source_at += count;
        target_at += count;
        if source_at == a.length {
            (source, source_at) = (source + 1, 0);
        }
        if target_at == b.length {
            (target, target_at) = (target + 1, 0);
        }
    }
}

/// The bytes of a work request that carries its data with it.
pub(crate) fn of_bytes(bytes: &[u8]) -> Segments {
    Segments::one(bytes.as_ptr().expose_provenance() as u64, bytes.len() as u64)
}

/// The entries of a work request, unchecked.
pub(crate) fn total(entries: &[abi::ibv_sge]) -> u64 {
    entries.iter().map(|entry| u64::from(entry.length)).sum()
}
