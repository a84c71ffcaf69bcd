//! The creation of communicators, from unique ids or from a parent.
//!
//! The handle is written at once. Then the ranks find each other, on the calling thread or, where
//! the client does not want to wait, on another one. On which memory the communicator works is
//! settled at the call.

use std::sync::{Arc, Mutex, PoisonError};

use maypole::Options;
use maypole::ResultCode;
use maypole::{Communicator, Error, UniqueId};

use super::siblings::Siblings;
use crate::boundary::{keep_error, log_error};
use crate::config::CommSettings;
use crate::cuda::CommMemory;
use crate::registry::{
    self, CommHandle, CommStage, ExclusiveComm, Reservation, acquire, acquire_exclusive, reserve,
};

/// From what a communicator is created.
pub(crate) enum CreationSource {
    /// From unique ids alone.
    Ids { ids: Vec<UniqueId>, nranks: u32, rank: u32 },
    /// From the ranks of the parent that pass the same color; None for a rank that joins no child.
    Split { color: Option<u32>, key: i32 },
    /// From the ranks of the parent that are not excluded.
    Shrink { excluded: Vec<u32> },
    /// From the ranks of the parent and new ones.
    Grow { id: Option<UniqueId>, nranks: u32 },
}

/// A communicator that is to be created.
pub(crate) struct Creation {
    source: CreationSource,
    settings: CommSettings,
    /// The number of the CUDA device on which it works; None for host memory.
    device: Option<i32>,
    reservation: Reservation,
    /// Where the client wants the handle.
    out: HandleDestination,
    /// The client's call, or the end of its group, waits for the creation. Then `out` may be
    /// written until the creation ends.
    waits: bool,
}

/// Memory of the client for a handle.
struct HandleDestination(*mut CommHandle);

// SAFETY: the client promised that the memory is writable until the call, or its group, has ended,
// on any thread, and no other thread uses it.
unsafe impl Send for HandleDestination {}

/// Creations from one parent, or one without a parent, in order.
pub(crate) struct CreationBatch {
    pub(crate) parent: Option<CommHandle>,
    pub(crate) creations: Vec<Creation>,
}

/// A batch that the failure of another creation of its group ends.
pub(crate) struct JoinedBatch {
    parent: Option<CommHandle>,
    creations: Vec<Creation>,
    /// The numbers of the creations among the siblings.
    numbers: Vec<usize>,
    siblings: Siblings,
}

impl Creation {
    /// Whether the call waits for the creation. As in NCCL the parent decides, if there is one.
    pub(crate) fn waits(
        parent: Option<CommHandle>,
        settings: &CommSettings,
    ) -> Result<bool, ResultCode> {
        match parent {
            Some(parent) => registry::is_blocking(parent),
            None => Ok(settings.blocking),
        }
    }

    /// Begins a creation: reserves an entry and writes its handle to `out`.
    ///
    /// # Safety
    /// `out` is writable; if `waits`, until the creation ends.
    pub(crate) unsafe fn begin(
        source: CreationSource,
        settings: CommSettings,
        memory: CommMemory,
        out: *mut CommHandle,
        waits: bool,
    ) -> Result<Self, ResultCode> {
        let identity = match &source {
            CreationSource::Ids { nranks, rank, .. } => Some((*rank, *nranks)),
            _ => None,
        };
        let (device, number) = match memory {
            CommMemory::Cuda(device) => (Some(device), device),
            CommMemory::Host(number) => (None, number),
        };
        let reservation = reserve(identity, settings.blocking, number)?;
        if let Some((rank, nranks)) = identity {
            log::info!(
                target: "INIT",
                "comm {:p} rank {rank} nranks {nranks} cudaDev {number} nvmlDev -1 busId 0 \
                 commName {:?} - Init START",
                reservation.handle().as_ptr(),
                settings.name
            );
        }
        // A rank that joins no child gets no handle, not even during the split.
        let joins_none = matches!(source, CreationSource::Split { color: None, .. });
        let handle = if joins_none { CommHandle::NULL } else { reservation.handle() };
        // SAFETY: the caller promises that `out` is writable.
        unsafe { out.write(handle) };
        let out = HandleDestination(out);
        Ok(Self { source, settings, device, reservation, out, waits })
    }

    fn run(
        self,
        mut parent: Option<&mut ExclusiveComm>,
        siblings: &Siblings,
        number: usize,
    ) -> Result<(), ResultCode> {
        if let Some(parent) = &parent {
            parent.set_child(self.reservation.signal());
        }
        let (abort, device) = (self.reservation.signal(), self.device);
        let options = Options { abort, device, ..Options::default() };
        let created = create(&self.source, parent.as_deref_mut(), &options);
        if let Some(parent) = &parent {
            parent.set_child(None);
        }
        let created = created.map_err(|error| {
            // An abort by the user is meant for this creation alone.
            let is_abort = matches!(error, Error::Aborted { .. })
                && self.reservation.signal().is_some_and(|signal| signal.is_raised());
            if is_abort && siblings.failure().is_none() {
                return keep_error(&error);
            }
            match siblings.fail(number, error.code(), &error.to_string()) {
                Ok(()) => keep_error(&error),
                // Its error is only that it was ended: the text of the first failure stays.
                Err(first) => first,
            }
        });
        let result = self.end(created);
        if result.is_ok() {
            siblings.succeed(number);
        }
        result
    }

    /// Hands out what was created. After a failure a client that waits gets the handle NULL; one
    /// that does not keeps a handle that tells the failure.
    fn end(self, created: Result<Option<Communicator>, ResultCode>) -> Result<(), ResultCode> {
        let Self { settings, reservation, out: HandleDestination(out), waits, .. } = self;
        let filled = match created {
            Ok(Some(comm)) => reservation.fill(comm, settings),
            Ok(None) => {
                reservation.cancel();
                return Ok(());
            }
            Err(code) if waits => {
                reservation.cancel();
                Err(code)
            }
            Err(code) => {
                reservation.fail(code);
                Err(code)
            }
        };
        if filled.is_err() && waits {
            // SAFETY: the caller of `begin` promised that `out` is writable until now.
            unsafe { out.write(CommHandle::NULL) };
        }
        filled
    }
}

impl CreationBatch {
    /// Makes the creations be ended by the first failure among `siblings`.
    pub(crate) fn join(self, siblings: &Siblings) -> JoinedBatch {
        let Self { parent, creations } = self;
        let numbers = creations.iter().map(|it| siblings.add(it.reservation.signal())).collect();
        JoinedBatch { parent, creations, numbers, siblings: siblings.clone() }
    }

    /// Cancels the creations, which were not begun.
    pub(crate) fn cancel(self) {
        cancel_all(self.creations, ResultCode::InvalidArgument);
    }
}

impl JoinedBatch {
    /// Creates the communicators; returns when they are there.
    pub(crate) fn run(mut self) -> Result<(), ResultCode> {
        let parent = self.parent.map(acquire_exclusive).transpose();
        let mut parent = self.or_cancel(parent)?;
        let result = self.create_all(parent.as_mut());
        if let Some(parent) = &parent {
            parent.record_creation(result);
        }
        result
    }

    /// Creates the communicators on another thread, and returns `ncclInProgress` at once.
    pub(crate) fn start(mut self) -> Result<(), ResultCode> {
        let Some(parent) = self.parent else {
            return self.start_without_parent();
        };
        // The parent is in progress from the moment that the call returns.
        let guard = self.or_cancel(acquire(parent))?;
        guard.defer().start(move |parent| match self.create_all(Some(parent)) {
            // The handles tell of wrong arguments; these do not harm the parent.
            Err(ResultCode::InvalidArgument) => Ok(()),
            result => result,
        })
    }

    fn start_without_parent(self) -> Result<(), ResultCode> {
        let batch = Arc::new(Mutex::new(Some(self)));
        let take = |batch: &Mutex<Option<Self>>| {
            batch.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let theirs = batch.clone();
        let started = maypole::stream::behind(move || {
            if let Some(batch) = take(&theirs) {
                // The handles tell the results.
                let _ = batch.create_all(None);
            }
        });
        started.map_err(|error| {
            let code = log_error(&error);
            if let Some(batch) = take(&batch) {
                batch.abandon(code);
            }
            code
        })?;
        Err(ResultCode::InProgress)
    }

    /// Ends the creations, for which no thread could be started, with this result. The other ranks
    /// wait for these: an init that is aborted tells them so, and is short.
    pub(crate) fn abandon(mut self, code: ResultCode) {
        let _ = self.siblings.fail(usize::MAX, code, "");
        if self.parent.is_some() {
            return cancel_all(std::mem::take(&mut self.creations), code);
        }
        let signals = self.creations.iter().map(|it| it.reservation.signal());
        signals.flatten().for_each(|signal| signal.abort());
        let _ = self.create_all(None);
    }

    /// The parent, or an error that cancels the creations.
    fn or_cancel<T>(&mut self, parent: Result<T, ResultCode>) -> Result<T, ResultCode> {
        parent.inspect_err(|code| {
            let _ = self.siblings.fail(usize::MAX, *code, "");
            cancel_all(std::mem::take(&mut self.creations), *code);
        })
    }

    fn create_all(self, mut parent: Option<&mut ExclusiveComm>) -> Result<(), ResultCode> {
        let mut result = Ok(());
        for (creation, number) in self.creations.into_iter().zip(self.numbers) {
            match result {
                Ok(()) => {
                    result = creation.run(parent.as_deref_mut(), &self.siblings, number);
                }
                // After a failure no further creation is tried: other ranks may not try it either.
                Err(code) => cancel_all(vec![creation], code),
            }
        }
        result
    }
}

fn cancel_all(creations: Vec<Creation>, code: ResultCode) {
    for creation in creations {
        // It returns `code`, which the caller reports.
        let _ = creation.end(Err(code));
    }
}

fn create(
    source: &CreationSource,
    parent: Option<&mut ExclusiveComm>,
    options: &Options,
) -> Result<Option<Communicator>, Error> {
    let no_parent = || Error::internal("a child without a parent");
    match source {
        CreationSource::Ids { ids, nranks, rank } => {
            let (first, more) = ids.split_first().ok_or_else(|| Error::internal("no unique id"))?;
            let builder = Communicator::builder(first).more_roots(more);
            builder.rank(*rank, *nranks).options(options.clone()).build().map(Some)
        }
        CreationSource::Split { color, key } => {
            let parent = parent.ok_or_else(no_parent)?;
            if parent.stage == CommStage::Revoked {
                let mut renewed = parent.comm.renew_with(options)?;
                return renewed.split_with(*color, *key, options);
            }
            parent.comm.split_with(*color, *key, options)
        }
        CreationSource::Shrink { excluded } => {
            parent.ok_or_else(no_parent)?.comm.shrink_with(excluded, options).map(Some)
        }
        CreationSource::Grow { id, nranks } => {
            parent.ok_or_else(no_parent)?.comm.grow_with(id.as_ref(), *nranks, options).map(Some)
        }
    }
}
