//! One TCP stream of a pair: reads frames from it and writes frames to it, without blocking.

mod outgoing;

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use self::outgoing::OutgoingFrame;
use super::frame::{
    self, ControlPiece, EMPTY, FRAME_HEADER_BYTES, Frame, FrameKind, SEALED_BYTES,
    WHOLE_SEALED_BYTES,
};
use super::poller::EventFlags;
use super::ring::{CompleteMessage, ReceiveRing, SendRing, StoreDecision};
use super::socket::{self, piece};
use crate::Sequence;
use crate::closed_in_child::ClosedInChild;
use crate::noise::Session;

/// Bytes of the read buffer. One call reads several small messages, or the rest of a long message
/// and the next header.
const READ_BUFFER_BYTES: usize = 2048;
/// Maximum number of frames in one write.
const MAX_GATHERED: usize = 32;
/// No frame is added to a write of so many bytes of payload. An abort is written behind the frames
/// that are begun.
const GATHERED_BYTES: usize = 1 << 20;

/// Both directions of one channel.
#[derive(Debug)]
pub(crate) struct TcpChannel {
    pub(crate) sending: SendRing,
    pub(crate) receiving: ReceiveRing,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The peer sent a leave frame.
    PeerLeft,
    /// The peer ended it without a leave frame.
    Closed,
    /// It broke. The peer may still be alive.
    Broken,
    /// The peer sent what no correct peer sends.
    Corrupt(&'static str),
    /// This process has no memory for what the peer sent.
    NoMemory,
}

/// What was read from a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadOutcome {
    /// A message was completed or messages were released.
    pub(crate) progress: bool,
    /// The communicator was aborted: the rank that did it and its reason.
    pub(crate) abort: Option<(u32, u32)>,
    /// The peer wants to know which messages of this channel have arrived.
    pub(crate) asked: Option<u16>,
    /// A message began of which that other stream had delivered a part.
    pub(crate) taken_over: Option<usize>,
    /// How many messages were completed in posted memory.
    pub(crate) filled: usize,
}

/// How much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadExtent {
    /// All that has arrived.
    All,
    /// At most the first message that lies in posted memory then. Its receiver can post memory for
    /// the next one before that is read.
    UntilFilled,
}

impl ReadOutcome {
    /// Whether the pair must do something before more is read.
    fn must_return(&self, extent: ReadExtent) -> bool {
        self.taken_over.is_some()
            || self.asked.is_some()
            || (self.filled > 0 && extent == ReadExtent::UntilFilled)
    }
}

/// A frame that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueuedFrame {
    Data(u16, Sequence),
    Ack(u16),
    Ask(u16),
    Abort(u32, u32),
    Leave,
    Control(ControlPiece),
}

/// A live stream.
#[derive(Debug)]
pub(crate) struct TcpStream {
    _closed_in_child: ClosedInChild,
    pub(crate) fd: OwnedFd,
    /// The lower rank has dialed it. One that the higher rank has dialed gives way to it, and then
    /// ends without a leave frame although the peer lives.
    pub(crate) by_lower: bool,
    /// The keys of this stream, which seal the frames that end something.
    session: Box<Session>,
    buffer: Box<[u8; READ_BUFFER_BYTES]>,
    /// The part of the buffer that was read and is not yet used.
    unread: std::ops::Range<usize>,
    payload: Option<IncomingPayload>,
    /// The beginning of a control message.
    control: Vec<u8>,
    /// The control messages that have arrived.
    pub(crate) control_messages: Vec<Vec<u8>>,
    pub(crate) queue: VecDeque<QueuedFrame>,
    /// The frames that are begun.
    writing: VecDeque<OutgoingFrame>,
    /// The events for which the service thread waits; empty after it has seen one.
    pub(crate) armed: EventFlags,
}

/// A payload of which not all has been read.
#[derive(Debug)]
struct IncomingPayload {
    frame: Frame,
    /// The address of the next byte; null if the message is dropped.
    to: *mut u8,
    left: usize,
}

// SAFETY: the pointers point to slots of the pair that owns the stream, which live as long, or to
// memory that was lent or posted, which its lender or poster allows any thread to use.
unsafe impl Send for TcpStream {}

impl TcpStream {
    pub(crate) fn new(fd: OwnedFd, session: Box<Session>, by_lower: bool) -> Self {
        Self {
            _closed_in_child: ClosedInChild::new(&fd),
            fd,
            by_lower,
            session,
            buffer: Box::new([0; READ_BUFFER_BYTES]),
            unread: 0..0,
            payload: None,
            control: Vec::new(),
            control_messages: Vec::new(),
            queue: VecDeque::new(),
            writing: VecDeque::new(),
            armed: EventFlags::empty(),
        }
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether something was read and is not yet used.
    pub(crate) fn has_unused_bytes(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Whether there is something to write.
    pub(crate) fn is_pending(&self) -> bool {
        !self.writing.is_empty() || !self.queue.is_empty()
    }

    /// Copies the payloads that are being written if they lie in memory that was lent for messages
    /// of this channel up to `last`.
    pub(crate) fn keep_lent(&mut self, channel: u16, last: Sequence) -> Result<(), StreamEnd> {
        for frame in self.writing.iter_mut().filter(|frame| frame.lent) {
            if let QueuedFrame::Data(of, sequence) = frame.what
                && of == channel
                && sequence <= last
            {
                // SAFETY: the memory is valid until this function has returned.
                let payload = unsafe { std::slice::from_raw_parts(frame.payload, frame.len) };
                frame.kept.try_reserve_exact(frame.len).map_err(|_| StreamEnd::NoMemory)?;
                frame.kept.extend_from_slice(payload);
                (frame.payload, frame.lent) = (frame.kept.as_ptr(), false);
            }
        }
        Ok(())
    }

    /// Stores the rest of a message in the memory that was posted for it, if this stream delivers
    /// the first message of this channel.
    pub(crate) fn store_in_posted(&mut self, channel: u16, ring: &mut ReceiveRing) {
        let Some(IncomingPayload { frame, to, left }) = &mut self.payload else { return };
        let Frame { sequence, tag, .. } = *frame;
        let len = frame.len as usize;
        if frame.channel == channel
            && !to.is_null()
            && let Some(rest) = ring.store_in_posted(sequence, (len, tag), len - *left)
        {
            *to = rest;
        }
    }

    /// Drops the message whose payload is being read, because another stream took it over.
    pub(crate) fn drop_payload(&mut self) {
        if let Some(payload) = &mut self.payload {
            payload.to = std::ptr::null_mut();
        }
    }

    /// Reads as much as `extent` says, or until a message is taken over from another stream.
    /// `number` is the number of this stream.
    pub(crate) fn read(
        &mut self,
        number: usize,
        extent: ReadExtent,
        channels: &mut [TcpChannel],
        outcome: &mut ReadOutcome,
    ) -> Result<(), StreamEnd> {
        loop {
            self.parse(number, extent, channels, outcome)?;
            if outcome.must_return(extent) {
                return Ok(());
            }
            if self.unread.start > 0 {
                self.buffer.copy_within(self.unread.clone(), 0);
                self.unread = 0..self.unread.len();
            }
            let (to, direct) = match &self.payload {
                Some(payload) if !payload.to.is_null() => (payload.to, payload.left),
                _ => (std::ptr::null_mut(), 0),
            };
            let room = READ_BUFFER_BYTES - self.unread.end;
            let buffer = self.buffer.as_mut_ptr().wrapping_add(self.unread.end);
            let mut pieces = [piece(to, direct), piece(buffer, room)];
            let from = usize::from(direct == 0);
            // SAFETY: `to` is the rest of a slot whose message arrives on this stream, or of memory
            // that was posted for it, so nothing else uses it. The buffer belongs to this stream.
            let got = match unsafe { socket::receive(self.socket(), &mut pieces[from..]) } {
                Ok(0) => return Err(StreamEnd::Closed),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(StreamEnd::Broken),
            };
            let direct_bytes = got.min(direct);
            if let Some(payload) = self.payload.as_mut().filter(|_| direct_bytes > 0) {
                payload.to = payload.to.wrapping_add(direct_bytes);
                payload.left -= direct_bytes;
            }
            self.unread.end += got - direct_bytes;
            if got < direct + room {
                return self.parse(number, extent, channels, outcome);
            }
        }
    }

    /// Uses what is in the buffer.
    fn parse(
        &mut self,
        number: usize,
        extent: ReadExtent,
        channels: &mut [TcpChannel],
        outcome: &mut ReadOutcome,
    ) -> Result<(), StreamEnd> {
        loop {
            if let Some(payload) = &mut self.payload {
                let part = payload.left.min(self.unread.len());
                if part > 0 && !payload.to.is_null() {
                    // SAFETY: as in `read`; the buffer holds `part` more bytes.
                    unsafe {
                        let from = self.buffer.as_ptr().add(self.unread.start);
                        payload.to.copy_from_nonoverlapping(from, part);
                        payload.to = payload.to.add(part);
                    }
                }
                self.unread.start += part;
                payload.left -= part;
                if payload.left > 0 {
                    return Ok(());
                }
                if !payload.to.is_null() {
                    let Frame { channel, sequence, len, tag, release_awaited, .. } = payload.frame;
                    let ring = &mut channels[usize::from(channel)].receiving;
                    let message = CompleteMessage { len: len as usize, tag, release_awaited };
                    outcome.filled += usize::from(ring.complete(sequence, message));
                    outcome.progress = true;
                }
                self.payload = None;
                if outcome.must_return(extent) {
                    return Ok(());
                }
            }
            let unread = &self.buffer[self.unread.clone()];
            let Some(header) = unread.first_chunk() else { return Ok(()) };
            let mut frame =
                Frame::decode(header).ok_or(StreamEnd::Corrupt("a frame of an unknown kind"))?;
            match frame.kind {
                FrameKind::Sealed => {
                    if frame.len as usize != SEALED_BYTES {
                        return Err(StreamEnd::Corrupt("a sealed frame of another length"));
                    }
                    let Some(whole) = unread.first_chunk() else { return Ok(()) };
                    let forged = StreamEnd::Corrupt("a sealed frame that was changed on its way");
                    let opened = frame::open(whole, &mut self.session).map_err(|_| forged)?;
                    frame = opened.ok_or(StreamEnd::Corrupt("an unknown sealed frame"))?;
                    self.unread.start += WHOLE_SEALED_BYTES;
                }
                FrameKind::Abort | FrameKind::Leave | FrameKind::Control => {
                    return Err(StreamEnd::Corrupt("a frame that must be sealed and is not"));
                }
                FrameKind::Data | FrameKind::Ack | FrameKind::Ask => {
                    self.unread.start += FRAME_HEADER_BYTES;
                }
            }
            self.begin(number, frame, channels, outcome)?;
            if outcome.must_return(extent) {
                return Ok(());
            }
        }
    }

    fn begin(
        &mut self,
        number: usize,
        frame: Frame,
        channels: &mut [TcpChannel],
        outcome: &mut ReadOutcome,
    ) -> Result<(), StreamEnd> {
        match frame.kind {
            FrameKind::Abort => {
                outcome.abort = Some((frame.sequence as u32, frame.tag));
                return Ok(());
            }
            FrameKind::Leave => return Err(StreamEnd::PeerLeft),
            FrameKind::Control => {
                let whole = ControlPiece::append(&frame, &mut self.control);
                let corrupt = StreamEnd::Corrupt("a control message of an impossible length");
                self.control_messages.extend(whole.ok_or(corrupt)?);
                return Ok(());
            }
            FrameKind::Data | FrameKind::Ack | FrameKind::Ask | FrameKind::Sealed => {}
        }
        let channel = channels
            .get_mut(usize::from(frame.channel))
            .ok_or(StreamEnd::Corrupt("a frame of a channel that does not exist"))?;
        outcome.progress |= channel
            .sending
            .acknowledge(frame.ack, frame.arrived)
            .ok_or(StreamEnd::Corrupt("it has a message that was not sent"))?;
        if matches!(frame.kind, FrameKind::Ack | FrameKind::Ask) {
            let Frame { kind, channel, ack, arrived, .. } = frame;
            if frame != (Frame { kind, channel, ack, arrived, ..EMPTY }) {
                return Err(StreamEnd::Corrupt("an acknowledgement that has parts of a message"));
            }
            if kind == FrameKind::Ask {
                outcome.asked = Some(channel);
            }
            return Ok(());
        }
        let left = frame.len as usize;
        let to = match channel.receiving.begin(number, frame.sequence, left, frame.tag) {
            StoreDecision::Store(to, before) => {
                outcome.taken_over = before.filter(|&other| other != number);
                to
            }
            StoreDecision::Drop => std::ptr::null_mut(),
            StoreDecision::NoMemory => return Err(StreamEnd::NoMemory),
            StoreDecision::Reject => {
                return Err(StreamEnd::Corrupt("a message beyond its credits or its slot"));
            }
        };
        self.payload = Some(IncomingPayload { frame, to, left });
        Ok(())
    }

    /// Writes as much as fits. True if nothing is left to write.
    pub(crate) fn write(&mut self, channels: &mut [TcpChannel]) -> Result<bool, StreamEnd> {
        loop {
            self.gather(channels);
            if self.writing.is_empty() {
                return Ok(true);
            }
            let mut pieces = [piece(std::ptr::null_mut(), 0); 2 * MAX_GATHERED];
            for (pieces, frame) in pieces.chunks_mut(2).zip(&mut self.writing) {
                pieces.copy_from_slice(&frame.rest());
            }
            let pieces = &mut pieces[..2 * self.writing.len()];
            // SAFETY: the heads belong to this stream. A payload lies in a slot, which lives as
            // long as the pair, or in memory that is lent, of which `keep_lent` makes a copy before
            // its lender may use it again. A slot is reused only after its message was released.
            // The message then arrived on another stream, and the peer drops this one.
            match unsafe { socket::send(self.fd.as_fd(), pieces) } {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // The kernel reports this if the stream broke after the peer had ended it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(StreamEnd::Closed);
                }
                Err(_) => return Err(StreamEnd::Broken),
            }
        }
    }

    /// Begins frames of the queue, to write them by one call: large writes cost far less per byte.
    fn gather(&mut self, channels: &mut [TcpChannel]) {
        let mut bytes: usize = self.writing.iter().map(|frame| frame.len).sum();
        while self.writing.len() < MAX_GATHERED && bytes < GATHERED_BYTES {
            let Some(what) = self.queue.pop_front() else { return };
            if let Some(frame) = OutgoingFrame::new(what, channels, &mut self.session) {
                bytes += frame.len;
                self.writing.push_back(frame);
            }
        }
    }

    /// Forgets the frames of which all was written, after `sent` more bytes were.
    fn advance(&mut self, mut sent: usize) {
        while let Some(frame) = self.writing.front_mut() {
            let part = sent.min(frame.head_len + frame.len - frame.done);
            frame.done += part;
            sent -= part;
            if frame.done < frame.head_len + frame.len {
                return;
            }
            if frame.what == QueuedFrame::Leave {
                socket::shutdown(self.fd.as_fd(), Shutdown::Write);
            }
            self.writing.pop_front();
        }
    }
}
