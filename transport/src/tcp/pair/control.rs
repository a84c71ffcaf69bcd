//! Control messages of a pair: sealed, in order, each taken once, also when streams break.
//!
//! There are few of them, so that each side keeps what it has sent, and sends all of it again on a
//! new stream. The receiver drops what it has had.

use super::TcpPair;
use super::state::TcpPairState;
use crate::tcp::frame::{ControlPiece, MOST_CONTROL_BYTES};
use crate::tcp::stream::QueuedFrame;

/// Bytes of the number in front of each message.
const NUMBER_BYTES: usize = 4;

impl TcpPairState {
    fn queue_control(&mut self, message: &[u8]) {
        if let Some(stream) = self.streams.iter_mut().find_map(|entry| entry.stream.as_mut()) {
            let pieces = ControlPiece::cut(message).into_iter();
            stream.queue.extend(pieces.map(QueuedFrame::Control));
        }
    }

    /// Queues all control messages again, on the first stream.
    pub(super) fn queue_all_control(&mut self) {
        for message in std::mem::take(&mut self.control.sent) {
            self.queue_control(&message);
            self.control.sent.push(message);
        }
    }
}

impl TcpPair {
    /// Sends a control message.
    ///
    /// # Panics
    /// If it is longer than [`MOST_CONTROL_BYTES`], with its number.
    pub(crate) fn send_control(&self, message: &[u8]) {
        assert!(message.len() + NUMBER_BYTES <= MOST_CONTROL_BYTES, "a long control message");
        let mut state = self.lock();
        let number = state.control.sent.len() as u32 + 1;
        let mut numbered = number.to_le_bytes().to_vec();
        numbered.extend(message);
        if !state.leaving {
            state.queue_control(&numbered);
        }
        state.control.sent.push(numbered);
        self.flush(&mut state);
    }

    /// Takes the oldest control message that has arrived.
    pub(crate) fn take_control(&self) -> Option<Vec<u8>> {
        self.lock().control.waiting.pop_front()
    }

    /// Keeps the messages that are new, and says that there are some.
    pub(super) fn receive_control(&self, state: &mut TcpPairState, messages: Vec<Vec<u8>>) {
        for mut message in messages {
            let number = message.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
            if number == Some(state.control.received + 1) {
                state.control.received += 1;
                message.drain(..NUMBER_BYTES);
                state.control.waiting.push_back(message);
            }
        }
        if let Some(upgrade) = &self.upgrade {
            upgrade.add_news(self.peer);
        }
    }
}
