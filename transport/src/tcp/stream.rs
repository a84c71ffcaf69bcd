//! One TCP stream of a pair: how frames are cut out of it and put into it. Nothing here blocks.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::frame::{Frame, HEADER, Kind};
use super::ring::{Bring, Receiving, Sending};
use super::socket::{self, piece};
use crate::link::Sequence;

/// Bytes read ahead of a payload: several small messages come with one call, and a long one brings the next header.
const STAGE: usize = 2048;

/// Both directions of one channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) sending: Sending,
    pub(crate) receiving: Receiving,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The peer said farewell.
    Farewell,
    /// It ended without one.
    Fin,
    /// It broke: the peer may well be alive.
    Broken,
    /// The peer sent what no correct peer sends.
    Corrupt(&'static str),
}

/// What reading brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct News {
    /// A message or an acknowledgement.
    pub(crate) any: bool,
    /// The peer aborted: by whom and why.
    pub(crate) abort: Option<(u32, u32)>,
    /// A message that another stream was bringing is brought by this one.
    pub(crate) taken_over: Option<usize>,
}

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Out {
    Data(u16, Sequence),
    Ack(u16),
    Abort(u32, u32),
    Farewell,
}

/// A live stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) fd: OwnedFd,
    stage: Box<[u8; STAGE]>,
    /// What of the stage is read and not used.
    staged: std::ops::Range<usize>,
    body: Option<Body>,
    pub(crate) queue: VecDeque<Out>,
    begun: Option<Begun>,
    /// Events that the service thread waits for; 0 since it has seen one.
    pub(crate) armed: i32,
}

/// A payload that is being read.
#[derive(Debug)]
struct Body {
    frame: Frame,
    /// Where the next byte goes; null if the message is dropped.
    to: *mut u8,
    left: usize,
}

/// A frame that is being written.
#[derive(Debug)]
struct Begun {
    what: Out,
    header: [u8; HEADER],
    payload: *const u8,
    len: usize,
    done: usize,
}

// SAFETY: the pointers are into slots of the pair that owns the stream, which live as long.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            stage: Box::new([0; STAGE]),
            staged: 0..0,
            body: None,
            queue: VecDeque::new(),
            begun: None,
            armed: 0,
        }
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Something is still to be written.
    pub(crate) fn is_pending(&self) -> bool {
        self.begun.is_some() || !self.queue.is_empty()
    }

    /// Another stream took the message over that this one is bringing.
    pub(crate) fn drop_body(&mut self) {
        if let Some(body) = &mut self.body {
            body.to = std::ptr::null_mut();
        }
    }

    /// Reads all that is there, or until a message is taken over from another stream. `me`: the number of this stream.
    pub(crate) fn read(
        &mut self,
        me: usize,
        channels: &mut [Channel],
        news: &mut News,
    ) -> Result<(), Over> {
        loop {
            self.parse(me, channels, news)?;
            if news.taken_over.is_some() {
                return Ok(());
            }
            if self.staged.start > 0 {
                self.stage.copy_within(self.staged.clone(), 0);
                self.staged = 0..self.staged.len();
            }
            let (to, direct) = match &self.body {
                Some(body) if !body.to.is_null() => (body.to, body.left),
                _ => (std::ptr::null_mut(), 0),
            };
            let room = STAGE - self.staged.end;
            let stage = self.stage.as_mut_ptr().wrapping_add(self.staged.end);
            let mut pieces = [piece(to, direct), piece(stage, room)];
            let from = usize::from(direct == 0);
            // SAFETY: `to` is the rest of a slot that this stream is bringing, so that nobody else uses it; the stage is ours.
            let got = match unsafe { socket::receive(self.socket(), &mut pieces[from..]) } {
                Ok(0) => return Err(Over::Fin),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Over::Broken),
            };
            let straight = got.min(direct);
            if let Some(body) = self.body.as_mut().filter(|_| straight > 0) {
                body.to = body.to.wrapping_add(straight);
                body.left -= straight;
            }
            self.staged.end += got - straight;
            if got < direct + room {
                return self.parse(me, channels, news);
            }
        }
    }

    /// Uses up what is in the stage.
    fn parse(&mut self, me: usize, channels: &mut [Channel], news: &mut News) -> Result<(), Over> {
        loop {
            if let Some(body) = &mut self.body {
                let part = body.left.min(self.staged.len());
                if part > 0 && !body.to.is_null() {
                    // SAFETY: as in `read`; the stage holds `part` bytes more.
                    unsafe {
                        let from = self.stage.as_ptr().add(self.staged.start);
                        body.to.copy_from_nonoverlapping(from, part);
                        body.to = body.to.add(part);
                    }
                }
                self.staged.start += part;
                body.left -= part;
                if body.left > 0 {
                    return Ok(());
                }
                if !body.to.is_null() {
                    let Frame { channel, sequence, len, tag, .. } = body.frame;
                    let ring = &mut channels[usize::from(channel)].receiving;
                    ring.complete(sequence, len as usize, tag);
                    news.any = true;
                }
                self.body = None;
            }
            let staged = &self.stage[self.staged.clone()];
            let Some(header) = staged.first_chunk() else { return Ok(()) };
            let frame = Frame::decode(header).ok_or(Over::Corrupt("a frame of no known kind"))?;
            self.staged.start += HEADER;
            self.begin(me, frame, channels, news)?;
            if news.taken_over.is_some() {
                return Ok(());
            }
        }
    }

    fn begin(
        &mut self,
        me: usize,
        frame: Frame,
        channels: &mut [Channel],
        news: &mut News,
    ) -> Result<(), Over> {
        match frame.kind {
            Kind::Abort => {
                news.abort = Some((frame.sequence as u32, frame.tag));
                return Ok(());
            }
            Kind::Farewell => return Err(Over::Farewell),
            Kind::Data | Kind::Ack => {}
        }
        let channel = channels
            .get_mut(usize::from(frame.channel))
            .ok_or(Over::Corrupt("a frame of a channel that does not exist"))?;
        news.any |= channel
            .sending
            .acknowledge(frame.ack)
            .ok_or(Over::Corrupt("it released a message that was not sent"))?;
        if frame.kind == Kind::Ack {
            return Ok(());
        }
        let left = frame.len as usize;
        let to = match channel.receiving.begin(me, frame.sequence, left) {
            Bring::Keep(to, before) => {
                news.taken_over = before.filter(|&other| other != me);
                to
            }
            Bring::Drop => std::ptr::null_mut(),
            Bring::Wrong => return Err(Over::Corrupt("a message beyond its credits or its slot")),
        };
        self.body = Some(Body { frame, to, left });
        Ok(())
    }

    /// Writes all that fits; true if nothing is left.
    pub(crate) fn write(&mut self, channels: &mut [Channel]) -> Result<bool, Over> {
        loop {
            if self.begun.is_none() {
                let Some(out) = self.queue.pop_front() else { return Ok(true) };
                self.begun = Begun::new(out, channels);
                continue;
            }
            let Some(begun) = &mut self.begun else { continue };
            let head = begun.done.min(HEADER);
            let body = begun.done - head;
            let mut pieces = [
                piece(begun.header.as_mut_ptr().wrapping_add(head), HEADER - head),
                piece(begun.payload.wrapping_add(body).cast_mut(), begun.len - body),
            ];
            let total = HEADER + begun.len;
            // SAFETY: the header is ours; the payload lies in a slot, which lives as long as the pair. A slot is used anew only
            // if its message was released, that is, it had come on another stream: the peer drops this one.
            match unsafe { socket::send(self.fd.as_fd(), &mut pieces) } {
                Ok(sent) => begun.done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // The kernel says so if the stream broke after its end from the other side.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Over::Fin),
                Err(_) => return Err(Over::Broken),
            }
            if begun.done == total {
                if begun.what == Out::Farewell {
                    socket::shutdown(self.fd.as_fd(), Shutdown::Write);
                }
                self.begun = None;
            }
        }
    }
}

impl Begun {
    /// None if there is nothing to say any more.
    fn new(what: Out, channels: &mut [Channel]) -> Option<Self> {
        let frame = Frame { kind: Kind::Ack, channel: 0, len: 0, sequence: 0, ack: 0, tag: 0 };
        let (frame, payload) = match what {
            Out::Abort(by, reason) => {
                (Frame { kind: Kind::Abort, sequence: by.into(), tag: reason, ..frame }, None)
            }
            Out::Farewell => (Frame { kind: Kind::Farewell, ..frame }, None),
            Out::Ack(channel) | Out::Data(channel, _) => {
                let Channel { sending, receiving } = &mut channels[usize::from(channel)];
                let ack = receiving.next - 1;
                let frame = Frame { channel, ack, ..frame };
                match what {
                    Out::Data(_, sequence) if sequence <= sending.acked => return None,
                    Out::Data(_, sequence) => {
                        let sent = *sending.sent(sequence);
                        receiving.told = ack;
                        let len = sent.len as u32;
                        let frame =
                            Frame { kind: Kind::Data, sequence, len, tag: sent.tag, ..frame };
                        (frame, (len > 0).then(|| sending.address(sequence)))
                    }
                    _ => {
                        receiving.telling = false;
                        receiving.told = ack;
                        (frame, None)
                    }
                }
            }
        };
        let payload = payload.map_or(std::ptr::null(), <*mut u8>::cast_const);
        Some(Self { what, header: frame.encode(), payload, len: frame.len as usize, done: 0 })
    }
}
