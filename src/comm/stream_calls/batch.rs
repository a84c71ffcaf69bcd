//! Collects copies and works of several calls and queues them in order on their streams.
//!
//! A device has few hardware queues, 8 by default and 1 with `CUDA_DEVICE_MAX_CONNECTIONS=1`, and
//! several streams share one. What waits at the head of a queue holds back all that is behind it,
//! of other streams too. So nothing is queued that waits for a kernel of the same group before all
//! kernels that this kernel may wait for are queued: first what waits for earlier work, then the
//! kernels, with the same calls in the launches of all streams, then the events behind them.

use std::ffi::c_void;

use maypole_cuda::driver::{CurrentContext, DriverError};
use maypole_cuda::launch::{KernelLaunch, KernelWork, MAX_WORKS};
use maypole_cuda::stream::CudaStream;

use crate::comm::Communicator;
use crate::device::queue::work_order::StreamPosition;
use crate::device::setup::gpu::Gpu;
use crate::error::Error;

/// What is to be queued for one communicator.
pub(crate) struct LaunchBatch {
    pub(crate) at: StreamPosition,
    /// Each item with the number of its call, counted from 0.
    items: Vec<(usize, BatchItem)>,
    /// The number of calls so far.
    calls: usize,
    /// The number of works so far.
    works: u64,
}

#[derive(Clone, Copy)]
enum BatchItem {
    /// A copy by the copy engine of the device.
    Copy { to: u64, from: u64, bytes: usize },
    /// A work for the kernel, whose program has that many lanes.
    Work { work: KernelWork, lanes: u32 },
}

/// A work that waits for the next launch.
struct PendingWork {
    /// The index of its member.
    member: usize,
    work: KernelWork,
    lanes: u32,
}

/// A communicator, and what is to be queued for it.
pub(crate) struct BatchMember<'a> {
    pub(crate) comm: &'a mut Communicator,
    pub(crate) batch: LaunchBatch,
    /// The number of items that have been queued.
    queued: usize,
    /// Whether a work was launched.
    launched: bool,
    /// The error after which no more of this member is queued.
    failed: Option<Error>,
}

impl<'a> BatchMember<'a> {
    pub(crate) fn new(comm: &'a mut Communicator, batch: LaunchBatch) -> Self {
        Self { comm, batch, queued: 0, launched: false, failed: None }
    }

    /// Ends the communicator, because nothing that was planned for it can be queued.
    pub(crate) fn fail(self, error: DriverError) -> Error {
        self.comm.fail(error.into())
    }
}

impl LaunchBatch {
    pub(crate) fn new(at: StreamPosition) -> Self {
        Self { at, items: Vec::new(), calls: 0, works: 0 }
    }

    /// Begins the next call: what is added from now on belongs to it.
    pub(crate) fn next_call(&mut self) {
        self.calls += 1;
    }

    /// The number of the work that is added next, among all works of the communicator, of which
    /// `launched` have been launched.
    pub(crate) fn number(&self, launched: u64) -> u64 {
        launched + self.works + 1
    }

    /// Adds a copy, unless nothing has to be moved. Copies of a call are added before its works.
    pub(crate) fn copy(&mut self, to: u64, from: u64, bytes: usize) {
        if bytes > 0 && to != from {
            debug_assert!(self.items.last().is_none_or(|(call, item)| {
                *call < self.calls || matches!(item, BatchItem::Copy { .. })
            }));
            self.items.push((self.calls, BatchItem::Copy { to, from, bytes }));
        }
    }

    /// Adds a work of a program of that many lanes.
    pub(crate) fn work(&mut self, work: KernelWork, lanes: u32) {
        self.works += 1;
        self.items.push((self.calls, BatchItem::Work { work, lanes }));
    }
}

/// The members whose calls are on one stream.
struct StreamMembers<'a> {
    at: StreamPosition,
    members: Vec<BatchMember<'a>>,
    /// The works of the next launch.
    pending: Vec<PendingWork>,
}

/// Queues the batches of `members`, each on its stream. Calls with the same number in their batches
/// are launched together.
///
/// # Errors
/// The first error. The communicators that it concerns are broken.
///
/// # Safety
/// As for [`launch_calls`](super::launch_calls).
pub(crate) unsafe fn launch_batches(
    current: &CurrentContext<'_>,
    gpu: &Gpu,
    members: Vec<BatchMember<'_>>,
) -> Result<(), Error> {
    let mut streams: Vec<StreamMembers<'_>> = Vec::with_capacity(1);
    for member in members {
        let at = member.batch.at;
        match streams.iter_mut().find(|stream| stream.at == at) {
            Some(stream) => stream.members.push(member),
            None => streams.push(StreamMembers { at, members: vec![member], pending: Vec::new() }),
        }
    }
    for stream in &mut streams {
        // SAFETY: the caller keeps the stream alive.
        unsafe { stream.follow(current, gpu) };
    }
    let members = streams.iter().flat_map(|stream| &stream.members);
    let calls = members.map(|member| member.batch.calls).max().unwrap_or(0);
    for call in 0..=calls {
        if streams.iter().any(|stream| stream.must_launch_before(call)) {
            for stream in &mut streams {
                // SAFETY: the caller guarantees what `launch_calls` requires.
                unsafe { stream.launch(current, gpu) };
            }
        }
        for stream in &mut streams {
            // SAFETY: as above.
            unsafe { stream.add(gpu, call) };
        }
    }
    for stream in &mut streams {
        // SAFETY: as above.
        unsafe { stream.launch(current, gpu) };
    }
    for stream in &mut streams {
        // SAFETY: as above.
        unsafe { stream.note_end(gpu) };
    }
    let mut members = streams.iter_mut().flat_map(|stream| &mut stream.members);
    members.find_map(|member| member.failed.take()).map_or(Ok(()), Err)
}

impl BatchMember<'_> {
    /// The number of works of `call` that are not queued.
    fn works_of(&self, call: usize) -> usize {
        let items = self.batch.items[self.queued..].iter();
        let items = items.take_while(|(number, _)| *number <= call);
        items.filter(|(_, item)| matches!(item, BatchItem::Work { .. })).count()
    }

    /// Whether the next item is a copy of `call`.
    fn copies_of(&self, call: usize) -> bool {
        matches!(self.next_of(call), Some(BatchItem::Copy { .. }))
    }

    /// Takes the next item, if it is a copy of `call`: target, source and bytes.
    fn take_copy(&mut self, call: usize) -> Option<(u64, u64, usize)> {
        match self.next_of(call)? {
            BatchItem::Copy { to, from, bytes } => {
                self.queued += 1;
                Some((to, from, bytes))
            }
            BatchItem::Work { .. } => None,
        }
    }

    /// Takes the next item, if it is a work of `call`: the work and the lanes of its program.
    fn take_work(&mut self, call: usize) -> Option<(KernelWork, u32)> {
        match self.next_of(call)? {
            BatchItem::Work { work, lanes } => {
                self.queued += 1;
                Some((work, lanes))
            }
            BatchItem::Copy { .. } => None,
        }
    }

    /// The next item, if it belongs to `call` and the member has not failed.
    fn next_of(&self, call: usize) -> Option<BatchItem> {
        let (number, item) = self.batch.items.get(self.queued)?;
        (*number <= call && self.failed.is_none()).then_some(*item)
    }

    fn check(&mut self, result: Result<(), DriverError>) {
        if let Err(error) = result
            && self.failed.is_none()
        {
            // The other ranks wait for this one, so they are told at once.
            self.failed = Some(self.comm.fail(error.into()));
        }
    }
}

impl StreamMembers<'_> {
    /// Makes what is queued from now on wait for earlier works of the members on other streams.
    ///
    /// # Safety
    /// The stream exists. `current` is the context of the device.
    unsafe fn follow(&mut self, current: &CurrentContext<'_>, gpu: &Gpu) {
        // A call is at most one work of each member, and the works of members that wait for each
        // other must be in one launch.
        if self.members.len() > MAX_WORKS {
            let what = format!(
                "calls of {} communicators of one device at once on one stream; at most \
                 {MAX_WORKS} can wait for each other there, so use several streams",
                self.members.len()
            );
            for member in &mut self.members {
                member.failed = Some(member.comm.fail(Error::InvalidUsage { what: what.clone() }));
            }
        }
        for member in &mut self.members {
            if member.batch.works > 0 && member.failed.is_none() {
                // SAFETY: the caller keeps the stream alive.
                let followed = unsafe { member.comm.follow(current, gpu, self.at) };
                member.check(followed);
            }
        }
    }

    /// Whether the pending works must be launched before `call` is added: because there is no room
    /// for its works, or because a copy of it belongs behind a pending work of its member.
    fn must_launch_before(&self, call: usize) -> bool {
        let works = self.members.iter().map(|member| member.works_of(call)).sum::<usize>();
        let copies_of = |pending: &PendingWork| self.members[pending.member].copies_of(call);
        self.pending.len() + works > MAX_WORKS || self.pending.iter().any(copies_of)
    }

    /// Queues the copies of `call` and makes its works pending.
    ///
    /// # Safety
    /// As for [`launch_calls`](super::launch_calls).
    unsafe fn add(&mut self, gpu: &Gpu, call: usize) {
        // The copies of all members come before all works of the call: a launch that has to precede
        // a copy must not contain works of this call, because they could wait for works of other
        // members that are queued behind them on the same stream.
        for member in &mut self.members {
            while let Some((to, from, bytes)) = member.take_copy(call) {
                // SAFETY: the caller guarantees that the stream exists and that the buffers of its
                // calls are valid until the stream has run them.
                let copied = unsafe { queue_copy(gpu, self.at, to, from, bytes) };
                member.check(copied);
            }
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            while let Some((work, lanes)) = member.take_work(call) {
                self.pending.push(PendingWork { member: index, work, lanes });
            }
        }
    }

    /// Launches the pending works.
    ///
    /// # Safety
    /// As for [`launch_calls`](super::launch_calls).
    unsafe fn launch(&mut self, current: &CurrentContext<'_>, gpu: &Gpu) {
        let Self { at, members, pending } = self;
        pending.retain(|pending| members[pending.member].failed.is_none());
        if pending.is_empty() {
            return;
        }
        // The first block and the number of blocks of each member; no blocks for a member without
        // pending works.
        let mut blocks = vec![(0, 0); members.len()];
        for PendingWork { member, lanes, .. } in &*pending {
            let most = members[*member].comm.device_blocks();
            blocks[*member].1 = (*lanes).clamp(1, most).max(blocks[*member].1);
        }
        let wanted: u32 = blocks.iter().map(|(_, blocks)| blocks).sum();
        let mut first = 0;
        for (begin, blocks) in &mut blocks {
            if wanted > gpu.resident_blocks && *blocks > 0 {
                *blocks = (*blocks * gpu.resident_blocks / wanted).max(1);
            }
            *begin = first;
            first += *blocks;
        }
        let works = pending.iter().map(|pending| {
            let (first_block, blocks) = blocks[pending.member];
            KernelWork { first_block, blocks, ..pending.work }
        });
        let argument = KernelLaunch::new(&works.collect::<Vec<_>>());
        // A plain launch: its blocks start one by one, as other kernels leave room, and there are
        // no more than are resident together. A cooperative one would wait until there is room for
        // all at once, and it is not documented whether two of them overlap.
        let (shape, stream) = ((first, gpu.threads), at.stream as *mut c_void);
        let works_of = |pending: &[PendingWork], index| {
            pending.iter().filter(|pending| pending.member == index).count() as u64
        };
        // The proxies begin to look for messages now: a launch may return only when the kernel has
        // ended (CUDA_LAUNCH_BLOCKING=1).
        for (index, member) in members.iter().enumerate() {
            let works = works_of(pending, index);
            if works > 0 && at.capture.is_none() {
                member.comm.launching(works);
            }
        }
        // SAFETY: the kernel takes a KernelLaunch. The programs fit what they are bound to, and
        // each communicator waits for its works before it frees anything. The caller guarantees
        // that the buffers and the stream are valid.
        let launched = unsafe { gpu.kernel.launch(current, shape, stream, &argument) };
        for (index, member) in members.iter_mut().enumerate() {
            let works = works_of(pending, index);
            if works > 0 && launched.is_ok() {
                member.launched = true;
            } else if works > 0 {
                if at.capture.is_none() {
                    member.comm.not_launched(works);
                }
                member.check(launched.clone());
            }
        }
        pending.clear();
    }

    /// Notes, behind everything that was launched, that it was.
    ///
    /// # Safety
    /// The stream exists.
    unsafe fn note_end(&mut self, gpu: &Gpu) {
        for member in self.members.iter_mut().filter(|member| member.launched) {
            // SAFETY: the caller keeps the stream alive.
            let noted = unsafe { member.comm.launched_at(gpu, self.at) };
            member.check(noted);
        }
    }
}

/// Queues a copy on the stream of `at`.
///
/// # Safety
/// The stream exists, and both addresses are valid for `bytes` until the stream has run the copy.
unsafe fn queue_copy(
    gpu: &Gpu,
    at: StreamPosition,
    to: u64,
    from: u64,
    bytes: usize,
) -> Result<(), DriverError> {
    // SAFETY: the caller keeps the stream alive.
    let stream = unsafe { CudaStream::foreign(&gpu.device, at.stream as *mut c_void) };
    // SAFETY: the caller guarantees that both addresses are valid.
    unsafe { stream.copy(to, from, bytes) }
}
