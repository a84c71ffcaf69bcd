//! The links of a communicator, opened when a plan first needs them and kept.

use std::collections::HashMap;
use std::time::Instant;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::fault::Faults;
use maypole_transport::link::{Incoming, Outgoing, Sequence};

use crate::error::Error;
use crate::watch::Watch;

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
    /// What goes wrong on all of them.
    faults: Option<Faults>,
}

impl Links {
    /// None yet, and on those to come what `faults` says.
    pub(crate) fn new(faults: Option<Faults>) -> Self {
        Self { faults, ..Self::default() }
    }

    /// The index of the links to and from `peer` on `channel`; opens them if need be.
    pub(crate) fn open(
        &mut self,
        endpoint: &Endpoint,
        addresses: &[Vec<u8>],
        peer: Rank,
        channel: Channel,
        deadline: Instant,
        watch: &Watch,
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
        watch: &Watch,
    ) -> Result<(), Error> {
        let first = self.ends.iter().all(|end| end.0 != peer);
        let opening = first.then(|| watch.opening(peer));
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

    /// After a call that failed, and an abort that the peers see: returns when no peer reads lent memory any more. That is soon, since
    /// the waits of an aborted rank end.
    pub(crate) fn withdraw(&mut self, endpoint: &Endpoint) {
        for (link, sequence) in std::mem::take(&mut self.unreleased) {
            let peer = self.peer(link);
            let slots = &mut self.outgoing[link as usize].slots;
            while slots.released() < sequence && endpoint.is_reading(peer) {
                std::thread::yield_now();
            }
        }
    }
}
