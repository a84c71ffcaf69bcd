//! The thread that applies the puts and signals that come as messages.

use std::time::Duration;

use maypole_algorithms::Rank;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::link::{ReceiveSlots, ReceivedMessage as Received};

use super::SignalWords;
use super::message::{HEADER_BYTES, WINDOW_TAG, WindowMessage};
use crate::control::ControlShared;
use crate::error::Error;

/// The longest sleep. It bounds the delay if a ring of the doorbell were lost.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Runs until it is stopped, or the communicator is aborted.
pub(super) fn run(
    rank: Rank,
    mut incoming: Vec<(Rank, Box<dyn ReceiveSlots>)>,
    signal_words: &SignalWords,
    endpoint: &Endpoint,
    control: &ControlShared,
) {
    let bell = endpoint.doorbell();
    let mut ticket = None;
    loop {
        if signal_words.is_stopped() {
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
                control.abort();
                true
            }
            // The peer is gone, or the communicator was aborted: no more messages come.
            Err(_) => {
                moved = true;
                signal_words.close_rank(*peer);
                false
            }
        });
        if moved {
            // The thread of the communicator may sleep until a signal comes.
            bell.ring();
            ticket = None;
            continue;
        }
        if endpoint.aborted().is_some() {
            return;
        }
        match ticket.take() {
            // Look once more after the doorbell was prepared, so that no ring is lost.
            None => ticket = Some(bell.prepare_to_sleep()),
            Some(ticket) => bell.sleep(ticket, Some(LONGEST_SLEEP)),
        }
    }
}

/// Applies a message of `peer`. If that is not possible, returns why.
fn apply(signal_words: &SignalWords, peer: Rank, received: &Received) -> Result<(), &'static str> {
    const MALFORMED: &str =
        "by a malformed message; use the same version of the library on all ranks";
    if received.tag != WINDOW_TAG || received.len < HEADER_BYTES {
        return Err(MALFORMED);
    }
    // The header is copied before anything in it is checked, because a faulty peer may still write
    // to the slot.
    // SAFETY: a received message is readable for its length until it is released, and a header is
    // an array of bytes.
    let header = unsafe { received.data.cast::<[u8; HEADER_BYTES]>().read_volatile() };
    let WindowMessage { window, offset, signals } =
        WindowMessage::decode(header).ok_or(MALFORMED)?;
    let len = received.len - HEADER_BYTES;
    if len > 0 {
        let extents = signal_words.extents();
        let extent = extents.get(&window).ok_or("that is not registered any more")?;
        let fits = offset.checked_add(len as u64).is_some_and(|end| end <= extent.bytes as u64);
        if !fits {
            return Err("beyond its end");
        }
        // SAFETY: the message is readable for its length. The memory of the window is writable as
        // long as it is in the table, which is locked, and the range was checked to lie within it.
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
