//! Sends and receives that travel as LL messages.
//!
//! [`LlTransfers`] runs a group in which all do: it sends whatever there is credit for, then looks
//! for what it receives, in turn, until all are done. It needs no program, and after the first call
//! no memory. Where larger transfers are among them the interpreter runs the group, and uses the
//! functions of this file for its small ones.
//!
//! Both ranks of a transfer choose the protocol by its length. If they call with different lengths,
//! the receiver may wait for an LL message while the sender fills slots, or the other way round.
//! The checks here find that: on each link the messages of a rank become visible in the order in
//! which it sent them, also by different protocols.

use maypole_algorithms::Rank;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;
use maypole_transport::link::Incoming;
use maypole_transport::ll::{LlPoll, LlReceiver};
use maypole_transport::sync::full_fence;

use crate::control::ControlPlane;
use crate::engine::length_mismatch;
use crate::engine::wait::WaitLoop;
use crate::error::Error;
use crate::links::Links;
use crate::spin_policy::SpinPolicy;
use crate::transfer::{Transfer, tag};

/// A group of transfers, each of which travels as an LL message, with what it needs to run.
pub(crate) struct LlTransfers<'a> {
    pub(crate) transfers: &'a [Transfer],
    /// This rank, whose transfers to itself are skipped.
    pub(crate) rank: Rank,
    /// What the tag of each message contains besides its transfer.
    pub(crate) tag: u32,
    /// The links of all peers are open.
    pub(crate) links: &'a mut Links,
    /// The transfers that are not done, in their order.
    pub(crate) pending: &'a mut Vec<PendingTransfer>,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) spin_policy: SpinPolicy,
    pub(crate) watch: &'a ControlPlane,
}

/// A transfer that is not done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingTransfer {
    /// Its index in the group.
    index: usize,
    /// Its number on its link; see [`tag`].
    number: u32,
    link: u32,
}

impl LlTransfers<'_> {
    /// Runs the transfers. After an error the communicator is broken.
    ///
    /// # Safety
    /// The memory of the transfers is valid for their lengths, and nobody else uses it as
    /// [`Communicator::exchange`](crate::Communicator::exchange) forbids.
    #[inline]
    pub(crate) unsafe fn run(&mut self) -> Result<(), Error> {
        self.pending.clear();
        // The peers get what they wait for before this rank looks for what it waits for itself.
        for sends in [true, false] {
            let mut sent = false;
            for (index, transfer) in self.transfers.iter().enumerate() {
                if transfer.peer() == self.rank || transfer.is_send() != sends {
                    continue;
                }
                let Some(on) = self.links.transfers_with(transfer.peer()) else {
                    return Err(no_link());
                };
                let number = if sends { on.sent.begin() } else { on.received.begin() };
                let next = PendingTransfer { index, number, link: on.link };
                // SAFETY: the caller's promise.
                if unsafe { self.attempt(next)? } {
                    sent |= sends;
                } else {
                    self.pending.push(next);
                }
            }
            if sent {
                self.ring();
            }
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.finish() }
    }

    /// Waits until all transfers are done.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn finish(&mut self) -> Result<(), Error> {
        let mut wait = WaitLoop::new(self.endpoint, self.spin_policy, self.watch);
        while let Some(first) = self.pending.first() {
            let peer = self.transfers[first.index].peer();
            let (before, mut kept, mut sent) = (self.pending.len(), 0, false);
            for at in 0..before {
                let next = self.pending[at];
                // SAFETY: the caller's promise.
                if unsafe { self.attempt(next)? } {
                    sent |= self.transfers[next.index].is_send();
                } else {
                    self.pending[kept] = next;
                    kept += 1;
                }
            }
            self.pending.truncate(kept);
            if sent {
                self.ring();
            }
            if kept < before {
                wait.reset();
                continue;
            }
            let mut wrong = Ok(());
            wait.pause(
                || {
                    wrong = self.check();
                    None
                },
                || Some(peer),
            )?;
            wrong?;
        }
        Ok(())
    }

    /// Does a transfer, if that is possible now and no earlier one of its link is left; returns
    /// whether it did. It rings no doorbell.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    #[inline(always)]
    unsafe fn attempt(&mut self, next: PendingTransfer) -> Result<bool, Error> {
        let PendingTransfer { index, number, link } = next;
        let transfer = self.transfers[index];
        let Some(on) = self.links.transfers_with(transfer.peer()) else { return Err(no_link()) };
        let count = if transfer.is_send() { &on.sent } else { &on.received };
        if !count.is_next(number) {
            return Ok(false);
        }
        let tag = tag(transfer.bytes(), number) ^ self.tag;
        // SAFETY: the caller's promise.
        let done = unsafe {
            match transfer {
                Transfer::Send { data, bytes, .. } => send(self.links, link, data, bytes, tag)?,
                Transfer::Receive { data, bytes, .. } => {
                    receive(self.links, link, data, bytes, tag)?
                }
            }
        };
        if done && let Some(on) = self.links.transfers_with(transfer.peer()) {
            let count = if transfer.is_send() { &mut on.sent } else { &mut on.received };
            count.end();
        }
        Ok(done)
    }

    /// Rings the doorbells of the peers to which the group sends.
    fn ring(&mut self) {
        full_fence();
        for transfer in self.transfers.iter().filter(|transfer| transfer.is_send()) {
            if transfer.peer() != self.rank
                && let Some(on) = self.links.transfers_with(transfer.peer())
            {
                let link = on.link;
                ring(self.links, link);
            }
        }
    }

    /// Fails if a transfer that is not done cannot be done any more.
    #[cold]
    fn check(&mut self) -> Result<(), Error> {
        for at in 0..self.pending.len() {
            let PendingTransfer { index, number, link } = self.pending[at];
            let transfer = self.transfers[index];
            let Some(on) = self.links.transfers_with(transfer.peer()) else { continue };
            let count = if transfer.is_send() { &on.sent } else { &on.received };
            // Only the next message of a link can be looked at.
            if !count.is_next(number) {
                continue;
            }
            match transfer {
                Transfer::Send { .. } => check_send(self.links, link)?,
                Transfer::Receive { bytes, .. } => {
                    check_receive(self.links, link, bytes, tag(bytes, number) ^ self.tag)?;
                }
            }
        }
        Ok(())
    }
}

/// Sends `bytes` bytes as an LL message, if there is credit; returns whether there is. The caller
/// then [rings](ring) the doorbell, after a full fence.
///
/// # Safety
/// `data` is valid for reads of `bytes` bytes, which fit an LL message.
#[inline]
pub(crate) unsafe fn send(
    links: &mut Links,
    link: u32,
    data: *const u8,
    bytes: usize,
    tag: u32,
) -> Result<bool, Error> {
    let Some(ll) = &mut links.outgoing[link as usize].ll else { return Err(no_ll_messages()) };
    if !ll.ready() {
        return Ok(false);
    }
    // SAFETY: a slot is free, and the caller promised the rest.
    unsafe { ll.write(data, bytes, tag) };
    Ok(true)
}

/// Rings the doorbell of the receiver of a link, for a caller that has called [`full_fence`].
#[inline]
pub(crate) fn ring(links: &Links, link: u32) {
    if let Some(ll) = &links.outgoing[link as usize].ll {
        ll.doorbell().ring_fenced();
    }
}

/// Receives the next LL message of a link, if it has arrived; returns whether it has.
///
/// # Errors
/// The message belongs to another transfer or call.
///
/// # Safety
/// `data` is valid for writes of `bytes` bytes, which fit an LL message.
#[inline]
pub(crate) unsafe fn receive(
    links: &mut Links,
    link: u32,
    data: *mut u8,
    bytes: usize,
    tag: u32,
) -> Result<bool, Error> {
    let Some(ll) = &mut links.incoming[link as usize].ll else { return Err(no_ll_messages()) };
    match ll.poll(bytes, tag) {
        LlPoll::Ready => {
            // SAFETY: the message has arrived, and the caller promised the memory.
            unsafe { ll.read(data, bytes) };
            ll.release();
            Ok(true)
        }
        LlPoll::Pending => Ok(false),
        LlPoll::Mismatch { .. } => Err(length_mismatch(links.peer(link), bytes, None)),
    }
}

/// Fails if an LL message cannot be sent any more, because the peer is gone or has aborted.
#[cold]
pub(crate) fn check_send(links: &mut Links, link: u32) -> Result<(), Error> {
    let Some(ll) = &mut links.outgoing[link as usize].ll else { return Err(no_ll_messages()) };
    ll.wait_error().map_or(Ok(()), |error| Err(error.into()))
}

/// Fails if an LL message of `bytes` bytes cannot arrive any more: the peer is gone or has aborted,
/// or it sends the transfer in slots, because it has another length there.
#[cold]
pub(crate) fn check_receive(
    links: &mut Links,
    link: u32,
    bytes: usize,
    tag: u32,
) -> Result<(), Error> {
    let peer = links.peer(link);
    let Incoming { slots, ll } = &mut links.incoming[link as usize];
    let Some(ll) = ll else { return Err(no_ll_messages()) };
    // A message in a slot belongs to this transfer or to a later one. If it belongs to a later one
    // then the LL message of this one is visible by now.
    let in_slot = slots.receive().ok().flatten();
    if ll.poll(bytes, tag) != LlPoll::Pending {
        return Ok(());
    }
    match in_slot {
        Some(message) => Err(length_mismatch(peer, bytes, Some(message.len))),
        None => ll.wait_error(bytes, tag).map_or(Ok(()), |error| Err(error.into())),
    }
}

/// Fails if the peer of a transfer of `bytes` bytes, which this rank expects in slots, has sent an
/// LL message instead.
pub(crate) fn check_no_ll_message(links: &mut Links, link: u32, bytes: usize) -> Result<(), Error> {
    use LinkError::{PeerDied, PeerLeft};
    let peer = links.peer(link);
    let Incoming { slots, ll } = &mut links.incoming[link as usize];
    if ll.as_ref().and_then(LlReceiver::begun).is_none() {
        return Ok(());
    }
    // An LL message belongs to this transfer or to a later one. If it belongs to a later one then
    // the first message of this one is in its slot by now.
    match slots.receive() {
        Ok(None) | Err(PeerDied { .. } | PeerLeft { .. }) => {
            Err(length_mismatch(peer, bytes, None))
        }
        _ => Ok(()),
    }
}

/// The error for a transfer whose link was not opened.
#[cold]
fn no_link() -> Error {
    Error::internal("a transfer has no link")
}

/// The error for a transfer by an LL message over a link without LL messages.
#[cold]
fn no_ll_messages() -> Error {
    Error::internal("a transfer by an LL message uses a link without LL messages")
}
