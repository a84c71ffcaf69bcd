//! Collects copies and works of several calls and launches them in order on one stream.

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
    /// The error after which no more of this member is queued.
    failed: Option<Error>,
}

impl<'a> BatchMember<'a> {
    pub(crate) fn new(comm: &'a mut Communicator, batch: LaunchBatch) -> Self {
        Self { comm, batch, queued: 0, failed: None }
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

/// Queues the batches of `members` on the stream of `at`, which all of them share. Calls with the
/// same number in their batches are launched together.
///
/// # Errors
/// The first error. The communicators that it concerns are broken.
///
/// # Safety
/// As for [`launch_calls`](super::launch_calls).
pub(crate) unsafe fn launch_batches(
    current: &CurrentContext<'_>,
    gpu: &Gpu,
    at: StreamPosition,
    members: &mut [BatchMember<'_>],
) -> Result<(), Error> {
    // A call is at most one work of each member, and the works of members that wait for each other
    // must be in one launch.
    if members.len() > MAX_WORKS {
        let what = format!(
            "calls of {} communicators of one device at once on one stream; at most {MAX_WORKS} \
             can wait for each other there, so use several streams",
            members.len()
        );
        let broken = members
            .iter_mut()
            .map(|member| member.comm.fail(Error::InvalidUsage { what: what.clone() }));
        return broken.last().map_or(Ok(()), Err);
    }
    for member in &mut *members {
        if member.batch.works > 0 {
            // SAFETY: the caller keeps the stream alive.
            let followed = unsafe { member.comm.follow(gpu, at) };
            member.check(followed);
        }
    }
    let mut pending: Vec<PendingWork> = Vec::new();
    let calls = members.iter().map(|member| member.batch.calls).max().unwrap_or(0);
    for call in 0..=calls {
        let works = members.iter().map(|member| member.works_of(call)).sum::<usize>();
        if pending.len() + works > MAX_WORKS {
            // SAFETY: the caller guarantees what `launch_calls` requires.
            unsafe { launch_pending(current, gpu, at, members, &mut pending) };
        }
        // The copies of all members come before all works of the call: a launch that has to precede
        // a copy must not contain works of this call, because they could wait for works of other
        // members that are queued behind them on the same stream.
        for index in 0..members.len() {
            while let Some((to, from, bytes)) = members[index].take_copy(call) {
                if pending.iter().any(|pending| pending.member == index) {
                    // SAFETY: the caller guarantees what `launch_calls` requires.
                    unsafe { launch_pending(current, gpu, at, members, &mut pending) };
                }
                // SAFETY: the caller guarantees that the stream exists and that the buffers of its
                // calls are valid until the stream has run them.
                let copied = unsafe { queue_copy(gpu, at, to, from, bytes) };
                members[index].check(copied);
            }
        }
        for (index, member) in members.iter_mut().enumerate() {
            while let Some((work, lanes)) = member.take_work(call) {
                pending.push(PendingWork { member: index, work, lanes });
            }
        }
    }
    // SAFETY: the caller guarantees what `launch_calls` requires.
    unsafe { launch_pending(current, gpu, at, members, &mut pending) };
    members.iter_mut().find_map(|member| member.failed.take()).map_or(Ok(()), Err)
}

impl BatchMember<'_> {
    /// The number of works of `call` that are not queued.
    fn works_of(&self, call: usize) -> usize {
        let items = self.batch.items[self.queued..].iter();
        let items = items.take_while(|(number, _)| *number <= call);
        items.filter(|(_, item)| matches!(item, BatchItem::Work { .. })).count()
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

/// Launches the pending works and empties the list.
///
/// # Safety
/// As for [`launch_calls`](super::launch_calls).
unsafe fn launch_pending(
    current: &CurrentContext<'_>,
    gpu: &Gpu,
    at: StreamPosition,
    members: &mut [BatchMember<'_>],
    pending: &mut Vec<PendingWork>,
) {
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
    // A plain launch: its blocks start one by one, as other kernels leave room, and there are no
    // more than are resident together. A cooperative one would wait until there is room for all at
    // once, and it is not documented whether two of them overlap.
    let (shape, stream) = ((first, gpu.threads), at.stream as *mut c_void);
    // SAFETY: the kernel takes a KernelLaunch. The programs fit what they are bound to, and each
    // communicator waits for its works before it frees anything. The caller guarantees that the
    // buffers and the stream are valid.
    let launched = unsafe { gpu.kernel.launch(current, shape, stream, &argument) };
    for (index, member) in members.iter_mut().enumerate() {
        let works = pending.iter().filter(|pending| pending.member == index).count();
        if works > 0 {
            match &launched {
                Ok(()) => {
                    if at.capture.is_none() {
                        member.comm.launched(works as u64);
                    }
                    // SAFETY: the caller keeps the stream alive.
                    let noted = unsafe { member.comm.launched_at(gpu, at) };
                    member.check(noted);
                }
                Err(error) => member.check(Err(error.clone())),
            }
        }
    }
    pending.clear();
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
