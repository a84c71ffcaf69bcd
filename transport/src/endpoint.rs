//! The endpoint: one rank's presence, through which it reaches its peers.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::Rank;
use crate::address::{Address, Token, Way};
use crate::doorbell::Doorbell;
use crate::error::LinkError;
use crate::handshake::Credentials;
use crate::host;
use crate::inbox::{Inbox, InboxLayout, LinkMemory, PeerInbox};
use crate::link::{Incoming, Outgoing, ReceiveSlots, SendSlots};
use crate::ll::{LlReceiver, LlSender};
use crate::local;
use crate::memory::{self, Access};
use crate::peers::{Peer, Peers};
use crate::rank_header::{RankHeader, RankPair};
use crate::segment::{self, PeerSegment};
use crate::shm;
use crate::shm::ends::{ShmReceiver, ShmSender};
use crate::shm::listener::Listener;
use crate::shm::sharing::Sharing;
use crate::slots::{SlotReceiver, SlotRingMemory, SlotSender};
use crate::tcp::listener::Tcp;
use crate::tcp::{self, TcpConfig};

/// What an endpoint must know.
#[derive(Clone)]
pub struct EndpointConfig {
    /// This rank.
    pub rank: Rank,
    /// The size of the communicator.
    pub nranks: u32,
    /// Known to the ranks of the communicator alone.
    pub secret: [u8; 32],
    /// The shape of its inbox and of all others.
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

/// By which links an endpoint may be reached. Two ranks use the first that both have, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnabledLinks {
    /// The memory of the process, where they share one.
    pub local: bool,
    /// Shared memory, where they share a host.
    pub shm: bool,
    /// TCP.
    pub tcp: Option<TcpConfig>,
}

/// A rank's inbox and its connections. Dropping it ends both and leaves nothing behind; links that were opened stay
/// memory-safe, and a peer that still waits for this rank is told that it left.
///
/// In a child made by fork an endpoint must not be used, and dropping it there does nothing.
pub struct Endpoint {
    presence: ManuallyDrop<Presence>,
    /// The process that made it.
    owner: u32,
}

struct Presence {
    // In the order in which they end.
    _local: local::listener::Listener,
    listener: Option<Listener>,
    tcp: Option<Tcp>,
    peers: Arc<Peers>,
    party: Credentials,
    address: Address,
    community: [u8; 32],
    /// One connection is dialed at a time.
    dialing: Mutex<()>,
}

impl Endpoint {
    /// Makes the rank's inbox and begins to accept connections from ranks of this host.
    pub fn new(config: EndpointConfig) -> Result<Self, LinkError> {
        Self::with_links(config, &EnabledLinks { local: true, shm: true, tcp: None })
    }

    /// The same, but as if in a process of its own: links to other ranks of this process go through shared memory.
    pub fn new_without_local(config: EndpointConfig) -> Result<Self, LinkError> {
        Self::with_links(config, &EnabledLinks { local: false, shm: true, tcp: None })
    }

    /// The same, by the links that `media` allows.
    pub fn with_links(config: EndpointConfig, media: &EnabledLinks) -> Result<Self, LinkError> {
        let EndpointConfig { rank, nranks, secret, layout } = config;
        if rank >= nranks || layout.nranks != nranks {
            return Err(LinkError::Misuse {
                what: "rank and layout must fit the communicator's size",
            });
        }
        let token = if media.local { process_token()? } else { memory::random()? };
        let inbox = Arc::new(Inbox::new(rank, layout)?);
        // The secret itself stays out of tables.
        let community =
            Sha256::new().chain_update(b"maypole local 1").chain_update(secret).finalize().into();
        let local = local::listener::Listener::start((community, rank), &inbox)?;
        let peers = Arc::new(Peers::new(rank, layout, inbox));
        let party = Credentials { secret, rank, nranks };
        let listener =
            media.shm.then(|| Listener::start(peers.clone(), party.clone())).transpose()?;
        let tcp = media.tcp.as_ref();
        let tcp = tcp.map(|config| Tcp::new(config, peers.clone(), party.clone())).transpose()?;
        let address = Address {
            token,
            host: host::id(),
            shm: listener.as_ref().map_or(vec![], |listener| listener.name().into()),
            streams: tcp.as_ref().map_or(0, |tcp| tcp.streams() as u8),
            tcp: tcp.as_ref().map_or(vec![], |tcp| tcp.addresses().to_vec()),
        };
        let dialing = Mutex::default();
        let presence =
            Presence { _local: local, listener, tcp, peers, party, address, community, dialing };
        Ok(Self { presence: ManuallyDrop::new(presence), owner: std::process::id() })
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.presence.peers.me
    }

    /// Where peers find this rank: opaque, at most 128 bytes, to be passed to their [`connect`](Self::connect).
    pub fn address(&self) -> Vec<u8> {
        self.presence.address.encode()
    }

    /// Prepares for the peers at these addresses, those of all ranks: accepts connections over TCP if any of them will come
    /// that way, and stops listening if none. True if any two ranks of them all meet over TCP, whose links have no lines;
    /// all ranks get the same answer.
    pub fn survey(&self, addresses: &[Vec<u8>]) -> Result<bool, LinkError> {
        let all: Vec<Address> =
            addresses.iter().map(|bytes| Address::decode(bytes)).collect::<Result<_, _>>()?;
        let Presence { tcp, address, .. } = &*self.presence;
        if let Some(tcp) = tcp {
            if all.iter().any(|other| address.way(other) == Some(Way::Tcp)) {
                tcp.start()?;
            } else {
                tcp.dismiss();
            }
        }
        Ok(meet_over_tcp(&all))
    }

    /// True if any two ranks of those at these addresses meet over TCP.
    pub fn any_pair_over_tcp(addresses: &[&[u8]]) -> Result<bool, LinkError> {
        let all: Result<Vec<_>, _> = addresses.iter().map(|bytes| Address::decode(bytes)).collect();
        Ok(meet_over_tcp(&all?))
    }

    /// Connects to a peer, which does the same; returns when links to it can be opened or `deadline` has passed. Between
    /// processes the lower rank dials and the higher waits. Connected peers stay connected.
    pub fn connect(&self, peer: Rank, address: &[u8], deadline: Instant) -> Result<(), LinkError> {
        let Presence { listener, tcp, peers, party, community, dialing, .. } = &*self.presence;
        let here = &self.presence.address;
        if peer >= party.nranks {
            return Err(LinkError::Misuse { what: "the communicator has no such rank" });
        }
        let there = Address::decode(address)?;
        let _one = dialing.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.get(peer).is_some() {
            return Ok(());
        }
        let way = if peer == peers.me { Some(Way::Local) } else { here.way(&there) };
        match (way, listener, tcp) {
            (Some(Way::Local), ..) => {
                let inbox = local::connect::connect((*community, peers.me), &peers.inbox, peer)?;
                peers.add(peer, inbox, None);
            }
            (Some(Way::Shm), Some(listener), _) if peers.me < peer => {
                let (inbox, stream) =
                    shm::connect::connect(peers, party, peer, &there.shm, deadline)?;
                let sharing = Arc::new(Sharing::new(Arc::new(stream)));
                peers.add(peer, inbox, Some(sharing.clone()));
                listener.adopt(peer, sharing);
            }
            (Some(Way::Shm), ..) => peers.wait_for(peer, deadline)?,
            (Some(Way::Tcp), _, Some(tcp)) => {
                tcp.start()?;
                let streams = here.streams.min(there.streams);
                tcp.dial(peer, there.reachable_from(here), streams.into(), deadline);
                peers.wait_for(peer, deadline)?;
            }
            _ => {
                let why = "no link that both have leads from one to the other";
                return Err(LinkError::Refused { peer, why });
            }
        }
        Ok(())
    }

    /// The two ends that this rank has of the links to and from a connected peer on a channel. Once per peer and channel.
    pub fn open(&self, peer: Rank, channel: u16) -> Result<(Outgoing, Incoming), LinkError> {
        let peers = &self.presence.peers;
        let (theirs, sharing) = match peers.open(peer, channel)? {
            Peer::Memory(inbox, sharing) => (inbox, sharing),
            Peer::Tcp(pair) => {
                let (sender, receiver) = tcp::ends(pair, peers.layout, channel);
                return Ok((
                    Outgoing { slots: Box::new(sender), ll: None },
                    Incoming { slots: Box::new(receiver), ll: None },
                ));
            }
        };
        let depth = peers.layout.depth;
        let slot_bytes = peers.layout.slot_bytes;
        let lends = theirs.is_local();
        // What we send lies in their inbox and is acknowledged in ours, and the other way round.
        let here = peers.inbox.region(peer).link(channel);
        let there = theirs.region(peers.me).link(channel);
        let ring = |data: &LinkMemory, ack: &LinkMemory| SlotRingMemory {
            headers: data.headers,
            slots: data.slots,
            slot_bytes,
            depth,
            ack: ack.slot_ack,
            lends,
        };
        let (mine, other) = (&raw const *peers.inbox.header(), &raw const *theirs.header());
        let keep: Arc<(Arc<Inbox>, Arc<PeerInbox>)> = Arc::new((peers.inbox.clone(), theirs));
        // SAFETY: `keep` holds both inboxes, where the headers and all words of `here` and `there` lie. A region is new
        // memory, and `peers.open` gives this end of the channel away only once.
        unsafe {
            let pair = RankPair::new(mine, other, peer, keep);
            let sender = SlotSender::new(ring(&there, &here), pair.clone());
            let receiver = SlotReceiver::new(ring(&here, &there), pair.clone());
            let (sender, receiver): (Box<dyn SendSlots>, Box<dyn ReceiveSlots>) = match sharing {
                None => (Box::new(sender), Box::new(receiver)),
                Some(sharing) => (
                    Box::new(ShmSender::new(sender, sharing.clone())),
                    Box::new(ShmReceiver::new(receiver, sharing)),
                ),
            };
            let lines = LlSender::new(there.lines, here.line_ack, pair.clone());
            let outgoing = Outgoing { slots: sender, ll: Some(lines) };
            let lines = LlReceiver::new(here.lines, there.line_ack, pair);
            let incoming = Incoming { slots: receiver, ll: Some(lines) };
            Ok((outgoing, incoming))
        }
    }

    /// Offers the segment that these bytes lie in to all connected peers of other processes of the host, and to those that will be
    /// connected. False if they lie in none. The doorbell rings with every answer.
    pub fn share(&self, data: *const u8, len: usize) -> bool {
        let found = segment::find(data, len);
        found.inspect(|(body, _)| self.presence.peers.share(body)).is_some()
    }

    /// Whether all connected peers of other processes of the host have mapped the segment that these bytes lie in, or have refused to.
    pub fn is_shared(&self, data: *const u8, len: usize) -> bool {
        segment::find(data, len)
            .is_some_and(|(body, _)| self.presence.peers.give(&body, Access::Read))
    }

    /// Offers the segment that these bytes lie in to all connected peers of other processes of the host, to be written to. True if all have
    /// answered by now; the doorbell rings with every answer.
    pub fn share_writable(&self, data: *const u8, len: usize) -> bool {
        let found = segment::find(data, len);
        found.is_none_or(|(body, _)| self.presence.peers.give(&body, Access::Write))
    }

    /// Memory of a connected peer: its segment of that number, if it is a thread of this process, or has [offered](Self::share_writable) it.
    pub fn peer_segment(&self, peer: Rank, segment: u64) -> Option<PeerSegment> {
        match self.presence.peers.get(peer)? {
            Peer::Memory(_, Some(sharing)) => {
                sharing.get(segment, Access::Write).map(PeerSegment::foreign)
            }
            Peer::Memory(_, None) => PeerSegment::own(segment),
            Peer::Tcp(_) => None,
        }
    }

    /// Wakes a connected peer if it sleeps: after stores to its memory that it waits for.
    pub fn ring(&self, peer: Rank) {
        if let Some(peer) = self.presence.peers.get(peer) {
            peer.ring();
        }
    }

    /// Whether this rank dials that peer, which is at that address, through shared memory: it can connect without the peer's doing.
    pub fn dials_over_shm(&self, peer: Rank, address: &[u8]) -> Result<bool, LinkError> {
        let way = self.presence.address.way(&Address::decode(address)?);
        Ok(way == Some(Way::Shm) && self.rank() < peer)
    }

    /// This rank's doorbell, on which it waits for all its links.
    pub fn doorbell(&self) -> &Doorbell {
        &self.presence.peers.inbox.header().doorbell
    }

    /// Ends every wait of this rank and of all connected peers with [`LinkError::Aborted`]. The first abort that reaches
    /// a rank counts.
    pub fn abort(&self, reason: u32) {
        let peers = &self.presence.peers;
        peers.inbox.header().abort(peers.me, reason);
        // Whoever connects later is told then.
        for peer in peers.all() {
            peer.abort(peers.me, reason);
        }
    }

    /// Tells connected peers that this rank sends nothing more: as dropping it, for a process that ends without.
    pub fn leave(&self) {
        let peers = &self.presence.peers;
        peers.inbox.header().leave();
        for peer in peers.all() {
            peer.ring();
        }
    }

    /// Bytes of memory that the rank's own end of its links takes by now.
    pub fn resident_bytes(&self) -> usize {
        self.presence.peers.inbox.resident_bytes()
    }

    /// While the result lives, this rank may read memory that others lend it. Whoever receives messages of links that lend needs
    /// it, for the sake of a lender that fails: see [`is_reading`](Self::is_reading).
    pub fn reading(&self) -> ReadingGuard<'_> {
        let header = self.presence.peers.inbox.header();
        header.start_reading();
        ReadingGuard(header)
    }

    /// Whether `peer` may still read what this rank lent it. After an [`abort`](Self::abort) that the peer will see, false is
    /// final, and true does not last: its waits end.
    pub fn is_reading(&self, peer: Rank) -> bool {
        match self.presence.peers.get(peer) {
            Some(Peer::Memory(inbox, _)) => inbox.header().is_reading(),
            Some(Peer::Tcp(_)) | None => false,
        }
    }

    /// Whether this rank was aborted. Cheap.
    #[inline]
    pub fn aborted(&self) -> Option<LinkError> {
        self.presence.peers.inbox.header().aborted()
    }

    /// Whether a connected peer is gone, and how.
    pub fn gone(&self, peer: Rank) -> Option<LinkError> {
        self.presence.peers.get(peer)?.gone(peer)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // A child made by fork has neither the memory nor the thread, and shares the sockets with its parent.
        if std::process::id() != self.owner {
            return;
        }
        self.leave();
        // SAFETY: dropped here alone, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.presence) };
    }
}

/// See [`Endpoint::reading`].
#[must_use = "reading ends when it is dropped"]
pub struct ReadingGuard<'a>(&'a RankHeader);

impl Drop for ReadingGuard<'_> {
    fn drop(&mut self) {
        self.0.stop_reading();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("rank", &self.presence.peers.me).finish_non_exhaustive()
    }
}

/// Random, but the same for all ranks of this process; a child made by fork has another.
fn process_token() -> Result<Token, LinkError> {
    static RANDOM: OnceLock<[u8; 16]> = OnceLock::new();
    let random = match RANDOM.get() {
        Some(random) => random,
        None => {
            let random = memory::random()?;
            RANDOM.get_or_init(|| random)
        }
    };
    let mut token = [0; size_of::<Token>()];
    token[..16].copy_from_slice(random);
    token[16..].copy_from_slice(&std::process::id().to_le_bytes());
    Ok(token)
}
fn meet_over_tcp(all: &[Address]) -> bool {
    // Two that differ from a third may be alike, but then each of them meets the third over TCP.
    let Some(first) = all.first() else { return false };
    let one_process = all.iter().all(|other| other.token == first.token);
    let one_host = all.iter().all(|a| a.host == first.host && !a.shm.is_empty());
    !one_process && !one_host
}
