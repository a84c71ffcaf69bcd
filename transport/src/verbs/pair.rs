//! A peer that is reached over RDMA, as its links use it.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::error_text::rdma_error;
use super::message::ControlMessage;
use super::ring::{ReceiveRing, SendRing};
use super::shared::VerbsShared;
use super::state::PairState;
use super::table::{TableState, VerbsTable};
use crate::error::LinkError;
use crate::link::{HeaderDamage, ReceivedMessage, SlotMut};
use crate::rank_header::RankHeader;
use crate::tcp::pair::TcpPair;
use crate::{Rank, Sequence};

/// Pause between two looks at what is under way while the endpoint leaves.
const LEAVE_PAUSE: Duration = Duration::from_micros(100);

/// A peer and everything that is shared with it.
#[derive(Debug)]
pub(super) struct VerbsPair {
    pub(super) peer: Rank,
    pub(super) control: Arc<TcpPair>,
    table: Arc<VerbsTable>,
}

impl VerbsPair {
    /// A new peer, whose state is in the table as long as this lives.
    pub(super) fn new(control: &Arc<TcpPair>, table: &Arc<VerbsTable>) -> Self {
        table.add_pair(control.peer, control);
        Self { peer: control.peer, control: control.clone(), table: table.clone() }
    }

    pub(super) fn shared(&self) -> &VerbsShared {
        &self.table.shared
    }

    fn header(&self) -> &RankHeader {
        self.table.shared.inbox.header()
    }

    /// Runs `work` on the state, under the lock of the table, and does what follows from it.
    pub(super) fn with_state<T>(&self, work: impl FnOnce(&mut PairState) -> T) -> T {
        let mut state = self.table.lock();
        let result = work(self.pair(&mut state));
        if self.pair(&mut state).has_lost_path() {
            self.table.poll(&mut state);
        }
        result
    }

    fn pair<'a>(&self, state: &'a mut MutexGuard<'_, TableState>) -> &'a mut PairState {
        state.pairs.get_mut(&self.peer).expect("a pair's state lives as long as the pair")
    }

    /// Fetches completions, because the rank waits for something on this channel that is not there.
    fn poll(&self, state: &mut MutexGuard<'_, TableState>, channel: u16) {
        let mut progress = self.table.poll(state);
        let pair = self.pair(state);
        progress |= pair.take_from_tcp(channel);
        pair.send_acks();
        if self.header().doorbell.has_sleeper() {
            // The thread behind the connections wakes this rank at the next completion.
            self.table.arm(state);
            progress |= self.table.poll(state);
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
        if let Some(error @ LinkError::Corrupt { .. }) = pair.failure {
            return Err(error);
        }
        self.control.ended().or(pair.failure).map_or(Ok(None), Err)
    }

    /// Opens a channel: registers its slots and grants them to the peer. Where memory cannot be
    /// registered with a port, messages do not use it.
    pub(super) fn open(&self, channel: u16) {
        let VerbsShared { domains, layout, rank, .. } = self.shared();
        let made = SendRing::new(domains, layout).and_then(|(sending, mut failed)| {
            let (receiving, more) = ReceiveRing::new(domains, layout)?;
            failed.extend(more);
            Ok((sending, receiving, failed))
        });
        let grant = self.with_state(|pair| match made {
            Ok((sending, receiving, failed)) => {
                if let Some(why) = failed.first() {
                    let peer = self.peer;
                    log::warn!("rank {rank}: a link to rank {peer} does without RDMA: {why}");
                    pair.use_tcp();
                }
                let (address, keys) = receiving.grant();
                let entry = &mut pair.channels[usize::from(channel)];
                (entry.sending, entry.receiving) = (Some(sending), Some(receiving));
                Some(ControlMessage::Grant { channel, address, keys })
            }
            Err(error) => {
                pair.fail(error, &error.to_string());
                None
            }
        });
        if let Some(grant) = grant {
            self.control.send_control(&grant.encode());
        }
    }

    /// Handles a control message that is not about a path.
    pub(super) fn take_control(&self, message: ControlMessage) {
        self.with_state(|pair| match message {
            ControlMessage::Grant { channel, address, keys } => {
                if keys.contains(&0) {
                    pair.use_tcp();
                }
                if let Some(entry) = pair.channels.get_mut(usize::from(channel)) {
                    entry.grant.get_or_insert((address, keys));
                }
            }
            ControlMessage::Broken(why) => {
                let why = format!("rank {} has ended the connection: {why}", self.peer);
                pair.fail(rdma_error(self.peer, why.clone()), &why);
            }
            ControlMessage::Retry(path) => {
                if let Some(path) = pair.paths.get_mut(usize::from(path)) {
                    path.retry_now();
                }
            }
            _ => {}
        });
        self.header().doorbell.ring();
    }

    pub(super) fn reserve(&self, channel: u16) -> Result<Option<SlotMut>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        let mut state = self.table.lock();
        let pair = self.pair(&mut state);
        if !pair.can_send(channel) {
            self.poll(&mut state, channel);
        } else if pair.balances() {
            // The next message goes where the least is under way.
            self.table.poll(&mut state);
        }
        let pair = self.pair(&mut state);
        if !pair.can_send(channel) {
            return self.nothing_found(pair);
        }
        let capacity = self.shared().layout.slot_bytes;
        let sending = pair.channels[usize::from(channel)].sending.as_ref();
        Ok(sending.map(|ring| SlotMut { data: ring.payload(ring.next), capacity }))
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
        let mut state = self.table.lock();
        let ring = |pair: &PairState| {
            let ring = pair.channels[usize::from(channel)].sending.as_ref();
            ring.map_or((0, 1), |ring| (ring.acked, ring.next))
        };
        let (acked, next) = ring(self.pair(&mut state));
        if acked + 1 < next {
            self.poll(&mut state, channel);
        }
        ring(self.pair(&mut state)).0
    }

    pub(super) fn receive(&self, channel: u16) -> Result<Option<ReceivedMessage>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        let mut state = self.table.lock();
        let first = |pair: &PairState| {
            let ring = pair.channels[usize::from(channel)].receiving.as_ref()?;
            let (data, len, tag) = ring.first()?;
            let sequence = ring.next;
            Some(ReceivedMessage { data, len, tag, sequence, in_other_process: false })
        };
        let mut message = first(self.pair(&mut state));
        if message.is_none() {
            self.poll(&mut state, channel);
            message = first(self.pair(&mut state));
        }
        if message.is_some() {
            return Ok(message);
        }
        // The peer may have failed or left since the poll, after messages that count. So they are
        // looked for again once that is known.
        let nothing = self.nothing_found(self.pair(&mut state));
        if nothing.is_err() {
            self.table.poll(&mut state);
            self.pair(&mut state).take_from_tcp(channel);
            message = first(self.pair(&mut state));
        }
        message.map_or(nothing, |message| Ok(Some(message)))
    }

    /// Releases the first message; the next release says `excess` messages more.
    pub(super) fn release(&self, channel: u16, excess: u64) {
        // The next message in the other direction carries the release, and so does the next wait.
        let at_once_from = u64::from(self.shared().layout.depth.div_ceil(2));
        if self.with_state(|pair| pair.release(channel, excess, at_once_from)) {
            self.shared().upgrade.wake_within_tick();
        }
    }

    pub(super) fn begin_flush(&self) {
        self.with_state(PairState::begin_flush);
    }

    /// The number and the bytes of the messages that are not known to have arrived, and of which
    /// that can still be learnt.
    pub(super) fn under_way(&self) -> (u64, u64) {
        let mut state = self.table.lock();
        self.poll(&mut state, 0);
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
        let limit = self.shared().leave_limit();
        loop {
            let mut state = self.table.lock();
            self.table.poll(&mut state);
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
        self.table.remove_pair(self.peer);
    }
}
