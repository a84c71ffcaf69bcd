//! The proxy: carries messages between the kernels of a device and the links of the transport, for
//! pairs of ranks whose kernels cannot reach each other's memory: ranks on other hosts, on devices
//! without peer access, or on host memory.
//!
//! ```text
//!  kernel --> device ring ---------> proxy --> slot of the link ~~> peer: a rank of the host,
//!             slot, head, `filled`   copy      send(len, tag)       or proxy --> ring --> kernel
//!             `drained` <----------- when the link has the message
//! ```
//!
//! The device rings have the form of the rings between kernels (`LinkEnd` in
//! `maypole_cuda::launch`, [`maypole_transport::device_ring`]), but are in pinned host memory. To a
//! kernel a link through the proxy differs from a direct link only by its addresses. Nothing
//! announces messages to the proxy: what a kernel stores (a slot, its head and the counter) is all
//! there is to know about a message. So the host posts no descriptors for a call, and a replayed
//! graph, which makes the same stores again with the current counters, needs nothing from the host.
//! The proxy passes tags on; kernels and the host's engine compare them.
//!
//! Each communicator with such links has its own thread (`maypole-proxy`, started with the first
//! link). It sleeps on the doorbell of the communicator's endpoint, and a thread can sleep on one
//! word only. So a slow or failing peer delays no other communicator. Other threads, for example
//! that of windows, may sleep on the same doorbell: a ring wakes all of them.
//!
//! Cost of a message: two copies through host memory in addition to those of the link, one by a
//! kernel over the bus and one by the thread. For links that can read and write device memory
//! (verbs with GPUDirect), the slots of the ring could be a registered region of the device, and
//! the pump would post and complete transfers instead of copying. Heads and counters would stay.
//!
//! * `ring`: where the words of the rings lie
//! * `pump`: moves the messages of one peer and channel
//! * `serve`: the thread that runs the pumps: when it polls, when it sleeps, how it ends
//! * `connect`: the thread that connects to peers while calls are queued

mod connect;
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
use maypole_cuda::launch::LinkEnd;
use maypole_cuda::stream::CudaStream;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::inbox::InboxLayout;
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::error::Error;
use crate::process;
use crate::spin_policy::SpinPolicy;
pub(crate) use connect::Connect;
use connect::ConnectRequest;
use maypole_cuda::pool::{DevicePool, PooledBuffer};
use pump::{LinkRings, Pump};
use ring::{RingDirection, RingLayout};
use serve::{ABANDONED, ProxyState, STOPPED};

/// The proxy of a communicator. Its drop waits until the links have taken everything that kernels
/// have sent, or the peers are gone, and ends the threads. No kernel of the communicator may be
/// running or queued then. In a child process made by fork the drop does nothing.
pub(crate) struct Proxy {
    state: Arc<ProxyState>,
    layout: RingLayout,
    spin_policy: SpinPolicy,
    timeout: Duration,
    /// For each link: see [`LinkRings::expected`].
    expected: Vec<Arc<AtomicU64>>,
    positions: PositionWords,
    /// Bytes of pinned memory.
    pinned: usize,
    /// Present until the first link, when the threads start.
    connect: Option<Connect>,
    threads: Option<ProxyThreads>,
    /// The fork generation of the process that made the proxy.
    generation: u32,
}

/// What the proxy of a communicator works with.
pub(crate) struct ProxyConfig {
    /// The endpoint of the rank.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The layout of the endpoint: rings are as deep as links, and their slots as long.
    pub(crate) layout: InboxLayout,
    /// How long a waiting rank spins.
    pub(crate) spin_policy: SpinPolicy,
    /// How long a peer may take to connect.
    pub(crate) timeout: Duration,
    /// Opens the link to a rank on a channel.
    pub(crate) connect: Connect,
    /// Whether works that the host has queued have not finished.
    pub(crate) queued: Box<dyn Fn() -> bool + Send + Sync>,
    /// Called at most once, from a thread of the proxy, with the error that ends the communicator.
    /// It tells the other ranks first and then aborts the kernels, so that a rank which sees a
    /// kernel end finds the error.
    pub(crate) fail: Box<dyn FnOnce(Error) + Send>,
}

/// A link through the proxy, for kernels and calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProxiedLink {
    /// The end on which kernels send messages to the peer.
    pub(crate) sending: LinkEnd,
    /// The end from which kernels receive messages of the peer.
    pub(crate) receiving: LinkEnd,
    /// The number of the link, for [`Proxy::expect`].
    pub(crate) number: usize,
}

struct ProxyThreads {
    requests: Sender<ConnectRequest>,
    connecting: JoinHandle<()>,
    serving: JoinHandle<Vec<Pump>>,
}

impl Proxy {
    /// Makes a proxy. Its threads start with the first link.
    pub(crate) fn new(config: ProxyConfig) -> Self {
        let ProxyConfig { endpoint, layout, spin_policy, timeout, connect, queued, fail } = config;
        process::notice_forks();
        let state = Arc::new(ProxyState {
            endpoint,
            queued,
            calls: AtomicU64::new(0),
            captured: AtomicU64::new(0),
            stop: AtomicU64::new(0),
            new_pumps: Mutex::default(),
            added: AtomicU64::new(0),
            #[cfg(test)]
            rounds: AtomicU64::new(0),
            fail: Mutex::new(Some(fail)),
        });
        Self {
            state,
            layout: RingLayout { depth: layout.depth, slot_bytes: layout.slot_bytes },
            spin_policy,
            timeout,
            expected: Vec::new(),
            positions: PositionWords::default(),
            pinned: 0,
            connect: Some(connect),
            threads: None,
            generation: process::generation(),
        }
    }

    /// Adds a link between the kernels and `peer` on `channel`. Does not wait for the peer:
    /// messages move as soon as it is connected. Memory is taken from `pool`, and `stream` belongs
    /// to the same device. The caller has to be in the relaxed capture mode (`RelaxedCapture`).
    ///
    /// # Errors
    /// There is no pinned memory or no thread left, or the proxy has ended.
    pub(crate) fn add_link(
        &mut self,
        pool: &Arc<DevicePool>,
        stream: &CudaStream,
        peer: Rank,
        channel: Channel,
    ) -> Result<ProxiedLink, Error> {
        let layout = self.layout;
        let memory = Arc::new(pool.pinned_memory(layout.bytes())?);
        let (host, address) = (memory.host().as_ptr(), memory.address());
        let [sending, receiving] = self.positions.take(pool, stream)?;
        // SAFETY: `memory` has that many bytes, zeros after `write_bytes`. They live as long as
        // `memory`, and only this link uses them.
        let rings = unsafe {
            host.write_bytes(0, layout.bytes());
            layout.proxy_ends(host, peer, memory)
        };
        self.pinned += layout.bytes();
        Ok(ProxiedLink {
            sending: layout.kernel_end(address, RingDirection::FromKernel, sending),
            receiving: layout.kernel_end(address, RingDirection::ToKernel, receiving),
            number: self.attach(peer, channel, rings)?,
        })
    }

    /// Requests a connection for these rings; returns the number of the link.
    fn attach(&mut self, peer: Rank, channel: Channel, rings: LinkRings) -> Result<usize, Error> {
        if let Some(connect) = self.connect.take() {
            self.threads = Some(self.start(connect)?);
        }
        let expected = rings.expected.clone();
        let now = Instant::now();
        // A timeout that cannot be added to the time is treated as no timeout.
        let deadline = now.checked_add(self.timeout).unwrap_or(now + NO_TIMEOUT);
        let request = ConnectRequest { peer, channel, rings, deadline };
        let threads = self.threads.as_ref();
        if threads.is_none_or(|threads| threads.requests.send(request).is_err()) {
            // The thread has failed and has reported its error.
            return Err(Error::internal("a link through a proxy that has ended"));
        }
        self.expected.push(expected);
        Ok(self.expected.len() - 1)
    }

    /// Announces a work that receives, from each of these links, that many messages. Captured works
    /// are announced by [`captured`](Self::captured) instead.
    pub(crate) fn expect(&self, messages: &[(usize, u64)]) {
        for (link, count) in messages {
            self.expected[*link].fetch_add(*count, Ordering::Relaxed);
        }
    }

    /// Tells the thread that works were queued.
    pub(crate) fn launched(&self) {
        self.state.calls.fetch_add(1, Ordering::Relaxed);
        // Also makes the expected messages visible, and wakes the thread if it sleeps.
        self.state.endpoint.doorbell().ring();
    }

    /// Tells the thread that a call was captured: from now on works may begin at any time, without
    /// the host. Since it is not known what they receive, a peer that has left is no error for
    /// them, but a peer that has died is.
    pub(crate) fn captured(&self) {
        self.state.captured.store(1, Ordering::Relaxed);
        self.state.endpoint.doorbell().ring();
    }

    /// Ends the threads and leaks the rings, because kernels may still use them.
    pub(crate) fn abandon(mut self) {
        // Pairs as `proxy-stop`.
        self.state.stop.store(ABANDONED, Ordering::Release);
        std::mem::forget((self.end(), std::mem::take(&mut self.positions)));
    }

    /// Ends the threads; unless abandoned, after the links have taken everything that kernels sent.
    fn end(&mut self) -> Option<Vec<Pump>> {
        let ProxyThreads { requests, connecting, serving } = self.threads.take()?;
        // The thread first makes the requested connections: their rings may contain messages.
        drop(requests);
        let _ = connecting.join();
        // Pairs as `proxy-stop`.
        self.state.stop.fetch_max(STOPPED, Ordering::Release);
        self.state.endpoint.doorbell().ring();
        serving.join().ok()
    }

    /// Bytes of pinned memory.
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.pinned
    }

    fn start(&self, connect: Connect) -> Result<ProxyThreads, Error> {
        let (requests, receiver) = channel();
        let (state, spin_policy) = (self.state.clone(), self.spin_policy);
        let serving = spawn("maypole-proxy", move || serve::run(&state, spin_policy))?;
        let state = self.state.clone();
        let connecting = spawn("maypole-meet", move || {
            state.guard(|| connect::run(state.endpoint.rank(), &state, &receiver, &connect));
        })?;
        Ok(ProxyThreads { requests, connecting, serving })
    }
}

/// Used instead of a timeout that is too long to be added to the time.
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
        // A child process made by fork does not have the threads, and must not free device memory.
        if self.generation != process::generation() {
            std::mem::forget(std::mem::take(&mut self.positions));
            std::mem::forget((self.state.clone(), self.threads.take()));
            return;
        }
        if std::thread::panicking() {
            // Peers may wait for more than kernels have sent, so do not wait for the peers.
            self.state.stop.store(ABANDONED, Ordering::Release);
        }
        // The rings are freed after the threads have ended.
        drop(self.end());
    }
}

/// The words in which kernels count the messages that they have sent and received
/// ([`LinkEnd::position`]). They are in device memory, zero at first, because a kernel reads and
/// writes them with every message, and over the bus that would cost more than the message.
#[derive(Default)]
struct PositionWords {
    blocks: Vec<PooledBuffer>,
    /// The number of used words of the last block.
    taken: usize,
}

impl PositionWords {
    const WORDS: usize = 512;

    /// Takes two words; returns their addresses.
    fn take(&mut self, pool: &Arc<DevicePool>, stream: &CudaStream) -> Result<[u64; 2], Error> {
        if self.blocks.is_empty() || self.taken == Self::WORDS {
            let block = pool.device_memory(Self::WORDS * size_of::<u64>())?;
            stream.write(&block, &[0; Self::WORDS * size_of::<u64>()])?;
            stream.synchronize()?;
            self.blocks.push(block);
            self.taken = 0;
        }
        let block =
            self.blocks.last().ok_or_else(|| Error::internal("no block of position words"))?;
        let first = block.address() + (self.taken * size_of::<u64>()) as u64;
        self.taken += 2;
        Ok([first, first + size_of::<u64>() as u64])
    }
}
