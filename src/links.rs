//! The links of a communicator, opened when a plan first needs them and kept.

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

/// Both directions of all opened links. Plans name a link by its index here.
#[derive(Default)]
pub(crate) struct Links {
    pub(crate) outgoing: Vec<Outgoing>,
    pub(crate) incoming: Vec<Incoming>,
    /// The other end of each.
    pub(crate) ends: Vec<(Rank, Channel)>,
    index: HashMap<(Rank, Channel), u32>,
    /// Messages of a call that failed which lend memory and were not released: link and sequence.
    pub(crate) unreleased: Vec<(u32, Sequence)>,
    /// What was sent by slots.
    pub(crate) slot_traffic: SlotTraffic,
    /// What is lent to other processes.
    pub(crate) lend_thresholds: LendThresholds,
    /// What goes wrong on all of them.
    faults: Option<FaultInjector>,
}

/// From how many bytes of a chunk on it is lent to another process, where it can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LendThresholds {
    /// In general.
    pub(crate) from: usize,
    /// Of memory that the call itself writes again.
    pub(crate) written_from: usize,
}

impl LendThresholds {
    /// Two processes, back to back calls. The lender must wait for the release, at the latest before its call returns: a root that has
    /// copied its 16 KiB into slots is through with a broadcast in a tenth of the time. Where the call writes the memory again, as
    /// all-reduce in place does, the lender has nothing else to do while it waits: with 32 KiB copies take two thirds of the time,
    /// from 64 KiB on it is equal, above 1 MiB loans take less.
    const MEASURED: Self = Self { from: 32 << 10, written_from: 64 << 10 };
}

impl Default for LendThresholds {
    fn default() -> Self {
        Self::MEASURED
    }
}

/// What a rank has sent, except by lines: as copies, and without one, as memory that its peer read in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotTraffic {
    /// Messages that were copied.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Messages that were lent.
    pub lent: u64,
    /// Their bytes.
    pub lent_bytes: u64,
}

impl SlotTraffic {
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
    /// None yet, and on those to come what `faults` says. `lend_from` overrides from how many bytes on it is worth to lend.
    pub(crate) fn new(faults: Option<FaultInjector>, lend_from: Option<usize>) -> Self {
        let lend_thresholds = lend_from
            .map_or(LendThresholds::MEASURED, |from| LendThresholds { from, written_from: from });
        Self { faults, lend_thresholds, ..Self::default() }
    }

    /// The index of the links to and from `peer` on `channel`; opens them if need be.
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

    /// Connects to `peer`, if need be.
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
            LinkError::Timeout { peer, during } => Error::Timeout {
                rank: endpoint.rank(),
                peer,
                what: during.to_owned(),
                waited: started.elapsed(),
            },
            other => other.into(),
        })?;
        drop(opening);
        Ok(())
    }

    /// The rank at the other end of link `index`.
    pub(crate) fn peer(&self, index: u32) -> Rank {
        self.ends[index as usize].0
    }

    /// After a call that failed, and an abort that the peers see: returns when no peer of this process reads lent memory any more. That
    /// is soon, since the waits of an aborted rank end. Another process, which may be stopped or dead, reads mappings of its own; it
    /// finds out that it was aborted before what it read counts.
    pub(crate) fn withdraw(&mut self, endpoint: &Endpoint) {
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
