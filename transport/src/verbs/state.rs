//! What this rank knows of one peer: its queue pairs and links. The lock of the group protects it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_verbs::{
    Completion, LocalMemory, NO_ANSWER, QueuePair, RemoteMemory, SendOperation, SendRequest,
    WORK_FLUSHED, describe_status,
};

use super::message::ControlMessage;
use super::ring::{MessageHeader, ReceiveRing, SendRing};
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::link::HeaderDamage;
use crate::tcp::pair::TcpPair;
use crate::tcp::pair::upgrade::UpgradeQueue;
use crate::{Rank, Sequence};

/// How long after a failure of a queue pair the control plane may take to say that the peer has
/// left or is dead, which then is the reason.
pub(super) const FAILURE_GRACE: Duration = Duration::from_secs(1);

/// In an immediate value: it is a release. Otherwise it is a message. The channel is in the bits
/// from 16 on, and the lowest bits of the sequence are in the others.
const IS_RELEASE: u32 = 1 << 31;
/// Most channels and most messages under way that immediate values can tell apart.
pub(super) const MOST_NUMBERED: u32 = 1 << 15;

fn immediate(kind: u32, channel: u16, sequence: u64) -> u32 {
    kind | u32::from(channel) << 16 | u32::from(sequence as u16)
}

/// A queue pair, and how much of its work is done.
#[derive(Debug)]
pub(super) struct SendQueue {
    pub(super) queue: QueuePair,
    /// Number of the last work request.
    posted: u64,
    /// Number of the last work request that is known to be done, with all before it.
    completed: u64,
    /// Number of the last work request that reports its success.
    signaled: u64,
}

impl SendQueue {
    pub(super) fn new(queue: QueuePair) -> Self {
        Self { queue, posted: 0, completed: 0, signaled: 0 }
    }

    fn room(&self) -> u64 {
        u64::from(self.queue.capacity().sends) - (self.posted - self.completed)
    }

    /// Posts requests, for which there is room, in one chain. Their ids are their numbers. Some
    /// report their success, so that there is room again.
    fn post(&mut self, requests: &mut [SendRequest], report: bool) -> Result<(), String> {
        for request in requests.iter_mut() {
            self.posted += 1;
            request.id = self.posted;
            let quarter = u64::from(self.queue.capacity().sends / 4);
            if report || self.posted - self.signaled >= quarter {
                request.signaled = true;
                self.signaled = self.posted;
            }
        }
        // SAFETY: the memory lies in rings of the pair, which live longer than the queue pair. A
        // slot is written again only after its message was released, when the adapter has sent it
        // and will at most repeat packets, whose content the peer's adapter ignores.
        unsafe { self.queue.post(requests) }.map_err(|error| error.to_string())
    }
}

/// Both directions of one channel.
#[derive(Debug, Default)]
pub(super) struct VerbsChannel {
    /// Both are there once the channel is open.
    pub(super) sending: Option<SendRing>,
    pub(super) receiving: Option<ReceiveRing>,
    /// Where the peer lets this rank write.
    pub(super) grant: Option<RemoteMemory>,
}

/// The trial of a new connection.
#[derive(Debug)]
pub(super) struct Trial {
    /// The queue pair for it, also for that of the peer, until both have passed.
    pub(super) queue: Option<QueuePair>,
    /// The write has arrived, or why not.
    pub(super) result: Option<Result<(), &'static str>>,
}

/// Why nothing more can be sent to the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairFailure {
    pub(super) error: LinkError,
    /// When it is reported, unless the peer is gone.
    pub(super) report_at: Instant,
}

/// Which queue pair of a peer a completion belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum QueueRole {
    Messages(usize),
    Trial,
}

/// What a completion with an error means, and what to do.
fn describe_failure(completion: &Completion) -> String {
    let (status, vendor) = (completion.status, completion.vendor_error);
    let advice = match status {
        WORK_FLUSHED => "the queue pair was ended by the device or the peer; see dmesg",
        NO_ANSWER => {
            "check cables, ports and routes (ibv_devinfo, ip route), and whether the \
             network loses packets; NCCL_IB_TIMEOUT waits longer"
        }
        _ => "see dmesg and the counters of the devices",
    };
    let what = describe_status(status);
    format!("{what} (status {status}, vendor's error {vendor}); {advice}")
}

/// A peer.
#[derive(Debug)]
pub(super) struct PairState {
    pub(super) peer: Rank,
    pub(super) rank: Rank,
    pub(super) control: Arc<TcpPair>,
    /// Wakes the thread behind the connections.
    upgrade: Arc<UpgradeQueue>,
    // Dropped before the memory of the channels.
    pub(super) queues: Vec<SendQueue>,
    pub(super) trial: Trial,
    pub(super) channels: Vec<VerbsChannel>,
    pub(super) failure: Option<PairFailure>,
    /// Eight bytes of the peer to which anything may be written, and eight bytes of this rank.
    pub(super) scratch: Option<(RemoteMemory, LocalMemory)>,
    /// There may be releases that the peer was not told of.
    owes_acks: bool,
    /// From this length on, packets of a message may arrive out of order.
    pub(super) out_of_order_from: Option<usize>,
    /// The addresses and devices at both ends, for messages to people.
    pub(super) path: String,
}

impl PairState {
    pub(super) fn new(
        (rank, peer): (Rank, Rank),
        (control, upgrade): (Arc<TcpPair>, Arc<UpgradeQueue>),
        layout: &InboxLayout,
        (queues, trial): (Vec<QueuePair>, QueuePair),
        out_of_order_from: Option<usize>,
    ) -> Self {
        Self {
            peer,
            rank,
            control,
            upgrade,
            queues: queues.into_iter().map(SendQueue::new).collect(),
            trial: Trial { queue: Some(trial), result: None },
            channels: (0..layout.channels).map(|_| VerbsChannel::default()).collect(),
            failure: None,
            scratch: None,
            owes_acks: false,
            out_of_order_from,
            path: String::new(),
        }
    }

    /// Ends the use of the queue pairs and tells the peer. The first failure counts.
    pub(super) fn fail(&mut self, error: LinkError, why: &str) {
        if self.failure.is_some() {
            return;
        }
        let at_once = matches!(error, LinkError::Corrupt { .. });
        let wait = if at_once { Duration::ZERO } else { FAILURE_GRACE };
        self.failure = Some(PairFailure { error, report_at: Instant::now() + wait });
        for queue in &self.queues {
            // A queue pair that cannot be changed has failed too.
            let _ = queue.queue.fail();
        }
        self.control.send_control(&ControlMessage::Failed(why.to_owned()).encode());
        // It ends the wait of the rank in time.
        self.upgrade.wake();
    }

    /// Ends the use of the queue pairs, because this rank has left.
    pub(super) fn close(&mut self) {
        let error = LinkError::PeerLeft { peer: self.rank };
        self.failure.get_or_insert(PairFailure { error, report_at: Instant::now() });
        for queue in &self.queues {
            let _ = queue.queue.fail();
        }
    }

    pub(super) fn fail_with(&mut self, why: String) {
        let why = format!("{}: {why}; NCCL_IB_DISABLE=1 uses TCP", self.path);
        log::warn!("rank {}: the RDMA connection to rank {} failed: {why}", self.rank, self.peer);
        self.fail(super::ring::rdma_error(self.peer, why.clone()), &why);
    }

    fn corrupt(&mut self, why: &'static str) {
        self.fail(LinkError::Corrupt { peer: self.peer, why }, why);
    }

    /// Handles a completion. Returns whether a wait may end.
    pub(super) fn complete(&mut self, role: QueueRole, completion: &Completion) -> bool {
        match role {
            QueueRole::Trial => {
                let passed = completion.status == 0;
                let result = if passed { Ok(()) } else { Err(describe_status(completion.status)) };
                self.trial.result.get_or_insert(result);
                self.upgrade.wake();
            }
            _ if completion.status != 0 => {
                if self.failure.is_none() {
                    self.fail_with(describe_failure(completion));
                }
            }
            QueueRole::Messages(_) if completion.is_receive => {
                let immediate = completion.immediate;
                let taken = self.receive(immediate, completion.bytes as usize);
                if let Err(why) = taken {
                    self.corrupt(why);
                }
            }
            QueueRole::Messages(index) => {
                let queue = &mut self.queues[index];
                queue.completed = queue.completed.max(completion.id);
            }
        }
        true
    }

    /// Handles an immediate value from the peer.
    fn receive(&mut self, immediate: Option<u32>, bytes: usize) -> Result<(), &'static str> {
        let immediate = immediate.ok_or("an arrival without an immediate value")?;
        let (number, low) = ((immediate >> 16) & (MOST_NUMBERED - 1), immediate as u16);
        let nowhere = "a message of a channel that does not exist";
        let channel = self.channels.get_mut(number as usize).ok_or(nowhere)?;
        let not_open = "a message of a channel that was not granted";
        let sending = channel.sending.as_mut().ok_or(not_open)?;
        let ack = if immediate & IS_RELEASE != 0 {
            sending.whole_ack(low)
        } else {
            let receiving = channel.receiving.as_mut().ok_or(not_open)?;
            receiving.arrive(number as u16, low, bytes)?
        };
        let unsent = "it released a message that was not sent";
        sending.acknowledge(ack).map(|_| ()).ok_or(unsent)
    }

    fn queue_index(&self, channel: u16) -> usize {
        usize::from(channel) % self.queues.len()
    }

    /// Whether the next message of a channel can be sent.
    pub(super) fn can_send(&self, channel: u16) -> bool {
        let VerbsChannel { sending, grant, .. } = &self.channels[usize::from(channel)];
        let room = self.queues[self.queue_index(channel)].room();
        // A message has at most two requests; one more is kept for a release.
        self.failure.is_none()
            && grant.is_some()
            && room > 2
            && sending.as_ref().is_some_and(SendRing::has_credit)
    }

    /// Sends the next message of a channel, of which [`can_send`](Self::can_send) was true.
    pub(super) fn send(
        &mut self,
        channel: u16,
        len: usize,
        tag: u32,
        damage: Option<HeaderDamage>,
    ) -> Sequence {
        let index = self.queue_index(channel);
        let VerbsChannel { sending, receiving, grant } = &mut self.channels[usize::from(channel)];
        let (Some(sending), Some(receiving), Some(grant)) = (sending, receiving, grant) else {
            unreachable!("a slot was reserved, so the channel is open");
        };
        let queue = &mut self.queues[index];
        let sequence = sending.next;
        if self.failure.is_some() {
            return sending.advance(len, u64::MAX);
        }
        let right = MessageHeader::new(channel, sequence, receiving.take_ack(), len as u32, tag);
        sending.write_header(match damage {
            None => right,
            Some(HeaderDamage::Length(len)) => {
                MessageHeader { len: len.min(u32::MAX as usize) as u32, ..right }
            }
            Some(HeaderDamage::Sequence(sequence)) => MessageHeader { sequence, ..right },
            Some(HeaderDamage::Kind(number)) => MessageHeader { mark: number as u32, ..right },
        });
        let (header, payload) = sending.parts(*grant, len);
        let inline = queue.queue.capacity().inline as usize;
        let whole = LocalMemory { len: header.from.len + payload.from.len, ..header.from };
        let request = |memory: LocalMemory, to, immediate| SendRequest {
            id: 0,
            operation: SendOperation::Write { to, immediate },
            memory: Some(memory),
            signaled: false,
            inline: memory.len as usize <= inline,
        };
        let value = Some(immediate(0, channel, sequence));
        let posted = if self.out_of_order_from.is_some_and(|from| len >= from.max(1)) {
            let payload = request(payload.from, payload.to, None);
            queue.post(&mut [payload, request(header.from, header.to, value)], false)
        } else {
            queue.post(&mut [request(whole, header.to, value)], false)
        };
        let sequence = sending.advance(len, queue.posted);
        if let Err(why) = posted {
            self.fail_with(why);
        }
        sequence
    }

    /// Releases the first message of a channel. Returns whether the peer must be told soon.
    pub(super) fn release(&mut self, channel: u16, excess: u64, at_once_from: u64) -> bool {
        let Some(receiving) = &mut self.channels[usize::from(channel)].receiving else {
            return false;
        };
        receiving.next += 1;
        // More cannot be told apart in an immediate value.
        receiving.ack_excess += excess.min(u64::from(MOST_NUMBERED) - 1);
        let at_once = receiving.unacked() >= at_once_from;
        self.owes_acks = true;
        if at_once {
            self.send_acks_of(channel);
        }
        !at_once
    }

    fn send_acks_of(&mut self, channel: u16) -> bool {
        let index = self.queue_index(channel);
        let queue = &mut self.queues[index];
        let Some(receiving) = &mut self.channels[usize::from(channel)].receiving else {
            return true;
        };
        if receiving.unacked() == 0 {
            return true;
        }
        if queue.room() == 0 {
            return false;
        }
        let value = immediate(IS_RELEASE, channel, receiving.take_ack());
        let operation = SendOperation::Send { immediate: value };
        let request =
            SendRequest { id: 0, operation, memory: None, signaled: false, inline: false };
        let posted = queue.post(&mut [request], false);
        if let Err(why) = posted {
            self.fail_with(why);
        }
        true
    }

    /// Tells the peer of all releases of which it was not told, as far as there is room.
    pub(super) fn send_acks(&mut self) {
        if !self.owes_acks || self.failure.is_some() {
            return;
        }
        let mut all = true;
        for channel in 0..self.channels.len() as u16 {
            all &= self.send_acks_of(channel);
        }
        self.owes_acks = !all;
    }

    /// Whether there may be releases that the peer was not told of.
    pub(super) fn owes_acks(&self) -> bool {
        self.owes_acks && self.failure.is_none()
    }

    /// Makes the adapter report when all that was posted has arrived.
    pub(super) fn begin_flush(&mut self) {
        let Some((to, memory)) = self.scratch.filter(|_| self.failure.is_none()) else { return };
        let mut failed = None;
        for queue in &mut self.queues {
            if queue.signaled < queue.posted && queue.room() > 0 {
                let inline = queue.queue.capacity().inline >= memory.len;
                let operation = SendOperation::Write { to, immediate: None };
                let memory = Some(memory);
                let request = SendRequest { id: 0, operation, memory, signaled: true, inline };
                failed = failed.or(queue.post(&mut [request], true).err());
            }
        }
        if let Some(why) = failed {
            self.fail_with(why);
        }
    }

    /// The number and the bytes of the messages that are not known to be in memory of the peer.
    pub(super) fn under_way(&self) -> (u64, u64) {
        let each = self.channels.iter().enumerate().filter_map(|(channel, it)| {
            let completed = self.queues[self.queue_index(channel as u16)].completed;
            it.sending.as_ref().map(|ring| ring.under_way(completed))
        });
        each.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }

    /// Whether all that was posted is done.
    pub(super) fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.completed == queue.posted)
    }
}
