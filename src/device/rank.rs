//! A rank's part of a communicator of a device: its links, signals and memory, and its way out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::{DriverError, Stream};
use maypole_cuda::encode::Port;
use maypole_cuda::launch::{DEPARTED_BYTES, LinkEnd};
use maypole_cuda::stream::{Event, Relaxed};

use super::arrive::Arrival;
use super::gpu::Gpu;
use super::group::Groups;
use super::inbox::{Inbox, Reached, Shape};
use super::order::Order;
use super::pool::Memory;
use super::scratch::Scratch;
use super::signals::Signals;
use super::store::Store;
use crate::error::Error;
use crate::process::generation;
use crate::proxy::Proxy;

/// Blocks that a rank's call has at most: as many as keep a link of a device busy.
const MOST_BLOCKS: u32 = 64;
/// How long kernels may take to see that they are to end.
const LEAVING: Duration = Duration::from_secs(5);

/// How long a rank waits at its end for others to take the last messages.
const DRAINING: Duration = Duration::from_millis(500);

/// A rank on its device.
pub(crate) struct DeviceRank {
    pub(crate) gpu: Arc<Gpu>,
    /// The process that made it, as [`generation`] tells.
    generation: u32,
    me: Rank,
    /// For the communicator's own calls and uploads; it waits for no other stream.
    pub(crate) stream: Stream,
    /// For what the default stream holds when such a call is made.
    default: Event,
    pub(crate) signals: Arc<Signals>,
    pub(crate) store: Arc<Store>,
    pub(crate) scratch: Scratch,
    pub(crate) groups: Groups,
    pub(crate) order: Order,
    /// Blocks that a call of this rank may have.
    pub(crate) blocks: u32,
    /// All blocks of a launch must be resident together; else ranks that share the device have few enough.
    pub(crate) together: bool,
    pub(crate) shape: Shape,
    /// Bytes of a message of transfers at most: what all links take.
    pub(crate) tile: usize,
    /// For links to ranks whose memory the kernels do not reach.
    pub(crate) proxy: Option<Proxy>,
    /// The number that the proxy has for a link, if it carries it, in the order of the tables.
    carried: Vec<Option<usize>>,
    /// The other end of each link, in the order of the tables.
    pub(crate) ports: Vec<Port>,
    /// The ends that this rank sends on, then those that it receives from, as the kernel sees them.
    tables: Arc<Memory>,
    /// Whether a link is there.
    open: Vec<bool>,
    /// What the links of the others lie in.
    reached: Vec<Option<Reached>>,
    inbox: Arc<Inbox>,
}

impl DeviceRank {
    /// The rank `me`, with direct links to those whose inbox is `reached`. `sharing`: ranks of the communicator on its device.
    pub(crate) fn new(
        arrival: Arrival,
        me: Rank,
        reached: Vec<Option<Reached>>,
        sharing: u32,
    ) -> Result<Self, Error> {
        let Arrival { gpu, stream, shape, inbox, .. } = arrival;
        let _relaxed = Relaxed::begin(gpu.device.driver())?;
        let peers = shape.peers(me);
        let ports = peers.iter().enumerate().map(|(index, &peer)| Port {
            peer,
            channel: (index % usize::from(shape.channels)) as Channel,
        });
        let ports: Vec<Port> = ports.collect();
        let end = |port: &Port| {
            let theirs = reached[port.peer as usize].as_ref()?.address();
            Some(shape.ends((me, inbox.address()), (port.peer, theirs), port.channel))
        };
        let ends: Vec<Option<[LinkEnd; 2]>> = ports.iter().map(end).collect();
        let open = ends.iter().map(Option::is_some).collect();
        let words = [0, 1].into_iter().flat_map(|side| {
            ends.iter().flat_map(move |ends| ends.map_or([0; 9], |ends| ends[side].words()))
        });
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        // Behind the tables, all zeros.
        bytes.resize(bytes.len() + 2 * DEPARTED_BYTES, 0);
        let tables = gpu.pool.memory(bytes.len())?;
        stream.write(&tables, &bytes)?;
        stream.synchronize()?;
        let signals = Arc::new(Signals::new(&gpu, peers)?);
        let store = Store::new(&gpu.pool);
        let default = Event::new(&gpu.device)?;
        let order = Order::new(Event::new(&gpu.device)?);
        Ok(Self {
            blocks: (gpu.resident / sharing.max(1)).clamp(1, MOST_BLOCKS),
            together: sharing == 1,
            scratch: Scratch::default(),
            groups: Groups::default(),
            gpu,
            generation: generation(),
            me,
            stream,
            default,
            signals,
            store,
            order,
            tile: shape.slot_bytes,
            proxy: None,
            carried: vec![None; ports.len()],
            shape,
            ports,
            tables: Arc::new(tables),
            open,
            reached,
            inbox,
        })
    }

    /// From now on links that are not direct go through `proxy`.
    pub(crate) fn carry(&mut self, proxy: Proxy) {
        let far = (0..self.shape.nranks).filter(|rank| *rank != self.me);
        let far: Vec<Rank> = far.filter(|rank| self.reached[*rank as usize].is_none()).collect();
        log::info!(
            target: "PROXY",
            "rank {} meets ranks {far:?} through the proxy: kernels do not reach their memory",
            self.me
        );
        self.proxy = Some(proxy);
    }

    /// Sees to it that there is a link to and from `peer` on `channel`. Does not wait for the peer.
    pub(crate) fn open_link(&mut self, peer: Rank, channel: Channel) -> Result<(), Error> {
        let index = self.shape.index(self.me, peer, channel);
        if self.open[index] {
            return Ok(());
        }
        let Some(proxy) = &mut self.proxy else {
            return Err(Error::internal(format!("no link to rank {peer} on channel {channel}")));
        };
        let _relaxed = Relaxed::begin(self.gpu.device.driver())?;
        let link = proxy.add(&self.gpu.pool, &self.stream, peer, channel)?;
        self.set_link(index, [link.sending, link.receiving])?;
        self.carried[index] = Some(link.number);
        Ok(())
    }

    /// The number that the proxy has for the links to and from `peer` on `channel`, if it carries them.
    pub(crate) fn carried(&self, peer: Rank, channel: Channel) -> Option<usize> {
        self.carried[self.shape.index(self.me, peer, channel)]
    }

    /// The place in the tables of the links to and from `peer` on `channel`.
    pub(crate) fn link(&self, peer: Rank, channel: Channel) -> u32 {
        self.shape.index(self.me, peer, channel) as u32
    }

    /// Puts the ends of a link that is not direct into the tables: the one that this rank sends on, and the one that it receives from.
    fn set_link(&mut self, index: usize, ends: [LinkEnd; 2]) -> Result<(), DriverError> {
        for (table, end) in [self.sending(), self.receiving()].into_iter().zip(ends) {
            let bytes: Vec<u8> = end.words().into_iter().flat_map(u64::to_le_bytes).collect();
            let at = table + (index * size_of::<LinkEnd>()) as u64;
            // SAFETY: the entry lies within the tables; no kernel reads it before the link is there.
            unsafe { self.stream.copy(at, bytes.as_ptr() as u64, bytes.len())? };
            self.stream.synchronize()?;
        }
        self.open[index] = true;
        Ok(())
    }

    /// What is queued on the own stream from here on begins after what is on the legacy default stream so far, as it would on that.
    pub(crate) fn follow_default_stream(&self) -> Result<(), DriverError> {
        // SAFETY: null is the legacy default stream, which always is.
        let legacy = unsafe { Stream::foreign(&self.gpu.device, std::ptr::null_mut()) };
        self.default.record(&legacy)?;
        self.stream.wait(&self.default)
    }

    /// Address of the table of links that the rank sends on.
    pub(crate) fn sending(&self) -> u64 {
        self.tables.address()
    }

    /// Address of the table of links that it receives from.
    pub(crate) fn receiving(&self) -> u64 {
        self.tables.address() + (self.shape.links() * size_of::<LinkEnd>()) as u64
    }

    /// Where the device counts the works of this rank: those of graphs apart from others.
    pub(crate) fn departed(&self, captured: bool) -> u64 {
        let tables = 2 * self.shape.links() * size_of::<LinkEnd>();
        self.tables.address() + (tables + usize::from(captured) * DEPARTED_BYTES) as u64
    }

    /// Bytes of device memory: all, and how much of it can be given back.
    pub(crate) fn held(&self) -> usize {
        self.inbox.bytes() + self.tables.bytes() + self.store.held() + self.scratch.held()
    }

    /// Bytes of pinned memory.
    pub(crate) fn pinned(&self) -> usize {
        // Programs have as much on the host as on the device.
        let carried = self.proxy.as_ref().map_or(0, Proxy::pinned);
        self.signals.bytes() + self.store.held() + carried
    }

    /// Returns when nothing of this rank runs or is queued any more; false if that cannot be known, since the device has failed, or kernels
    /// do not leave that were told to.
    fn is_quiet(&self) -> bool {
        let (mut aborted, mut pause) = (None, Duration::from_micros(20));
        loop {
            if self.signals.is_idle() {
                return true;
            }
            if self.signals.is_aborted() {
                let since = *aborted.get_or_insert_with(Instant::now);
                if since.elapsed() > LEAVING {
                    return false;
                }
            }
            if self.signals.ask_device().is_err() {
                return false;
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(5));
        }
    }
}

impl DeviceRank {
    /// Nothing is freed, for that waits for all work of the device.
    fn abandon(&mut self) {
        std::mem::forget(std::mem::take(&mut self.scratch));
        std::mem::forget(std::mem::take(&mut self.reached));
        std::mem::forget(self.tables.clone());
        std::mem::forget((self.gpu.clone(), self.inbox.clone()));
        std::mem::forget((self.signals.clone(), self.store.clone()));
    }

    /// Whether ranks of other processes write to the inbox no more. Those of this one keep it as long as they do.
    fn is_drained(&self) -> bool {
        let elsewhere = |port: &&Port| {
            let reached = self.reached[port.peer as usize].as_ref();
            reached.is_some_and(Reached::is_elsewhere)
        };
        let ports: Vec<_> =
            self.ports.iter().filter(elsewhere).map(|port| (port.peer, port.channel)).collect();
        let until = Instant::now() + DRAINING;
        loop {
            if ports.is_empty() {
                return true;
            }
            if self.signals.is_aborted() || Instant::now() > until {
                return false;
            }
            let ports = ports.iter().copied();
            match self.inbox.is_drained(&self.stream, &self.shape, self.me, ports) {
                Ok(true) => return true,
                Ok(false) => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => return false,
            }
        }
    }
}

impl fmt::Display for DeviceRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA device {} ({})", self.gpu.device.ordinal(), self.gpu.name)
    }
}

impl Drop for DeviceRank {
    fn drop(&mut self) {
        if generation() != self.generation {
            // A child made by fork has no device.
            return self.abandon();
        }
        if std::thread::panicking() {
            // The others may never come.
            self.signals.abort();
        }
        if self.is_quiet() {
            if !self.is_drained() {
                self.inbox.is_unquiet();
            }
            return;
        }
        log::warn!(
            "{self}: kernels of a communicator that ended are not known to be through; what they use is freed with the process"
        );
        if let Some(proxy) = self.proxy.take() {
            proxy.abandon();
        }
        self.abandon();
    }
}
