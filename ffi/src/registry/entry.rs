//! The table of entries that handles name, and what is known of the communicator in each.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::internal::handle_state::{HandleState, Tenancy};
use maypole::internal::process;
use maypole::internal::sync::{AtomicPtr, AtomicU32, Ordering};
use maypole::stream::{self, PerProcess, Stream, WorkTicket};
use maypole::{AbortHandle, AbortSignal, Communicator};

use super::buffers::BufferTable;
use super::handle::{CommHandle, MAX_ENTRIES};
use super::operators::OperatorTable;
use super::windows::CommWindows;
use crate::boundary::{invalid_argument, refuse};
use crate::config::CommSettings;

/// What a communicator may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommStage {
    /// For everything.
    Open,
    /// After finalize: it can only be destroyed.
    Finalized,
    /// After revoke: it can only be destroyed, split or shrunk.
    Revoked,
    /// After suspend: it has to be resumed first.
    Suspended,
}

/// A communicator and what belongs to it.
pub(crate) struct CommBody {
    /// The communicator itself.
    pub(crate) comm: Communicator,
    /// The number of the CUDA device on which it works; None for host memory.
    pub(crate) device: Option<c_int>,
    /// What its configuration changes.
    pub(crate) settings: CommSettings,
    /// The operators that were created on it.
    pub(crate) operators: OperatorTable,
    /// The buffers that are registered with it.
    pub(crate) buffers: BufferTable,
    /// The windows that are registered with it.
    pub(crate) windows: CommWindows,
    /// What it may be used for now.
    pub(crate) stage: CommStage,
}

/// An entry of the table.
pub(super) struct Entry {
    /// The generation of the process that uses the entry. In a child made by fork, threads that do
    /// not exist there may hold its locks or use its communicator.
    made_in: u32,
    /// Who may touch `body`, and how many calls on streams have not ended.
    pub(super) state: HandleState,
    /// The rank of the communicator.
    pub(super) rank: AtomicU32,
    /// The number of ranks; 0 as long as it is not known.
    pub(super) nranks: AtomicU32,
    pub(super) status: Mutex<EntryStatus>,
    /// Notified, under the lock of `status`, when no call on a stream is left.
    pub(super) calls_ended: Condvar,
    /// NULL while there is no communicator.
    pub(super) body: UnsafeCell<*mut CommBody>,
}

/// What all threads may know of a communicator, also while one of them uses it.
pub(super) struct EntryStatus {
    /// Ends the creation of the communicator; later, its waits and the creation of its children.
    pub(super) signal: Option<AbortSignal>,
    /// Ends the creation of the child that is being created from it.
    pub(super) child: Option<AbortSignal>,
    /// Ends the waits of the communicator, and tells whether they were ended.
    pub(super) abort: Option<AbortHandle>,
    /// In progress, or how the last deferred work ended; and the first failure of a call.
    pub(super) result: ResultCode,
    /// Its waits were ended on purpose. Children whose creation begins now are ended as well,
    /// unless the client asks for them after that.
    pub(super) interrupted: bool,
    /// It was revoked: what has ended its calls is not reported any more.
    pub(super) revoked: bool,
    /// It was aborted during its creation. The thread that creates it vacates the entry.
    pub(super) aborted_in_creation: bool,
    /// From its configuration: calls return when they are done.
    pub(super) blocking: bool,
    /// The result of `ncclCommCuDevice`.
    pub(super) device: c_int,
    /// `device` is the number of a CUDA device. On host memory the number has no meaning.
    pub(super) on_device: bool,
    /// The stream that all calls on host streams are queued on besides, which keeps their order.
    pub(super) call_stream: Option<Stream>,
    /// The tickets of calls on host streams, to cancel those that have not begun.
    pub(super) tickets: Vec<WorkTicket>,
}

/// An entry as a live handle names it.
#[derive(Clone, Copy)]
pub(super) struct EntryRef {
    pub(super) entry: &'static Entry,
    pub(super) index: usize,
    pub(super) generation: u64,
}

// One thread owns `body` at a time: the one that uses or creates the communicator, as `state` says.
// While calls on streams are left, the `comm` in it belongs to the one of them that runs.
// `CommBody` may move between threads: `Communicator` is Send, and so is what else it holds.
// SAFETY: only its owner touches `body`; everything else is atomics and locks.
unsafe impl Sync for Entry {}

static TABLE: [AtomicPtr<Entry>; MAX_ENTRIES] = [const { AtomicPtr::new(null_mut()) }; MAX_ENTRIES];
static VACANT: PerProcess<Mutex<VacantEntries>> = PerProcess::new();

/// The entries that a new communicator may get.
struct VacantEntries {
    /// The indices of entries of this process in which there is no communicator.
    list: Vec<usize>,
    /// How many entries were ever created.
    created: usize,
    /// How many of them belong to the parent process: a child made by fork does not use these.
    inherited: usize,
}

impl Default for VacantEntries {
    fn default() -> Self {
        // Acquire of the pair `table`.
        let created = TABLE.iter().take_while(|entry| !entry.load(Ordering::Acquire).is_null());
        let created = created.count();
        Self { list: Vec::new(), created, inherited: created }
    }
}

fn vacant_entries() -> MutexGuard<'static, VacantEntries> {
    VACANT.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl CommStage {
    /// The stage in words, for errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Finalized => "finalized; it can only be destroyed",
            Self::Revoked => "revoked; it can only be split, shrunk, destroyed or aborted",
            Self::Suspended => "suspended; ncclCommResume comes first",
        }
    }
}

impl EntryStatus {
    pub(super) const fn new() -> Self {
        Self {
            signal: None,
            child: None,
            abort: None,
            result: ResultCode::Success,
            interrupted: false,
            revoked: false,
            aborted_in_creation: false,
            blocking: true,
            device: -1,
            on_device: false,
            call_stream: None,
            tickets: Vec::new(),
        }
    }
}

impl Entry {
    /// The status. It is consistent at all times, so a panic of another thread under the lock does
    /// no harm.
    pub(super) fn status(&self) -> MutexGuard<'_, EntryStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EntryRef {
    /// The entry that a handle names. Whether the handle is live only its state says.
    #[inline]
    pub(super) fn find(handle: CommHandle) -> Result<Self, ResultCode> {
        let (index, generation) = handle.parts().ok_or_else(not_live)?;
        // Acquire of the pair `table`: the entry is seen whole.
        let entry = TABLE[index].load(Ordering::Acquire);
        if entry.is_null() {
            return Err(not_live());
        }
        // SAFETY: the pointer came of a box, and entries are never freed.
        let entry = unsafe { &*entry };
        if entry.made_in != process::generation() {
            return Err(made_before_fork());
        }
        Ok(Self { entry, index, generation })
    }

    /// A vacant entry, for a generation that begins now.
    pub(super) fn begin(fill: impl FnOnce(&'static Entry)) -> Result<Self, ResultCode> {
        let (index, entry) = take_vacant()?;
        fill(entry);
        Ok(Self { entry, index, generation: entry.state.begin() })
    }

    /// The handle that names it.
    pub(super) fn handle(self) -> CommHandle {
        CommHandle::new(self.index, self.generation)
    }

    /// Ends the generation, which the caller uses or creates.
    pub(super) fn vacate(self) {
        *self.entry.status() = EntryStatus::new();
        self.entry.state.vacate(self.generation);
        let mut vacant = vacant_entries();
        vacant.list.push(self.index);
        let was_last = vacant.list.len() == vacant.created - vacant.inherited;
        drop(vacant);
        if was_last {
            stream::dismiss();
        }
    }

    /// What the entry holds of this generation now.
    pub(super) fn look(self) -> Tenancy {
        self.entry.state.look(self.generation)
    }
}

/// The error for a handle that names no live communicator.
#[cold]
pub(super) fn not_live() -> ResultCode {
    invalid_argument(
        "the communicator is not a live one: NULL, destroyed, aborted, or never initialised",
    )
}

/// The error for a handle of the parent process in a child made by fork.
#[cold]
fn made_before_fork() -> ResultCode {
    refuse(
        ResultCode::InvalidUsage,
        "the communicator was made before a fork; a child process must make its own",
    )
}

/// Whether the handle names an entry of the parent process, which a child made by fork leaves
/// alone.
pub(crate) fn is_inherited(handle: CommHandle) -> bool {
    let entry = handle.parts().map(|(index, _)| TABLE[index].load(Ordering::Acquire));
    // SAFETY: the pointer came of a box, and entries are never freed.
    let entry = entry.and_then(|entry| unsafe { entry.as_ref() });
    entry.is_some_and(|entry| entry.made_in != process::generation())
}

/// Takes an entry from the list of vacant ones, or creates one.
fn take_vacant() -> Result<(usize, &'static Entry), ResultCode> {
    let mut vacant = vacant_entries();
    let VacantEntries { list, created, .. } = &mut *vacant;
    let index = match list.pop() {
        Some(index) => index,
        None if *created == MAX_ENTRIES => {
            return Err(refuse(
                ResultCode::SystemError,
                "too many live communicators in this process; destroy some",
            ));
        }
        None => {
            let entry = Box::new(Entry {
                made_in: process::generation(),
                state: HandleState::new(),
                rank: AtomicU32::new(0),
                nranks: AtomicU32::new(0),
                status: Mutex::new(EntryStatus::new()),
                calls_ended: Condvar::new(),
                body: UnsafeCell::new(null_mut()),
            });
            // Release of the pair `table`.
            TABLE[*created].store(Box::into_raw(entry), Ordering::Release);
            *created += 1;
            *created - 1
        }
    };
    // SAFETY: the pointer came of a box, and entries are never freed.
    Ok((index, unsafe { &*TABLE[index].load(Ordering::Acquire) }))
}
