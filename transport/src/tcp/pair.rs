//! A peer reached over TCP: its streams, and the links that they carry.
//!
//! Whoever looks for something reads the sockets itself, under the lock of the pair; the service thread does so only for
//! ranks that sleep, that are busy elsewhere or that have left something unwritten. A socket is armed for the thread when its
//! rank is about to sleep, and stays disarmed after an event until then, or until the thread's next tick.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ring::{Receiving, Sending};
use super::socket::{self, Poller};
use super::stream::{Channel, News, Out, Over, Stream};
use crate::Rank;
use crate::error::LinkError;
use crate::inbox::{Inbox, InboxLayout};
use crate::link::{ReceivedMessage, Sequence, SlotMut};
use crate::rank_header::RankHeader;

/// How long a pair of which all streams broke may take to find together again.
pub(crate) const RECONNECT: Duration = Duration::from_secs(5);

/// A peer and all that is shared with it.
#[derive(Debug)]
pub(crate) struct TcpPair {
    pub(crate) peer: Rank,
    inbox: Arc<Inbox>,
    layout: InboxLayout,
    /// Only whether it is present.
    theirs: RankHeader,
    poller: Arc<Poller>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    streams: Vec<Place>,
    channels: Vec<Channel>,
    /// The stream that the last message was given.
    turn: usize,
    /// All streams were there once: the pair is in use.
    complete: bool,
    /// This end says farewell.
    leaving: bool,
    /// The peer did.
    left: bool,
    /// Since when there is no stream.
    severed: Option<Instant>,
    corrupt: Option<&'static str>,
}

/// A stream, or how the last one here ended.
#[derive(Debug, Default)]
struct Place {
    stream: Option<Stream>,
    over: Option<Over>,
}

/// What the service thread shall do for a pair.
#[derive(Debug, Default)]
pub(crate) struct Care {
    /// Streams that are missing.
    pub(crate) missing: Vec<u32>,
    /// When waiting for a first stream ends.
    pub(crate) until: Option<Instant>,
}

/// What the event of a stream says.
pub(crate) fn event(peer: Rank, stream: usize) -> u64 {
    u64::from(peer) << 8 | stream as u64
}

impl TcpPair {
    pub(crate) fn new(
        peer: Rank,
        streams: u32,
        inbox: Arc<Inbox>,
        layout: InboxLayout,
        poller: Arc<Poller>,
    ) -> Self {
        let InboxLayout { channels, depth, slot_bytes, .. } = layout;
        let channel = || Channel {
            sending: Sending::new(depth, slot_bytes),
            receiving: Receiving::new(depth, slot_bytes),
        };
        let state = State {
            streams: (0..streams).map(|_| Place::default()).collect(),
            channels: (0..channels).map(|_| channel()).collect(),
            turn: 0,
            complete: false,
            leaving: false,
            left: false,
            severed: None,
            corrupt: None,
        };
        let theirs = RankHeader::default();
        Self { peer, inbox, layout, theirs, poller, state: Mutex::new(state) }
    }

    /// A panic under the lock is a bug of ours; what it protects is then of no use, but memory-safe.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mine(&self) -> &RankHeader {
        self.inbox.header()
    }

    /// A new stream of a proven peer, in place of the one that had its number. True if with it all were there for the first
    /// time.
    pub(crate) fn attach(&self, number: u32, socket: OwnedFd) -> Result<bool, LinkError> {
        let mut state = self.lock();
        let index = number as usize;
        let Some(place) = state.streams.get(index) else {
            return Err(LinkError::Refused {
                peer: self.peer,
                why: "the two disagree on how many streams they have",
            });
        };
        if state.leaving || state.left || self.theirs.gone(self.peer).is_some() {
            return Ok(false);
        }
        if place.stream.is_some() {
            // It has noticed an end that we have not.
            self.bury(&mut state, index, Over::Broken);
        }
        socket::tune(socket.as_fd());
        let flags = libc::EPOLLIN | libc::EPOLLONESHOT;
        self.poller
            .add(socket.as_raw_fd(), flags, event(self.peer, index))
            .map_err(|error| LinkError::system("epoll_ctl", &error))?;
        let mut stream = Stream::new(socket);
        stream.armed = flags;
        if let Some(LinkError::Aborted { by, reason }) = self.mine().aborted() {
            stream.queue.push_back(Out::Abort(by, reason));
        }
        state.streams[index] = Place { stream: Some(stream), over: None };
        state.severed = None;
        self.resend(&mut state, None);
        self.flush(&mut state);
        let first = !state.complete && state.live() == state.streams.len();
        state.complete |= first;
        Ok(first)
    }

    /// Numbers of the streams that are not there.
    pub(crate) fn missing(&self) -> Vec<u32> {
        let state = self.lock();
        let missing = |index: &u32| state.streams[*index as usize].stream.is_none();
        (0..state.streams.len() as u32).filter(missing).collect()
    }

    /// What there is to do for the pair, now and then.
    pub(crate) fn care(&self, now: Instant) -> Care {
        let state = self.lock();
        if !state.complete || state.leaving || state.left || self.gone().is_some() {
            return Care::default();
        }
        let until = state.severed.map(|since| since + RECONNECT);
        drop(state);
        if until.is_some_and(|until| now >= until) {
            self.die();
            return Care::default();
        }
        Care { missing: self.missing(), until }
    }

    /// Nobody listens where the peer was, and no stream is left: its process is gone.
    pub(crate) fn give_up(&self) {
        let severed = self.lock().severed.is_some();
        if severed {
            self.die();
        }
    }

    fn die(&self) {
        self.theirs.die();
        self.mine().doorbell.ring();
    }

    /// Whether the peer is gone, and how.
    pub(crate) fn gone(&self) -> Option<LinkError> {
        self.theirs.gone(self.peer)
    }

    /// Ends the peer's waits.
    pub(crate) fn abort(&self, by: Rank, reason: u32) {
        let mut state = self.lock();
        for stream in state.streams.iter_mut().filter_map(|place| place.stream.as_mut()) {
            // Before all that is not begun; the first one counts.
            if !stream.queue.iter().any(|out| matches!(out, Out::Abort(..))) {
                stream.queue.push_front(Out::Abort(by, reason));
            }
        }
        self.flush(&mut state);
    }

    /// Says farewell after all that is to be sent.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        self.tell(&mut state);
        state.leaving = true;
        for stream in state.streams.iter_mut().filter_map(|place| place.stream.as_mut()) {
            stream.queue.push_back(Out::Farewell);
        }
        self.flush(&mut state);
        self.arm_all(&mut state);
    }

    /// Whether no stream is left.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().live() == 0
    }

    /// Ends all streams as they are.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.leaving = true;
        for index in 0..state.streams.len() {
            self.bury(&mut state, index, Over::Fin);
        }
    }

    /// The service thread's part: a socket has something, or room.
    pub(crate) fn serve(&self, index: usize) {
        let mut state = self.lock();
        let Some(stream) = state.stream(index) else { return };
        stream.armed = 0;
        let news = self.read(&mut state, index, Over::Fin);
        self.flush(&mut state);
        if news {
            self.mine().doorbell.ring();
        }
        // If its rank is awake, it reads for itself.
        if self.mine().doorbell.has_sleeper() || state.leaving {
            self.arm(&mut state, index);
        }
    }

    /// The service thread's part: everything, for a rank that may be busy elsewhere.
    pub(crate) fn tick(&self) {
        let mut state = self.lock();
        let news = self.progress(&mut state);
        self.tell(&mut state);
        self.arm_all(&mut state);
        if news {
            self.mine().doorbell.ring();
        }
    }

    // The ends of the links.

    pub(crate) fn reserve(&self, channel: u16) -> Result<Option<SlotMut>, LinkError> {
        if let Some(error) = self.mine().aborted() {
            return Err(error);
        }
        let mut state = self.lock();
        if !state.sending(channel).has_credit() {
            self.look(&mut state);
            if !state.sending(channel).has_credit() {
                return self.in_vain(&state);
            }
        }
        let ring = state.sending(channel);
        let data = ring.address(ring.next);
        Ok(Some(SlotMut { data, capacity: self.layout.slot_bytes }))
    }

    pub(crate) fn send(&self, channel: u16, len: usize, tag: u32) -> Sequence {
        let mut state = self.lock();
        let ring = state.sending(channel);
        let sequence = ring.next;
        ring.next += 1;
        let sent = ring.sent(sequence);
        (sent.len, sent.tag) = (len, tag);
        state.dispatch(channel, sequence);
        self.flush(&mut state);
        sequence
    }

    pub(crate) fn released(&self, channel: u16) -> Sequence {
        let mut state = self.lock();
        let ring = state.sending(channel);
        if ring.acked + 1 < ring.next {
            self.look(&mut state);
        }
        state.sending(channel).acked
    }

    pub(crate) fn receive(&self, channel: u16) -> Result<Option<ReceivedMessage>, LinkError> {
        if let Some(error) = self.mine().aborted() {
            return Err(error);
        }
        let mut state = self.lock();
        let mut first = state.receiving(channel).first();
        if first.is_none() {
            self.look(&mut state);
            first = state.receiving(channel).first();
        }
        let Some((data, len, tag)) = first else { return self.in_vain(&state) };
        let sequence = state.receiving(channel).next;
        Ok(Some(ReceivedMessage { data, len, tag, sequence, in_other_process: false }))
    }

    pub(crate) fn release(&self, channel: u16) {
        let mut state = self.lock();
        let ring = state.receiving(channel);
        ring.release();
        // The next message the other way tells it too, or the next vain look; this is for links that go one way.
        if ring.untold() >= u64::from(self.layout.depth.div_ceil(2)) {
            self.tell(&mut state);
        } else {
            drop(state);
            self.poller.soon();
        }
    }

    // Under the lock.

    /// The rank looks for something that is not there: whatever the sockets have may be it.
    fn look(&self, state: &mut State) {
        if self.progress(state) {
            // Another thread may wait for what this one has read.
            self.mine().doorbell.ring();
        }
        self.tell(state);
        if self.mine().doorbell.has_sleeper() {
            self.arm_all(state);
        }
    }

    /// What a look in vain ends with.
    fn in_vain<T>(&self, state: &State) -> Result<Option<T>, LinkError> {
        if let Some(error) = self.mine().aborted() {
            return Err(error);
        }
        if let Some(why) = state.corrupt {
            return Err(LinkError::Corrupt { peer: self.peer, why });
        }
        self.gone().map_or(Ok(None), Err)
    }

    /// Reads what is there and writes what is waiting; whether there is news.
    fn progress(&self, state: &mut State) -> bool {
        let mut news = false;
        if state.streams.len() == 1 {
            news = self.read(state, 0, Over::Fin);
        } else {
            for index in state.readable() {
                news |= self.read(state, index, Over::Fin);
            }
        }
        self.flush(state);
        news
    }

    /// Reads what a stream has; whether there is news. `fin`: what it means if it has ended without a farewell.
    fn read(&self, state: &mut State, index: usize, fin: Over) -> bool {
        let mut any = false;
        loop {
            let State { streams, channels, .. } = &mut *state;
            let Some(stream) = streams[index].stream.as_mut() else { return any };
            let mut news = News::default();
            let result = stream.read(index, channels, &mut news);
            any |= news.any;
            if let Some((by, reason)) = news.abort {
                self.mine().abort(by, reason);
            }
            if let Err(over) = result {
                self.bury(state, index, if over == Over::Fin { fin } else { over });
                return true;
            }
            let Some(other) = news.taken_over else { return any };
            if let Some(other) = state.stream(other) {
                other.drop_body();
            }
        }
    }

    /// Writes what can be written; the service thread is to do the rest.
    fn flush(&self, state: &mut State) {
        let mut index = 0;
        while index < state.streams.len() {
            let State { streams, channels, .. } = &mut *state;
            match streams[index].stream.as_mut().filter(|s| s.is_pending()) {
                None => index += 1,
                Some(stream) => match stream.write(channels) {
                    Ok(true) => index += 1,
                    Ok(false) => {
                        self.arm(state, index);
                        index += 1;
                    }
                    Err(over) => {
                        // What came before it went counts, and a farewell.
                        self.read(state, index, over);
                        if state.streams[index].stream.is_some() {
                            self.bury(state, index, over);
                        }
                        self.mine().doorbell.ring();
                        // Others have more to write now.
                        index = 0;
                    }
                },
            }
        }
    }

    /// Tells the peer what was released and not told yet.
    fn tell(&self, state: &mut State) {
        for channel in 0..state.channels.len() {
            let ring = &mut state.channels[channel].receiving;
            if ring.untold() > 0 && !ring.telling {
                state.say(Out::Ack(channel as u16));
            }
        }
        self.flush(state);
    }

    fn arm_all(&self, state: &mut State) {
        for index in 0..state.streams.len() {
            self.arm(state, index);
        }
    }

    /// Lets the service thread wait for what comes, and for room if there is something to write.
    fn arm(&self, state: &mut State, index: usize) {
        let Some(stream) = state.stream(index) else { return };
        let out = if stream.is_pending() { libc::EPOLLOUT } else { 0 };
        let events = libc::EPOLLIN | libc::EPOLLONESHOT | out;
        if stream.armed & events != events {
            // It is registered, and no memory is needed to change it.
            let changed =
                self.poller.change(stream.fd.as_raw_fd(), events, event(self.peer, index));
            debug_assert!(changed.is_ok());
            stream.armed = events;
        }
    }

    /// The end of a stream: what it had not delivered goes to others.
    fn bury(&self, state: &mut State, index: usize, over: Over) {
        let Some(stream) = state.streams[index].stream.take() else { return };
        self.poller.remove(stream.fd.as_raw_fd());
        // A child made by fork may hold it too.
        socket::shutdown(stream.fd.as_fd(), Shutdown::Both);
        drop(stream);
        state.streams[index].over = Some(over);
        for channel in &mut state.channels {
            channel.receiving.forget(index);
        }
        match over {
            Over::Farewell => state.left = true,
            Over::Corrupt(why) if state.corrupt.is_none() => {
                state.corrupt = Some(why);
                log::warn!("the stream from rank {} is corrupt: {why}", self.peer);
            }
            _ => {}
        }
        self.resend(state, Some(index));
        if state.leaving || !state.complete {
            self.poller.kick();
            return;
        }
        if state.live() == 0 {
            // Each stream has ended at least once, for all were there.
            if state.left {
                self.theirs.leave();
            } else if state.streams.iter().all(|p| p.over == Some(Over::Fin)) {
                self.theirs.die();
            } else {
                state.severed = Some(Instant::now());
            }
        }
        self.mine().doorbell.ring();
        // The thread sees to it that the stream comes back.
        self.poller.kick();
    }

    /// Gives messages that are under way on a stream that ended (None: on no stream) to others, and all acknowledgements.
    fn resend(&self, state: &mut State, ended: Option<usize>) {
        if state.left {
            return;
        }
        for channel in 0..state.channels.len() {
            let Channel { sending, receiving } = &mut state.channels[channel];
            receiving.telling = false;
            let again: Vec<Sequence> = sending
                .under_way()
                .filter(|&sequence| sending.sent(sequence).stream == ended)
                .collect();
            let tell = receiving.next > 1;
            for sequence in again {
                state.dispatch(channel as u16, sequence);
            }
            if tell {
                state.say(Out::Ack(channel as u16));
            }
        }
    }
}

impl State {
    fn sending(&mut self, channel: u16) -> &mut Sending {
        &mut self.channels[usize::from(channel)].sending
    }

    fn receiving(&mut self, channel: u16) -> &mut Receiving {
        &mut self.channels[usize::from(channel)].receiving
    }

    fn stream(&mut self, index: usize) -> Option<&mut Stream> {
        self.streams.get_mut(index)?.stream.as_mut()
    }

    fn live(&self) -> usize {
        self.streams.iter().filter(|place| place.stream.is_some()).count()
    }

    /// The next stream in turn, rather one that has nothing to write.
    fn next_live(&mut self) -> Option<usize> {
        let count = self.streams.len();
        let in_turn = (1..=count).map(|step| (self.turn + step) % count);
        let live = |index: &usize| self.streams[*index].stream.is_some();
        let idle = |index: &usize| {
            self.streams[*index].stream.as_ref().is_some_and(|stream| !stream.is_pending())
        };
        let chosen = in_turn.clone().find(idle).or_else(|| in_turn.clone().find(live))?;
        self.turn = chosen;
        Some(chosen)
    }

    /// Gives a message to a stream, or to nobody until there is one.
    fn dispatch(&mut self, channel: u16, sequence: Sequence) {
        let chosen = self.next_live();
        self.sending(channel).sent(sequence).stream = chosen;
        if let Some(stream) = chosen.and_then(|index| self.stream(index)) {
            stream.queue.push_back(Out::Data(channel, sequence));
        }
    }

    /// An acknowledgement goes by the first stream that has nothing else to write, or any.
    fn say(&mut self, what: Out) {
        let live = || self.streams.iter().enumerate().filter(|(_, p)| p.stream.is_some());
        let idle = live().find(|(_, p)| p.stream.as_ref().is_some_and(|s| !s.is_pending()));
        let Some((index, _)) = idle.or_else(|| live().next()) else { return };
        if let Out::Ack(channel) = what {
            self.receiving(channel).telling = true;
        }
        if let Some(stream) = self.stream(index) {
            stream.queue.push_back(what);
        }
    }

    fn readable(&self) -> Vec<usize> {
        let mut numbers = Vec::with_capacity(self.streams.len());
        let mut entries = Vec::with_capacity(self.streams.len());
        for (index, place) in self.streams.iter().enumerate() {
            if let Some(stream) = &place.stream {
                numbers.push(index);
                let fd = stream.fd.as_raw_fd();
                entries.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            }
        }
        socket::readable(&mut entries);
        let ready = entries.iter().map(|entry| entry.revents != 0);
        numbers.into_iter().zip(ready).filter_map(|(index, ready)| ready.then_some(index)).collect()
    }
}
