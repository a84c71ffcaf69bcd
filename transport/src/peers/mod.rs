//! The table of the peers to which a rank is connected. The rank's endpoint and the threads that
//! accept connections for it share the table.

mod core_sharers;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

pub(crate) use core_sharers::CoreSharers;

use crate::Rank;
use crate::error::{FailedDial, LinkError};
use crate::inbox::{Inbox, InboxLayout};
use crate::link::{Incoming, Outgoing};
use crate::memory::MappingAccess;
use crate::segment::{self, OfferState, PeerSegment, SegmentId, SegmentMemory};
use crate::sync::{AtomicBool, Ordering};

/// The reason of an abort because a thread of an endpoint has panicked.
const THREAD_PANICKED: u32 = 0;

/// A connection to a peer, of any kind of link.
pub(crate) trait PeerConnection: fmt::Debug + Send + Sync {
    /// Ends the peer's waits: rank `by` aborted for `reason`.
    fn abort(&self, by: Rank, reason: u32);

    /// Whether and how the peer is gone.
    fn gone(&self) -> Option<LinkError>;

    /// Wakes the peer if it sleeps. Over TCP, messages do that.
    fn ring(&self) {}

    /// Tells the peer that this rank leaves, if its header does not.
    fn leave(&self) {}

    /// Begins to find out whether everything that was sent has arrived.
    fn begin_flush(&self) {}

    /// What was sent and is not known to have arrived, if that can still be learnt. Messages in
    /// memory of the peer have arrived.
    fn under_way(&self) -> Option<MessagesUnderWay> {
        None
    }

    /// The peer's process is proven to have ended. What it sent before still arrives, if it can.
    fn process_ended(&self) {
        self.connection_ended();
    }

    /// The peer's connection ended. Unless the peer had said that it leaves, its process is dead.
    fn connection_ended(&self) {}

    /// Whether the peer may still read memory that this rank lent it.
    fn is_reading(&self) -> bool {
        false
    }

    /// Whether the peer needs no core at present: it sleeps, or is about to, or is gone. False if
    /// that is not known.
    fn is_asleep(&self) -> bool {
        false
    }

    /// Offers a segment to the peer. `None` if the peer cannot map segments.
    fn offer(&self, memory: &SegmentMemory, access: MappingAccess) -> Option<OfferState> {
        let _ = (memory, access);
        None
    }

    /// The peer's segment of that number, if this rank may write to it.
    fn segment(&self, id: SegmentId) -> Option<PeerSegment> {
        let _ = id;
        None
    }

    /// Reads the TCP stream of that number, which has something to read.
    fn read_stream(&self, number: usize) {
        let _ = number;
    }

    /// Sends or writes to the peer what no correct rank does, by these random numbers: for tests of
    /// the peer.
    fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        let _ = random;
    }

    /// Both ends that this rank has of the links to and from the peer on a channel.
    ///
    /// # Safety
    /// No ends of this channel were opened before.
    unsafe fn open(&self, channel: u16) -> (Outgoing, Incoming);
}

/// Messages that were sent and are not known to have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessagesUnderWay {
    /// The rank to which they were sent.
    pub peer: Rank,
    /// Their number.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The connections of a rank.
#[derive(Debug)]
pub(crate) struct PeerTable {
    pub(crate) rank: Rank,
    pub(crate) layout: InboxLayout,
    pub(crate) inbox: Arc<Inbox>,
    /// Another process may ring this rank's doorbell.
    rung_by_others: AtomicBool,
    entries: Mutex<PeerEntries>,
    /// Set at most once.
    core_sharers: OnceLock<CoreSharers>,
}

#[derive(Debug, Default)]
struct PeerEntries {
    connected: HashMap<Rank, Arc<dyn PeerConnection>>,
    /// Channels that were opened.
    opened: HashSet<(Rank, u16)>,
    /// Errors of connections that a proven peer began and that broke before they were complete.
    failed: HashMap<Rank, LinkError>,
    /// The last failed attempts to dial peers.
    failed_dials: HashMap<Rank, FailedDial>,
    /// Segments that every new peer is offered at once.
    shared: Vec<SegmentId>,
    /// Why connections cannot be accepted at present.
    accept_error: Option<LinkError>,
}

impl PeerTable {
    pub(crate) fn new(rank: Rank, layout: InboxLayout, inbox: Arc<Inbox>) -> Self {
        Self {
            rank,
            layout,
            inbox,
            rung_by_others: AtomicBool::new(false),
            entries: Mutex::default(),
            core_sharers: OnceLock::new(),
        }
    }

    /// The entries are consistent at all times, so a panic elsewhere under the lock does no harm.
    fn entries(&self) -> MutexGuard<'_, PeerEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, peer: Rank) -> Option<Arc<dyn PeerConnection>> {
        self.entries().connected.get(&peer).cloned()
    }

    /// All connected peers.
    pub(crate) fn all(&self) -> Vec<Arc<dyn PeerConnection>> {
        self.entries().connected.values().cloned().collect()
    }

    /// Adds a new connection, and passes on an abort that the peer missed.
    pub(crate) fn add(&self, peer: Rank, connection: Arc<dyn PeerConnection>) {
        let mut entries = self.entries();
        entries.accept_error = None;
        if let Some(sharers) = self.core_sharers.get() {
            sharers.connected(peer, &connection);
        }
        entries.connected.insert(peer, connection.clone());
        let shared = entries.shared.clone();
        drop(entries);
        for memory in shared.into_iter().filter_map(segment::get) {
            connection.offer(&memory, MappingAccess::Read);
        }
        if let Some(LinkError::Aborted { by, reason }) = self.inbox.header().aborted() {
            connection.abort(by, reason);
        }
        self.inbox.header().doorbell.ring();
    }

    /// Records which other ranks share the cores of this rank. Later records have no effect.
    pub(crate) fn set_core_sharers(&self, sharers: CoreSharers) {
        let entries = self.entries();
        for (peer, connection) in &entries.connected {
            sharers.connected(*peer, connection);
        }
        // Set under the lock, so that no connection is missed.
        let _ = self.core_sharers.set(sharers);
    }

    /// Whether a core is left for this rank by the ranks that share its cores.
    pub(crate) fn has_core(&self) -> bool {
        self.core_sharers.get().is_none_or(CoreSharers::leave_a_core)
    }

    /// Whether another process may ring this rank's doorbell.
    pub(crate) fn rung_by_others(&self) -> bool {
        self.rung_by_others.load(Ordering::SeqCst)
    }

    /// Records that another process gets this rank's inbox, for links. If the rank sleeps in a way
    /// that the process cannot end, the ring of [`add`](Self::add) ends it.
    pub(crate) fn let_others_ring(&self) {
        self.rung_by_others.store(true, Ordering::SeqCst);
    }

    /// The file of this rank's inbox to send to `peer`, in which the region of that rank is ready.
    pub(crate) fn file_for(&self, peer: Rank) -> Result<BorrowedFd<'_>, LinkError> {
        self.inbox.prepare_region(peer)?;
        let why = "this rank shares no memory with other processes";
        self.inbox.file().ok_or(LinkError::Refused { peer, why })
    }

    /// Runs the service of a thread of this endpoint. A panic in it ends all waits of this rank and
    /// of its peers, because nothing serves them any more.
    pub(crate) fn guard(&self, service: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(service)).is_err() {
            let rank = self.rank;
            log::error!("rank {rank}: a thread of its links has panicked; please report it");
            self.inbox.header().abort(rank, THREAD_PANICKED);
            self.all().iter().for_each(|peer| peer.abort(rank, THREAD_PANICKED));
        }
    }

    /// Forgets the last failure of a proven peer, because it begins a new connection.
    pub(crate) fn clear_failure(&self, peer: Rank) {
        self.entries().failed.remove(&peer);
    }

    /// Records that a proven peer's connection broke before it was complete.
    pub(crate) fn set_failure(&self, peer: Rank, error: LinkError) {
        self.entries().failed.insert(peer, error);
        self.inbox.header().doorbell.ring();
    }

    /// The last attempt to dial the peer that failed, if it is not connected.
    pub(crate) fn failed_dial(&self, peer: Rank) -> Option<FailedDial> {
        let entries = self.entries();
        let is_connected = entries.connected.contains_key(&peer);
        entries.failed_dials.get(&peer).filter(|_| !is_connected).copied()
    }

    /// Records that an attempt to dial the peer failed. It may still be reached.
    pub(crate) fn set_failed_dial(&self, peer: Rank, dial: FailedDial) {
        self.entries().failed_dials.insert(peer, dial);
    }

    /// Records that no connection can be accepted at present.
    pub(crate) fn set_accept_error(&self, error: LinkError) {
        self.entries().accept_error = Some(error);
    }

    /// Records that the process of a peer has ended.
    pub(crate) fn process_ended(&self, peer: Rank) {
        match self.get(peer) {
            Some(connection) => connection.process_ended(),
            None => self.set_failure(peer, LinkError::PeerDied { peer }),
        }
        self.inbox.header().doorbell.ring();
    }

    /// Records that a peer's connection ended.
    pub(crate) fn connection_ended(&self, peer: Rank) {
        if let Some(connection) = self.get(peer) {
            connection.connection_ended();
        }
        self.inbox.header().doorbell.ring();
    }

    /// Waits until the peer has connected to this rank.
    pub(crate) fn wait_for(&self, peer: Rank, deadline: Instant) -> Result<(), LinkError> {
        let header = self.inbox.header();
        let mut result = Ok(());
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = header.doorbell.wait(0, 0, Some(left), || {
            let mut entries = self.entries();
            if entries.connected.contains_key(&peer) {
                return true;
            }
            let error = header.aborted().or_else(|| entries.failed.remove(&peer));
            result = error.map_or(Ok(()), Err);
            error.is_some()
        });
        if ended {
            return result;
        }
        let (during, entries) = ("waiting for its connection", self.entries());
        let last = entries.failed_dials.get(&peer).copied();
        Err(entries.accept_error.unwrap_or(LinkError::Timeout { peer, during, last }))
    }

    /// Opens both ends of a channel to a connected peer, which is possible once.
    pub(crate) fn open(&self, peer: Rank, channel: u16) -> Result<(Outgoing, Incoming), LinkError> {
        if channel >= self.layout.channels {
            return Err(LinkError::Misuse { what: "the inboxes have no such channel" });
        }
        let mut entries = self.entries();
        let connected = entries.connected.get(&peer);
        let connection = connected.ok_or(LinkError::NotConnected { peer })?.clone();
        if !entries.opened.insert((peer, channel)) {
            return Err(LinkError::Misuse { what: "a channel to a peer can be opened once" });
        }
        drop(entries);
        // SAFETY: `opened` shows that this is the first time.
        Ok(unsafe { connection.open(channel) })
    }

    /// Offers a segment for reading to all peers that can map it, connected now or later.
    pub(crate) fn share(&self, memory: &SegmentMemory) {
        let live = segment::ids();
        let mut entries = self.entries();
        entries.shared.retain(|id| *id != memory.id() && live.contains(id));
        entries.shared.push(memory.id());
        drop(entries);
        self.offer(memory, MappingAccess::Read);
    }

    /// Offers a segment to all connected peers that can map it. Returns whether all have answered.
    pub(crate) fn offer(&self, memory: &SegmentMemory, access: MappingAccess) -> bool {
        let offers = self.all().into_iter().filter_map(|peer| peer.offer(memory, access));
        offers.filter(|offer| *offer == OfferState::Pending).count() == 0
    }
}
