//! A rank of a communicator on its device: its links, signals and memory, and its end.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::DriverError;
use maypole_cuda::encode::LinkPort;
use maypole_cuda::launch::{DEPARTED_BYTES, LinkEnd};
use maypole_cuda::pool::PooledBuffer;
use maypole_cuda::stream::{CudaEvent, CudaStream, RelaxedCapture};

use super::group_programs::GroupPrograms;
use super::work_order::WorkOrder;
use crate::device::memory::inbox::{DeviceInbox, PeerInbox};
use crate::device::memory::inbox_layout::DeviceInboxLayout;
use crate::device::memory::program_memory::ProgramMemory;
use crate::device::memory::scratch::DeviceScratch;
use crate::device::memory::signals::DeviceSignals;
use crate::device::setup::gpu::Gpu;
use crate::device::setup::rank_setup::RankSetup;
use crate::error::Error;
use crate::process::generation;
use crate::proxy::Proxy;

/// The most blocks of a rank's call: enough to keep a link between devices busy.
const MOST_BLOCKS: u32 = 64;
/// Bytes of device memory and of pinned memory that a communicator reserves for its programs and
/// its scratch.
const RESERVED: (usize, usize) = (16 << 20, 4 << 20);
/// How long kernels may take to see that they are aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a rank waits at its end for other ranks to take the last messages.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// A rank on its device.
pub(crate) struct DeviceRank {
    pub(crate) gpu: Arc<Gpu>,
    /// The fork generation of the process that made the rank, see [`generation`].
    generation: u32,
    me: Rank,
    /// The stream for the communicator's own calls and uploads. It does not synchronise with any
    /// other stream.
    pub(crate) stream: CudaStream,
    /// Marks what is on the default stream when a call is made on `stream`.
    default_event: CudaEvent,
    pub(crate) signals: Arc<DeviceSignals>,
    pub(super) program_memory: Arc<ProgramMemory>,
    pub(super) scratch: DeviceScratch,
    /// Copies of send buffers that a call would overwrite.
    send_copies: DeviceScratch,
    pub(super) groups: GroupPrograms,
    pub(crate) order: WorkOrder,
    /// The most blocks of a call of this rank.
    pub(crate) most_blocks: u32,
    pub(crate) layout: DeviceInboxLayout,
    /// Bytes of the longest message of a send: what a slot of every link holds.
    pub(crate) tile_bytes: usize,
    /// The proxy for links to ranks whose memory the kernels do not reach.
    pub(crate) proxy: Option<Proxy>,
    /// For each link the number that the proxy has given it, if it goes through the proxy. In the
    /// order of the link tables.
    proxied: Vec<Option<usize>>,
    /// The rank and channel of each link, in the order of the link tables.
    pub(crate) ports: Vec<LinkPort>,
    /// The link tables that kernels read: first the sending ends of all links, then the receiving
    /// ends. Behind them are the counters at [`departed`](Self::departed).
    tables: Arc<PooledBuffer>,
    /// Whether a link is open, in the order of the link tables.
    open: Vec<bool>,
    /// The inboxes that hold the other ends of direct links, by rank.
    peer_inboxes: Vec<Option<PeerInbox>>,
    inbox: Arc<DeviceInbox>,
}

impl DeviceRank {
    /// Makes rank `me`, with direct links to the ranks whose inboxes are in `peer_inboxes`.
    /// `sharing` is the number of ranks of the communicator on this device.
    ///
    /// # Errors
    /// The device has no memory left, or the driver fails.
    pub(crate) fn new(
        setup: RankSetup,
        me: Rank,
        peer_inboxes: Vec<Option<PeerInbox>>,
        sharing: u32,
    ) -> Result<Self, Error> {
        let RankSetup { gpu, stream, layout, inbox, .. } = setup;
        let _relaxed = RelaxedCapture::begin(gpu.device.driver())?;
        gpu.pool.reserve(RESERVED.0, RESERVED.1)?;
        let peers = layout.peers(me);
        let ports = peers.iter().enumerate().map(|(index, &peer)| LinkPort {
            peer,
            channel: (index % usize::from(layout.channels)) as Channel,
        });
        let ports: Vec<LinkPort> = ports.collect();
        let ends = |port: &LinkPort| {
            let peer_inbox = peer_inboxes[port.peer as usize].as_ref()?.address();
            Some(layout.ends((me, inbox.address()), (port.peer, peer_inbox), port.channel))
        };
        let ends: Vec<Option<[LinkEnd; 2]>> = ports.iter().map(ends).collect();
        let open = ends.iter().map(Option::is_some).collect();
        let words = [0, 1].into_iter().flat_map(|side| {
            ends.iter().flat_map(move |ends| ends.map_or([0; 9], |ends| ends[side].words()))
        });
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        // The counters at `departed` are zero at first.
        bytes.resize(bytes.len() + 2 * DEPARTED_BYTES, 0);
        let tables = gpu.pool.device_memory(bytes.len())?;
        stream.write(&tables, &bytes)?;
        stream.synchronize()?;
        let signals = Arc::new(DeviceSignals::new(&gpu.pool, peers)?);
        let program_memory = ProgramMemory::new(&gpu.pool);
        let default_event = CudaEvent::new(&gpu.device)?;
        let order = WorkOrder::new(&gpu)?;
        Ok(Self {
            most_blocks: (gpu.resident_blocks / sharing.max(1)).clamp(1, MOST_BLOCKS),
            scratch: DeviceScratch::default(),
            send_copies: DeviceScratch::default(),
            groups: GroupPrograms::default(),
            gpu,
            generation: generation(),
            me,
            stream,
            default_event,
            signals,
            program_memory,
            order,
            tile_bytes: layout.slot_bytes,
            proxy: None,
            proxied: vec![None; ports.len()],
            layout,
            ports,
            tables: Arc::new(tables),
            open,
            peer_inboxes,
            inbox,
        })
    }

    /// Makes all links that are not direct go through `proxy` from now on.
    pub(crate) fn set_proxy(&mut self, proxy: Proxy) {
        let others = (0..self.layout.nranks).filter(|rank| *rank != self.me);
        let proxied = others.filter(|rank| self.peer_inboxes[*rank as usize].is_none());
        let proxied: Vec<Rank> = proxied.collect();
        log::info!(
            target: "PROXY",
            "rank {} exchanges messages with ranks {proxied:?} through the proxy: its kernels do \
             not reach their memory",
            self.me
        );
        self.proxy = Some(proxy);
    }

    /// Opens the links to and from `peer` on `channel`, if they are not open. Does not wait for the
    /// peer.
    ///
    /// # Errors
    /// There is no pinned memory left, or the proxy has ended.
    pub(crate) fn open_link(&mut self, peer: Rank, channel: Channel) -> Result<(), Error> {
        let index = self.layout.index(self.me, peer, channel);
        if self.open[index] {
            return Ok(());
        }
        let Some(proxy) = &mut self.proxy else {
            return Err(Error::internal(format!("no link to rank {peer} on channel {channel}")));
        };
        let _relaxed = RelaxedCapture::begin(self.gpu.device.driver())?;
        let link = proxy.add_link(&self.gpu.pool, &self.stream, peer, channel)?;
        self.set_link(index, [link.sending, link.receiving])?;
        self.proxied[index] = Some(link.number);
        Ok(())
    }

    /// The number that the proxy has given the links to and from `peer` on `channel`, if they go
    /// through the proxy.
    pub(crate) fn proxied_link(&self, peer: Rank, channel: Channel) -> Option<usize> {
        self.proxied[self.layout.index(self.me, peer, channel)]
    }

    /// The index in the link tables of the links to and from `peer` on `channel`.
    pub(super) fn link_index(&self, peer: Rank, channel: Channel) -> u32 {
        self.layout.index(self.me, peer, channel) as u32
    }

    /// Writes the sending and the receiving end of a link through the proxy into the link tables.
    fn set_link(&mut self, index: usize, ends: [LinkEnd; 2]) -> Result<(), DriverError> {
        for (table, end) in [self.sending_table(), self.receiving_table()].into_iter().zip(ends) {
            let bytes: Vec<u8> = end.words().into_iter().flat_map(u64::to_le_bytes).collect();
            let entry = table + (index * size_of::<LinkEnd>()) as u64;
            // SAFETY: the entry lies within the tables, `bytes` lives until the copy has ended, and
            // no kernel reads the entry before the link is open.
            unsafe { self.stream.copy(entry, bytes.as_ptr() as u64, bytes.len())? };
            self.stream.synchronize()?;
        }
        self.open[index] = true;
        Ok(())
    }

    /// The address of memory for a copy of a send buffer of `bytes`, which the next work may read.
    ///
    /// # Errors
    /// The device has no memory left.
    pub(crate) fn send_copy(&mut self, bytes: usize) -> Result<u64, DriverError> {
        self.send_copies.prepare(&self.gpu.pool, bytes)
    }

    /// Makes what is queued on the rank's own stream from now on begin after what is on the legacy
    /// default stream now, as it would on a stream that synchronises with it.
    ///
    /// # Errors
    /// The driver fails.
    pub(crate) fn follow_default_stream(&self) -> Result<(), DriverError> {
        // SAFETY: null is the legacy default stream, which always exists.
        let legacy = unsafe { CudaStream::foreign(&self.gpu.device, std::ptr::null_mut()) };
        self.default_event.record(&legacy)?;
        self.stream.wait(&self.default_event)
    }

    /// The address of the table of the sending ends of all links.
    pub(super) fn sending_table(&self) -> u64 {
        self.tables.address()
    }

    /// The address of the table of the receiving ends of all links.
    pub(super) fn receiving_table(&self) -> u64 {
        self.tables.address() + (self.layout.links() * size_of::<LinkEnd>()) as u64
    }

    /// The address of the words in which the device counts this rank's works; replays of graphs are
    /// counted in words of their own.
    pub(super) fn departed(&self, captured: bool) -> u64 {
        let tables = 2 * self.layout.links() * size_of::<LinkEnd>();
        self.tables.address() + (tables + usize::from(captured) * DEPARTED_BYTES) as u64
    }

    /// Bytes of device memory that the rank uses.
    pub(crate) fn device_bytes(&self) -> usize {
        let programs = self.program_memory.bytes();
        let scratch = self.scratch.bytes() + self.send_copies.bytes();
        self.inbox.bytes() + self.tables.bytes() + programs + scratch
    }

    /// Bytes of pinned memory that the rank uses.
    pub(crate) fn pinned_bytes(&self) -> usize {
        // Programs need as much staging memory on the host as memory on the device.
        let proxy = self.proxy.as_ref().map_or(0, Proxy::pinned_bytes);
        self.signals.bytes() + self.program_memory.bytes() + proxy
    }

    /// Waits until nothing of this rank is running or queued. False if that cannot be known,
    /// because the device has failed or aborted kernels do not end.
    fn wait_until_idle(&self) -> bool {
        let (mut aborted, mut pause) = (None, Duration::from_micros(20));
        loop {
            if self.signals.is_idle() {
                return true;
            }
            if self.signals.is_aborted() {
                let since = *aborted.get_or_insert_with(Instant::now);
                if since.elapsed() > ABORT_TIMEOUT {
                    return false;
                }
            }
            if self.signals.query_device().is_err() {
                return false;
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(5));
        }
    }

    /// Waits until ranks of other processes write to the inbox no more; false if they may still do
    /// so. Ranks of this process keep the inbox alive as long as they use it.
    fn wait_until_drained(&self) -> bool {
        let other_process = |port: &&LinkPort| {
            let inbox = self.peer_inboxes[port.peer as usize].as_ref();
            inbox.is_some_and(PeerInbox::is_of_other_process)
        };
        let links = self.ports.iter().filter(other_process).map(|port| (port.peer, port.channel));
        let links: Vec<_> = links.collect();
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        loop {
            if links.is_empty() {
                return true;
            }
            if self.signals.is_aborted() || Instant::now() > deadline {
                return false;
            }
            let links = links.iter().copied();
            match self.inbox.is_drained(&self.stream, &self.layout, self.me, links) {
                Ok(true) => return true,
                Ok(false) => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => return false,
            }
        }
    }

    /// Leaks all memory of the device. Freeing it would wait for all work of the device.
    fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.scratch));
        std::mem::forget(std::mem::take(&mut self.send_copies));
        std::mem::forget(std::mem::take(&mut self.peer_inboxes));
        std::mem::forget(self.tables.clone());
        std::mem::forget((self.gpu.clone(), self.inbox.clone()));
        std::mem::forget((self.signals.clone(), self.program_memory.clone()));
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
            // A child process made by fork cannot use the device.
            return self.leak();
        }
        if std::thread::panicking() {
            // The other ranks may never make the calls that this rank's kernels wait for.
            self.signals.abort();
        }
        if self.wait_until_idle() {
            if !self.wait_until_drained() {
                self.inbox.set_may_be_written(true);
            }
            return;
        }
        log::warn!(
            "{self}: the communicator has ended, but its kernels may still be running; what they \
             use is freed when the process ends"
        );
        if let Some(proxy) = self.proxy.take() {
            proxy.abandon();
        }
        self.leak();
    }
}
