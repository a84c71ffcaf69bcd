//! How a communicator comes to be, whatever it comes of: the handle is there at once, then the ranks meet, on this thread or, where the
//! client does not want to wait, on one of its own. Which device it is for is settled at the call.

use maypole::Options;
use maypole::ResultCode;
use maypole::{Communicator, Error, UniqueId};

use crate::boundary::{decided, failed};
use crate::config::Settings;
use crate::cuda;
use crate::group;
use crate::registry::{self, Entered, Handle, Reserved, Stage};

/// What a communicator comes of.
pub(crate) enum Source {
    /// Nothing but an id, or several: its rank, and how many there are.
    Ids { ids: Vec<UniqueId>, nranks: u32, rank: u32 },
    /// A part of its parent.
    Split { color: Option<u32>, key: i32 },
    /// What is left of its parent.
    Shrink { excluded: Vec<u32> },
    /// Its parent and new ranks.
    Grow { id: Option<UniqueId>, nranks: u32 },
}

/// A communicator to be.
pub(crate) struct Making {
    source: Source,
    settings: Settings,
    /// The CUDA device that it is for; None: host memory.
    device: Option<i32>,
    reserved: Reserved,
    /// Where the client wants the handle.
    out: Out,
    /// Its calls wait for it; then `out` is the client's to lend until the end.
    waits: bool,
}

/// The client's memory for a handle.
struct Out(*mut Handle);

// SAFETY: the client promised it to be writable until the call, or its group, has ended, whatever the thread, and no other
// thread uses it.
unsafe impl Send for Out {}

/// Makings of one parent, or one of none, in order.
pub(crate) struct Litter {
    pub(crate) parent: Option<Parent>,
    pub(crate) makings: Vec<Making>,
}

/// A parent's handle on its way to another thread.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Parent(pub(crate) Handle);

// SAFETY: a handle is a number, not an address.
unsafe impl Send for Parent {}

/// Whose memory a communicator is for.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    /// A CUDA device's.
    Cuda(i32),
    /// The host's; with the number that the client gave, -1 if it gave none.
    Host(i32),
}

impl Of {
    /// What the calling thread has chosen.
    pub(crate) fn chosen() -> Result<Self, ResultCode> {
        Ok(cuda::chosen()?.map_or(Self::Host(-1), Self::Cuda))
    }

    /// What the client says by the number of a device.
    pub(crate) fn listed(function: &str, number: i32) -> Result<Self, ResultCode> {
        Ok(cuda::listed(function, number)?.map_or(Self::Host(number), Self::Cuda))
    }
}

/// Starts to make a communicator and writes its handle to `out`. Returns when it is there; at the group's end if one is
/// open; at once, with `ncclInProgress`, where the client does not want to wait.
///
/// # Safety
/// `out` is writable, until the group's end if one is open.
pub(crate) unsafe fn make(
    source: Source,
    settings: Settings,
    parent: Option<Handle>,
    out: *mut Handle,
    of: Of,
) -> Result<(), ResultCode> {
    // As NCCL has it: whether to wait for an offspring is its parent's way.
    let waits = match parent {
        Some(parent) => registry::blocks(parent)?,
        None => settings.blocking,
    };
    let identity = match &source {
        Source::Ids { nranks, rank, .. } => Some((*rank, *nranks)),
        _ => None,
    };
    group::agree(waits)?;
    let (device, number) = match of {
        Of::Cuda(device) => (Some(device), device),
        Of::Host(number) => (None, number),
    };
    let reserved = registry::reserve(identity, settings.blocking, number)?;
    if let Some((rank, nranks)) = identity {
        log::info!(
            target: "INIT",
            "comm {:p} rank {rank} nranks {nranks} cudaDev {number} nvmlDev -1 busId 0 commName {:?} - Init START",
            reserved.handle(),
            settings.name
        );
    }
    // Who is in no part gets no handle, not even for now.
    let nobody = matches!(source, Source::Split { color: None, .. });
    let handle = if nobody { std::ptr::null_mut() } else { reserved.handle() };
    // SAFETY: the caller's promise.
    unsafe { out.write(handle) };
    let making = Making { source, settings, device, reserved, out: Out(out), waits };
    let parent = parent.map(Parent);
    if group::is_open() {
        group::queue_making(parent, making);
        return Ok(());
    }
    let litter = Litter { parent, makings: vec![making] };
    if waits { litter.run() } else { litter.start() }
}

impl Litter {
    /// Makes them; returns when they are there.
    pub(crate) fn run(self) -> Result<(), ResultCode> {
        let Self { parent, mut makings } = self;
        let entered = parent.map(|Parent(handle)| registry::enter(handle)).transpose();
        let mut entered = or_cancel(entered, &mut makings)?;
        let made = make_all(makings, entered.as_mut());
        if let Some(entered) = &entered {
            entered.settle(made);
        }
        made
    }

    /// Makes them on another thread.
    pub(crate) fn start(self) -> Result<(), ResultCode> {
        let Self { parent, mut makings } = self;
        let Some(Parent(parent)) = parent else {
            let make = move || {
                // The handles tell how it ended.
                let _ = make_all(makings, None);
            };
            maypole::stream::behind(make).map_err(|error| decided(&error))?;
            return Err(ResultCode::InProgress);
        };
        // The parent is in progress from the moment that the call returns.
        let visitor = or_cancel(registry::visit(parent), &mut makings)?;
        visitor.defer().start(move |entered| match make_all(makings, Some(entered)) {
            // The arguments were bad, as the handles say; the parent is not.
            Err(ResultCode::InvalidArgument) => Ok(()),
            made => made,
        })
    }

    /// There will be none of them.
    pub(crate) fn cancel(self) {
        cancel(self.makings, ResultCode::InvalidArgument);
    }
}

fn or_cancel<T>(parent: Result<T, ResultCode>, makings: &mut Vec<Making>) -> Result<T, ResultCode> {
    parent.inspect_err(|code| cancel(std::mem::take(makings), *code))
}

/// None of these will be.
fn cancel(makings: Vec<Making>, code: ResultCode) {
    for making in makings {
        // It is `code`.
        let _ = making.end(Err(code));
    }
}

fn make_all(makings: Vec<Making>, mut parent: Option<&mut Entered>) -> Result<(), ResultCode> {
    let mut result = Ok(());
    for making in makings {
        let made = match result {
            Ok(()) => making.run(parent.as_deref_mut()),
            // Those that come after a failure are not tried: other ranks may not try them either.
            Err(code) => {
                cancel(vec![making], code);
                continue;
            }
        };
        result = made;
    }
    result
}

impl Making {
    fn run(self, mut parent: Option<&mut Entered>) -> Result<(), ResultCode> {
        if let Some(parent) = &parent {
            parent.set_child(self.reserved.signal());
        }
        let (abort, device) = (self.reserved.signal(), self.device);
        let options = Options { abort, device, ..Options::default() };
        let made = make_of(&self.source, parent.as_deref_mut(), &options);
        if let Some(parent) = &parent {
            parent.set_child(None);
        }
        self.end(made.map_err(|error| failed(&error)))
    }

    /// Hands out what was made. Where the client waits, what failed leaves no handle behind.
    fn end(self, made: Result<Option<Communicator>, ResultCode>) -> Result<(), ResultCode> {
        let Self { settings, reserved, out: Out(out), waits, .. } = self;
        let filled = match made {
            Ok(Some(comm)) => reserved.fill(comm, settings),
            Ok(None) => {
                reserved.cancel();
                return Ok(());
            }
            Err(code) if waits => {
                reserved.cancel();
                Err(code)
            }
            Err(code) => {
                reserved.fail(code);
                Err(code)
            }
        };
        if filled.is_err() && waits {
            // SAFETY: the client's promise.
            unsafe { out.write(std::ptr::null_mut()) };
        }
        filled
    }
}

fn make_of(
    source: &Source,
    parent: Option<&mut Entered>,
    options: &Options,
) -> Result<Option<Communicator>, Error> {
    let orphan = || Error::internal("an offspring without a parent");
    match source {
        Source::Ids { ids, nranks, rank } => {
            let (first, more) = ids.split_first().ok_or_else(|| Error::internal("no unique id"))?;
            let builder = Communicator::builder(first).more_roots(more);
            builder.rank(*rank, *nranks).options(options.clone()).build().map(Some)
        }
        Source::Split { color, key } => {
            let parent = parent.ok_or_else(orphan)?;
            if parent.stage == Stage::Revoked {
                let mut whole = parent.comm.renew_with(options)?;
                return whole.split_with(*color, *key, options);
            }
            parent.comm.split_with(*color, *key, options)
        }
        Source::Shrink { excluded } => {
            parent.ok_or_else(orphan)?.comm.shrink_with(excluded, options).map(Some)
        }
        Source::Grow { id, nranks } => {
            parent.ok_or_else(orphan)?.comm.grow_with(id.as_ref(), *nranks, options).map(Some)
        }
    }
}
