//! Calls on windows: register and deregister, put, signal, wait for signals.

use std::sync::Arc;
use std::time::Duration;

use maypole_algorithms::Rank;
use maypole_transport::segment;

use super::Communicator;
use super::backend::HostBackend;
use crate::element::Element;
use crate::engine::wait::WaitLoop;
use crate::error::Error;
use crate::window::{
    CHANNEL, HEADER_BYTES, PeerSignalWords, WINDOW_TAG, WindowId, WindowInfo, WindowMemory,
    WindowMessage, WindowPart, WindowSender, WindowService,
};

/// How long to wait for peers to map a window. Peers that take longer get messages instead.
const MAPPING_PATIENCE: Duration = Duration::from_millis(200);

impl Communicator {
    /// Makes the `bytes` bytes at `memory` this rank's part of a new window. All ranks call it, and
    /// register several windows in the same order; their parts may differ in length. Returns when
    /// all ranks have called it.
    ///
    /// # Errors
    /// A rank that is gone or does not call it: the communicator is then broken.
    /// [`Error::InvalidArgument`], harmless, for no memory.
    ///
    /// # Safety
    /// The memory is valid for writes until the window is
    /// [deregistered](Self::deregister_window) or the communicator is dropped. Other ranks write to
    /// it at any time: what they write may be read only after their signal.
    pub unsafe fn register_window(
        &mut self,
        memory: *mut u8,
        bytes: usize,
    ) -> Result<WindowId, Error> {
        if memory.is_null() || bytes == 0 {
            return Err(Error::InvalidArgument {
                what: "a window of no memory; give each rank at least a byte".into(),
            });
        }
        self.check_usable()?;
        self.check_windows()?;
        if self.host.windows.service.is_none() {
            let service = self.make_service().map_err(|error| self.fail_window(error))?;
            self.host.windows.service = Some(service);
        }
        let service = self.host.windows.service.as_ref().ok_or_else(no_window)?;
        let number = self.host.windows.made + 1;
        let signal_words = Arc::clone(&service.signal_words);
        // Memory that peers cannot map counts as in segment 0, and so does that of a window for
        // which no slot is free.
        let place = segment::locate(memory, bytes).filter(|_| signal_words.segment() != 0);
        let slot = place.and_then(|_| signal_words.open_window(number));
        let (segment, offset) = place.filter(|_| slot.is_some()).unwrap_or_default();
        let info = WindowInfo {
            bytes: bytes as u64,
            segment,
            offset: offset as u64,
            signal_words: signal_words.segment(),
            slot,
        };
        if segment != 0 {
            self.offer(&[(memory, bytes), signal_words.memory()]);
        }
        // All ranks have offered their memory. Those that could not map it need messages.
        let deadline = self.membership.link_deadline();
        let all = self.host.control.all_gather(&info.encode(), deadline)?;
        let parts = all.iter().map(|bytes| WindowInfo::decode(bytes)).collect::<Option<Vec<_>>>();
        let parts =
            parts.ok_or_else(|| Error::internal("a rank's part of a window is unreadable"))?;
        let direct = self.add_window(&parts);
        self.host.windows.made = number;
        signal_words.extents().insert(number, WindowMemory { start: memory, bytes });
        let needs = self.host.control.all_gather(&[u8::from(!direct)], deadline)?;
        if needs.iter().any(|needs| *needs != [0]) {
            let (rank, control) = (self.rank, self.host.control.shared());
            let service = self.host.windows.service.as_mut().ok_or_else(no_window)?;
            service.start(rank, control).map_err(|error| self.fail_window(error))?;
        }
        // No rank puts before all ranks can receive.
        self.host.control.all_gather(&[], deadline)?;
        Ok(WindowId(number))
    }

    /// Offers memory to the peers on this host, and waits until they have mapped it, for at most
    /// [`MAPPING_PATIENCE`].
    fn offer(&self, memory: &[(*const u8, usize)]) {
        let bell = self.host.endpoint.doorbell();
        bell.wait(0, 0, Some(MAPPING_PATIENCE), || {
            // Offers all of the memory, whatever the answer for the first.
            memory
                .iter()
                .filter(|(data, len)| !self.host.endpoint.share_writable(*data, *len))
                .count()
                == 0
        });
    }

    /// Records the parts of a new window. Whether this rank can write to all other parts itself.
    fn add_window(&mut self, infos: &[WindowInfo]) -> bool {
        let Self { rank, nranks, host: HostBackend { windows, endpoint, .. }, .. } = self;
        let mut direct = true;
        let mut parts = Vec::new();
        for (peer, info) in (0..).zip(infos) {
            let WindowInfo { bytes, segment, offset, signal_words, slot } = *info;
            let mut reach = None;
            if peer != *rank && segment != 0 && slot.is_some() {
                let service = windows.service.as_mut();
                let place = service.map(|service| &mut service.peer_words[peer as usize]);
                if let Some(place) = place {
                    let known = |number| endpoint.peer_segment(peer, number);
                    let words = place
                        .take()
                        .or_else(|| PeerSignalWords::new(known(signal_words)?, *nranks as usize));
                    let part = known(segment).filter(|part| {
                        let range = usize::try_from(offset).ok().zip(usize::try_from(bytes).ok());
                        range.is_some_and(|(offset, bytes)| part.address(offset, bytes).is_some())
                    });
                    reach = part.filter(|_| words.is_some()).map(|part| (part, offset as usize));
                    *place = words;
                }
            }
            direct &= peer == *rank || reach.is_some();
            parts.push(WindowPart { bytes, reach, slot });
        }
        windows.parts.insert(WindowId(windows.made + 1), parts);
        direct
    }

    /// Ends this rank's part of a window; its memory may then be freed. Other ranks must not put to
    /// it any more: a put that arrives all the same breaks the communicator and writes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such window.
    pub fn deregister_window(&mut self, window: WindowId) -> Result<(), Error> {
        let parts = self.host.windows.parts.remove(&window).ok_or_else(no_window)?;
        if let Some(service) = &self.host.windows.service {
            if let Some(slot) = parts[self.rank as usize].slot {
                service.signal_words.close_window(slot);
            }
            service.signal_words.extents().remove(&window.0);
        }
        Ok(())
    }

    /// Checks that `peer`'s part of the window has `bytes` bytes at `offset`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it has not, or there is no such rank or window.
    pub fn check_put(
        &self,
        peer: Rank,
        window: WindowId,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Error> {
        self.check_window_peer(peer)?;
        let parts = self.host.windows.parts.get(&window).ok_or_else(no_window)?;
        let size = parts[peer as usize].bytes;
        let end = (offset as u64).checked_add(bytes as u64);
        if end.is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            what: format!(
                "a put of {bytes} bytes at offset {offset}, to rank {peer}, whose part of the \
                 window has {size} bytes"
            ),
        })
    }

    /// Copies `data` to `peer`'s part of the window, from byte `offset` on, then signals the peer.
    /// Returns when `data` may be changed. The bytes are in the window when the peer has the
    /// signal.
    ///
    /// # Errors
    /// Those of [`check_put`](Self::check_put), harmless; a peer that is gone.
    pub fn put_slice<T: Element>(
        &mut self,
        data: &[T],
        peer: Rank,
        window: WindowId,
        offset: usize,
    ) -> Result<(), Error> {
        // SAFETY: the slice is borrowed for the call, so that nobody writes to it.
        unsafe { self.put(data.as_ptr().cast(), size_of_val(data), peer, window, offset) }
    }

    /// The same as [`put_slice`](Self::put_slice), for the `bytes` bytes at `from`.
    ///
    /// # Errors
    /// As for [`put_slice`](Self::put_slice).
    ///
    /// # Safety
    /// `from` is readable for `bytes` bytes, and nobody writes to it during the call.
    pub unsafe fn put(
        &mut self,
        from: *const u8,
        bytes: usize,
        peer: Rank,
        window: WindowId,
        offset: usize,
    ) -> Result<(), Error> {
        self.host.control.check_fork()?;
        self.unbroken()?;
        self.check_put(peer, window, offset, bytes)?;
        if peer == self.rank {
            let service = self.host.windows.service.as_ref().ok_or_else(no_window)?;
            let extents = service.signal_words.extents();
            let extent = extents.get(&window.0).ok_or_else(no_window)?;
            // SAFETY: the caller's promise; `check_put` compared with the size of this rank's part.
            unsafe { std::ptr::copy(from, extent.start.add(offset), bytes) };
            service.signal_words.add_signal(peer);
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let sent = match unsafe { self.put_directly(from, bytes, peer, window, offset) } {
            Ok(true) => self.send_signal(peer),
            // SAFETY: the caller's promise.
            Ok(false) => unsafe { self.send_pieces(from, bytes, peer, window, offset) },
            Err(error) => Err(error),
        };
        sent.map_err(|error| self.fail_window(error))
    }

    /// Copies into the peer's memory; false if this rank has not mapped it.
    ///
    /// # Safety
    /// As for [`put`](Self::put).
    unsafe fn put_directly(
        &mut self,
        from: *const u8,
        bytes: usize,
        peer: Rank,
        window: WindowId,
        offset: usize,
    ) -> Result<bool, Error> {
        let Self { rank, host: HostBackend { windows, endpoint, .. }, .. } = self;
        let service = windows.service.as_ref().ok_or_else(no_window)?;
        let part = windows.parts.get(&window).map(|parts| &parts[peer as usize]);
        let place = part.and_then(|part| part.reach.as_ref().zip(part.slot));
        let Some((((reach, start), slot), signal_words)) =
            place.zip(service.peer_words[peer as usize].as_ref())
        else {
            return Ok(false);
        };
        if let Some(error) = endpoint.aborted().or_else(|| endpoint.gone(peer)) {
            return Err(error.into());
        }
        if !signal_words.is_window_open(slot, window.0) {
            return Err(Error::InvalidUsage {
                what: format!(
                    "rank {rank} put to a window of rank {peer} that is not registered any more"
                ),
            });
        }
        let to = reach.address(start + offset, bytes);
        let to = to.ok_or_else(|| Error::internal("a window is shorter than it was"))?;
        // SAFETY: the caller's promise for `from`. `to` is mapped as long as `reach` lives, and its
        // owner has promised that it may be written to. They may overlap, if the peer is a rank of
        // this process, so this is no `copy_nonoverlapping`.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(true)
    }

    /// Sends a put as messages, of which the last signals the peer.
    ///
    /// # Safety
    /// As for [`put`](Self::put).
    unsafe fn send_pieces(
        &mut self,
        from: *const u8,
        bytes: usize,
        peer: Rank,
        window: WindowId,
        offset: usize,
    ) -> Result<(), Error> {
        let mut done = 0;
        loop {
            let piece = |capacity: usize| {
                let len = (bytes - done).min(capacity - HEADER_BYTES);
                let last = done + len == bytes;
                let offset = (offset + done) as u64;
                (WindowMessage { window: window.0, offset, signals: last }, len)
            };
            // SAFETY: the caller's promise; the rest of its memory begins at `done`.
            let (len, last) = unsafe { self.send_message(peer, from.wrapping_add(done), piece)? };
            done += len;
            if last {
                return Ok(());
            }
        }
    }

    /// Sends one message: the header and the number of bytes from `from` that `piece` chooses for
    /// the capacity of a slot. Returns that number, and whether the message signals.
    ///
    /// # Safety
    /// `from` is readable for the number of bytes that `piece` chooses, which with the header is at
    /// most the capacity.
    unsafe fn send_message(
        &mut self,
        peer: Rank,
        from: *const u8,
        piece: impl FnOnce(usize) -> (WindowMessage, usize),
    ) -> Result<(usize, bool), Error> {
        let HostBackend { windows, endpoint, spin_policy, control, .. } = &mut self.host;
        let service = windows.service.as_mut().ok_or_else(no_window)?;
        let outgoing = service.outgoing[peer as usize]
            .as_mut()
            .ok_or_else(|| Error::internal("no link for windows"))?;
        if let Some(error) = endpoint.gone(peer) {
            return Err(error.into());
        }
        let mut wait = WaitLoop::new(endpoint, *spin_policy, control);
        let slot = loop {
            match outgoing.slots.reserve()? {
                Some(slot) => break slot,
                None => wait.pause(|| endpoint.gone(peer), || Some(peer))?,
            }
        };
        wait.reset();
        let (message, len) = piece(slot.capacity);
        // SAFETY: the slot is this rank's until it is sent; the caller's promise for `from` and for
        // the room in the slot.
        unsafe {
            slot.data.cast::<[u8; HEADER_BYTES]>().write(message.encode());
            std::ptr::copy_nonoverlapping(from, slot.data.add(HEADER_BYTES), len);
        }
        outgoing.sent = outgoing.slots.send(HEADER_BYTES + len, WINDOW_TAG);
        Ok((len, message.signals))
    }

    /// Signals `peer`: by its signal words if it has applied all messages, which the signal must
    /// not overtake; else by a message.
    fn send_signal(&mut self, peer: Rank) -> Result<(), Error> {
        let Self { rank, host: HostBackend { windows, endpoint, .. }, .. } = self;
        let service = windows.service.as_mut().ok_or_else(no_window)?;
        let quiet = service.outgoing[peer as usize].as_mut().is_some_and(WindowSender::is_quiet);
        if let Some(signal_words) = service.peer_words[peer as usize].as_ref().filter(|_| quiet) {
            if let Some(error) = endpoint.aborted().or_else(|| endpoint.gone(peer)) {
                return Err(error.into());
            }
            signal_words.add_signal(*rank);
            endpoint.ring(peer);
            return Ok(());
        }
        let piece = |_| (WindowMessage { window: 0, offset: 0, signals: true }, 0);
        let nothing = std::ptr::NonNull::dangling().as_ptr();
        // SAFETY: the message has no bytes from `nothing`, and a slot has room for its header.
        unsafe { self.send_message(peer, nothing, piece) }.map(drop)
    }

    /// Signals `peer`, after all that this rank has put to it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if no window was ever registered or there is no such
    /// rank; a peer that is gone.
    pub fn signal(&mut self, peer: Rank) -> Result<(), Error> {
        self.host.control.check_fork()?;
        self.unbroken()?;
        self.check_window_peer(peer)?;
        if peer == self.rank {
            if let Some(service) = &self.host.windows.service {
                service.signal_words.add_signal(peer);
            }
            return Ok(());
        }
        self.send_signal(peer).map_err(|error| self.fail_window(error))
    }

    /// Waits for signals, as many as listed beside each rank, and consumes them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if no window was ever registered, if there is no such
    /// rank, and for more signals from this rank itself than it has sent, for which it would wait
    /// without end; a rank that is gone before it has sent its signals.
    pub fn wait_signals(&mut self, waits: &[(Rank, u64)]) -> Result<(), Error> {
        self.host.control.check_fork()?;
        self.unbroken()?;
        for &(peer, _) in waits {
            self.check_window_peer(peer)?;
        }
        for &(peer, count) in waits {
            self.catch(|comm| comm.wait_signals_of(peer, count)).map_err(|error| match error {
                Error::InvalidArgument { .. } => error,
                error => self.fail_window(error),
            })?;
        }
        Ok(())
    }

    fn wait_signals_of(&mut self, peer: Rank, count: u64) -> Result<(), Error> {
        let Self { rank, host, .. } = self;
        let HostBackend { windows, endpoint, spin_policy, control, .. } = host;
        let service = windows.service.as_mut().ok_or_else(no_window)?;
        let signal_words = Arc::clone(&service.signal_words);
        let consumed = service.consumed[peer as usize];
        let wanted = consumed + count;
        if peer == *rank && signal_words.signals(peer) < wanted {
            return Err(Error::InvalidArgument {
                what: format!(
                    "rank {peer} waits for {count} signals from itself and has sent {}: it would \
                     wait without end",
                    signal_words.signals(peer) - consumed
                ),
            });
        }
        let mut wait = WaitLoop::new(endpoint, *spin_policy, control);
        while signal_words.signals(peer) < wanted {
            let failed = || {
                // It has failed only if what it had sent, all of which is applied, is too little.
                let gone = service.ended(peer)?;
                (signal_words.signals(peer) < wanted).then_some(gone)
            };
            wait.pause(failed, || Some(peer))?;
        }
        wait.reset();
        service.consumed[peer as usize] = wanted;
        Ok(())
    }

    /// Records that a call failed. If this rank could not apply a message, that is the error, not
    /// the abort that followed from it.
    #[cold]
    fn fail_window(&mut self, error: Error) -> Error {
        let service = self.host.windows.service.as_ref();
        match service.and_then(|service| service.signal_words.failure().clone()) {
            Some(failure) => self.broken.get_or_insert(failure).clone(),
            None => self.fail(error),
        }
    }

    fn unbroken(&self) -> Result<(), Error> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Refuses windows in communicators with CUDA devices.
    fn check_windows(&self) -> Result<(), Error> {
        match self.device() {
            None if self.membership.host_rank.is_some() => Err(Error::InvalidUsage {
                what: String::from(
                    "windows, puts and signals in a communicator some of whose ranks are on CUDA \
                     devices; they need host memory on all ranks (MAYPOLE_DEVICE=host)",
                ),
            }),
            None => Ok(()),
            Some(device) => Err(Error::InvalidUsage {
                what: format!(
                    "windows, puts and signals in a communicator for CUDA device {device}; they \
                     need host memory (MAYPOLE_DEVICE=host)"
                ),
            }),
        }
    }

    fn check_window_peer(&self, peer: Rank) -> Result<(), Error> {
        self.check_windows()?;
        if peer >= self.nranks {
            return Err(Error::InvalidArgument {
                what: format!("peer {peer} in a communicator of {} ranks", self.nranks),
            });
        }
        if self.host.windows.service.is_none() {
            return Err(Error::InvalidArgument {
                what: "one-sided calls need a window; register one, on all ranks, first".into(),
            });
        }
        Ok(())
    }

    /// Connects to all ranks, for the first window.
    fn make_service(&mut self) -> Result<WindowService, Error> {
        let deadline = self.membership.link_deadline();
        let Self { rank, nranks, host, .. } = self;
        let HostBackend { endpoint, addresses, links, control, .. } = host;
        let (mut outgoing, mut incoming) = (Vec::new(), Vec::new());
        for peer in 0..*nranks {
            if peer == *rank {
                outgoing.push(None);
                continue;
            }
            links.connect(endpoint, addresses, peer, deadline, control)?;
            let (out, inc) = endpoint.open(peer, CHANNEL)?;
            outgoing.push(Some(WindowSender { slots: out.slots, sent: 0 }));
            incoming.push((peer, inc.slots));
        }
        WindowService::new(outgoing, incoming, &self.host.endpoint)
    }
}

fn no_window() -> Error {
    Error::InvalidArgument {
        what: "the window is not registered with this communicator, or not any more".into(),
    }
}
