//! Registered memory and memory windows, by their keys.

use super::lock::{Guard, Lock, Plain};
use super::{Entries, fabric, process};
use crate::abi;
use crate::sync::{AtomicU32, SeqCst};

/// The bit that tells a remote key from a local one. Real adapters use the same number for both, or
/// not; a program that confuses them fails here.
pub(crate) const REMOTE: u32 = 1 << 31;

/// A memory region or a memory window.
#[repr(C)]
pub(crate) struct Region {
    owner: AtomicU32,
    /// The key without the bit for remote keys: a tag in the low 8 bits, the place above it. 0 if
    /// the region cannot be used.
    key: AtomicU32,
    /// The tag of the last use.
    tag: AtomicU32,
    data: Lock<RegionData>,
}

/// What a key stands for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct RegionData {
    /// Where it is in the memory of the owner, and the address that work requests use for it.
    pub(crate) address: u64,
    pub(crate) virtual_address: u64,
    pub(crate) length: u64,
    pub(crate) access: u32,
    pub(crate) domain: u32,
    pub(crate) device: u32,
    /// 0: a region; 1 or 2: a window of this type.
    pub(crate) window: u32,
    /// Of a window: the number of the queue pair that it is bound to (type 2), and its region.
    pub(crate) queue_pair: u32,
    pub(crate) parent: u32,
    /// Of a region: windows that are bound to it.
    pub(crate) windows: u32,
}

impl Plain for RegionData {}

impl Entries for Region {
    fn owner(&self) -> &AtomicU32 {
        &self.owner
    }
}

/// Why memory cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No region has this key, or it belongs to another process or device.
    Key,
    /// The region has another protection domain.
    Domain,
    /// The bytes are not inside.
    Bounds,
    /// The region does not allow this use.
    Access,
}

impl Region {
    /// Begins a use of the entry `place`. Returns the local key, which is not valid before
    /// [`Self::allow`].
    pub(crate) fn open(&self, place: usize, data: RegionData) -> u32 {
        let tag = (self.tag.load(SeqCst) + 1) & 0xff;
        self.tag.store(tag, SeqCst);
        *self.data.lock() = data;
        (place as u32) << 8 | tag
    }

    /// Makes a key valid. A window of type 2 chooses its tag.
    pub(crate) fn allow(&self, key: u32) {
        self.key.store(key & !REMOTE, SeqCst);
    }

    /// Makes the key invalid, and waits until no transfer uses the memory.
    pub(crate) fn forbid(&self) {
        self.key.store(0, SeqCst);
        process::wait_for_transfers();
    }

    pub(crate) fn key(&self) -> u32 {
        self.key.load(SeqCst)
    }

    pub(crate) fn data(&self) -> Guard<'_, RegionData> {
        self.data.lock()
    }

    pub(crate) fn destroy(&self) {
        self.key.store(0, SeqCst);
        self.release();
    }
}

/// The entry of a key, and its place.
pub(crate) fn find(key: u32) -> Option<(u32, &'static Region)> {
    let place = (key & !REMOTE) >> 8;
    let region = fabric().regions.get(place as usize)?;
    let valid = key & !REMOTE != 0 && region.key.load(SeqCst) == key & !REMOTE;
    valid.then_some((place, region))
}

/// The address in the memory of `owner` of the bytes that a work request names, if it may use them.
/// A transfer has begun, so that the answer stays right.
pub(crate) fn check(
    key: u32,
    remote: bool,
    owner: u32,
    domain: u32,
    queue_pair: u32,
    (address, length): (u64, u64),
    access: u32,
) -> Result<u64, Fault> {
    let (_, region) = find(key).ok_or(Fault::Key)?;
    if (key & REMOTE != 0) != remote || region.process() != Some(owner) {
        return Err(Fault::Key);
    }
    let data = *region.data();
    let bound_elsewhere = data.window == 2 && data.queue_pair != queue_pair;
    if data.domain != domain || bound_elsewhere {
        return Err(Fault::Domain);
    }
    if data.access & access != access || data.window != 0 && !remote {
        return Err(Fault::Access);
    }
    let offset = address.checked_sub(data.virtual_address).ok_or(Fault::Bounds)?;
    let end = offset.checked_add(length).ok_or(Fault::Bounds)?;
    if end > data.length {
        return Err(Fault::Bounds);
    }
    Ok(data.address + offset)
}

/// What a scatter entry of a receive needs.
pub(crate) const LOCAL_WRITE: u32 = abi::IBV_ACCESS_LOCAL_WRITE;
