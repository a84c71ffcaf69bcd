//! Whom a rank is connected to: shared by its endpoint and by the thread that accepts connections for it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::{Inbox, InboxLayout, PeerInbox};
use crate::memory::Access;
use crate::segment::{self, Body, SegmentId};
use crate::shm::sharing::{Given, Sharing};
use crate::tcp::TcpPair;

/// A rank's connections.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) me: Rank,
    pub(crate) layout: InboxLayout,
    pub(crate) inbox: Arc<Inbox>,
    table: Mutex<Table>,
}

/// A connected peer.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// We see its inbox; if it is of another process, segments may be shared with it.
    Memory(Arc<PeerInbox>, Option<Arc<Sharing>>),
    /// We have streams to it.
    Tcp(Arc<TcpPair>),
}

impl Peer {
    /// Ends its waits.
    pub(crate) fn abort(&self, by: Rank, reason: u32) {
        match self {
            Self::Memory(inbox, _) => inbox.header().abort(by, reason),
            Self::Tcp(pair) => pair.abort(by, reason),
        }
    }

    /// Whether it is gone, and how.
    pub(crate) fn gone(&self, rank: Rank) -> Option<LinkError> {
        match self {
            Self::Memory(inbox, _) => inbox.header().gone(rank),
            Self::Tcp(pair) => pair.gone(),
        }
    }

    /// Lets it notice that this rank has left; over TCP the farewell does that.
    pub(crate) fn ring(&self) {
        if let Self::Memory(inbox, _) = self {
            inbox.header().doorbell.ring();
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    connected: HashMap<Rank, Peer>,
    opened: HashSet<(Rank, u16)>,
    /// Connections that were begun by a proven peer and broke.
    failed: HashMap<Rank, LinkError>,
    /// Segments that whoever is connected is offered at once.
    shared: Vec<SegmentId>,
    /// Why no connection can be accepted for the time being.
    trouble: Option<LinkError>,
}

impl Peers {
    pub(crate) fn new(me: Rank, layout: InboxLayout, inbox: Arc<Inbox>) -> Self {
        Self { me, layout, inbox, table: Mutex::default() }
    }

    /// Every entry is complete at all times, so a panic elsewhere under the lock does no harm.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, peer: Rank) -> Option<Peer> {
        self.table().connected.get(&peer).cloned()
    }

    /// A new connection to memory.
    pub(crate) fn add(&self, peer: Rank, inbox: PeerInbox, sharing: Option<Arc<Sharing>>) {
        self.insert(peer, Peer::Memory(Arc::new(inbox), sharing));
    }

    /// A new connection over streams.
    pub(crate) fn add_tcp(&self, peer: Rank, pair: Arc<TcpPair>) {
        self.insert(peer, Peer::Tcp(pair));
    }

    /// An abort that it missed is passed on.
    fn insert(&self, peer: Rank, connection: Peer) {
        let mut table = self.table();
        table.trouble = None;
        table.connected.insert(peer, connection.clone());
        let shared = table.shared.clone();
        drop(table);
        if let Peer::Memory(_, Some(sharing)) = &connection {
            for body in shared.into_iter().filter_map(segment::get) {
                sharing.give(&body, Access::Read);
            }
        }
        if let Some(LinkError::Aborted { by, reason }) = self.inbox.header().aborted() {
            connection.abort(by, reason);
        }
        self.inbox.header().doorbell.ring();
    }

    /// A proven peer begins anew: what broke before is past.
    pub(crate) fn begin(&self, peer: Rank) {
        self.table().failed.remove(&peer);
    }

    /// A proven peer's connection broke before it was complete.
    pub(crate) fn fail(&self, peer: Rank, error: LinkError) {
        self.table().failed.insert(peer, error);
        self.inbox.header().doorbell.ring();
    }

    /// Nothing can be accepted now; perhaps later.
    pub(crate) fn trouble(&self, error: LinkError) {
        self.table().trouble = Some(error);
    }

    /// The connection ended: unless the peer had said that it leaves, its process is dead.
    pub(crate) fn lost(&self, peer: Rank) {
        if let Some(Peer::Memory(inbox, _)) = self.get(peer) {
            inbox.header().die();
        }
        self.inbox.header().doorbell.ring();
    }

    /// Waits until the peer has connected to us.
    pub(crate) fn wait_for(&self, peer: Rank, deadline: Instant) -> Result<(), LinkError> {
        let header = self.inbox.header();
        let mut result = Ok(());
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = header.doorbell.wait(0, 0, Some(left), || {
            let mut table = self.table();
            if table.connected.contains_key(&peer) {
                return true;
            }
            let error = header.aborted().or_else(|| table.failed.remove(&peer));
            result = error.map_or(Ok(()), Err);
            error.is_some()
        });
        if ended {
            return result;
        }
        let during = "waiting for its connection";
        Err(self.table().trouble.unwrap_or(LinkError::Timeout { peer, during }))
    }

    /// The peer, to open a link on a channel, which is possible once.
    pub(crate) fn open(&self, peer: Rank, channel: u16) -> Result<Peer, LinkError> {
        if channel >= self.layout.channels {
            return Err(LinkError::Misuse { what: "the inboxes have no such channel" });
        }
        let mut table = self.table();
        let connection =
            table.connected.get(&peer).ok_or(LinkError::NotConnected { peer })?.clone();
        if !table.opened.insert((peer, channel)) {
            return Err(LinkError::Misuse { what: "a channel to a peer can be opened once" });
        }
        Ok(connection)
    }

    /// Offers a segment to all peers that can map it, now and later.
    pub(crate) fn share(&self, body: &Body) {
        let live = segment::ids();
        let mut table = self.table();
        table.shared.retain(|id| *id != body.id() && live.contains(id));
        table.shared.push(body.id());
        drop(table);
        self.give(body, Access::Read);
    }

    /// Offers a segment to all connected peers that can map it; whether all of them have answered.
    pub(crate) fn give(&self, body: &Body, access: Access) -> bool {
        let answers = self.all().into_iter().filter_map(|peer| match peer {
            Peer::Memory(_, Some(sharing)) => Some(sharing.give(body, access)),
            Peer::Memory(_, None) | Peer::Tcp(_) => None,
        });
        answers.filter(|answer| *answer == Given::Offered).count() == 0
    }

    /// All peers, for what concerns them all.
    pub(crate) fn all(&self) -> Vec<Peer> {
        self.table().connected.values().cloned().collect()
    }
}
