//! Messages and releases that travel over the TCP connection of a pair while no path over RDMA is
//! there. They have the same headers and the same slots as over RDMA; only the way differs, so that
//! the receiver counts them together with the others.
//!
//! A message is the 32 bytes of its header, and then its payload if it has one, both as messages of
//! the same channel over TCP.

use std::collections::VecDeque;

use super::ring::{HEADER_BYTES, MessageHeader, ReceiveRing, SendRing};
use crate::Sequence;
use crate::tcp::pair::TcpPair;

/// What waits to be sent.
#[derive(Clone, Copy, Debug)]
enum TcpWork {
    Message(u16, Sequence),
    Release(u16, u64),
}

/// The way over TCP.
#[derive(Debug, Default)]
pub(super) struct TcpWay {
    waiting: VecDeque<TcpWork>,
    /// The header of the first message that waits was sent.
    header_is_sent: bool,
    /// For each channel, the header of which the payload has not come.
    begun: Vec<Option<MessageHeader>>,
    /// Either rank may have used it.
    pub(super) in_use: bool,
    /// Messages that were given to it.
    pub(super) messages: u64,
}

/// What has come over TCP.
pub(super) enum TcpArrival {
    /// A message, which is in its slot, or a release: all up to this one are released.
    Release(u64),
    /// Nothing whole.
    Nothing,
}

impl TcpWay {
    pub(super) fn new(channels: usize) -> Self {
        Self { begun: vec![None; channels], ..Self::default() }
    }

    pub(super) fn add_message(&mut self, channel: u16, sequence: Sequence) {
        self.messages += 1;
        self.in_use = true;
        self.waiting.push_back(TcpWork::Message(channel, sequence));
    }

    pub(super) fn add_release(&mut self, channel: u16, released: u64) {
        self.in_use = true;
        self.waiting.push_back(TcpWork::Release(channel, released));
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends what waits, as far as the connection takes it. An error of the connection is reported
    /// to the rank that waits.
    pub(super) fn send<'a>(
        &mut self,
        control: &TcpPair,
        ring: impl Fn(u16) -> Option<&'a SendRing>,
    ) {
        while let Some(work) = self.waiting.front().copied() {
            let done = match work {
                TcpWork::Release(channel, released) => {
                    let header = MessageHeader::release(channel, released).to_bytes();
                    put(control, channel, &header)
                }
                TcpWork::Message(channel, sequence) => match ring(channel) {
                    Some(ring) => self.send_message(control, ring, channel, sequence),
                    None => true,
                },
            };
            if !done {
                return;
            }
            self.waiting.pop_front();
            self.header_is_sent = false;
        }
    }

    fn send_message(
        &mut self,
        control: &TcpPair,
        ring: &SendRing,
        channel: u16,
        sequence: Sequence,
    ) -> bool {
        let header = ring.header(sequence);
        self.header_is_sent = self.header_is_sent || put(control, channel, &header.to_bytes());
        let len = ring.sent(sequence).len;
        // SAFETY: the slot is not written before the message is released, and has the length that
        // was sent.
        let payload = unsafe { std::slice::from_raw_parts(ring.payload(sequence), len) };
        self.header_is_sent && (len == 0 || put(control, channel, payload))
    }

    /// Takes what has come on a channel: the next part of it.
    ///
    /// # Errors
    /// No correct peer sends it.
    pub(super) fn take(
        &mut self,
        channel: u16,
        bytes: &[u8],
        ring: &mut ReceiveRing,
    ) -> Result<TcpArrival, &'static str> {
        let begun = &mut self.begun[usize::from(channel)];
        let header = match begun.take() {
            Some(header) => {
                ring.arrive_over_tcp(channel, &header, bytes)?;
                header
            }
            None => {
                let bytes: &[u8; HEADER_BYTES] =
                    bytes.try_into().map_err(|_| "a header over TCP of another length")?;
                let header = MessageHeader::from_bytes(bytes);
                if header.is_release() {
                    return Ok(TcpArrival::Release(header.ack));
                }
                if header.len != 0 {
                    *begun = Some(header);
                    return Ok(TcpArrival::Nothing);
                }
                ring.arrive_over_tcp(channel, &header, &[])?;
                header
            }
        };
        Ok(TcpArrival::Release(header.ack))
    }
}

/// Sends bytes as a message over TCP. False if there is no room at present.
fn put(control: &TcpPair, channel: u16, bytes: &[u8]) -> bool {
    let Ok(Some(slot)) = control.reserve(channel) else { return false };
    if bytes.len() > slot.capacity {
        return false;
    }
    // SAFETY: the slot is reserved and has room.
    unsafe { slot.data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    control.send(channel, bytes.len(), 0, None);
    true
}
