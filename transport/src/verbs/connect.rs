//! How the queue pairs of a path are made and tried, as a state machine that the control messages
//! and completions drive. Both ends do the same:
//!
//! 1. make the queue pairs, and say how they are reached (`Hello`);
//! 2. connect them to those of the peer, and say so (`Ready`);
//! 3. when the peer is ready, write eight bytes to its memory over a queue pair of its own, which
//!    gives up soon, and say that they have arrived (`Passed`).
//!
//! When both writes have passed, the path is made. The queue pairs for messages wait longer.

use std::sync::Arc;

use maypole_verbs::{
    ConnectionTiming, GidEntry, LinkLayer, LocalMemory, PathAddress, PeerQueue, QueueCapacity,
    QueuePair, QueuePairSetup, RemoteMemory, SendOperation, SendRequest, VerbsError,
};

use super::domain::{INLINE_BYTES, VerbsDomain};
use super::group::CompletionGroup;
use super::message::{Hello, MOST_QUEUES};
use crate::Rank;
use crate::random::random_bytes;

/// The trial gives up after about 4 times 0.5 s: a host that is busy may take long to answer.
const TRIAL_TIMING: ConnectionTiming =
    ConnectionTiming { timeout: 17, retries: 3, receive_retries: 0 };
/// Packet numbers have 24 bits.
const PACKET_MASK: u32 = (1 << 24) - 1;

/// A path that is not yet made.
#[derive(Debug)]
pub(super) struct PathHandshake {
    domain: Arc<VerbsDomain>,
    peer: Rank,
    pub(super) own: Hello,
    gid: Option<GidEntry>,
    theirs: Option<Hello>,
    /// The queue pair for the trial, also for that of the peer.
    trial: QueuePair,
    /// The write has arrived, or why not.
    pub(super) trial_result: Option<Result<(), &'static str>>,
    pub(super) peer_is_ready: bool,
    pub(super) peer_has_passed: bool,
    is_tried: bool,
    has_passed: bool,
}

/// What follows from the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeStep {
    /// Something must come from the peer.
    Wait,
    /// The peer must be told that the trial has passed.
    Passed,
    /// The path is made.
    Made,
}

impl PathHandshake {
    /// The first step. Also returns the queue pairs for messages.
    ///
    /// # Errors
    /// The path cannot be made at present, in words.
    pub(super) fn prepare(
        group: &CompletionGroup,
        peer: Rank,
    ) -> Result<(Self, Vec<QueuePair>), String> {
        let domain = &group.domain;
        let failed = |error: VerbsError| explain(domain, &error);
        let (info, gid) = domain.present().map_err(|why| format!("{}: {why}", domain.device()))?;
        let make = |sends, receives| {
            let capacity = QueueCapacity { sends, inline: INLINE_BYTES };
            let completions = group.completions.clone();
            let queue =
                QueuePair::new(&domain.memory, QueuePairSetup { completions, receives, capacity })?;
            queue.initialize(domain.port, domain.config.partition_index)?;
            Ok(queue)
        };
        let count = (domain.config.queue_pairs as usize).clamp(1, MOST_QUEUES);
        let queues: Result<Vec<_>, _> =
            (0..count).map(|_| make(domain.sends(), Some(group.receives.clone()))).collect();
        let queues = queues.map_err(failed)?;
        let trial = make(4, None).map_err(failed)?;
        let random = random_bytes().map_err(|error| error.to_string())?;
        let own = Hello {
            gid: gid.map_or_else(Default::default, |entry| entry.gid),
            global: domain.link_layer() == LinkLayer::Ethernet,
            lid: info.lid,
            mtu: info.mtu,
            first_packet: u32::from_le_bytes(random) & PACKET_MASK,
            trial_queue: trial.number(),
            queues: queues.iter().map(QueuePair::number).collect(),
            scratch: domain.scratch(peer).0,
            device: domain.device(),
        };
        let handshake = Self {
            domain: domain.clone(),
            peer,
            own,
            gid,
            theirs: None,
            trial,
            trial_result: None,
            peer_is_ready: false,
            peer_has_passed: false,
            is_tried: false,
            has_passed: false,
        };
        Ok((handshake, queues))
    }

    /// The second step, for the trial and these queue pairs. Returns a description of the path, and
    /// the eight bytes of the peer to which anything may be written.
    ///
    /// # Errors
    /// The two do not fit, or the device refuses, in words.
    pub(super) fn connect<'a>(
        &mut self,
        theirs: Hello,
        queues: impl Iterator<Item = &'a QueuePair>,
    ) -> Result<(String, RemoteMemory), String> {
        let (domain, peer) = (&self.domain, self.peer);
        if self.theirs.is_some() || theirs.queues.len() != self.own.queues.len() {
            return Err("the two have different numbers of queue pairs \
                        (NCCL_IB_QPS_PER_CONNECTION)"
                .to_owned());
        }
        if theirs.global != self.own.global {
            return Err(format!(
                "{} and {} of rank {peer} have different link layers; see NCCL_IB_HCA",
                self.own.device, theirs.device
            ));
        }
        let path = PathAddress {
            port: domain.port,
            gid_index: self.gid.map_or(0, |entry| entry.index as u8),
            gid: theirs.global.then_some(theirs.gid),
            lid: theirs.lid,
            service_level: domain.config.service_level,
            traffic_class: domain.config.traffic_class,
        };
        let timing = ConnectionTiming {
            timeout: domain.config.timeout,
            retries: domain.config.retries,
            // Receives are posted before they are needed, so that a lack of them is a bug; but
            // the peer's adapter may be slow to see them.
            receive_retries: 7,
        };
        let (first_packet, mtu) = (theirs.first_packet, theirs.mtu.min(self.own.mtu));
        let queues = queues.map(|queue| (queue, &timing)).chain([(&self.trial, &TRIAL_TIMING)]);
        let numbers = theirs.queues.iter().copied().chain([theirs.trial_queue]);
        for ((queue, timing), number) in queues.zip(numbers) {
            queue
                .receive_from(&PeerQueue { number, first_packet, mtu }, &path)
                .and_then(|()| queue.begin_sending(self.own.first_packet, timing))
                .map_err(|error| explain(domain, &error))?;
        }
        let (from, to) = self.ends(&theirs);
        let scratch = theirs.scratch;
        self.theirs = Some(theirs);
        Ok((format!("from {from} to {to}"), scratch))
    }

    /// The third step, as far as it is possible. `scratch` is where to write, and what.
    ///
    /// # Errors
    /// The trial did not pass, in words.
    pub(super) fn advance(
        &mut self,
        scratch: Option<(RemoteMemory, LocalMemory)>,
    ) -> Result<HandshakeStep, String> {
        let (Some(theirs), Some((to, memory))) = (&self.theirs, scratch) else {
            return Ok(HandshakeStep::Wait);
        };
        if self.peer_is_ready && !self.is_tried {
            self.is_tried = true;
            let request = SendRequest {
                id: 0,
                operation: SendOperation::Write { to, immediate: None },
                memory: Some(memory),
                signaled: true,
                inline: false,
            };
            // SAFETY: the memory is the scratch of the port, which lives longer than its queue
            // pairs.
            let posted = unsafe { self.trial.post(&[request]) };
            posted.map_err(|error| self.no_passage(theirs, &error.to_string()))?;
        }
        match self.trial_result {
            None => Ok(HandshakeStep::Wait),
            Some(Err(why)) => Err(self.no_passage(theirs, why)),
            Some(Ok(())) if !self.has_passed => {
                self.has_passed = true;
                Ok(HandshakeStep::Passed)
            }
            Some(Ok(())) if self.peer_has_passed => Ok(HandshakeStep::Made),
            Some(Ok(())) => Ok(HandshakeStep::Wait),
        }
    }

    /// The addresses and the devices of this rank and of the peer.
    fn ends(&self, theirs: &Hello) -> (String, String) {
        let Self { peer, domain, .. } = self;
        let (device, other) = (domain.device(), &theirs.device);
        match self.gid.filter(|_| self.own.global) {
            Some(GidEntry { gid, index, kind, .. }) => (
                format!("{kind:?} {gid} at index {index} on {device}"),
                format!("{} on {other} of rank {peer}", theirs.gid),
            ),
            None => (
                format!("LID {} on {device}", self.own.lid),
                format!("LID {} on {other} of rank {peer}", theirs.lid),
            ),
        }
    }

    /// What is known about a trial that did not pass, and what to try.
    fn no_passage(&self, theirs: &Hello, why: &str) -> String {
        let (from, to) = self.ends(theirs);
        let settings = if self.own.global {
            "NCCL_IB_GID_INDEX, NCCL_IB_ADDR_RANGE and NCCL_IB_HCA"
        } else {
            "NCCL_IB_HCA and the SM"
        };
        format!(
            "a write from {from} to {to} does not pass, while TCP does: {why}. Check {settings}, \
             the MTU ({} bytes here) and, with traffic class {}, the switches; NCCL_IB_DISABLE=1 \
             uses TCP",
            128 << self.own.mtu,
            self.domain.config.traffic_class,
        )
    }
}

/// An error of the device, with its name and with what to do.
fn explain(domain: &VerbsDomain, error: &VerbsError) -> String {
    let advice = match error.errno() {
        Some(libc::ENOMEM) => "; check the limit of locked memory (ulimit -l)",
        Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ETIMEDOUT) => {
            "; check that the GID of the peer can be reached (NCCL_IB_GID_INDEX, routes)"
        }
        _ => "",
    };
    format!("{} refuses the connection: {error}{advice}", domain.device())
}
