//! The proxy: carries messages between kernels of a device and the links of the transport, for pairs of ranks whose kernels cannot
//! reach each other's memory: on other hosts, on devices without peer access, on host memory.
//!
//! ```text
//!  kernel --> ring in pinned memory --> proxy --> slot of the link ~~> peer: a rank of the host, or its proxy --> ring --> kernel
//!             slot, head, `filled`      copy      send(len, tag)
//!             `drained` <-------------- when the link has the message
//! ```
//!
//! The rings are those that kernels have between each other (`LinkEnd` in `maypole_cuda::launch`, [`maypole_transport::device_ring`]), in
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
//! | `meet` | another thread, which connects to peers while calls are queued |

mod meet;
mod pump;
mod ring;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::CudaStream;
use maypole_cuda::launch::LinkEnd;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::inbox::InboxLayout;
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::error::Error;
use crate::process;
use crate::spin_policy::SpinPolicy;
use maypole_cuda::pool::{DevicePool, PooledBuffer};
pub(crate) use meet::Meet;
use meet::Request;
use pump::{Pump, Rings};
use ring::{Shape, Way};
use serve::{ABANDONED, Board, STOPPED};

/// A communicator's proxy. Dropping it waits until what kernels have sent is on its way to the peers, or they are gone, and ends the
/// threads; no kernel of the communicator may be running or queued then. In a child made by fork dropping it does nothing.
pub(crate) struct Proxy {
    board: Arc<Board>,
    shape: Shape,
    spin_policy: SpinPolicy,
    timeout: Duration,
    /// Per link: see [`Rings::wanted`].
    wanted: Vec<Arc<AtomicU64>>,
    positions: Positions,
    /// Bytes of pinned memory.
    pinned: usize,
    /// Until the first link.
    meet: Option<Meet>,
    threads: Option<Threads>,
    /// Of the process that made it.
    generation: u32,
}

/// What the proxy of a communicator works with.
pub(crate) struct Setup {
    /// By which its ranks meet.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Of the endpoint: rings are as deep as links, and their slots as long.
    pub(crate) layout: InboxLayout,
    /// Of a rank that waits.
    pub(crate) spin_policy: SpinPolicy,
    /// How long a peer may take to come.
    pub(crate) timeout: Duration,
    /// Opens the link to a rank on a channel; waits for that rank until the given time at most.
    pub(crate) meet: Meet,
    /// Whether works that the host has queued are not through.
    pub(crate) queued: Box<dyn Fn() -> bool + Send + Sync>,
    /// Called once at most, from a thread of the proxy, with what makes the communicator useless. It tells the others, then makes the kernels give
    /// up, in this order, so that whoever sees the end of a kernel finds the error.
    pub(crate) fail: Box<dyn FnOnce(Error) + Send>,
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

struct Threads {
    requests: Sender<Request>,
    meets: JoinHandle<()>,
    serves: JoinHandle<Vec<Pump>>,
}

impl Proxy {
    /// Nothing runs before the first link.
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { endpoint, layout, spin_policy, timeout, meet, queued, fail } = setup;
        process::notice_forks();
        let board = Arc::new(Board {
            endpoint,
            queued,
            calls: AtomicU64::new(0),
            captured: AtomicU64::new(0),
            stop: AtomicU64::new(0),
            fresh: Mutex::default(),
            added: AtomicU64::new(0),
            #[cfg(test)]
            turns: AtomicU64::new(0),
            fail: Mutex::new(Some(fail)),
        });
        Self {
            board,
            shape: Shape { depth: layout.depth, slot_bytes: layout.slot_bytes },
            spin_policy,
            timeout,
            wanted: Vec::new(),
            positions: Positions::default(),
            pinned: 0,
            meet: Some(meet),
            threads: None,
            generation: process::generation(),
        }
    }

    /// From now on moves messages between kernels and `peer` on `channel`, once it is met: does not wait for that. Memory is of `pool`, and `stream`
    /// of its device. Takes calls of the driver that a capture of another thread may forbid: see `cuThreadExchangeStreamCaptureMode`.
    ///
    /// # Errors
    /// No pinned memory, no thread.
    pub(crate) fn add_link(
        &mut self,
        pool: &Arc<DevicePool>,
        stream: &CudaStream,
        peer: Rank,
        channel: Channel,
    ) -> Result<Proxied, Error> {
        let shape = self.shape;
        let memory = Arc::new(pool.pinned_memory(shape.bytes())?);
        let (host, address) = (memory.host().as_ptr(), memory.address());
        let [sending, receiving] = self.positions.take(pool, stream)?;
        // SAFETY: the pool gave that many bytes, zeros by now, which live as long as `memory`, for this link alone.
        let rings = unsafe {
            host.write_bytes(0, shape.bytes());
            shape.proxy_ends(host, peer, memory)
        };
        self.pinned += shape.bytes();
        Ok(Proxied {
            sending: shape.end(address, Way::FromKernel, sending),
            receiving: shape.end(address, Way::ToKernel, receiving),
            number: self.attach(peer, channel, rings)?,
        })
    }

    /// Has a link made for these rings; returns its number.
    fn attach(&mut self, peer: Rank, channel: Channel, rings: Rings) -> Result<usize, Error> {
        if let Some(meet) = self.meet.take() {
            self.threads = Some(self.start(meet)?);
        }
        let wanted = rings.wanted.clone();
        let now = Instant::now();
        // A timeout too long to be a point in time is no timeout.
        let deadline = now.checked_add(self.timeout).unwrap_or(now + NO_TIMEOUT);
        let request = Request { peer, channel, rings, deadline };
        let threads = self.threads.as_ref();
        if threads.is_none_or(|threads| threads.requests.send(request).is_err()) {
            // It has failed, and told why.
            return Err(Error::internal("a link through a proxy that has ended"));
        }
        self.wanted.push(wanted);
        Ok(self.wanted.len() - 1)
    }

    /// A work will be queued that takes these numbers of messages from these links. Not for captured ones, see
    /// [`captured`](Self::captured).
    pub(crate) fn expect(&self, messages: &[(usize, u64)]) {
        for (link, count) in messages {
            self.wanted[*link].fetch_add(*count, Ordering::Relaxed);
        }
    }

    /// Works were queued.
    pub(crate) fn launched(&self) {
        self.board.calls.fetch_add(1, Ordering::Relaxed);
        // Makes what is expected seen too, and wakes the thread if it sleeps.
        self.board.endpoint.doorbell().ring();
    }

    /// A call was captured: from now on works may begin without a word from the host, as long as the communicator lives. What they take is
    /// not known, so that a peer which has left is no error to them; one that has died is.
    pub(crate) fn captured(&self) {
        self.board.captured.store(1, Ordering::Relaxed);
        self.board.endpoint.doorbell().ring();
    }

    /// Ends the threads and leaves the rings where they are, for kernels that may use them yet.
    pub(crate) fn abandon(mut self) {
        // Pairs as `proxy-stop`.
        self.board.stop.store(ABANDONED, Ordering::Release);
        std::mem::forget((self.end(), std::mem::take(&mut self.positions)));
    }

    /// Ends the threads: when all that kernels have sent is on its way, if they are not abandoned.
    fn end(&mut self) -> Option<Vec<Pump>> {
        let Threads { requests, meets, serves } = self.threads.take()?;
        // Those that are still to be met have messages in their rings.
        drop(requests);
        let _ = meets.join();
        // Pairs as `proxy-stop`.
        self.board.stop.fetch_max(STOPPED, Ordering::Release);
        self.board.endpoint.doorbell().ring();
        serves.join().ok()
    }

    /// Bytes of pinned memory.
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.pinned
    }

    fn start(&self, meet: Meet) -> Result<Threads, Error> {
        let (requests, asked) = channel();
        let (board, spin_policy) = (self.board.clone(), self.spin_policy);
        let serves = spawn("maypole-proxy", move || serve::run(&board, spin_policy))?;
        let board = self.board.clone();
        let meets = spawn("maypole-meet", move || {
            board.guard(|| meet::run(board.endpoint.rank(), &board, &asked, &meet));
        })?;
        Ok(Threads { requests, meets, serves })
    }
}

/// In place of a time that is too far away.
const NO_TIMEOUT: Duration = Duration::from_secs(1 << 32);

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    process::spawn_thread(name, None, run).map_err(|error| Error::System {
        call: "pthread_create",
        errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
    })
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A child made by fork does not have the thread, and leaves memory of the device to its parent.
        if self.generation != process::generation() {
            std::mem::forget(std::mem::take(&mut self.positions));
            std::mem::forget((self.board.clone(), self.threads.take()));
            return;
        }
        if std::thread::panicking() {
            // Peers may wait for more than what was sent.
            self.board.stop.store(ABANDONED, Ordering::Release);
        }
        // The rings end after the threads.
        drop(self.end());
    }
}

/// Where kernels count what they have sent and taken: words of device memory, zero at first, in blocks. A kernel reads and writes them
/// with every message, which over the bus would cost more than the message.
#[derive(Default)]
struct Positions {
    blocks: Vec<PooledBuffer>,
    /// Words of the last block that are taken.
    taken: usize,
}

impl Positions {
    const WORDS: usize = 512;

    /// Two of them.
    fn take(&mut self, pool: &Arc<DevicePool>, stream: &CudaStream) -> Result<[u64; 2], Error> {
        if self.blocks.is_empty() || self.taken == Self::WORDS {
            let block = pool.device_memory(Self::WORDS * size_of::<u64>())?;
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
