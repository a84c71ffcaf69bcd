//! A frame that is being written.

use super::{QueuedFrame, TcpChannel};
use crate::noise::Session;
use crate::tcp::frame::{self, EMPTY, FRAME_HEADER_BYTES, Frame, FrameKind, WHOLE_SEALED_BYTES};
use crate::tcp::socket::piece;

/// A frame of which not all has been written.
#[derive(Debug)]
pub(super) struct OutgoingFrame {
    pub(super) what: QueuedFrame,
    /// The header; or a whole sealed frame.
    head: [u8; WHOLE_SEALED_BYTES],
    pub(super) head_len: usize,
    pub(super) payload: *const u8,
    /// The payload is memory of the caller.
    pub(super) lent: bool,
    /// A copy of what was lent, if that memory is no longer valid.
    pub(super) kept: Vec<u8>,
    pub(super) len: usize,
    pub(super) done: usize,
}

impl OutgoingFrame {
    /// What is not written of the head and of the payload.
    pub(super) fn rest(&mut self) -> [libc::iovec; 2] {
        let head = self.done.min(self.head_len);
        let payload = self.done - head;
        [
            piece(self.head.as_mut_ptr().wrapping_add(head), self.head_len - head),
            piece(self.payload.wrapping_add(payload).cast_mut(), self.len - payload),
        ]
    }

    /// `None` if the frame is not needed any more.
    pub(super) fn new(
        what: QueuedFrame,
        channels: &mut [TcpChannel],
        session: &mut Session,
    ) -> Option<Self> {
        let sealed = |frame: Frame, session: &mut Session| {
            let (head, head_len) = (frame::seal(&frame, session), WHOLE_SEALED_BYTES);
            let (payload, lent, kept) = (std::ptr::null(), false, Vec::new());
            Some(Self { what, head, head_len, payload, lent, kept, len: 0, done: 0 })
        };
        let (frame, payload) = match what {
            QueuedFrame::Abort(by, reason) => {
                let sequence = by.into();
                let abort = Frame { kind: FrameKind::Abort, sequence, tag: reason, ..EMPTY };
                return sealed(abort, session);
            }
            QueuedFrame::Leave => {
                return sealed(Frame { kind: FrameKind::Leave, ..EMPTY }, session);
            }
            QueuedFrame::Control(piece) => return sealed(piece.frame(), session),
            QueuedFrame::Ack(channel)
            | QueuedFrame::Ask(channel)
            | QueuedFrame::Data(channel, _) => {
                let TcpChannel { sending, receiving } = &mut channels[usize::from(channel)];
                let ack = receiving.next - 1;
                let excess = std::mem::take(&mut receiving.ack_excess);
                let frame = Frame { channel, ack: ack + excess, ..EMPTY };
                match what {
                    QueuedFrame::Data(_, sequence) if sequence <= sending.acked => return None,
                    QueuedFrame::Data(_, sequence) => {
                        sending.sent(sequence).begun = true;
                        let sent = *sending.sent(sequence);
                        receiving.acked_to_peer = ack;
                        let (len, tag) = (sent.len as u32, sent.tag);
                        let release_awaited = sent.lent.is_some();
                        let kind = FrameKind::Data;
                        let frame = Frame { kind, release_awaited, sequence, len, tag, ..frame };
                        (frame, (len > 0).then(|| sending.payload(sequence)))
                    }
                    QueuedFrame::Ask(_) => {
                        receiving.acked_to_peer = ack;
                        (Frame { kind: FrameKind::Ask, ..frame }, None)
                    }
                    _ => {
                        receiving.ack_queued = false;
                        receiving.acked_to_peer = ack;
                        (Frame { arrived: receiving.arrived(), ..frame }, None)
                    }
                }
            }
        };
        let payload = payload.unwrap_or(std::ptr::null());
        let (mut head, len) = ([0; WHOLE_SEALED_BYTES], frame.len as usize);
        let damage = match what {
            QueuedFrame::Data(channel, sequence) => {
                channels[usize::from(channel)].sending.sent(sequence).damage.take()
            }
            _ => None,
        };
        let header = damage.map_or_else(|| frame.encode(), |damage| frame.damaged(damage));
        head[..FRAME_HEADER_BYTES].copy_from_slice(&header);
        let (lent, kept) = (frame.release_awaited && len > 0, Vec::new());
        Some(Self { what, head, head_len: FRAME_HEADER_BYTES, payload, lent, kept, len, done: 0 })
    }
}
