//! The state of a pair that its lock protects, and the choice of the stream for a frame.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use crate::Sequence;
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::tcp::ring::{ReceiveRing, SendRing};
use crate::tcp::socket;
use crate::tcp::stream::{QueuedFrame, StreamEnd, TcpChannel, TcpStream};

#[derive(Debug)]
pub(super) struct TcpPairState {
    pub(super) streams: Vec<StreamEntry>,
    pub(super) channels: Vec<TcpChannel>,
    /// The stream to which the last message was given.
    last_stream: usize,
    /// All streams were there once: the pair is in use.
    pub(super) complete: bool,
    /// This rank wants to know when everything that it has sent has arrived.
    pub(super) flushing: bool,
    /// This rank leaves.
    pub(super) leaving: bool,
    /// The peer has left.
    pub(super) peer_left: bool,
    /// The peer's process has ended: when it counts as dead even if a stream still seems alive.
    pub(super) dead_at: Option<Instant>,
    /// Since when no stream is there.
    pub(super) disconnected_since: Option<Instant>,
    /// Why nothing more can be received: what the peer sent is wrong, or there is no memory for it.
    pub(super) failure: Option<LinkError>,
    /// Control messages in both directions.
    pub(super) control: ControlMessages,
    /// How many messages lie in posted memory and are not released.
    pub(super) filled: usize,
}

/// A stream, or how the last stream with this number ended.
#[derive(Debug, Default)]
pub(super) struct StreamEntry {
    pub(super) stream: Option<TcpStream>,
    pub(super) end: Option<StreamEnd>,
}

/// The control messages of a pair.
#[derive(Debug, Default)]
pub(super) struct ControlMessages {
    /// Everything that was sent, each with its number, counted from 1.
    pub(super) sent: Vec<Vec<u8>>,
    /// How many were received.
    pub(super) received: u32,
    /// What was received and not taken.
    pub(super) waiting: VecDeque<Vec<u8>>,
}

impl TcpPairState {
    pub(super) fn new(streams: u32, layout: &InboxLayout) -> Self {
        let &InboxLayout { channels, depth, slot_bytes, .. } = layout;
        let channel = || TcpChannel {
            sending: SendRing::new(depth, slot_bytes),
            receiving: ReceiveRing::new(depth, slot_bytes),
        };
        Self {
            streams: (0..streams).map(|_| StreamEntry::default()).collect(),
            channels: (0..channels).map(|_| channel()).collect(),
            last_stream: 0,
            complete: false,
            flushing: false,
            leaving: false,
            peer_left: false,
            dead_at: None,
            disconnected_since: None,
            failure: None,
            control: ControlMessages::default(),
            filled: 0,
        }
    }

    pub(super) fn send_ring(&mut self, channel: u16) -> &mut SendRing {
        &mut self.channels[usize::from(channel)].sending
    }

    pub(super) fn receive_ring(&mut self, channel: u16) -> &mut ReceiveRing {
        &mut self.channels[usize::from(channel)].receiving
    }

    pub(super) fn stream(&mut self, index: usize) -> Option<&mut TcpStream> {
        self.streams.get_mut(index)?.stream.as_mut()
    }

    pub(super) fn live(&mut self) -> impl Iterator<Item = &mut TcpStream> {
        self.streams.iter_mut().filter_map(|entry| entry.stream.as_mut())
    }

    pub(super) fn live_streams(&self) -> usize {
        self.streams.iter().filter(|entry| entry.stream.is_some()).count()
    }

    /// Gives a message to the next stream in turn, preferring one that has nothing to write; or to
    /// none while there is no stream.
    pub(super) fn queue_message(&mut self, channel: u16, sequence: Sequence) {
        let chosen = self.next_stream();
        self.send_ring(channel).sent(sequence).stream = chosen;
        if let Some(stream) = chosen.and_then(|index| self.stream(index)) {
            stream.queue.push_back(QueuedFrame::Data(channel, sequence));
        }
    }

    fn next_stream(&mut self) -> Option<usize> {
        let count = self.streams.len();
        let in_turn = (1..=count).map(|step| (self.last_stream + step) % count);
        let live = |index: &usize| self.streams[*index].stream.is_some();
        let idle = |index: &usize| {
            self.streams[*index].stream.as_ref().is_some_and(|stream| !stream.is_pending())
        };
        let chosen = in_turn.clone().find(idle).or_else(|| in_turn.clone().find(live))?;
        self.last_stream = chosen;
        Some(chosen)
    }

    /// Asks the peer which messages have arrived: behind all messages of each stream, so that the
    /// last answer is complete.
    pub(super) fn queue_questions(&mut self) {
        for channel in 0..self.channels.len() as u16 {
            if self.send_ring(channel).under_way().0 == 0 {
                continue;
            }
            for stream in self.streams.iter_mut().filter_map(|entry| entry.stream.as_mut()) {
                stream.queue.retain(|frame| *frame != QueuedFrame::Ask(channel));
                stream.queue.push_back(QueuedFrame::Ask(channel));
            }
        }
    }

    /// Gives an acknowledgement to the first stream that has nothing else to write, or to any,
    /// unless one is queued.
    pub(super) fn queue_ack(&mut self, channel: u16) {
        if self.receive_ring(channel).ack_queued {
            return;
        }
        let live = || self.streams.iter().enumerate().filter(|(_, e)| e.stream.is_some());
        let idle = live().find(|(_, e)| e.stream.as_ref().is_some_and(|s| !s.is_pending()));
        let Some((index, _)) = idle.or_else(|| live().next()) else { return };
        self.receive_ring(channel).ack_queued = true;
        if let Some(stream) = self.stream(index) {
            stream.queue.push_back(QueuedFrame::Ack(channel));
        }
    }

    /// The bytes of the messages of a channel that no stream has begun to write.
    pub(super) fn queued_bytes(&mut self, channel: u16) -> usize {
        let Self { streams, channels, .. } = self;
        let ring = &mut channels[usize::from(channel)].sending;
        let streams = streams.iter().filter_map(|entry| entry.stream.as_ref());
        let messages = streams.flat_map(|stream| &stream.queue).filter_map(|frame| match *frame {
            QueuedFrame::Data(of, sequence) if of == channel => Some(sequence),
            _ => None,
        });
        messages.map(|sequence| ring.sent(sequence).len).sum()
    }

    /// Numbers of the streams that have something to read now, or of which not all that was read is
    /// used.
    pub(super) fn readable_streams(&self) -> Vec<usize> {
        let mut numbers = Vec::with_capacity(self.streams.len());
        let mut entries = Vec::with_capacity(self.streams.len());
        for (index, entry) in self.streams.iter().enumerate() {
            if let Some(stream) = &entry.stream {
                numbers.push(index);
                entries.push(PollFd::from_borrowed_fd(stream.fd.as_fd(), PollFlags::IN));
            }
        }
        socket::poll_now(&mut entries);
        let ready = entries.iter().map(|entry| !entry.revents().is_empty());
        let streams = numbers.into_iter().zip(ready);
        let has_more = |index: usize| {
            self.streams[index].stream.as_ref().is_some_and(TcpStream::has_unused_bytes)
        };
        streams.filter(|&(index, ready)| ready || has_more(index)).map(|(index, _)| index).collect()
    }
}
