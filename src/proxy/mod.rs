//! The proxy: carries messages between kernels of a device and the links of the transport, for pairs of ranks whose kernels cannot
//! reach each other's memory: on other hosts, on devices without peer access, on host memory.
//!
//! ```text
//!  kernel --> ring in pinned memory --> proxy --> slot of the link ~~> peer: a rank of the host, or its proxy --> ring --> kernel
//!             slot, head, `filled`      copy      send(len, tag)
//!             `drained` <-------------- when the link has the message
//! ```
//!
//! The rings are those that kernels have between each other (`LinkEnd` in `maypole_cuda::launch`, [`maypole_transport::counted`]), in
//! pinned memory of the host; to a kernel a link through the proxy differs from another by its addresses alone. Nothing tells the proxy which
//! messages will come: what a kernel stores, a slot, its head and the counter, is all there is to know of a message, so
//! there are no descriptors that the host would have to post for a call. A graph that is replayed makes the same stores again, with the
//! counters where they are by then, and its messages move like those of any launch; there is nothing in a graph that could be stale.
//! Tags are passed on and compared by kernels and by the host's engine.
//!
//! One thread per communicator that has such links (`maypole-proxy`, started with the first): it sleeps on the doorbell of the
//! communicator's endpoint, and a thread can sleep on one word only. A communicator whose peer fails or is slow holds up no other.
//! Others may sleep on that bell too, the thread of windows for one: a ring wakes all of them, and each looks for itself.
//!
//! What a message costs: two copies through memory of the host on top of the link's own, one by a kernel over the bus, one by the thread.
//! Where a link can read and write memory of the device (verbs with GPUDirect), the second end of the copy in `pump`, or the pinned ring as
//! a whole, gives way to a registered region of the device: the ring's slots then lie there, the link's slot is the ring's, and the pump
//! posts and completes instead of copying. Heads and counters stay as they are.
//!
//! | file | idea |
//! |---|---|
//! | `ring` | where the words of the rings lie |
//! | `pump` | one peer and channel: messages move |
//! | `serve` | the thread: when to look, when to sleep, how it ends |

mod pump;
mod ring;
mod serve;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use maypole_algorithms::Rank;
use maypole_cuda::driver::{Buffer, Device, Stream};
use maypole_cuda::launch::LinkEnd;
use maypole_cuda::memory::Pinned;
use maypole_transport::counted::{CountedReceiver, CountedSender};
use maypole_transport::endpoint::Endpoint;
use maypole_transport::link::{Incoming, Outgoing};
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::engine::wait::Patience;
use crate::error::Error;
use crate::watch;
use pump::Pump;
use ring::{Shape, Way};
use serve::Board;

/// A communicator's proxy. Dropping it waits until what kernels have sent is on its way to the peers, or they are gone, and ends the
/// thread; no kernel of the communicator may be running or queued then. In a child made by fork dropping it does nothing.
pub(crate) struct Proxy {
    board: Arc<Board>,
    endpoint: Arc<Endpoint>,
    /// Per link: see [`Pump::wanted`].
    wanted: Vec<Arc<AtomicU64>>,
    positions: Positions,
    thread: Option<JoinHandle<Vec<Pump>>>,
    /// What the thread is started with.
    start: Option<(Patience, Box<dyn FnOnce(Error) + Send>)>,
    /// Of the process that made it.
    generation: u32,
}

/// A link through the proxy, as kernels and calls know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proxied {
    /// Where kernels put messages to the peer.
    pub(crate) sending: LinkEnd,
    /// Where they find those of the peer.
    pub(crate) receiving: LinkEnd,
    /// The number of the link, for [`Proxy::expect`].
    pub(crate) number: usize,
}

impl Proxy {
    /// Of a communicator whose ranks meet by `endpoint`; nothing runs before the first link. `finished` reads how many works of the
    /// communicator are through. `fail` is called once, from the thread, with what makes the communicator useless: it tells the others, then
    /// makes the kernels give up, in this order, so that whoever sees the end of a kernel finds the error.
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        patience: Patience,
        finished: impl Fn() -> u64 + Send + Sync + 'static,
        fail: impl FnOnce(Error) + Send + 'static,
    ) -> Self {
        let board = Arc::new(Board {
            launched: AtomicU64::new(0),
            finished: Box::new(finished),
            captured: AtomicU64::new(0),
            stop: AtomicU64::new(0),
            fresh: Mutex::default(),
            added: AtomicU64::new(0),
        });
        Self {
            board,
            endpoint,
            wanted: Vec::new(),
            positions: Positions::default(),
            thread: None,
            start: Some((patience, Box::new(fail))),
            generation: watch::generation(),
        }
    }

    /// From now on moves messages between kernels of `device` and the link to `peer`, whose two ends are `link`, by rings of as many slots
    /// of the same length. Takes calls of the driver that a capture of another thread may forbid: see `cuThreadExchangeStreamCaptureMode`.
    ///
    /// # Errors
    /// No pinned memory, no thread.
    pub(crate) fn add(
        &mut self,
        device: &Arc<Device>,
        peer: Rank,
        link: (Outgoing, Incoming),
    ) -> Result<Proxied, Error> {
        let shape = Shape::of(&link.0);
        let memory = Arc::new(Pinned::new(device, shape.bytes())?);
        let (host, address) = (memory.host().as_ptr(), memory.address());
        let [sending, receiving] = self.positions.take(device)?;
        // SAFETY: the driver gave that many bytes of zeros, which live as long as `memory`, for this link alone.
        let number = unsafe { self.attach(peer, link, shape, host, memory)? };
        Ok(Proxied {
            sending: shape.end(address, Way::FromKernel, sending),
            receiving: shape.end(address, Way::ToKernel, receiving),
            number,
        })
    }

    /// Hands a link to the thread, by rings of `shape` in the block at `base`; returns its number.
    ///
    /// # Safety
    /// There are as many bytes of zeros at `base` as the shape has, aligned to 128; they live as long as `keep`, and the proxy's ends are
    /// those of no one else.
    unsafe fn attach(
        &mut self,
        peer: Rank,
        (outgoing, incoming): (Outgoing, Incoming),
        shape: Shape,
        base: *mut u8,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<usize, Error> {
        let [from, to] = [Way::FromKernel, Way::ToKernel].map(|way| shape.place(base, way));
        let wanted = Arc::new(AtomicU64::new(0));
        // SAFETY: the caller's promise.
        let (from_kernel, to_kernel) = unsafe {
            (CountedReceiver::new(from, peer, keep.clone()), CountedSender::new(to, peer, keep))
        };
        let pump = Pump {
            peer,
            outgoing,
            incoming,
            from_kernel,
            to_kernel,
            wanted: wanted.clone(),
            gone: None,
        };
        self.board.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(pump);
        // Pairs as `proxy-added`.
        self.board.added.fetch_add(1, Ordering::Release);
        self.wanted.push(wanted);
        self.run()?;
        self.endpoint.doorbell().ring();
        Ok(self.wanted.len() - 1)
    }

    /// To be called before `works` of this communicator are queued that in all take the given numbers of messages from each of the given
    /// links. Not for captured ones, see [`captured`](Self::captured).
    pub(crate) fn expect(
        &self,
        works: u64,
        messages: impl IntoIterator<Item = (usize, u64)>,
    ) {
        for (link, count) in messages {
            self.wanted[link].fetch_add(count, Ordering::Relaxed);
        }
        self.board.launched.fetch_add(works, Ordering::Relaxed);
        // Makes the counts seen, and wakes the thread if it sleeps.
        self.endpoint.doorbell().ring();
    }

    /// A call was captured: from now on works may begin without a word from the host, as long as the communicator lives. What they take is
    /// not known, so that a peer which has left is no error to them; one that has died is.
    pub(crate) fn captured(&self) {
        self.board.captured.store(1, Ordering::Relaxed);
        self.endpoint.doorbell().ring();
    }

    /// Starts the thread if it does not run.
    fn run(&mut self) -> Result<(), Error> {
        let Some((patience, fail)) = self.start.take() else { return Ok(()) };
        let (board, endpoint) = (self.board.clone(), self.endpoint.clone());
        let run = move || serve::run(&board, &endpoint, patience, fail);
        let spawned = watch::without_signals(|| {
            std::thread::Builder::new().name("maypole-proxy".into()).spawn(run)
        });
        self.thread = Some(spawned.map_err(|error| Error::System {
            call: "pthread_create",
            errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
        })?);
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A child made by fork does not have the thread, and leaves the rings to its parent.
        if self.generation != watch::generation() {
            return;
        }
        // Pairs as `proxy-stop`.
        self.board.stop.store(1, Ordering::Release);
        self.endpoint.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // It ends before the rings do, which end here.
            drop(thread.join());
        }
    }
}

impl Shape {
    /// The rings of a link are as deep as it is, and their slots as long.
    fn of(outgoing: &Outgoing) -> Self {
        Self { depth: outgoing.slots.credits(), slot_bytes: outgoing.slots.capacity() }
    }
}

/// Where kernels count what they have sent and taken: words of device memory, zero at first, in blocks. A kernel reads and writes them
/// with every message, which over the bus would cost more than the message.
#[derive(Default)]
struct Positions {
    blocks: Vec<Buffer>,
    /// Words of the last block that are taken.
    taken: usize,
}

impl Positions {
    const WORDS: usize = 512;

    /// Two of them.
    fn take(&mut self, device: &Arc<Device>) -> Result<[u64; 2], Error> {
        if self.blocks.is_empty() || self.taken == Self::WORDS {
            let block = Buffer::new(device, Self::WORDS * size_of::<u64>())?;
            let stream = Stream::new(device)?;
            stream.write(&block, &[0; Self::WORDS * size_of::<u64>()])?;
            stream.synchronize()?;
            self.blocks.push(block);
            self.taken = 0;
        }
        let block = self.blocks.last().ok_or_else(|| Error::internal("no block of positions"))?;
        let first = block.address() + (self.taken * size_of::<u64>()) as u64;
        self.taken += 2;
        Ok([first, first + size_of::<u64>() as u64])
    }
}
