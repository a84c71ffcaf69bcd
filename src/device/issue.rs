//! From calls that were planned to launches: copies and works of one or more communicators, in order, on one stream.

use std::ffi::c_void;

use maypole_cuda::driver::{Current, DriverError, Stream};
use maypole_cuda::launch::{Launch, MAX_WORKS, Work};

use super::gpu::Gpu;
use super::order::Where;
use crate::comm::Communicator;
use crate::error::Error;

/// What is to be queued for one communicator.
pub(crate) struct Batch {
    pub(crate) at: Where,
    /// With the call that it belongs to, counted from 0.
    items: Vec<(usize, Item)>,
    /// Calls so far.
    calls: usize,
    /// Works so far.
    works: u64,
}

#[derive(Clone, Copy)]
enum Item {
    Copy { to: u64, from: u64, bytes: usize },
    Work { work: Work, lanes: u32 },
}

/// A communicator and what is to be queued for it.
pub(crate) struct Member<'a> {
    pub(crate) comm: &'a mut Communicator,
    pub(crate) batch: Batch,
    /// The items before this one are queued.
    next: usize,
    /// It failed: the rest is not queued.
    failed: Option<Error>,
}

impl<'a> Member<'a> {
    pub(crate) fn new(comm: &'a mut Communicator, batch: Batch) -> Self {
        Self { comm, batch, next: 0, failed: None }
    }
}

impl Batch {
    pub(crate) fn new(at: Where) -> Self {
        Self { at, items: Vec::new(), calls: 0, works: 0 }
    }

    /// What follows belongs to the next call.
    pub(crate) fn next_call(&mut self) {
        self.calls += 1;
    }

    /// The number, among all works of the communicator, of the next one, if `launched` are launched.
    pub(crate) fn number(&self, launched: u64) -> u64 {
        launched + self.works + 1
    }

    /// Adds a copy by the copy engine; none where nothing is to be moved. Copies of a call are added before its works.
    pub(crate) fn copy(&mut self, to: u64, from: u64, bytes: usize) {
        if bytes > 0 && to != from {
            debug_assert!(self.items.last().is_none_or(|(call, item)| {
                *call < self.calls || matches!(item, Item::Copy { .. })
            }));
            self.items.push((self.calls, Item::Copy { to, from, bytes }));
        }
    }

    /// Adds a work of a program of so many lanes.
    pub(crate) fn work(&mut self, work: Work, lanes: u32) {
        self.works += 1;
        self.items.push((self.calls, Item::Work { work, lanes }));
    }
}

/// Queues all of it on the stream of `at`, which all members have. Calls of the same place in their batches are launched together.
///
/// # Errors
/// The first one; the communicators that it concerns are broken.
///
/// # Safety
/// As for [`launch`](super::launch).
pub(crate) unsafe fn issue(
    current: &Current<'_>,
    gpu: &Gpu,
    at: Where,
    members: &mut [Member<'_>],
) -> Result<(), Error> {
    // A call is at most one work of each; those of all that wait for each other must be in one launch.
    if members.len() > MAX_WORKS {
        let what = format!(
            "calls of {} communicators of one device at once on one stream, of which {MAX_WORKS} can wait for each other there; give them streams of their own",
            members.len()
        );
        let broken = members
            .iter_mut()
            .map(|member| member.comm.fail(Error::InvalidUsage { what: what.clone() }));
        return broken.last().map_or(Ok(()), Err);
    }
    for member in &mut *members {
        if member.batch.works > 0 {
            // SAFETY: the caller's promise.
            let followed = unsafe { member.comm.follow(gpu, at) };
            member.check(followed);
        }
    }
    let mut pending: Vec<(usize, Work, u32)> = Vec::new();
    let calls = members.iter().map(|member| member.batch.calls).max().unwrap_or(0);
    for call in 0..=calls {
        let works = members.iter().map(|member| member.works_of(call)).sum::<usize>();
        if pending.len() + works > MAX_WORKS {
            // SAFETY: the caller's promise.
            unsafe { launch(current, gpu, at, members, &mut pending) };
        }
        // Copies come before the works of their call. All of them: a launch for the sake of one must not have works of this call, which
        // would wait for those of other members behind it on the stream.
        for index in 0..members.len() {
            while let Some((to, from, bytes)) = members[index].take_copy(call) {
                if pending.iter().any(|(other, ..)| *other == index) {
                    // SAFETY: the caller's promise.
                    unsafe { launch(current, gpu, at, members, &mut pending) };
                }
                // SAFETY: the caller's promise.
                let copied = unsafe { copy(gpu, at, to, from, bytes) };
                members[index].check(copied);
            }
        }
        for (index, member) in members.iter_mut().enumerate() {
            while let Some((work, lanes)) = member.take_work(call) {
                pending.push((index, work, lanes));
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { launch(current, gpu, at, members, &mut pending) };
    members.iter_mut().find_map(|member| member.failed.take()).map_or(Ok(()), Err)
}

impl Member<'_> {
    fn works_of(&self, call: usize) -> usize {
        let items = self.batch.items[self.next..].iter().take_while(|(of, _)| *of <= call);
        items.filter(|(_, item)| matches!(item, Item::Work { .. })).count()
    }

    /// The next item, if it is a copy of `call`.
    fn take_copy(&mut self, call: usize) -> Option<(u64, u64, usize)> {
        match self.next_of(call)? {
            Item::Copy { to, from, bytes } => {
                self.next += 1;
                Some((to, from, bytes))
            }
            Item::Work { .. } => None,
        }
    }

    /// The next item, if it is a work of `call`.
    fn take_work(&mut self, call: usize) -> Option<(Work, u32)> {
        match self.next_of(call)? {
            Item::Work { work, lanes } => {
                self.next += 1;
                Some((work, lanes))
            }
            Item::Copy { .. } => None,
        }
    }

    /// The next item of `call`.
    fn next_of(&self, call: usize) -> Option<Item> {
        let (of, item) = self.batch.items.get(self.next)?;
        (*of <= call && self.failed.is_none()).then_some(*item)
    }

    fn check(&mut self, result: Result<(), DriverError>) {
        if let Err(error) = result
            && self.failed.is_none()
        {
            // The other ranks wait for this one.
            self.failed = Some(self.comm.fail(error.into()));
        }
    }
}

/// Launches what is pending, and empties it.
unsafe fn launch(
    current: &Current<'_>,
    gpu: &Gpu,
    at: Where,
    members: &mut [Member<'_>],
    pending: &mut Vec<(usize, Work, u32)>,
) {
    pending.retain(|(index, ..)| members[*index].failed.is_none());
    if pending.is_empty() {
        return;
    }
    // First block and number of blocks of each member, those that have none here too.
    let mut blocks = vec![(0, 0); members.len()];
    for (index, _, lanes) in &*pending {
        let most = members[*index].comm.device_blocks();
        blocks[*index].1 = (*lanes).clamp(1, most).max(blocks[*index].1);
    }
    let wanted: u32 = blocks.iter().map(|(_, blocks)| blocks).sum();
    let mut first = 0;
    for (begin, blocks) in &mut blocks {
        if wanted > gpu.resident && *blocks > 0 {
            *blocks = (*blocks * gpu.resident / wanted).max(1);
        }
        *begin = first;
        first += *blocks;
    }
    let bound = pending.iter().map(|&(index, work, _)| {
        let (first_block, blocks) = blocks[index];
        Work { first_block, blocks, ..work }
    });
    let argument = Launch::new(&bound.collect::<Vec<_>>());
    let together = pending.iter().all(|(index, ..)| members[*index].comm.launches_together());
    let (shape, stream) = ((first, gpu.threads), at.stream as *mut c_void);
    // SAFETY: the kernel takes a Launch; programs fit what they are bound to, the communicators wait for their works before they free
    // anything, and the caller answers for buffers and the stream.
    let launched = unsafe { gpu.kernel.launch(current, together, shape, stream, &argument) };
    for (index, member) in members.iter_mut().enumerate() {
        let works = pending.iter().filter(|(of, ..)| *of == index).count();
        if works > 0 {
            match &launched {
                Ok(()) if at.capture.is_none() => member.comm.launched(works as u64),
                Ok(()) => {}
                Err(error) => member.check(Err(error.clone())),
            }
        }
    }
    pending.clear();
}

unsafe fn copy(gpu: &Gpu, at: Where, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
    // SAFETY: the caller's promise.
    let stream = unsafe { Stream::foreign(&gpu.device, at.stream as *mut c_void) };
    // SAFETY: the caller's promise.
    unsafe { stream.copy(to, from, bytes) }
}
