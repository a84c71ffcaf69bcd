//! The links of a communicator, which are opened when a plan first needs them and then kept.

use std::collections::HashMap;
use std::time::Instant;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::fault::FaultInjector;
use maypole_transport::link::{Incoming, Lendable, Outgoing, Sequence};

use crate::control::ControlPlane;
use crate::error::Error;

/// Both directions of all opened links. Plans refer to a link by its index.
#[derive(Default)]
pub(crate) struct Links {
    pub(crate) outgoing: Vec<Outgoing>,
    pub(crate) incoming: Vec<Incoming>,
    /// The peer and the channel of each link.
    pub(crate) ends: Vec<(Rank, Channel)>,
    index: HashMap<(Rank, Channel), u32>,
    /// The messages of a failed call that lend memory and were not released, as link and sequence.
    pub(crate) unreleased: Vec<(u32, Sequence)>,
    /// What was sent, except by LL messages.
    pub(crate) slot_traffic: SlotTraffic,
    /// The sizes from which memory is lent to other processes.
    pub(crate) lend_thresholds: LendThresholds,
    /// The faults that are injected into all links, for tests.
    faults: Option<FaultInjector>,
    /// By peer, the link for transfers. Shorter than the number of ranks where the last peers have
    /// had no transfer yet.
    transfers: Vec<Option<TransferLink>>,
}

/// The link for the sends to a peer and the receives from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransferLink {
    /// The index of the link.
    pub(crate) link: u32,
    /// Whether small transfers may travel as LL messages. The peer finds the same.
    pub(crate) ll: bool,
    /// The transfers in either direction so far.
    pub(crate) sent: TransferCount,
    pub(crate) received: TransferCount,
}

/// The transfers of a link in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TransferCount {
    /// How many have begun. Both numbers wrap.
    begun: u32,
    /// How many are done, or are in the hands of the interpreter, which keeps their order.
    done: u32,
}

impl TransferCount {
    /// Begins one more transfer; returns its number.
    #[inline]
    pub(crate) fn begin(&mut self) -> u32 {
        let number = self.begun;
        self.begun = number.wrapping_add(1);
        number
    }

    /// Whether all transfers before transfer `number` are done.
    #[inline]
    pub(crate) fn is_next(&self, number: u32) -> bool {
        self.done == number
    }

    /// Ends the oldest transfer that is not done.
    #[inline]
    pub(crate) fn end(&mut self) {
        self.done = self.done.wrapping_add(1);
    }
}

/// The sizes of a chunk, in bytes, from which it is lent to another process if it can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LendThresholds {
    /// For memory in general.
    pub(crate) general: usize,
    /// For memory that the call itself writes again.
    pub(crate) rewritten: usize,
    /// For memory that the link sends from where it lies.
    pub(crate) sent: usize,
}

impl LendThresholds {
    /// Measured with back-to-back calls of two processes. The lender must wait for the release, at
    /// the latest before its call returns, while a root that has copied its 16 KiB into slots
    /// finishes a broadcast in a tenth of the time. Where the call writes the memory again, as
    /// all-reduce in place does, the lender has nothing else to do while it waits: with 32 KiB,
    /// copies take two thirds of the time; from 64 KiB on both are equal; above 1 MiB lending is
    /// faster.
    ///
    /// Over TCP between two processes, a send and a receive of 32 KiB take 1.3 times as long with
    /// lent memory, of 128 KiB as long, of 256 KiB 0.8 times, and of 2 MiB 0.6 times as long. An
    /// all-reduce of 256 KiB takes 1.1 times as long, and of 2 MiB 0.8 times.
    const MEASURED: Self = Self { general: 32 << 10, rewritten: 64 << 10, sent: 256 << 10 };
}

impl Default for LendThresholds {
    fn default() -> Self {
        Self::MEASURED
    }
}

/// What a rank has sent, except by LL messages: copies in slots, and lent memory that its peer read
/// in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotTraffic {
    /// Messages that were copied.
    pub copied: u64,
    /// Bytes of the copied messages.
    pub copied_bytes: u64,
    /// Messages that were lent.
    pub lent: u64,
    /// Bytes of the lent messages.
    pub lent_bytes: u64,
}

impl SlotTraffic {
    /// Counts a message.
    pub(crate) fn count(&mut self, bytes: usize, lent: bool) {
        let (messages, sum) = if lent {
            (&mut self.lent, &mut self.lent_bytes)
        } else {
            (&mut self.copied, &mut self.copied_bytes)
        };
        *messages += 1;
        *sum += bytes as u64;
    }
}

impl Links {
    /// No links. Links that are opened later have `faults` injected. `lend_from` overrides the
    /// sizes in bytes from which memory is lent.
    pub(crate) fn new(faults: Option<FaultInjector>, lend_from: Option<usize>) -> Self {
        let lend_thresholds = lend_from.map_or(LendThresholds::MEASURED, |from| LendThresholds {
            general: from,
            rewritten: from,
            sent: from,
        });
        Self { faults, lend_thresholds, ..Self::default() }
    }

    /// The index of the links to and from `peer` on `channel`, which are opened if necessary. The
    /// peer is known by its entry in `addresses`.
    pub(crate) fn open(
        &mut self,
        endpoint: &Endpoint,
        addresses: &[Vec<u8>],
        peer: Rank,
        channel: Channel,
        deadline: Instant,
        watch: &ControlPlane,
    ) -> Result<u32, Error> {
        if let Some(&index) = self.index.get(&(peer, channel)) {
            return Ok(index);
        }
        self.connect(endpoint, addresses, peer, deadline, watch)?;
        let ends = endpoint.open(peer, channel)?;
        let (outgoing, incoming) = match &self.faults {
            Some(faults) => faults.wrap(peer, channel, ends),
            None => ends,
        };
        let index = self.ends.len() as u32;
        self.outgoing.push(outgoing);
        self.incoming.push(incoming);
        self.ends.push((peer, channel));
        self.index.insert((peer, channel), index);
        Ok(index)
    }

    /// The link for transfers with `peer`, if it is open.
    #[inline]
    pub(crate) fn transfers_with(&mut self, peer: Rank) -> Option<&mut TransferLink> {
        self.transfers.get_mut(peer as usize)?.as_mut()
    }

    /// Keeps link `link` as that for transfers with `peer`, of which small ones may travel as LL
    /// messages if `ll` is true and the link can.
    pub(crate) fn use_for_transfers(&mut self, peer: Rank, link: u32, ll: bool) {
        let ll = ll && self.outgoing[link as usize].ll.is_some();
        let (sent, received) = Default::default();
        let peers = self.transfers.len().max(peer as usize + 1);
        self.transfers.resize(peers, None);
        self.transfers[peer as usize] = Some(TransferLink { link, ll, sent, received });
    }

    /// Connects to `peer`, if necessary.
    pub(crate) fn connect(
        &self,
        endpoint: &Endpoint,
        addresses: &[Vec<u8>],
        peer: Rank,
        deadline: Instant,
        watch: &ControlPlane,
    ) -> Result<(), Error> {
        let first = self.ends.iter().all(|end| end.0 != peer);
        let opening = first.then(|| watch.connecting_to(peer));
        let started = Instant::now();
        let connected = endpoint.connect(peer, &addresses[peer as usize], deadline);
        connected.map_err(|error| match error {
            LinkError::Timeout { peer, during, last } => Error::Timeout {
                rank: endpoint.rank(),
                peer,
                what: match last {
                    Some(dial) => format!("{during}; it cannot be reached at {dial}"),
                    None => during.to_owned(),
                },
                waited: started.elapsed(),
            },
            other => other.into(),
        })?;
        drop(opening);
        Ok(())
    }

    /// The peer of link `index`.
    pub(crate) fn peer(&self, index: u32) -> Rank {
        self.ends[index as usize].0
    }

    /// Ends the use of the memory of a call. Links no longer send or store messages there, and this
    /// waits until no peer in this process reads lent memory any more. It is called after a call
    /// has failed and the peers were aborted, so it returns soon, because the waits of an aborted
    /// rank end. A peer in another process, which may be stopped or dead, is not waited for: it
    /// reads its own mapping, and checks that it was not aborted before it uses what it read.
    pub(crate) fn withdraw(&mut self, endpoint: &Endpoint) {
        self.outgoing.iter_mut().for_each(|link| link.slots.withdraw());
        self.incoming.iter_mut().for_each(|link| link.slots.withdraw());
        for (link, sequence) in std::mem::take(&mut self.unreleased) {
            let peer = self.peer(link);
            let slots = &mut self.outgoing[link as usize].slots;
            if slots.lendable() != Lendable::Anything {
                continue;
            }
            while slots.released() < sequence && endpoint.is_reading(peer) {
                std::thread::yield_now();
            }
        }
    }
}
