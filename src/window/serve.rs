//! The thread that applies what other ranks put and signal.

use std::sync::atomic::Ordering;
use std::time::Duration;

use maypole_algorithms::Rank;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::link::{ReceiveSlots, ReceivedMessage as Received};

use super::SignalWords;
use super::message::{HEADER_BYTES, WINDOW_TAG, WindowMessage};
use crate::comm::AbortHandle;
use crate::error::Error;

/// The longest sleep: bounds the damage if something does not ring that should.
const NAP: Duration = Duration::from_millis(500);

/// Runs until it is stopped, or the communicator is aborted.
pub(super) fn run(
    rank: Rank,
    mut incoming: Vec<(Rank, Box<dyn ReceiveSlots>)>,
    signal_words: &SignalWords,
    endpoint: &Endpoint,
    abort: &AbortHandle,
) {
    let bell = endpoint.doorbell();
    let mut ticket = None;
    loop {
        // Pairs as `window-stop`.
        if signal_words.stop.load(Ordering::Acquire) != 0 {
            return;
        }
        let mut moved = false;
        incoming.retain_mut(|(peer, slots)| match slots.receive() {
            Ok(None) => true,
            Ok(Some(message)) => {
                moved = true;
                let applied = apply(signal_words, *peer, &message);
                slots.release();
                let Err(why) = applied else { return true };
                let error = Error::InvalidUsage {
                    what: format!("rank {peer} put to a window of rank {rank} {why}"),
                };
                log::warn!("rank {rank}: {error}");
                *signal_words.failure() = Some(error);
                abort.abort();
                true
            }
            // It is gone, or the communicator aborted: nothing more comes.
            Err(_) => {
                moved = true;
                // Pairs as `window-closed`: who sees it sees all signals that came.
                signal_words.closed[*peer as usize].store(1, Ordering::Release);
                false
            }
        });
        if moved {
            // The rank itself may sleep, waiting for a signal.
            bell.ring();
            ticket = None;
            continue;
        }
        if endpoint.aborted().is_some() {
            return;
        }
        match ticket.take() {
            // One more look after the bell was asked to ring, so that no ring is lost.
            None => ticket = Some(bell.prepare_to_sleep()),
            Some(ticket) => bell.sleep(ticket, Some(NAP)),
        }
    }
}

/// Does what the message of `peer` says; if that cannot be, why.
fn apply(signal_words: &SignalWords, peer: Rank, received: &Received) -> Result<(), &'static str> {
    const GARBLED: &str = "by a message that is none; it may be another version of the library";
    if received.tag != WINDOW_TAG || received.len < HEADER_BYTES {
        return Err(GARBLED);
    }
    // SAFETY: a received message is readable for its length, until it is released.
    let header = unsafe { &*received.data.cast::<[u8; HEADER_BYTES]>() };
    let WindowMessage { window, offset, signals } = WindowMessage::decode(header).ok_or(GARBLED)?;
    let len = received.len - HEADER_BYTES;
    if len > 0 {
        let extents = signal_words.extents();
        let extent = extents.get(&window).ok_or("that is not registered any more")?;
        let fits = offset.checked_add(len as u64).is_some_and(|end| end <= extent.bytes as u64);
        if !fits {
            return Err("beyond its end");
        }
        // SAFETY: the message is readable; the window's memory is writable as long as it is in the table, which is locked.
        unsafe {
            std::ptr::copy_nonoverlapping(
                received.data.add(HEADER_BYTES),
                extent.start.add(offset as usize),
                len,
            );
        }
    }
    if signals {
        signal_words.add_signal(peer);
    }
    Ok(())
}
