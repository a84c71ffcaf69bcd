//! Memory for keys. It is left out of core dumps, and erased when it is given back.

use std::fmt;
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use zeroize::Zeroize;

use crate::memory::page_size;
use crate::process::PerProcess;

/// Bytes of a key, and of a hash.
pub const KEY_BYTES: usize = 32;

/// The bytes of one key.
type KeyBytes = [u8; KEY_BYTES];

/// The bytes of a key, in memory that no core dump shows. They are erased when the value is
/// dropped.
pub(super) struct SecretBytes(NonNull<KeyBytes>);

// SAFETY: the bytes belong to this value alone.
unsafe impl Send for SecretBytes {}
// SAFETY: as above; they are only written through an exclusive reference.
unsafe impl Sync for SecretBytes {}

/// The places of this process that no key has. A child made by fork has pages of its own, because
/// another thread of its parent may have held the lock; the places of keys that it inherited are
/// copies, which only the child has.
static FREE: PerProcess<Mutex<FreePlaces>> = PerProcess::new();

/// Places for keys, in pages that stay as long as the process.
#[derive(Default)]
struct FreePlaces(Vec<NonNull<KeyBytes>>);

// SAFETY: nothing else uses a place that is free.
unsafe impl Send for FreePlaces {}

impl SecretBytes {
    /// A key of zeros, to be filled in place.
    pub(super) fn zeroed() -> Self {
        Self(places().take())
    }

    /// The bytes.
    pub(super) fn get(&self) -> &KeyBytes {
        // SAFETY: the place belongs to this value, and its page stays.
        unsafe { self.0.as_ref() }
    }

    /// The bytes, to be written.
    pub(super) fn get_mut(&mut self) -> &mut KeyBytes {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.get_mut().zeroize();
        places().0.push(self.0);
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// The free places. They are valid at every moment, so a panic under the lock does no harm.
fn places() -> MutexGuard<'static, FreePlaces> {
    FREE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl FreePlaces {
    /// A place of zeros.
    fn take(&mut self) -> NonNull<KeyBytes> {
        if self.0.is_empty() {
            self.add_page();
        }
        self.0.pop().unwrap_or_else(|| NonNull::from(Box::leak(Box::new([0; KEY_BYTES]))))
    }

    /// Adds a page of places. A child made by fork gets a copy of it, because it may drop keys.
    /// Where the system gives no page, keys are in ordinary memory.
    fn add_page(&mut self) {
        let bytes = page_size();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) };
        let Ok(page) = page else { return };
        // A kernel that does not know the advice, which is of 2012, dumps the keys.
        // SAFETY: the range is the whole mapping; the advice does not change what it holds.
        let _ = unsafe { madvise(page, bytes, Advice::LinuxDontDump) };
        let first = page.cast::<KeyBytes>();
        let places = (0..bytes / KEY_BYTES).map(|at| first.wrapping_add(at));
        self.0.extend(places.filter_map(NonNull::new));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The flags of the mapping that contains this address.
    fn flags_at(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("a /proc");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let parse = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(a, b)| (parse(a), parse(b))) {
                inside = (start..end).contains(&address);
            }
            if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return flags.to_owned();
            }
        }
        String::new()
    }

    #[test]
    fn keys_are_left_out_of_core_dumps() {
        let many: Vec<SecretBytes> = (0..300).map(|_| SecretBytes::zeroed()).collect();
        for key in [&many[0], &many[299]] {
            let flags = flags_at(key.0.as_ptr().addr());
            assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags:?}");
        }
        let ordinary = flags_at((&raw const many).addr());
        assert!(!ordinary.is_empty() && !ordinary.split_whitespace().any(|flag| flag == "dd"));
    }

    #[test]
    fn a_key_is_erased_when_it_is_dropped() {
        // No other test has this key.
        let bytes = std::array::from_fn(|at| 0x91 ^ (7 * at as u8));
        let mut key = SecretBytes::zeroed();
        *key.get_mut() = bytes;
        let place = key.0;
        drop(key);
        // Nobody can take the place while the lock is held. It is free, or somebody has taken it
        // since then.
        let free = places();
        // SAFETY: the page of the place stays mapped.
        let found = unsafe { place.read_volatile() };
        assert_ne!(found, bytes);
        assert!(found == [0; KEY_BYTES] || !free.0.contains(&place));
    }
}
