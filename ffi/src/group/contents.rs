//! What the open group of a thread holds.

use std::cell::{Cell, RefCell};

use maypole::{ResultCode, Transfer};

use super::comm_calls::CommCalls;
use crate::boundary::{invalid_argument, refuse};
use crate::registry::CommHandle;
use crate::request::{Creation, CreationBatch, QueuedRequest};
use crate::stream::CallStream;

thread_local! {
    /// How many groups of this thread are open, one within the other.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static CONTENTS: RefCell<GroupContents> = const { RefCell::new(GroupContents::new()) };
    /// The memory of the last group, for the next one.
    static SPARE: Cell<SpareMemory> = const {
        Cell::new(SpareMemory { calls: Vec::new(), transfers: Vec::new() })
    };
}

/// Empty lists, whose memory the next group uses.
#[derive(Default)]
struct SpareMemory {
    calls: Vec<(CommHandle, CommCalls)>,
    transfers: Vec<Transfer>,
}

/// The most transfers of a group whose memory is kept.
const MAX_SPARE: usize = 4096;

/// The contents of a group.
pub(super) struct GroupContents {
    pub(super) creations: Vec<CreationBatch>,
    /// The calls by communicator, in the order of the first call of each.
    pub(super) calls: Vec<(CommHandle, CommCalls)>,
    /// The first error of a call in the group.
    pub(super) error: Option<ResultCode>,
    /// Whether the communicators block; None before the first of them.
    pub(super) blocking: Option<bool>,
}

impl GroupContents {
    const fn new() -> Self {
        Self { creations: Vec::new(), calls: Vec::new(), error: None, blocking: None }
    }
}

/// Opens a group, within the open one if there is one.
pub(crate) fn start() {
    DEPTH.set(DEPTH.get() + 1);
}

/// Whether this thread has an open group.
#[inline]
pub(crate) fn is_open() -> bool {
    DEPTH.get() > 0
}

/// Closes the innermost group. Returns the contents if it was the outermost one.
pub(super) fn close(function: &str) -> Result<Option<GroupContents>, ResultCode> {
    match DEPTH.get() {
        0 => Err(refuse(
            ResultCode::InvalidUsage,
            &format!("{function} without a matching ncclGroupStart"),
        )),
        1 => {
            DEPTH.set(0);
            Ok(Some(CONTENTS.replace(GroupContents::new())))
        }
        depth => {
            DEPTH.set(depth - 1);
            Ok(None)
        }
    }
}

/// Keeps the first error for the end of the group, if one is open. Returns `result`.
pub(crate) fn keep_first_error(result: Result<(), ResultCode>) -> Result<(), ResultCode> {
    if let (Err(code), true) = (result, is_open()) {
        CONTENTS.with_borrow_mut(|contents| contents.error.get_or_insert(code).to_owned());
    }
    result
}

/// Refuses a communicator that blocks in an open group of those that do not, and the other way
/// round.
pub(crate) fn check_blocking(blocking: bool) -> Result<(), ResultCode> {
    if !is_open() {
        return Ok(());
    }
    let others = CONTENTS.with_borrow_mut(|contents| *contents.blocking.get_or_insert(blocking));
    if others == blocking {
        return Ok(());
    }
    Err(invalid_argument(
        "the group holds communicators that block and communicators that do not; use one group \
         for each kind",
    ))
}

/// Queues a call in the open group.
#[inline]
pub(crate) fn queue(comm: CommHandle, stream: CallStream, request: impl FnOnce() -> QueuedRequest) {
    CONTENTS.with_borrow_mut(|contents| {
        let calls = &mut contents.calls;
        let index = calls.iter().position(|(other, _)| *other == comm).unwrap_or_else(|| {
            let mut transfers = Vec::new();
            if calls.is_empty() {
                let spare = SPARE.take();
                (*calls, transfers) = (spare.calls, spare.transfers);
            }
            calls.push((comm, CommCalls::with_memory(transfers)));
            calls.len() - 1
        });
        calls[index].1.add(stream, request());
    });
}

/// Keeps the memory of a group that had these calls, all on one communicator and nothing else but
/// transfers.
pub(super) fn keep_memory(mut calls: Vec<(CommHandle, CommCalls)>) {
    let transfers = calls.first_mut().map(|(_, calls)| calls.take_memory()).unwrap_or_default();
    if transfers.capacity() <= MAX_SPARE {
        calls.clear();
        SPARE.set(SpareMemory { calls, transfers });
    }
}

/// Queues a creation in the open group. Communicators of one parent are created in order, all
/// others at once.
pub(super) fn queue_creation(parent: Option<CommHandle>, creation: Creation) {
    CONTENTS.with_borrow_mut(|contents| {
        let siblings =
            contents.creations.iter_mut().find(|batch| parent.is_some() && batch.parent == parent);
        match siblings {
            Some(batch) => batch.creations.push(creation),
            None => {
                contents.creations.push(CreationBatch { parent, creations: vec![creation] });
            }
        }
    });
}
