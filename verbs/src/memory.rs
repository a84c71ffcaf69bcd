//! Registered memory.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::context::ProtectionDomain;
use crate::error::VerbsError;
use crate::library::function;
use crate::sys;

/// What the adapter may do with registered memory, besides reading it for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAccess {
    /// Nothing more.
    LocalRead,
    /// Peers that have the remote key may write to it.
    RemoteWrite,
}

/// Memory that the adapter can access, pinned as long as this lives.
pub struct MemoryRegion {
    raw: NonNull<sys::ibv_mr>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: the keys are constants, and libibverbs may free the region on any thread.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion").finish_non_exhaustive()
    }
}

impl MemoryRegion {
    /// Registers `len` bytes at `start`. With `relaxed`, writes of the adapter may become visible
    /// in any order until their completion, if the adapter can do that.
    ///
    /// # Safety
    /// The memory stays mapped as long as the region lives. If peers may write to it, it is
    /// accessed as the contract of the crate says.
    ///
    /// # Errors
    /// The memory cannot be pinned (ENOMEM: see the limit of locked memory, `ulimit -l`), or the
    /// device has no regions left.
    pub unsafe fn register(
        domain: &Arc<ProtectionDomain>,
        start: *mut u8,
        len: usize,
        access: MemoryAccess,
        relaxed: bool,
    ) -> Result<Self, VerbsError> {
        let library = domain.context().library();
        let access = match access {
            MemoryAccess::LocalRead => 0,
            MemoryAccess::RemoteWrite => sys::IBV_ACCESS_LOCAL_WRITE | sys::IBV_ACCESS_REMOTE_WRITE,
        };
        // The older function does not know optional access flags.
        let with_options = function!(library, ibv_reg_mr_iova2).ok().filter(|_| relaxed);
        let raw = match with_options {
            Some(register) => {
                let access = access | sys::IBV_ACCESS_RELAXED_ORDERING;
                // SAFETY: the domain lives, and the caller promises the memory.
                unsafe { register(domain.raw(), start.cast(), len, start.addr() as u64, access) }
            }
            None => {
                let register = function!(library, ibv_reg_mr)?;
                // SAFETY: as above.
                unsafe { register(domain.raw(), start.cast(), len, access as i32) }
            }
        };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_reg_mr"))?;
        Ok(Self { raw, domain: domain.clone() })
    }

    /// The key by which work requests of this process name the memory.
    pub fn local_key(&self) -> u32 {
        // SAFETY: the region is registered as long as `self` lives.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    /// The key by which peers name the memory.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw.as_ptr()).rkey }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        let context = self.domain.context();
        if let Ok(deregister) = function!(context.library(), ibv_dereg_mr)
            && context.belongs_to_this_process()
        {
            // SAFETY: the region is registered and not used any more.
            unsafe { deregister(self.raw.as_ptr()) };
        }
    }
}
