//! Completion queues, the channels that wake a thread for them, and shared receive queues.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::context::{Context, ProtectionDomain};
use crate::error::VerbsError;
use crate::library::function;
use crate::sys;

/// The result of a work request, or the arrival of an immediate value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The id of the work request.
    pub id: u64,
    /// The status; 0 is success. See [`describe_status`](crate::describe_status). Unless it is 0,
    /// only the id, the queue and the vendor's error are valid.
    pub status: u32,
    /// Whether this is the completion of a receive, and not of a send.
    pub is_receive: bool,
    /// Bytes that arrived, for receives.
    pub bytes: u32,
    /// The immediate value that came with a receive.
    pub immediate: Option<u32>,
    /// The number of the local queue pair.
    pub queue: u32,
    /// What the vendor's driver says about an error.
    pub vendor_error: u32,
}

/// A channel of events of completion queues, with a descriptor to wait for.
pub struct CompletionChannel {
    raw: NonNull<sys::ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: libibverbs locks what its functions share.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl fmt::Debug for CompletionChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionChannel").finish_non_exhaustive()
    }
}

impl CompletionChannel {
    /// A new channel.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, VerbsError> {
        let create = function!(context.library(), ibv_create_comp_channel)?;
        // SAFETY: the context is open.
        let raw = NonNull::new(unsafe { create(context.raw()) });
        let raw = raw.ok_or_else(|| VerbsError::last("ibv_create_comp_channel"))?;
        Ok(Arc::new(Self { raw, context: context.clone() }))
    }

    /// The descriptor that is readable when there is an event.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and with it the descriptor, lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }

    /// Takes an event, if there is one: some completion queue of the channel that was
    /// [armed](CompletionQueue::arm) has a completion. The descriptor must not block.
    pub fn take_event(&self) -> bool {
        let library = self.context.library();
        let (Ok(get), Ok(acknowledge)) =
            (function!(library, ibv_get_cq_event), function!(library, ibv_ack_cq_events))
        else {
            return false;
        };
        let (mut queue, mut cookie) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel lives, and both results are writable.
        if unsafe { get(self.raw.as_ptr(), &raw mut queue, &raw mut cookie) } != 0 {
            return false;
        }
        // SAFETY: an event of a queue that is not destroyed, because its destruction waits for this
        // acknowledgement.
        unsafe { acknowledge(queue, 1) };
        true
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        if let Ok(destroy) = function!(self.context.library(), ibv_destroy_comp_channel)
            && self.context.belongs_to_this_process()
        {
            // SAFETY: the queues of the channel kept it alive and are gone.
            unsafe { destroy(self.raw.as_ptr()) };
        }
    }
}

/// A completion queue.
pub struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    context: Arc<Context>,
    _channel: Arc<CompletionChannel>,
}

// SAFETY: libibverbs locks what its functions share.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").finish_non_exhaustive()
    }
}

/// Completions that one call of the provider fetches.
const BATCH: usize = 16;

impl CompletionQueue {
    /// A queue with room for `entries` completions. If it ever has more, it fails.
    ///
    /// # Errors
    /// The device has no queues left, or cannot make one of this length.
    pub fn new(channel: &Arc<CompletionChannel>, entries: u32) -> Result<Arc<Self>, VerbsError> {
        let context = &channel.context;
        let create = function!(context.library(), ibv_create_cq)?;
        let entries = i32::try_from(entries).unwrap_or(i32::MAX);
        // SAFETY: the context is open and the channel lives.
        let raw =
            unsafe { create(context.raw(), entries, ptr::null_mut(), channel.raw.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_create_cq"))?;
        Ok(Arc::new(Self { raw, context: context.clone(), _channel: channel.clone() }))
    }

    pub(crate) fn raw(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    /// Fetches at most 16 completions and calls `take` for each. Returns how many there were.
    ///
    /// # Errors
    /// The queue has failed.
    pub fn poll(&self, mut take: impl FnMut(Completion)) -> Result<usize, VerbsError> {
        // SAFETY: the context is open; its table of functions is constant.
        let poll = unsafe { (*self.context.raw()).ops.poll_cq };
        let poll = poll.ok_or(VerbsError::Missing { function: "poll_cq" })?;
        let mut work = [sys::ibv_wc::default(); BATCH];
        // SAFETY: the queue lives, and the array has so many entries.
        let got = unsafe { poll(self.raw(), BATCH as i32, work.as_mut_ptr()) };
        let Ok(got) = usize::try_from(got) else {
            return Err(VerbsError::Failed { call: "ibv_poll_cq", errno: libc::EIO });
        };
        for entry in &work[..got.min(BATCH)] {
            take(completion(entry));
        }
        Ok(got)
    }

    /// Asks for an event of the channel when the next completion comes. Poll once more afterwards,
    /// because one may have come before.
    ///
    /// # Errors
    /// The queue has failed.
    pub fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: the context is open; its table of functions is constant.
        let arm = unsafe { (*self.context.raw()).ops.req_notify_cq };
        let arm = arm.ok_or(VerbsError::Missing { function: "req_notify_cq" })?;
        // SAFETY: the queue lives.
        VerbsError::check("ibv_req_notify_cq", unsafe { arm(self.raw(), 0) })
    }
}

fn completion(entry: &sys::ibv_wc) -> Completion {
    let ok = entry.status == sys::IBV_WC_SUCCESS;
    let has_immediate = ok && entry.wc_flags & sys::IBV_WC_WITH_IMM != 0;
    // SAFETY: the flag says that this field of the union is set; both fields are plain numbers.
    let immediate = unsafe { entry.__bindgen_anon_1.imm_data };
    Completion {
        id: entry.wr_id,
        status: entry.status,
        is_receive: ok && entry.opcode & sys::IBV_WC_RECV != 0,
        bytes: entry.byte_len,
        immediate: has_immediate.then(|| u32::from_be(immediate)),
        queue: entry.qp_num,
        vendor_error: entry.vendor_err,
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        if let Ok(destroy) = function!(self.context.library(), ibv_destroy_cq)
            && self.context.belongs_to_this_process()
        {
            // SAFETY: the queue pairs of the queue kept it alive and are gone.
            unsafe { destroy(self.raw()) };
        }
    }
}

/// A queue of receives that several queue pairs share. Its receives have no memory: they only take
/// immediate values.
pub struct SharedReceiveQueue {
    raw: NonNull<sys::ibv_srq>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs locks what its functions share.
unsafe impl Send for SharedReceiveQueue {}
// SAFETY: as above.
unsafe impl Sync for SharedReceiveQueue {}

impl fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue").finish_non_exhaustive()
    }
}

impl SharedReceiveQueue {
    /// A queue with room for `receives`.
    ///
    /// # Errors
    /// The device has no such queues left, or cannot make one of this length.
    pub fn new(domain: &Arc<ProtectionDomain>, receives: u32) -> Result<Arc<Self>, VerbsError> {
        let create = function!(domain.context().library(), ibv_create_srq)?;
        let mut setup = sys::ibv_srq_init_attr::default();
        (setup.attr.max_wr, setup.attr.max_sge) = (receives, 1);
        // SAFETY: the domain lives, and the attributes are writable.
        let raw = NonNull::new(unsafe { create(domain.raw(), &raw mut setup) });
        let raw = raw.ok_or_else(|| VerbsError::last("ibv_create_srq"))?;
        Ok(Arc::new(Self { raw, domain: domain.clone() }))
    }

    pub(crate) fn raw(&self) -> *mut sys::ibv_srq {
        self.raw.as_ptr()
    }

    /// Posts `count` receives with this id.
    ///
    /// # Errors
    /// The queue is full, or has failed.
    pub fn post(&self, id: u64, count: usize) -> Result<(), VerbsError> {
        let context = self.domain.context();
        // SAFETY: the context is open; its table of functions is constant.
        let post = unsafe { (*context.raw()).ops.post_srq_recv };
        let post = post.ok_or(VerbsError::Missing { function: "post_srq_recv" })?;
        let mut left = count;
        while left > 0 {
            let mut chain = [sys::ibv_recv_wr { wr_id: id, ..Default::default() }; BATCH];
            let used = left.min(BATCH);
            let first = chain.as_mut_ptr();
            for index in 1..used {
                chain[index - 1].next = first.wrapping_add(index);
            }
            let mut bad = ptr::null_mut();
            // SAFETY: the queue lives, and so does the chain, whose pointers stay within it.
            let status = unsafe { post(self.raw(), first, &raw mut bad) };
            VerbsError::check("ibv_post_srq_recv", status)?;
            left -= used;
        }
        Ok(())
    }
}

impl Drop for SharedReceiveQueue {
    fn drop(&mut self) {
        let context = self.domain.context();
        if let Ok(destroy) = function!(context.library(), ibv_destroy_srq)
            && context.belongs_to_this_process()
        {
            // SAFETY: the queue pairs of the queue kept it alive and are gone.
            unsafe { destroy(self.raw()) };
        }
    }
}
