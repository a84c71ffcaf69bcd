//! The endpoint: one rank's side of all its links, through which it connects to its peers.

mod hosts;
mod sleep;

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use maypole_verbs::LinkLayer;

pub use self::sleep::EndpointTicket;
use crate::Rank;
use crate::address::{EndpointAddress, LinkKind, ProcessToken, RdmaNetwork};
use crate::credentials::Credentials;
use crate::doorbell::Doorbell;
use crate::error::{FailedDial, LinkError};
use crate::host::HostId;
use crate::inbox::{Inbox, InboxLayout};
use crate::link::{Incoming, Outgoing};
use crate::local;
use crate::local::ends::LocalPeer;
use crate::local::listener::LocalListener;
use crate::memory::MappingAccess;
use crate::noise::{KEY_BYTES, Key};
pub use crate::peers::MessagesUnderWay;
use crate::peers::{CoreSharers, PeerTable};
use crate::process::LazyValue;
use crate::random::random_bytes;
use crate::rank_header::RankHeader;
use crate::segment::{self, PeerSegment};
use crate::shm;
use crate::shm::ends::ShmPeer;
use crate::shm::listener::ShmListener;
use crate::shm::sharing::SegmentSharing;
use crate::tcp::TcpConfig;
use crate::tcp::listener::TcpLinkListener;
use crate::tcp::pair::upgrade::UPGRADE;
use crate::verbs::listener::VerbsListener;
use crate::verbs::{RdmaReport, VerbsConfig, VerbsDomain};

/// What an endpoint is made from.
#[derive(Clone)]
pub struct EndpointConfig {
    /// This rank.
    pub rank: Rank,
    /// The size of the communicator.
    pub nranks: u32,
    /// A secret that only the ranks of the communicator know.
    pub secret: Key,
    /// The shape of the inboxes of all ranks.
    pub layout: InboxLayout,
}

impl fmt::Debug for EndpointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, nranks, secret: _, layout } = self;
        f.debug_struct("EndpointConfig")
            .field("rank", rank)
            .field("nranks", nranks)
            .field("layout", layout)
            .finish_non_exhaustive()
    }
}

/// The kinds of link by which an endpoint can be reached. Two ranks use the first kind that both
/// have enabled, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnabledLinks {
    /// The memory of the process, for ranks in one process.
    pub local: bool,
    /// Shared memory, for ranks on one host.
    pub shm: bool,
    /// RDMA, between ranks that both have a device of one network. It needs TCP too, for the
    /// connections and their ends. Where no device can be used, the rank does without.
    pub verbs: Option<VerbsConfig>,
    /// TCP.
    pub tcp: Option<TcpConfig>,
}

/// A rank's inbox and its connections. Dropping the endpoint ends both and leaves nothing behind.
/// Links that were opened stay memory-safe, and a peer that still waits for this rank gets the
/// error that it left.
///
/// In a child made by fork an endpoint must not be used, and dropping it there does nothing.
pub struct Endpoint {
    parts: ManuallyDrop<EndpointParts>,
    /// The process that made the endpoint.
    owner: u32,
}

struct EndpointParts {
    // Dropped in this order.
    _local: LocalListener,
    shm: Option<ShmListener>,
    /// Serves only the proofs that ranks share a host, until these are made.
    prover: Mutex<Option<ShmListener>>,
    verbs: Option<VerbsListener>,
    tcp: Option<TcpLinkListener>,
    peers: Arc<PeerTable>,
    credentials: Credentials,
    address: EndpointAddress,
    /// The host of this rank, once it is proven.
    host: OnceLock<HostId>,
    /// A digest of the communicator's secret.
    communicator: [u8; KEY_BYTES],
    /// Held while a connection is made: one at a time.
    connecting: Mutex<()>,
}

impl Endpoint {
    /// Makes the rank's inbox and begins to accept connections from ranks of this host.
    ///
    /// # Errors
    /// As for [`with_links`](Self::with_links).
    pub fn new(config: EndpointConfig) -> Result<Self, LinkError> {
        Self::with_links(config, &EnabledLinks { local: true, shm: true, verbs: None, tcp: None })
    }

    /// Like [`new`](Self::new), but links to other ranks of this process use shared memory, as if
    /// the endpoint were in a process of its own.
    ///
    /// # Errors
    /// As for [`with_links`](Self::with_links).
    pub fn new_without_local(config: EndpointConfig) -> Result<Self, LinkError> {
        Self::with_links(config, &EnabledLinks { local: false, shm: true, verbs: None, tcp: None })
    }

    /// Makes the rank's inbox and begins to accept connections by the kinds of link in `links`.
    ///
    /// # Errors
    /// The configuration is impossible, another endpoint of this process has the same rank, or the
    /// system has no memory, descriptors or threads left.
    pub fn with_links(config: EndpointConfig, links: &EnabledLinks) -> Result<Self, LinkError> {
        let EndpointConfig { rank, nranks, secret, layout } = config;
        if rank >= nranks || layout.nranks != nranks {
            return Err(LinkError::Misuse {
                what: "rank and layout must fit the communicator's size",
            });
        }
        let token = if links.local { process_token()? } else { random_bytes()? };
        let inbox = Arc::new(Inbox::new(rank, layout)?);
        // The registry holds a digest instead of the secret itself.
        let communicator = *secret.derive("local", &[]).bytes();
        let local = LocalListener::start((communicator, rank), &inbox)?;
        let peers = Arc::new(PeerTable::new(rank, layout, inbox));
        let credentials = Credentials { key: secret, rank, nranks };
        // Ranks that share no memory for their links also prove that they share a host.
        let listens = peers.inbox.file().is_some() && (links.shm || links.tcp.is_some());
        let listener = listens.then(|| ShmListener::start(peers.clone(), credentials.clone()));
        let listener = listener.transpose()?;
        let domain = links.verbs.as_ref().filter(|_| links.tcp.is_some());
        let domains = domain.and_then(|config| open_domains(rank, config, &layout));
        let rdma = domains.as_ref().map(|domains| match domains[0].link_layer() {
            LinkLayer::InfiniBand => RdmaNetwork::InfiniBand,
            LinkLayer::Ethernet => RdmaNetwork::Ethernet,
        });
        let verbs = domains.map(|all| VerbsListener::new(all, peers.clone())).transpose()?;
        let upgrade = verbs.as_ref().map(|verbs| verbs.upgrade().clone());
        let tcp = links.tcp.as_ref().map(|config| {
            TcpLinkListener::new(config, peers.clone(), credentials.clone(), upgrade)
        });
        let tcp = tcp.transpose()?;
        let address = EndpointAddress {
            token,
            host: HostId::current(),
            socket: listener.as_ref().map_or(vec![], |listener| listener.name().into()),
            shm: links.shm && listener.is_some(),
            rdma,
            streams: tcp.as_ref().map_or(0, |tcp| tcp.streams() as u8),
            tcp: tcp.as_ref().map_or(vec![], |tcp| tcp.addresses().to_vec()),
        };
        let connecting = Mutex::default();
        let (shm, prover) = if links.shm { (listener, None) } else { (None, listener) };
        let parts = EndpointParts {
            _local: local,
            shm,
            prover: Mutex::new(prover),
            host: OnceLock::new(),
            verbs,
            tcp,
            peers,
            credentials,
            address,
            communicator,
            connecting,
        };
        Ok(Self { parts: ManuallyDrop::new(parts), owner: std::process::id() })
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.parts.peers.rank
    }

    /// The address at which peers find this rank: opaque bytes, at most 128, for their
    /// [`connect`](Self::connect).
    pub fn address(&self) -> Vec<u8> {
        self.parts.address.encode()
    }

    /// The RDMA devices and ports that this rank can use, as `mlx5_0:1,mlx5_1:1`.
    pub fn rdma_port(&self) -> Option<String> {
        self.parts.verbs.as_ref().map(VerbsListener::devices)
    }

    /// What is known of the RDMA paths to a peer; `None` if it is not reached over RDMA.
    pub fn rdma_report(&self, peer: Rank) -> Option<RdmaReport> {
        self.parts.verbs.as_ref()?.report(peer)
    }

    /// Prepares for the peers at these addresses, which are those of all ranks. Begins to accept
    /// TCP connections if any of the peers will use them, and stops listening if none will. Returns
    /// whether any two of the ranks use TCP, whose links have no LL protocol; all ranks get the
    /// same answer.
    ///
    /// # Errors
    /// An address is invalid, or a thread cannot be started.
    pub fn survey(&self, addresses: &[Vec<u8>]) -> Result<bool, LinkError> {
        let all = decode_all(addresses)?;
        let address = self.own_address();
        if let Some(tcp) = &self.parts.tcp {
            let uses = |kind| all.iter().any(|other| address.link_kind(other) == Some(kind));
            if let Some(verbs) = &self.parts.verbs
                && uses(LinkKind::Verbs)
            {
                verbs.start()?;
                tcp.start()?;
            } else if uses(LinkKind::Tcp) {
                tcp.start()?;
            } else {
                tcp.stop_unless_started();
            }
        }
        Ok(any_pair_uses_tcp(&all))
    }

    /// Whether any two of the ranks at these addresses use TCP.
    ///
    /// # Errors
    /// An address is invalid.
    pub fn any_pair_over_tcp(addresses: &[&[u8]]) -> Result<bool, LinkError> {
        let all: Result<Vec<_>, _> =
            addresses.iter().map(|bytes| EndpointAddress::decode(bytes)).collect();
        Ok(any_pair_uses_tcp(&all?))
    }

    /// Connects to a peer, which must do the same. Returns when links to it can be opened, or when
    /// `deadline` has passed. Between processes the lower rank dials and the higher rank waits.
    /// Connecting again to a connected peer does nothing.
    ///
    /// # Errors
    /// The address is invalid, the two ranks have no kind of link in common, the peer refuses, is
    /// gone or does not connect in time, or the communicator is aborted.
    pub fn connect(&self, peer: Rank, address: &[u8], deadline: Instant) -> Result<(), LinkError> {
        let EndpointParts { shm, verbs, tcp, peers, credentials, .. } = &*self.parts;
        let (own_address, rank) = (&self.own_address(), peers.rank);
        if peer >= credentials.nranks {
            return Err(LinkError::Misuse { what: "the communicator has no such rank" });
        }
        let peer_address = EndpointAddress::decode(address)?;
        let _guard = self.parts.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.get(peer).is_some() {
            return Ok(());
        }
        let kind =
            if peer == rank { Some(LinkKind::Local) } else { own_address.link_kind(&peer_address) };
        match (kind, shm, tcp) {
            (Some(LinkKind::Local), ..) => {
                let key = (self.parts.communicator, rank);
                let inbox = local::connect::connect(key, &peers.inbox, peer)?;
                peers.add(peer, Arc::new(LocalPeer::new(peer, peers.inbox.clone(), inbox)));
            }
            (Some(LinkKind::Shm), Some(listener), _) if rank < peer => {
                let name = &peer_address.socket;
                let (inbox, stream) =
                    shm::connect::connect(peers, credentials, peer, name, deadline)?;
                let sharing = Arc::new(SegmentSharing::new(Arc::new(stream)));
                let own = peers.inbox.clone();
                peers.add(peer, Arc::new(ShmPeer::new(peer, own, inbox, sharing.clone())));
                listener.serve(peer, sharing);
            }
            (Some(LinkKind::Shm), ..) => peers.wait_for(peer, deadline)?,
            (Some(kind @ (LinkKind::Tcp | LinkKind::Verbs)), _, Some(tcp)) => {
                let mut streams = own_address.streams.min(peer_address.streams).into();
                if let Some(verbs) = verbs.as_ref().filter(|_| kind == LinkKind::Verbs) {
                    verbs.start()?;
                    streams = UPGRADE | 1;
                }
                tcp.start()?;
                let to = peer_address.tcp_addresses_from(own_address);
                tcp.dial(peer, to, streams, deadline);
                peers.wait_for(peer, deadline)?;
            }
            _ => {
                let why =
                    "the two have no kind of link in common that reaches from one to the other";
                return Err(LinkError::Refused { peer, why });
            }
        }
        Ok(())
    }

    /// Opens both ends that this rank has of the links to and from a connected peer on a channel.
    /// Possible once per peer and channel.
    ///
    /// # Errors
    /// The peer is not connected, or the channel does not exist or was opened before.
    pub fn open(&self, peer: Rank, channel: u16) -> Result<(Outgoing, Incoming), LinkError> {
        self.parts.peers.open(peer, channel)
    }

    /// Offers the segment that contains these bytes, for reading, to all peers in other processes
    /// of the host, connected now or later. False if no segment contains the bytes. This rank's
    /// doorbell rings with every answer.
    pub fn share(&self, data: *const u8, len: usize) -> bool {
        let found = segment::find(data, len);
        found.inspect(|(memory, _)| self.parts.peers.share(memory)).is_some()
    }

    /// Whether all connected peers in other processes of the host have mapped the segment that
    /// contains these bytes, or have refused to.
    pub fn is_shared(&self, data: *const u8, len: usize) -> bool {
        segment::find(data, len)
            .is_some_and(|(memory, _)| self.parts.peers.offer(&memory, MappingAccess::Read))
    }

    /// Offers the segment that contains these bytes, for writing, to all connected peers in other
    /// processes of the host. True if all have answered by now, or if no segment contains the
    /// bytes. This rank's doorbell rings with every answer.
    pub fn share_writable(&self, data: *const u8, len: usize) -> bool {
        let found = segment::find(data, len);
        found.is_none_or(|(memory, _)| self.parts.peers.offer(&memory, MappingAccess::ReadWrite))
    }

    /// A connected peer's segment number `segment`, if the peer is in this process or has
    /// [offered it for writing](Self::share_writable).
    pub fn peer_segment(&self, peer: Rank, segment: u64) -> Option<PeerSegment> {
        self.parts.peers.get(peer)?.segment(segment)
    }

    /// Wakes a connected peer if it sleeps. Call it after stores to memory on which the peer waits.
    pub fn ring(&self, peer: Rank) {
        if let Some(peer) = self.parts.peers.get(peer) {
            peer.ring();
        }
    }

    /// Whether this rank dials the peer at that address through shared memory. It can then connect
    /// without any action of the peer.
    ///
    /// # Errors
    /// The address is invalid.
    pub fn dials_over_shm(&self, peer: Rank, address: &[u8]) -> Result<bool, LinkError> {
        let kind = self.own_address().link_kind(&EndpointAddress::decode(address)?);
        Ok(kind == Some(LinkKind::Shm) && self.rank() < peer)
    }

    /// This rank's doorbell, on which it waits for all its links.
    pub fn doorbell(&self) -> &Doorbell {
        &self.header().doorbell
    }

    /// Records that the ranks `peers` may run on the cores of this rank, which are `cores` in all.
    /// Possible once.
    pub fn set_core_sharers(&self, peers: impl Iterator<Item = Rank>, cores: usize) {
        self.parts.peers.set_core_sharers(CoreSharers::new(peers, cores));
    }

    /// Whether this rank may keep a core busy while it waits: those of the ranks that share its
    /// cores that are not known to sleep have other cores. It is a hint, for it changes at any
    /// time.
    pub fn has_core(&self) -> bool {
        self.parts.peers.has_core()
    }

    /// Ends every wait of this rank and of all connected peers with [`LinkError::Aborted`]. The
    /// first abort that reaches a rank counts.
    pub fn abort(&self, reason: u32) {
        let peers = &self.parts.peers;
        self.header().abort(peers.rank, reason);
        // Peers that connect later get the abort then.
        for peer in peers.all() {
            peer.abort(peers.rank, reason);
        }
    }

    /// Waits until every connected peer has received what this rank has sent to it, at most
    /// `timeout`. Returns what has not arrived by then. Peers that are gone, and all peers after an
    /// abort, are not waited for.
    ///
    /// A message has arrived when it is in memory of the peer's process, whether the peer has asked
    /// for it or not. Without this call, what the sockets have not taken is lost when the process
    /// ends, and soon after the endpoint is dropped.
    pub fn flush(&self, timeout: Duration) -> Vec<MessagesUnderWay> {
        let peers = self.parts.peers.all();
        peers.iter().for_each(|peer| peer.begin_flush());
        let mut left = Vec::new();
        self.doorbell().wait(0, 0, Some(timeout), || {
            left = peers.iter().filter_map(|peer| peer.under_way()).collect();
            left.is_empty()
        });
        left
    }

    /// The last attempt to connect to `peer` that failed, if the two are not connected.
    pub fn failed_dial(&self, peer: Rank) -> Option<FailedDial> {
        self.parts.peers.failed_dial(peer)
    }

    /// Records that the process of `peer` is proven to have ended. That ends the waits for what has
    /// not arrived from it; what it sent before is still received.
    pub fn process_ended(&self, peer: Rank) {
        self.parts.peers.process_ended(peer);
    }

    /// Tells connected peers that this rank sends nothing more. Dropping the endpoint does the
    /// same; this is for a process that ends without dropping it.
    pub fn leave(&self) {
        self.header().leave();
        for peer in self.parts.peers.all() {
            peer.leave();
            peer.ring();
        }
    }

    /// Bytes of memory that this rank's own inbox takes by now.
    pub fn resident_bytes(&self) -> usize {
        self.parts.peers.inbox.resident_bytes()
    }

    /// Records, while the result lives, that this rank may read memory that other ranks lend it. A
    /// rank that receives messages from links that lend needs the record, so that a lender that
    /// fails knows when its memory is no longer read: see [`is_reading`](Self::is_reading).
    pub fn reading(&self) -> ReadingGuard<'_> {
        let header = self.header();
        header.start_reading();
        ReadingGuard(header)
    }

    /// Whether `peer` may still read memory that this rank lent it. After an
    /// [`abort`](Self::abort) that the peer will see, false stays false, and true becomes false
    /// soon, because the peer's waits end.
    pub fn is_reading(&self, peer: Rank) -> bool {
        self.parts.peers.get(peer).is_some_and(|peer| peer.is_reading())
    }

    /// Sends or writes to a connected peer in another process what no correct rank does, by these
    /// random numbers. It is for tests of the peer, which must not be harmed by it.
    pub fn misbehave(&self, peer: Rank, random: &mut dyn FnMut() -> u64) {
        if let Some(peer) = self.parts.peers.get(peer) {
            peer.misbehave(random);
        }
    }

    /// The abort of this rank's communicator, if there was one. Cheap.
    #[inline]
    pub fn aborted(&self) -> Option<LinkError> {
        self.header().aborted()
    }

    /// Whether and how a connected peer is gone.
    pub fn gone(&self, peer: Rank) -> Option<LinkError> {
        self.parts.peers.get(peer)?.gone()
    }

    #[inline]
    fn header(&self) -> &RankHeader {
        self.parts.peers.inbox.header()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // A child made by fork has neither the memory nor the threads, and shares the sockets with
        // its parent.
        if std::process::id() != self.owner {
            return;
        }
        self.leave();
        // SAFETY: the parts are dropped only here and not used again.
        unsafe { ManuallyDrop::drop(&mut self.parts) };
    }
}

/// Records that a rank may read lent memory: see [`Endpoint::reading`].
#[must_use = "reading ends when it is dropped"]
pub struct ReadingGuard<'a>(&'a RankHeader);

impl Drop for ReadingGuard<'_> {
    fn drop(&mut self) {
        self.0.stop_reading();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("rank", &self.parts.peers.rank).finish_non_exhaustive()
    }
}

/// Opens the RDMA ports of a rank, if it has some that can be used, and says which, or why not.
fn open_domains(
    rank: Rank,
    config: &VerbsConfig,
    layout: &InboxLayout,
) -> Option<Vec<VerbsDomain>> {
    match VerbsDomain::open_all(config, layout) {
        Ok(domains) => {
            for domain in &domains {
                log::info!(target: "NET", "rank {rank} can use RDMA: {}", domain.describe());
            }
            Some(domains)
        }
        Err(why) => {
            log::info!(target: "NET", "rank {rank} does not use RDMA: {why}");
            None
        }
    }
}

/// A random value, the same for all ranks of this process. A child made by fork has another one.
fn process_token() -> Result<ProcessToken, LinkError> {
    static RANDOM: LazyValue<Result<[u8; 16], LinkError>> = LazyValue::new(random_bytes);
    let mut token = [0; size_of::<ProcessToken>()];
    token[..16].copy_from_slice(&(*RANDOM)?);
    token[16..].copy_from_slice(&std::process::id().to_le_bytes());
    Ok(token)
}

fn decode_all(addresses: &[Vec<u8>]) -> Result<Vec<EndpointAddress>, LinkError> {
    addresses.iter().map(|bytes| EndpointAddress::decode(bytes)).collect()
}

fn any_pair_uses_tcp(all: &[EndpointAddress]) -> bool {
    // Two ranks that both differ from the first may be alike, but then each uses TCP to the first.
    let Some(first) = all.first() else { return false };
    let one_process = all.iter().all(|other| other.token == first.token);
    let one_host = all.iter().all(|a| a.host == first.host && a.shm);
    !one_process && !one_host
}
