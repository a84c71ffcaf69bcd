//! A peer that is reached over RDMA, as its links use it.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::domain::VerbsDomain;
use super::group::{CompletionGroup, GroupState};
use super::message::ControlMessage;
use super::ring::{ReceiveRing, RegistrationError, SendRing, rdma_error};
use super::state::PairState;
use crate::error::LinkError;
use crate::inbox::Inbox;
use crate::link::{HeaderDamage, ReceivedMessage, SlotMut};
use crate::rank_header::RankHeader;
use crate::tcp::pair::TcpPair;
use crate::tcp::pair::upgrade::UpgradeQueue;
use crate::{Rank, Sequence};

/// Pause between two looks at what is under way while the endpoint leaves.
const LEAVE_PAUSE: Duration = Duration::from_micros(100);

/// A peer and everything that is shared with it.
#[derive(Debug)]
pub(super) struct VerbsPair {
    pub(super) peer: Rank,
    pub(super) control: Arc<TcpPair>,
    pub(super) group: Arc<CompletionGroup>,
    pub(super) domain: Arc<VerbsDomain>,
    inbox: Arc<Inbox>,
    upgrade: Arc<UpgradeQueue>,
}

impl VerbsPair {
    /// The pair whose state is already in the group.
    pub(super) fn new(
        (peer, control): (Rank, Arc<TcpPair>),
        group: Arc<CompletionGroup>,
        domain: Arc<VerbsDomain>,
        (inbox, upgrade): (Arc<Inbox>, Arc<UpgradeQueue>),
    ) -> Self {
        Self { peer, control, group, domain, inbox, upgrade }
    }

    fn header(&self) -> &RankHeader {
        self.inbox.header()
    }

    /// Runs `work` on the state, under the lock of the group.
    pub(super) fn with_state<T>(&self, work: impl FnOnce(&mut PairState) -> T) -> T {
        let mut state = self.group.lock();
        work(self.pair(&mut state))
    }

    fn pair<'a>(&self, state: &'a mut MutexGuard<'_, GroupState>) -> &'a mut PairState {
        state.pairs.get_mut(&self.peer).expect("a pair's state lives as long as the pair")
    }

    /// Fetches completions, because the rank waits for something that is not there.
    fn poll(&self, state: &mut MutexGuard<'_, GroupState>) {
        let mut progress = self.group.poll(state);
        self.pair(state).send_acks();
        if self.header().doorbell.has_sleeper() {
            // The thread behind the connections wakes this rank at the next completion. If arming
            // fails, polling fails too.
            let _ = self.group.completions.arm();
            progress |= self.group.poll(state);
        }
        if progress {
            // Another thread may wait for what this one has fetched.
            self.header().doorbell.ring();
        }
    }

    /// The result of a call that found nothing: an error if waiting cannot succeed any more.
    fn nothing_found<T>(&self, pair: &PairState) -> Result<Option<T>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        let failure = pair.failure;
        if let Some(error @ LinkError::Corrupt { .. }) = failure.map(|failure| failure.error) {
            return Err(error);
        }
        if let Some(error) = self.control.ended() {
            return Err(error);
        }
        match failure.filter(|failure| Instant::now() >= failure.report_at) {
            Some(failure) => Err(failure.error),
            None => Ok(None),
        }
    }

    /// Opens a channel: registers its slots and grants them to the peer.
    pub(super) fn open(&self, channel: u16) {
        let VerbsDomain { memory, layout, config, .. } = &*self.domain;
        let made = SendRing::new(memory, layout).and_then(|sending| {
            Ok((sending, ReceiveRing::new(memory, layout, config.relaxed_ordering)?))
        });
        let grant = self.with_state(|pair| match made {
            Ok((sending, receiving)) => {
                let memory = receiving.grant();
                let entry = &mut pair.channels[usize::from(channel)];
                (entry.sending, entry.receiving) = (Some(sending), Some(receiving));
                Some(ControlMessage::Grant { channel, memory })
            }
            Err(error) => {
                pair.fail(registration_error(self.peer, &error), &error.to_string());
                None
            }
        });
        if let Some(grant) = grant {
            self.control.send_control(&grant.encode());
        }
    }

    /// Handles a control message of a connected peer.
    pub(super) fn take_control(&self, message: ControlMessage) {
        self.with_state(|pair| match message {
            ControlMessage::Grant { channel, memory } => {
                if let Some(entry) = pair.channels.get_mut(usize::from(channel)) {
                    entry.grant.get_or_insert(memory);
                }
            }
            ControlMessage::Failed(why) => {
                let why = format!("rank {} has ended the connection: {why}", self.peer);
                pair.fail(rdma_error(self.peer, why.clone()), &why);
            }
            ControlMessage::Hello(_) | ControlMessage::Ready | ControlMessage::Passed => {}
        });
        self.header().doorbell.ring();
    }

    pub(super) fn reserve(&self, channel: u16) -> Result<Option<SlotMut>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        let mut state = self.group.lock();
        if !self.pair(&mut state).can_send(channel) {
            self.poll(&mut state);
        }
        let pair = self.pair(&mut state);
        if !pair.can_send(channel) {
            return self.nothing_found(pair);
        }
        let capacity = self.domain.layout.slot_bytes;
        let sending = pair.channels[usize::from(channel)].sending.as_ref();
        Ok(sending.map(|ring| SlotMut { data: ring.payload(), capacity }))
    }

    pub(super) fn send(
        &self,
        channel: u16,
        len: usize,
        tag: u32,
        damage: Option<HeaderDamage>,
    ) -> Sequence {
        self.with_state(|pair| pair.send(channel, len, tag, damage))
    }

    pub(super) fn released(&self, channel: u16) -> Sequence {
        let mut state = self.group.lock();
        let ring = |pair: &PairState| {
            let ring = pair.channels[usize::from(channel)].sending.as_ref();
            ring.map_or((0, 1), |ring| (ring.acked, ring.next))
        };
        let (acked, next) = ring(self.pair(&mut state));
        if acked + 1 < next {
            self.poll(&mut state);
        }
        ring(self.pair(&mut state)).0
    }

    pub(super) fn receive(&self, channel: u16) -> Result<Option<ReceivedMessage>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        let mut state = self.group.lock();
        let first = |pair: &PairState| {
            let ring = pair.channels[usize::from(channel)].receiving.as_ref()?;
            let (data, len, tag) = ring.first()?;
            let sequence = ring.next;
            Some(ReceivedMessage { data, len, tag, sequence, in_other_process: false })
        };
        let mut message = first(self.pair(&mut state));
        if message.is_none() {
            self.poll(&mut state);
            message = first(self.pair(&mut state));
        }
        if message.is_none() && self.control.gone().is_some() {
            // A peer leaves after all that it sent has arrived.
            self.group.poll(&mut state);
            message = first(self.pair(&mut state));
        }
        match message {
            Some(message) => Ok(Some(message)),
            None => self.nothing_found(self.pair(&mut state)),
        }
    }

    /// Releases the first message; the next release says `excess` messages more.
    pub(super) fn release(&self, channel: u16, excess: u64) {
        // The next message in the other direction carries the release, and so does the next wait.
        let at_once_from = u64::from(self.domain.layout.depth.div_ceil(2));
        if self.with_state(|pair| pair.release(channel, excess, at_once_from)) {
            self.upgrade.wake_within_tick();
        }
    }

    pub(super) fn begin_flush(&self) {
        self.with_state(PairState::begin_flush);
    }

    /// The number and the bytes of the messages that are not known to have arrived, and of which
    /// that can still be learnt.
    pub(super) fn under_way(&self) -> (u64, u64) {
        let mut state = self.group.lock();
        self.poll(&mut state);
        let pair = self.pair(&mut state);
        if pair.failure.is_some() || self.nothing_found::<()>(pair).is_err() {
            return (0, 0);
        }
        pair.under_way()
    }

    /// Waits until all that was sent has arrived, and tells the peer that this rank leaves. It does
    /// not wait for a peer that is gone, and not longer than the endpoint may.
    pub(super) fn leave(&self) {
        self.with_state(|pair| {
            pair.send_acks();
            pair.begin_flush();
        });
        let limit = self.domain.leave_limit();
        loop {
            let mut state = self.group.lock();
            self.group.poll(&mut state);
            let pair = self.pair(&mut state);
            if pair.is_idle() || pair.failure.is_some() || self.control.gone().is_some() {
                break;
            }
            pair.begin_flush();
            drop(state);
            if Instant::now() >= limit {
                break;
            }
            std::thread::sleep(LEAVE_PAUSE);
        }
        self.control.leave();
    }

    /// Ends the use of the queue pairs: this rank has left.
    pub(super) fn close(&self) {
        self.with_state(PairState::close);
    }
}

impl Drop for VerbsPair {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        let removed = state.pairs.remove(&self.peer);
        state.by_queue.retain(|_, (peer, _)| *peer != self.peer);
        drop(state);
        drop(removed);
    }
}

fn registration_error(peer: Rank, error: &RegistrationError) -> LinkError {
    match error {
        RegistrationError::Memory(error) => *error,
        RegistrationError::Region { .. } => rdma_error(peer, error.to_string()),
    }
}
