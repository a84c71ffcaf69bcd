//! Windows: registered, written to, signalled.

use std::sync::atomic::Ordering;

use maypole_algorithms::Rank;
use maypole_transport::error::LinkError;

use super::Communicator;
use crate::engine::wait::Wait;
use crate::error::Error;
use crate::window::{CHANNEL, Extent, HEADER, Message, Service, TAG, WindowId};

impl Communicator {
    /// Makes `bytes` bytes at `memory` this rank's part of a new window. Every rank calls it, in the same order with other windows; parts may
    /// differ in length. Returns when all have.
    ///
    /// # Errors
    /// A rank that is gone or does not come; the communicator is then broken, except where the memory was refused.
    ///
    /// # Safety
    /// The memory is valid for writes until the window is [deregistered](Self::deregister_window) or the communicator dropped. Other ranks
    /// write to it at any time: what they write is to be read only after their signal.
    pub unsafe fn register_window(
        &mut self,
        memory: *mut u8,
        bytes: usize,
    ) -> Result<WindowId, Error> {
        if memory.is_null() || bytes == 0 {
            return Err(Error::InvalidArgument { what: "a window of no memory".into() });
        }
        self.whole()?;
        self.check_windows()?;
        let deadline = self.link_deadline();
        let all = self.watch.all_gather(&(bytes as u64).to_le_bytes(), deadline)?;
        let size = |bytes: &Vec<u8>| Some(u64::from_le_bytes(bytes[..].try_into().ok()?));
        let sizes = all.iter().map(size).collect::<Option<Vec<_>>>();
        let sizes = sizes.ok_or_else(|| Error::internal("the sizes of a window are unreadable"))?;
        if self.windows.service.is_none() {
            let service = self.start_service().map_err(|error| self.fail_window(error))?;
            self.windows.service = Some(service);
        }
        self.windows.made += 1;
        let id = WindowId(self.windows.made);
        self.windows.sizes.insert(id, sizes);
        if let Some(service) = &self.windows.service {
            let extent = Extent { start: memory, bytes };
            service.board.extents().insert(id.0, extent);
        }
        // Nobody puts before everybody can take.
        self.watch.all_gather(&[], deadline)?;
        Ok(id)
    }

    /// Takes this rank's memory back: from now on it may be freed. Other ranks must not put to it any more; a put that comes all the same
    /// breaks the communicator and writes nothing.
    ///
    /// # Errors
    /// If there is no such window.
    pub fn deregister_window(&mut self, window: WindowId) -> Result<(), Error> {
        if self.windows.sizes.remove(&window).is_none() {
            return Err(no_window());
        }
        if let Some(service) = &self.windows.service {
            service.board.extents().remove(&window.0);
        }
        Ok(())
    }

    /// Whether a put of `bytes` bytes at `offset` of `peer`'s part of the window is one that can be.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if not.
    pub fn check_put(
        &self,
        peer: Rank,
        window: WindowId,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Error> {
        self.check_window_peer(peer)?;
        let sizes = self.windows.sizes.get(&window).ok_or_else(no_window)?;
        let size = sizes[peer as usize];
        let end = (offset as u64).checked_add(bytes as u64);
        if end.is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            what: format!(
                "a put of {bytes} bytes at offset {offset}, to rank {peer}, whose part of the window has {size} bytes"
            ),
        })
    }

    /// Copies `bytes` bytes at `from` to `offset` of `peer`'s part of the window, then signals it. Returns when `from` may be used again; the bytes
    /// are there when the peer has the signal.
    ///
    /// # Errors
    /// As [`check_put`](Self::check_put), harmlessly; a peer that is gone.
    ///
    /// # Safety
    /// `from` is readable for `bytes` bytes, and not written to meanwhile.
    pub unsafe fn put(
        &mut self,
        from: *const u8,
        bytes: usize,
        peer: Rank,
        window: WindowId,
        offset: usize,
    ) -> Result<(), Error> {
        self.watch.check_fork()?;
        self.unbroken()?;
        self.check_put(peer, window, offset, bytes)?;
        if peer == self.rank {
            let service = self.windows.service.as_ref().ok_or_else(no_window)?;
            let extents = service.board.extents();
            let extent = extents.get(&window.0).ok_or_else(no_window)?;
            // SAFETY: the caller's promise; `check_put` has looked at this rank's own size.
            unsafe { std::ptr::copy(from, extent.start.add(offset), bytes) };
            service.board.add_signal(peer);
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let sent = unsafe { self.send_pieces(from, bytes, peer, window, offset) };
        sent.map_err(|error| self.fail_window(error))
    }

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
                let len = (bytes - done).min(capacity - HEADER);
                let last = done + len == bytes;
                let offset = (offset + done) as u64;
                (Message { window: window.0, offset, signals: last }, len)
            };
            // SAFETY: the caller's promise: what is left begins at `done`.
            let (len, last) = unsafe { self.send_message(peer, from.wrapping_add(done), piece)? };
            done += len;
            if last {
                return Ok(());
            }
        }
    }

    /// Sends what `piece` makes of a slot's capacity; how many bytes, and whether that is all.
    unsafe fn send_message(
        &mut self,
        peer: Rank,
        from: *const u8,
        piece: impl FnOnce(usize) -> (Message, usize),
    ) -> Result<(usize, bool), Error> {
        let Self { windows, endpoint, patience, watch, .. } = self;
        let service = windows.service.as_mut().ok_or_else(no_window)?;
        let slots = service.outgoing[peer as usize]
            .as_mut()
            .ok_or_else(|| Error::internal("no link for windows"))?;
        if let Some(error) = endpoint.gone(peer) {
            return Err(error.into());
        }
        let mut wait = Wait::new(endpoint, *patience, watch);
        let slot = loop {
            match slots.reserve()? {
                Some(slot) => break slot,
                None => wait.idle(|| endpoint.gone(peer), || Some(peer))?,
            }
        };
        wait.over();
        let (message, len) = piece(slot.capacity);
        // SAFETY: the slot is ours until it is sent, and `piece` leaves room for the header; the caller's promise for `from`.
        unsafe {
            slot.data.cast::<[u8; HEADER]>().write(message.encode());
            std::ptr::copy_nonoverlapping(from, slot.data.add(HEADER), len);
        }
        slots.send(HEADER + len, TAG);
        Ok((len, message.signals))
    }

    /// Signals `peer`, after all that this rank has put to it.
    ///
    /// # Errors
    /// No window was ever registered, or no such rank; a peer that is gone.
    pub fn signal(&mut self, peer: Rank) -> Result<(), Error> {
        self.watch.check_fork()?;
        self.unbroken()?;
        self.check_window_peer(peer)?;
        if peer == self.rank {
            if let Some(service) = &self.windows.service {
                service.board.add_signal(peer);
            }
            return Ok(());
        }
        let piece = |_| (Message { window: 0, offset: 0, signals: true }, 0);
        // SAFETY: of no bytes.
        let sent =
            unsafe { self.send_message(peer, std::ptr::NonNull::dangling().as_ptr(), piece) };
        sent.map(drop).map_err(|error| self.fail_window(error))
    }

    /// Waits for that many signals of each rank, and consumes them.
    ///
    /// # Errors
    /// No window was ever registered, or no such rank; more signals of this rank itself than it has sent, for which it would
    /// wait for ever; a rank that is gone before it has sent them.
    pub fn wait_signals(&mut self, waits: &[(Rank, u64)]) -> Result<(), Error> {
        self.watch.check_fork()?;
        self.unbroken()?;
        for &(peer, _) in waits {
            self.check_window_peer(peer)?;
        }
        for &(peer, count) in waits {
            self.wait_signals_of(peer, count).map_err(|error| match error {
                Error::InvalidArgument { .. } => error,
                error => self.fail_window(error),
            })?;
        }
        Ok(())
    }

    fn wait_signals_of(&mut self, peer: Rank, count: u64) -> Result<(), Error> {
        let Self { rank, windows, endpoint, patience, watch, .. } = self;
        let service = windows.service.as_mut().ok_or_else(no_window)?;
        let board = &service.board;
        let consumed = &mut service.consumed[peer as usize];
        let wanted = *consumed + count;
        if peer == *rank && board.signals(peer) < wanted {
            return Err(Error::InvalidArgument {
                what: format!(
                    "rank {peer} waits for {count} signals of itself and has sent {}: it would wait for ever",
                    board.signals(peer) - *consumed
                ),
            });
        }
        let mut wait = Wait::new(endpoint, *patience, watch);
        while board.signals(peer) < wanted {
            let failed = || {
                // Only when all that it had sent has been applied.
                let closed = board.closed[peer as usize].load(Ordering::Acquire) != 0;
                let in_vain = closed && board.signals(peer) < wanted;
                in_vain.then(|| endpoint.gone(peer).unwrap_or(LinkError::PeerLeft { peer }))
            };
            wait.idle(failed, || Some(peer))?;
        }
        wait.over();
        *consumed = wanted;
        Ok(())
    }

    /// A call failed. Where the reason is a message that this rank's thread could not apply, it is told before the abort that it led to.
    #[cold]
    fn fail_window(&mut self, error: Error) -> Error {
        let service = self.windows.service.as_ref();
        match service.and_then(|service| service.board.failure().clone()) {
            Some(failure) => self.broken.get_or_insert(failure).clone(),
            None => self.fail(error),
        }
    }

    fn unbroken(&self) -> Result<(), Error> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Puts and signals are the host's.
    fn check_windows(&self) -> Result<(), Error> {
        match self.device() {
            None if self.host_rank.is_some() => Err(Error::InvalidUsage {
                what: String::from(
                    "windows, puts and signals in a communicator some of whose ranks are on CUDA devices; they are for communicators of host memory alone (MAYPOLE_DEVICE=host on all ranks)",
                ),
            }),
            None => Ok(()),
            Some(device) => Err(Error::InvalidUsage {
                what: format!(
                    "windows, puts and signals in a communicator of CUDA device {device}; they are for communicators of host memory (MAYPOLE_DEVICE=host)"
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
        if self.windows.service.is_none() {
            return Err(Error::InvalidArgument {
                what: "one-sided calls need a window; register one, on all ranks, first".into(),
            });
        }
        Ok(())
    }

    /// Connects to all ranks and starts the thread.
    fn start_service(&mut self) -> Result<Service, Error> {
        let deadline = self.link_deadline();
        let Self { rank, nranks, endpoint, addresses, links, watch, .. } = self;
        let (mut outgoing, mut incoming) = (Vec::new(), Vec::new());
        for peer in 0..*nranks {
            if peer == *rank {
                outgoing.push(None);
                continue;
            }
            links.connect(endpoint, addresses, peer, deadline, watch)?;
            let (out, inc) = endpoint.open(peer, CHANNEL)?;
            outgoing.push(Some(out.slots));
            incoming.push((peer, inc.slots));
        }
        let (rank, abort) = (*rank, self.abort_handle());
        Service::start(rank, outgoing, incoming, &self.endpoint, abort)
    }
}

fn no_window() -> Error {
    Error::InvalidArgument {
        what: "the window is not registered with this communicator, or not any more".into(),
    }
}
