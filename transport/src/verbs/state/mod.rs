//! What this rank knows of one peer: the paths to it and its links. The lock of the table protects
//! it.
//!
//! * `making`: how paths are made;
//! * `losing`: what becomes of messages whose path is lost.
//!
//! A message counts once, on whichever path it comes: the receiver has one place for each sequence,
//! and marks it when the message has arrived. If a path is lost at one end, that end first ends its
//! queue pairs, so that nothing arrives over them any more; then it fetches what has arrived, and
//! tells the peer over TCP. The peer does the same. Then each knows which of the messages that it
//! has sent over the path have not arrived, and sends those over another path, or over TCP.

mod losing;
mod making;

use std::collections::VecDeque;
use std::sync::Arc;

use maypole_verbs::{
    Completion, LocalMemory, RemoteMemory, SendOperation, SendRequest, describe_status,
};

use super::domain::MOST_PATHS;
use super::fallback::{TcpArrival, TcpWay};
use super::group::CompletionGroup;
use super::message::ControlMessage;
use super::path::{Path, PathPhase};
use super::ring::{MessageHeader, MessagePlace, ReceiveRing, SendRing};
use super::shared::VerbsShared;
use super::work::{IS_RELEASE, MOST_NUMBERED, choose_path, describe_failure, immediate};
use crate::error::LinkError;
use crate::link::HeaderDamage;
use crate::tcp::pair::TcpPair;
use crate::{Rank, Sequence};

/// How many messages more than were released a release can say, for tests.
const MOST_EXCESS: u64 = 1 << 14;

/// Both directions of one channel.
#[derive(Debug, Default)]
pub(super) struct VerbsChannel {
    /// Both are there once the channel is open.
    pub(super) sending: Option<SendRing>,
    pub(super) receiving: Option<ReceiveRing>,
    /// Where the peer lets this rank write, with the key for each of its ports.
    pub(super) grant: Option<(u64, Vec<u32>)>,
}

impl VerbsChannel {
    /// The peer's memory for a path, if both ends have registered theirs with its ports.
    fn target(&self, path: &Path) -> Option<RemoteMemory> {
        let (address, keys) = self.grant.as_ref()?;
        let key = keys.get(path.their_domain).copied().filter(|key| *key != 0)?;
        let is_registered = self.sending.as_ref()?.is_registered(path.domain);
        is_registered.then_some(RemoteMemory { address: *address, key })
    }
}

/// Which queue pair of a path a completion belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum QueueRole {
    Messages(usize),
    Trial,
}

/// A peer.
#[derive(Debug)]
pub(super) struct PairState {
    pub(super) peer: Rank,
    pub(super) control: Arc<TcpPair>,
    shared: Arc<VerbsShared>,
    /// For each port of this rank, the queues that the pair uses, or why there are none.
    pub(super) groups: Vec<Result<Arc<CompletionGroup>, String>>,
    // Dropped before the memory of the channels.
    pub(super) paths: Vec<Path>,
    pub(super) channels: Vec<VerbsChannel>,
    tcp: TcpWay,
    /// Messages that wait for a path.
    waiting: VecDeque<(u16, Sequence)>,
    /// Why nothing more can be sent to the peer.
    pub(super) failure: Option<LinkError>,
    /// The links can be used.
    pub(super) connected: bool,
    /// This rank has left.
    closed: bool,
    /// There may be releases that the peer was not told of.
    owes_acks: bool,
    /// Messages that were sent again because their path was lost.
    pub(super) repeated: u64,
}

/// Paths and messages.
impl PairState {
    pub(super) fn new(
        peer: Rank,
        control: Arc<TcpPair>,
        shared: Arc<VerbsShared>,
        groups: Vec<Result<Arc<CompletionGroup>, String>>,
    ) -> Self {
        let channels = usize::from(shared.layout.channels);
        Self {
            peer,
            control,
            shared,
            groups,
            paths: Vec::new(),
            channels: (0..channels).map(|_| VerbsChannel::default()).collect(),
            tcp: TcpWay::new(channels),
            waiting: VecDeque::new(),
            failure: None,
            connected: false,
            closed: false,
            owes_acks: false,
            repeated: 0,
        }
    }

    fn rank(&self) -> Rank {
        self.shared.rank
    }

    /// Whether this rank begins new attempts to make a path.
    pub(super) fn is_lower(&self) -> bool {
        self.rank() < self.peer
    }

    fn say(&self, message: &ControlMessage) {
        self.control.send_control(&message.encode());
    }

    /// Ends the use of all paths and tells the peer. The first failure counts.
    pub(super) fn fail(&mut self, error: LinkError, why: &str) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(error);
        self.end_queues();
        self.say(&ControlMessage::Broken(why.to_owned()));
        // It ends the wait of the rank in time.
        self.shared.upgrade.wake();
    }

    /// Ends the use of all paths, because this rank has left.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.failure.get_or_insert(LinkError::PeerLeft { peer: self.rank() });
        self.end_queues();
    }

    /// Whether a path is lost of which the peer was not told.
    pub(super) fn has_lost_path(&self) -> bool {
        self.paths.iter().any(Path::is_ending)
    }

    /// Messages may come over TCP from now on.
    pub(super) fn use_tcp(&mut self) {
        self.tcp.in_use = true;
    }

    fn end_queues(&self) {
        for queue in self.paths.iter().flat_map(|path| &path.queues) {
            // A queue pair that cannot be changed has failed too.
            let _ = queue.queue.fail();
        }
    }

    fn corrupt(&mut self, why: &'static str) {
        self.fail(LinkError::Corrupt { peer: self.peer, why }, why);
    }

    /// Sends the messages that wait, as far as paths have room.
    fn send_waiting(&mut self) {
        while let Some((channel, sequence)) = self.waiting.front().copied() {
            if !self.dispatch(channel, sequence) {
                break;
            }
            self.waiting.pop_front();
        }
        let Self { tcp, channels, control, .. } = self;
        tcp.send(control, |channel| channels[usize::from(channel)].sending.as_ref());
        if !self.waiting.is_empty() || self.tcp.is_waiting() {
            // The next poll tries again, and so does the thread behind the connections.
            self.shared.ask_attention();
            self.shared.upgrade.wake_within_tick();
        }
    }

    /// Gives a message to a path, or to TCP if there is none. False if all paths are full.
    fn dispatch(&mut self, channel: u16, sequence: Sequence) -> bool {
        let entry = &mut self.channels[usize::from(channel)];
        let mut loads = [None; MOST_PATHS];
        let mut any = false;
        for (load, path) in loads.iter_mut().zip(&self.paths) {
            if path.is_active() && entry.target(path).is_some() {
                any = true;
                *load = path.load(channel, 3);
            }
        }
        match choose_path(&loads) {
            Some(index) => {
                self.post(index, channel, sequence);
                true
            }
            None if any => false,
            None => {
                if let Some(sending) = &mut entry.sending {
                    sending.set_place(sequence, MessagePlace::Tcp);
                }
                self.tcp.add_message(channel, sequence);
                self.shared.ask_attention();
                true
            }
        }
    }

    /// Posts a message on a path that has room for it.
    fn post(&mut self, index: usize, channel: u16, sequence: Sequence) {
        let several = self.paths.iter().filter(|path| path.is_active()).count() > 1;
        let path = &mut self.paths[index];
        let entry = &mut self.channels[usize::from(channel)];
        let (Some(target), Some(at)) = (entry.target(path), path.queue_index(channel)) else {
            return;
        };
        let Some(sending) = &mut entry.sending else { return };
        let Some((header, payload)) = sending.parts(path.domain, target, sequence) else { return };
        let len = payload.from.len as usize;
        let queue = &mut path.queues[at];
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
        let out_of_order_from = self.shared.domains[path.domain].out_of_order_from();
        let last = request(header.from, header.to, value);
        let bytes = u64::from(whole.len);
        let posted = if out_of_order_from.is_some_and(|from| len >= from.max(1)) {
            let payload = request(payload.from, payload.to, None);
            queue.post(&mut [payload, last], several, bytes)
        } else {
            queue.post(&mut [request(whole, header.to, value)], several, bytes)
        };
        let (attempt, request) = (path.attempt, queue.posted);
        path.messages += 1;
        let place = MessagePlace::Path { path: index, attempt, queue: at, request };
        sending.set_place(sequence, place);
        if let Err(why) = posted {
            self.lose(index, &why);
        }
    }

    /// Handles a completion. Returns whether a wait may end.
    pub(super) fn complete(
        &mut self,
        (index, attempt, role): (usize, u32, QueueRole),
        completion: &Completion,
    ) -> bool {
        let path = self.paths.get_mut(index).filter(|path| path.attempt == attempt);
        let Some(path) = path else { return false };
        match role {
            QueueRole::Trial => {
                let passed = completion.status == 0;
                let result = if passed { Ok(()) } else { Err(describe_status(completion.status)) };
                if let Some(handshake) = path.handshake() {
                    handshake.trial_result.get_or_insert(result);
                }
                self.shared.upgrade.wake();
            }
            _ if completion.status != 0 => self.lose(index, &describe_failure(completion)),
            QueueRole::Messages(_) if completion.is_receive => {
                if path.takes_messages()
                    && let Err(why) = self.receive(completion.immediate, completion.bytes as usize)
                {
                    self.corrupt(why);
                }
            }
            QueueRole::Messages(at) => {
                if let Some(queue) = path.queues.get_mut(at) {
                    queue.complete(completion.id);
                }
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

    /// Takes what has come over TCP on a channel. Returns whether there was anything.
    pub(super) fn take_from_tcp(&mut self, channel: u16) -> bool {
        let mut any = false;
        while self.tcp.in_use && self.failure.is_none() {
            // An error of the connection is reported to the rank that waits.
            let Ok(Some(message)) = self.control.receive(channel) else { break };
            any = true;
            // SAFETY: a message that is not released.
            let bytes = unsafe { std::slice::from_raw_parts(message.data, message.len) };
            let entry = &mut self.channels[usize::from(channel)];
            let (Some(receiving), Some(sending)) = (&mut entry.receiving, &mut entry.sending)
            else {
                break;
            };
            let taken = self.tcp.take(channel, bytes, receiving);
            let unsent = "it released a message that was not sent";
            let taken = taken.and_then(|arrival| match arrival {
                TcpArrival::Release(ack) => sending.acknowledge(ack).map(|_| ()).ok_or(unsent),
                TcpArrival::Nothing => Ok(()),
            });
            self.control.release(channel, 0);
            if let Err(why) = taken {
                self.corrupt(why);
            }
        }
        any
    }

    /// Whether the next message of a channel can be sent.
    pub(super) fn can_send(&self, channel: u16) -> bool {
        let entry = &self.channels[usize::from(channel)];
        let has_credit = entry.sending.as_ref().is_some_and(SendRing::has_credit);
        if self.failure.is_some() || entry.grant.is_none() || !has_credit {
            return false;
        }
        // A message has at most two requests; one more is kept for a release.
        let usable = |path: &&Path| path.is_active() && entry.target(path).is_some();
        let mut usable = self.paths.iter().filter(usable);
        let mut any = false;
        let has_room = usable.any(|path| {
            any = true;
            path.load(channel, 3).is_some()
        });
        has_room || !any
    }

    /// Whether messages are divided between paths by what is under way on them.
    pub(super) fn balances(&self) -> bool {
        let active = self.paths.iter().filter(|path| path.is_active()).count();
        active > 1
    }

    /// Sends the next message of a channel, of which [`can_send`](Self::can_send) was true.
    pub(super) fn send(
        &mut self,
        channel: u16,
        len: usize,
        tag: u32,
        damage: Option<HeaderDamage>,
    ) -> Sequence {
        let entry = &mut self.channels[usize::from(channel)];
        let (Some(sending), Some(receiving)) = (&mut entry.sending, &mut entry.receiving) else {
            unreachable!("a slot was reserved, so the channel is open");
        };
        if self.failure.is_some() {
            return sending.advance(len);
        }
        let ack = receiving.take_ack();
        let right = MessageHeader::new(channel, sending.next, ack, len as u32, tag);
        sending.write_header(match damage {
            None => right,
            Some(HeaderDamage::Length(len)) => {
                MessageHeader { len: len.min(u32::MAX as usize) as u32, ..right }
            }
            Some(HeaderDamage::Sequence(sequence)) => MessageHeader { sequence, ..right },
            Some(HeaderDamage::Kind(number)) => MessageHeader { mark: number as u32, ..right },
        });
        let sequence = sending.advance(len);
        if !self.waiting.is_empty() || !self.dispatch(channel, sequence) {
            self.waiting.push_back((channel, sequence));
            self.shared.ask_attention();
        }
        if self.tcp.is_waiting() {
            self.send_waiting();
        }
        sequence
    }

    /// Releases the first message of a channel. Returns whether the peer must be told soon.
    pub(super) fn release(&mut self, channel: u16, excess: u64, at_once_from: u64) -> bool {
        let Some(receiving) = &mut self.channels[usize::from(channel)].receiving else {
            return false;
        };
        receiving.release();
        // More cannot be told apart in an immediate value.
        receiving.ack_excess += excess.min(MOST_EXCESS);
        let at_once = receiving.unacked() >= at_once_from;
        self.owes_acks = true;
        if at_once {
            self.send_acks_of(channel);
        }
        !at_once
    }

    fn send_acks_of(&mut self, channel: u16) -> bool {
        let Some(receiving) = &mut self.channels[usize::from(channel)].receiving else {
            return true;
        };
        if receiving.unacked() == 0 {
            return true;
        }
        let mut loads = [None; MOST_PATHS];
        let mut any = false;
        for (load, path) in loads.iter_mut().zip(&self.paths) {
            any |= path.is_active();
            *load = path.load(channel, 1);
        }
        let Some(index) = choose_path(&loads) else {
            if any {
                return false;
            }
            self.tcp.add_release(channel, receiving.take_ack());
            self.send_waiting();
            return true;
        };
        let value = immediate(IS_RELEASE, channel, receiving.take_ack());
        let operation = SendOperation::Send { immediate: value };
        let request =
            SendRequest { id: 0, operation, memory: None, signaled: false, inline: false };
        let path = &mut self.paths[index];
        let Some(at) = path.queue_index(channel) else { return true };
        if let Err(why) = path.queues[at].post(&mut [request], false, 0) {
            self.lose(index, &why);
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

    /// Whether there may be something that the thread behind the connections must send.
    pub(super) fn owes_work(&self) -> bool {
        let owes = self.owes_acks || !self.waiting.is_empty() || self.tcp.is_waiting();
        owes && self.failure.is_none() && self.control.gone().is_none()
    }

    /// Makes the adapter report when all that was posted has arrived.
    pub(super) fn begin_flush(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let mut failed = Vec::new();
        for (index, path) in self.paths.iter_mut().enumerate().filter(|(_, path)| path.is_active())
        {
            let Some((to, memory)) = path.scratch else { continue };
            for queue in &mut path.queues {
                if queue.signaled < queue.posted && queue.room() > 0 {
                    let inline = queue.queue.capacity().inline >= memory.len;
                    let operation = SendOperation::Write { to, immediate: None };
                    let memory = Some(memory);
                    let request = SendRequest { id: 0, operation, memory, signaled: true, inline };
                    if let Err(why) = queue.post(&mut [request], true, 0) {
                        failed.push((index, why));
                    }
                }
            }
        }
        failed.into_iter().for_each(|(index, why)| self.lose(index, &why));
    }

    /// The number and the bytes of the messages that are not known to be in memory of the peer.
    pub(super) fn under_way(&self) -> (u64, u64) {
        let tcp = self.tcp.is_waiting() || self.tcp.in_use && self.control.under_way().0 > 0;
        let is_late = |place| match place {
            MessagePlace::Waiting => true,
            MessagePlace::Arrived => false,
            MessagePlace::Tcp => tcp,
            MessagePlace::Path { path, attempt, queue, request } => {
                let path = &self.paths[path];
                let queue = path.queues.get(queue).filter(|_| path.attempt == attempt);
                queue.is_none_or(|queue| request > queue.completed)
            }
        };
        let all = self.channels.iter().filter_map(|channel| channel.sending.as_ref());
        let late = all.flat_map(SendRing::unreleased).filter(|(_, sent)| is_late(sent.place));
        late.fold((0, 0), |sum, (_, sent)| (sum.0 + 1, sum.1 + sent.len as u64))
    }

    /// Whether all that was sent is done.
    pub(super) fn is_idle(&self) -> bool {
        let is_done = |path: &Path| match path.phase {
            PathPhase::Active => path.queues.iter().all(|queue| queue.completed == queue.posted),
            PathPhase::Connecting(_) | PathPhase::Down { .. } => true,
            PathPhase::Ending | PathPhase::Ended => false,
        };
        self.paths.iter().all(is_done) && self.waiting.is_empty() && !self.tcp.is_waiting()
    }

    /// Messages that were given to TCP.
    pub(super) fn messages_over_tcp(&self) -> u64 {
        self.tcp.messages
    }
}
