//! How the queue pairs of two ranks are made and tried, as a state machine that the control
//! messages and completions drive. Both ends do the same:
//!
//! 1. make the queue pairs, and say how they are reached (`Hello`);
//! 2. connect them to those of the peer, and say so (`Ready`);
//! 3. when the peer is ready, write eight bytes to its memory over a queue pair of its own, which
//!    gives up soon, and say that they have arrived (`Passed`).
//!
//! When both writes have passed, the connection is made. The queue pairs for messages wait longer.

use std::sync::Arc;

use maypole_verbs::{
    ConnectionTiming, GidEntry, LinkLayer, PathAddress, PeerQueue, QueueCapacity, QueuePair,
    QueuePairSetup, SendOperation, SendRequest, VerbsError,
};

use super::domain::{INLINE_BYTES, VerbsDomain};
use super::group::CompletionGroup;
use super::message::{ControlMessage, Hello, MOST_QUEUES};
use super::pair::VerbsPair;
use super::ring::rdma_error;
use super::state::{PairState, QueueRole};
use crate::error::LinkError;
use crate::peers::PeerTable;
use crate::random::random_bytes;
use crate::tcp::pair::TcpPair;
use crate::tcp::pair::upgrade::UpgradeQueue;

/// The trial gives up after about 4 times 0.5 s: a host that is busy may take long to answer.
const TRIAL_TIMING: ConnectionTiming =
    ConnectionTiming { timeout: 17, retries: 3, receive_retries: 0 };
/// Packet numbers have 24 bits.
const PACKET_MASK: u32 = (1 << 24) - 1;

/// A connection that is not yet made.
pub(super) struct VerbsHandshake {
    pub(super) pair: Arc<VerbsPair>,
    own: Hello,
    gid: Option<GidEntry>,
    theirs: Option<Hello>,
    peer_is_ready: bool,
    is_tried: bool,
    has_passed: bool,
    peer_has_passed: bool,
}

impl VerbsHandshake {
    /// The first step.
    pub(super) fn begin(
        control: &Arc<TcpPair>,
        group: &Arc<CompletionGroup>,
        domain: &Arc<VerbsDomain>,
        peers: &PeerTable,
        upgrade: &Arc<UpgradeQueue>,
    ) -> Result<Self, LinkError> {
        let peer = control.peer;
        let failed = |error: VerbsError| rdma_error(peer, explain(domain, &error));
        let gid = domain.gid();
        if gid.is_none() && domain.link_layer() == LinkLayer::Ethernet {
            let why = format!("{} has lost all GIDs that may be used", domain.device());
            return Err(rdma_error(peer, why));
        }
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
        let first_packet = u32::from_le_bytes(random_bytes()?) & PACKET_MASK;
        let own = Hello {
            gid: gid.map_or_else(Default::default, |entry| entry.gid),
            global: domain.link_layer() == LinkLayer::Ethernet,
            lid: domain.info.lid,
            mtu: domain.info.mtu,
            first_packet,
            trial_queue: trial.number(),
            queues: queues.iter().map(QueuePair::number).collect(),
            scratch: domain.scratch(peer).0,
            device: domain.device(),
        };
        let mut state = group.lock();
        for (index, number) in own.queues.iter().enumerate() {
            state.by_queue.insert(*number, (peer, QueueRole::Messages(index)));
        }
        state.by_queue.insert(own.trial_queue, (peer, QueueRole::Trial));
        let out_of_order_from = domain.out_of_order_from();
        let ranks = (peers.rank, peer);
        let links = (control.clone(), upgrade.clone());
        let pair = PairState::new(ranks, links, &domain.layout, (queues, trial), out_of_order_from);
        state.pairs.insert(peer, pair);
        drop(state);
        let shared = (peers.inbox.clone(), upgrade.clone());
        let pair = VerbsPair::new((peer, control.clone()), group.clone(), domain.clone(), shared);
        control.send_control(&ControlMessage::Hello(own.clone()).encode());
        Ok(Self {
            pair: Arc::new(pair),
            own,
            gid,
            theirs: None,
            peer_is_ready: false,
            is_tried: false,
            has_passed: false,
            peer_has_passed: false,
        })
    }

    /// Handles a control message.
    pub(super) fn take(&mut self, message: ControlMessage) -> Result<(), LinkError> {
        let peer = self.pair.peer;
        match message {
            ControlMessage::Hello(hello) => self.connect(hello),
            ControlMessage::Ready => {
                self.peer_is_ready = true;
                Ok(())
            }
            ControlMessage::Passed => {
                self.peer_has_passed = true;
                Ok(())
            }
            ControlMessage::Failed(why) => {
                Err(rdma_error(peer, format!("rank {peer} gives up: {why}")))
            }
            grant @ ControlMessage::Grant { .. } => {
                self.pair.take_control(grant);
                Ok(())
            }
        }
    }

    /// The second step.
    fn connect(&mut self, theirs: Hello) -> Result<(), LinkError> {
        let VerbsPair { peer, domain, .. } = &*self.pair;
        if theirs.queues.len() != self.own.queues.len() {
            let why = "the two have different numbers of queue pairs \
                       (NCCL_IB_QPS_PER_CONNECTION)";
            return Err(rdma_error(*peer, why.to_owned()));
        }
        if theirs.global != self.own.global {
            let why = format!(
                "{} and {} of rank {peer} have different link layers; see NCCL_IB_HCA",
                self.own.device, theirs.device
            );
            return Err(rdma_error(*peer, why));
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
        let (from, to) = self.ends(&theirs);
        let path_text = format!("from {from} to {to}");
        let (first_packet, mtu) = (theirs.first_packet, theirs.mtu.min(self.own.mtu));
        let connected = self.pair.with_state(|pair| {
            let Some(trial) = &pair.trial.queue else { return Ok(()) };
            let queues = pair.queues.iter().map(|queue| (&queue.queue, &timing));
            let numbers = theirs.queues.iter().copied().chain([theirs.trial_queue]);
            for ((queue, timing), number) in queues.chain([(trial, &TRIAL_TIMING)]).zip(numbers) {
                queue.receive_from(&PeerQueue { number, first_packet, mtu }, &path)?;
                queue.begin_sending(self.own.first_packet, timing)?;
            }
            pair.scratch = Some((theirs.scratch, domain.scratch(*peer).1));
            pair.path = path_text;
            Ok(())
        });
        connected.map_err(|error: VerbsError| rdma_error(*peer, explain(domain, &error)))?;
        self.theirs = Some(theirs);
        self.pair.control.send_control(&ControlMessage::Ready.encode());
        Ok(())
    }

    /// The third step, as far as it is possible. True when the connection is made.
    ///
    /// # Errors
    /// The trial did not pass.
    pub(super) fn advance(&mut self) -> Result<bool, LinkError> {
        let peer = self.pair.peer;
        let Some(theirs) = &self.theirs else { return Ok(false) };
        if self.peer_is_ready && !self.is_tried {
            self.is_tried = true;
            self.pair.with_state(try_write).map_err(|why| rdma_error(peer, why))?;
        }
        if !self.has_passed {
            match self.pair.with_state(|pair| pair.trial.result) {
                None => return Ok(false),
                Some(Err(why)) => return Err(rdma_error(peer, self.no_passage(theirs, why))),
                Some(Ok(())) => {
                    self.has_passed = true;
                    self.pair.control.send_control(&ControlMessage::Passed.encode());
                }
            }
        }
        if self.peer_has_passed {
            let trial = self.pair.with_state(|pair| pair.trial.queue.take());
            drop(trial);
        }
        Ok(self.peer_has_passed)
    }

    /// The addresses and the devices of this rank and of the peer.
    fn ends(&self, theirs: &Hello) -> (String, String) {
        let VerbsPair { peer, domain, .. } = &*self.pair;
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
            self.pair.domain.config.traffic_class,
        )
    }
}

/// Posts the write of the trial.
fn try_write(pair: &mut PairState) -> Result<(), String> {
    let (Some(queue), Some((to, memory))) = (&pair.trial.queue, pair.scratch) else {
        return Ok(());
    };
    let request = SendRequest {
        id: 0,
        operation: SendOperation::Write { to, immediate: None },
        memory: Some(memory),
        signaled: true,
        inline: false,
    };
    // SAFETY: the memory is the scratch of the domain, which lives longer than its queue pairs.
    unsafe { queue.post(&[request]) }.map_err(|error| error.to_string())
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
