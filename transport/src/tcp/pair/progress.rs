//! Reading, writing and repairing the streams of a pair, while its lock is held.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::io::Errno;

use super::state::TcpPairState;
use super::{DAMAGED, TcpPair, event_data};
use crate::Sequence;
use crate::error::LinkError;
use crate::tcp::poller::EventFlags;
use crate::tcp::socket;
use crate::tcp::stream::{QueuedFrame, ReadExtent, ReadOutcome, StreamEnd, TcpChannel};

impl TcpPair {
    /// Reads what the sockets have, because the rank waits for something that is not there. While a
    /// message lies in posted memory nothing more is read, so that the next one finds its memory
    /// posted too.
    pub(super) fn poll_sockets(&self, state: &mut TcpPairState) {
        if state.filled > 0 {
            self.flush(state);
        } else if self.read_and_write(state, ReadExtent::UntilFilled) {
            // Another thread may wait for what this one has read.
            self.header().doorbell.ring();
        } else if state.dead_at.is_some_and(|at| Instant::now() >= at) {
            // What it sent has been read.
            self.peer_header.die();
        }
        self.send_acks(state);
        if self.header().doorbell.has_sleeper() {
            self.arm_all(state);
        }
    }

    /// The result of a call that found nothing: an error if waiting cannot succeed any more.
    pub(super) fn nothing_found<T>(&self, state: &TcpPairState) -> Result<Option<T>, LinkError> {
        if let Some(error) = self.header().aborted() {
            return Err(error);
        }
        state.failure.or_else(|| self.gone()).map_or(Ok(None), Err)
    }

    /// Reads what has arrived and writes what is queued. Returns whether reading made progress.
    pub(super) fn read_and_write(&self, state: &mut TcpPairState, extent: ReadExtent) -> bool {
        let mut progress = false;
        if state.streams.len() == 1 {
            progress = self.read(state, 0, extent, StreamEnd::Closed);
        } else {
            for index in state.readable_streams() {
                progress |= self.read(state, index, extent, StreamEnd::Closed);
            }
        }
        self.flush(state);
        progress
    }

    /// Reads what a stream has. Returns whether that made progress. `closed` is how the stream
    /// ended if it has ended without a leave frame.
    pub(super) fn read(
        &self,
        state: &mut TcpPairState,
        index: usize,
        extent: ReadExtent,
        closed: StreamEnd,
    ) -> bool {
        let mut progress = false;
        loop {
            let TcpPairState { streams, channels, filled, .. } = &mut *state;
            let Some(stream) = streams[index].stream.as_mut() else { return progress };
            let mut outcome = ReadOutcome::default();
            let result = stream.read(index, extent, channels, &mut outcome);
            progress |= outcome.progress;
            *filled += outcome.filled;
            if !stream.control_messages.is_empty() {
                let messages = std::mem::take(&mut stream.control_messages);
                self.receive_control(state, messages);
            }
            match outcome.abort {
                Some((_, DAMAGED)) => {
                    let why = "it got on a stream what this rank did not send";
                    state.failure.get_or_insert(LinkError::Corrupt { peer: self.peer, why });
                    self.header().doorbell.ring();
                }
                Some((by, reason)) => self.header().abort(by, reason),
                None => {}
            }
            if let Err(end) = result {
                let end = if end == StreamEnd::Closed { closed } else { end };
                self.remove_stream(state, index, end);
                return true;
            }
            if let Some(channel) = outcome.asked {
                state.queue_ack(channel);
            } else if let Some(other) = outcome.taken_over {
                if let Some(other) = state.stream(other) {
                    other.drop_payload();
                }
            } else {
                return progress;
            }
        }
    }

    /// Writes as much as fits. The service thread writes the rest.
    pub(super) fn flush(&self, state: &mut TcpPairState) {
        let mut index = 0;
        while index < state.streams.len() {
            let TcpPairState { streams, channels, .. } = &mut *state;
            match streams[index].stream.as_mut().filter(|s| s.is_pending()) {
                None => index += 1,
                Some(stream) => match stream.write(channels) {
                    Ok(true) => index += 1,
                    Ok(false) => {
                        self.arm(state, index);
                        index += 1;
                    }
                    Err(end) => {
                        // Messages and a leave frame that arrived before the end count.
                        self.read(state, index, ReadExtent::All, end);
                        if state.streams[index].stream.is_some() {
                            self.remove_stream(state, index, end);
                        }
                        self.header().doorbell.ring();
                        // Other streams have more to write now.
                        index = 0;
                    }
                },
            }
        }
    }

    /// Acknowledges the releases that the peer was not told of.
    pub(super) fn send_acks(&self, state: &mut TcpPairState) {
        for channel in 0..state.channels.len() {
            let ring = &mut state.channels[channel].receiving;
            if ring.unacked() > 0 && !ring.ack_queued {
                state.queue_ack(channel as u16);
            }
        }
        self.flush(state);
    }

    pub(super) fn arm_all(&self, state: &mut TcpPairState) {
        for index in 0..state.streams.len() {
            self.arm(state, index);
        }
    }

    /// Lets the service thread wait for data on a stream, unless the rank does, and for room if
    /// there is something to write.
    pub(super) fn arm(&self, state: &mut TcpPairState, index: usize) {
        let waits = !state.leaving && state.complete && self.header().doorbell.has_watcher();
        let Some(stream) = state.stream(index) else { return };
        let mut flags = EventFlags::ONESHOT;
        flags.set(EventFlags::IN, !waits || self.upgrade.is_some());
        flags.set(EventFlags::OUT, stream.is_pending());
        if flags != EventFlags::ONESHOT && !stream.armed.contains(flags) {
            self.poller.change(&stream.fd, flags, event_data(self.peer, index));
            stream.armed = flags;
        }
    }

    /// Removes a stream that ended in this way, and gives its messages to other streams.
    pub(super) fn remove_stream(&self, state: &mut TcpPairState, index: usize, end: StreamEnd) {
        let Some(mut stream) = state.streams[index].stream.take() else { return };
        if let StreamEnd::Corrupt(_) = end
            && state.failure.is_none()
        {
            // The peer would take the end of the streams for the end of this process.
            let notice = QueuedFrame::Abort(self.peer, DAMAGED);
            stream.queue.push_front(notice);
            let _ = stream.write(&mut state.channels);
            for other in state.streams.iter_mut().filter_map(|entry| entry.stream.as_mut()) {
                other.queue.push_front(notice);
            }
        }
        self.poller.remove(&stream.fd);
        self.watch.remove(&stream.fd);
        // A child made by fork may hold the socket too.
        socket::shutdown(stream.fd.as_fd(), Shutdown::Both);
        let by_lower = stream.by_lower;
        drop(stream);
        let end = if end == StreamEnd::Closed && !by_lower { StreamEnd::Broken } else { end };
        state.streams[index].end = Some(end);
        for channel in &mut state.channels {
            channel.receiving.forget(index);
        }
        match end {
            StreamEnd::PeerLeft => state.peer_left = true,
            StreamEnd::Corrupt(why) if state.failure.is_none() => {
                state.failure = Some(LinkError::Corrupt { peer: self.peer, why });
                log::warn!("the stream from rank {} is corrupt: {why}", self.peer);
            }
            StreamEnd::NoMemory => {
                state.failure.get_or_insert(LinkError::system("malloc", Errno::NOMEM));
            }
            _ => {}
        }
        self.resend(state, Some(index));
        if state.leaving || !state.complete {
            self.poller.wake();
            return;
        }
        if state.live_streams() == 0 && state.failure.is_none() {
            // Every stream has ended at least once, because all were there.
            if state.peer_left {
                self.peer_header.leave();
            } else if state.dead_at.is_some()
                || state.streams.iter().all(|entry| entry.end == Some(StreamEnd::Closed))
            {
                self.peer_header.die();
            } else {
                state.disconnected_since = Some(Instant::now());
            }
        }
        self.header().doorbell.ring();
        // The service thread makes the stream again.
        self.poller.wake();
    }

    /// Queues again the messages in transit on a stream that ended (`None`: on no stream), and all
    /// acknowledgements.
    pub(super) fn resend(&self, state: &mut TcpPairState, ended: Option<usize>) {
        if state.peer_left {
            return;
        }
        for channel in 0..state.channels.len() {
            let TcpChannel { sending, receiving } = &mut state.channels[channel];
            receiving.ack_queued = false;
            let messages: Vec<Sequence> = sending
                .unreleased()
                .filter(|&sequence| sending.sent(sequence).stream == ended)
                .collect();
            let any_released = receiving.next > 1;
            for sequence in messages {
                state.queue_message(channel as u16, sequence);
            }
            if any_released {
                state.queue_ack(channel as u16);
            }
        }
        state.queue_all_control();
        if state.flushing {
            state.queue_questions();
        }
    }
}
