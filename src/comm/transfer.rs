//! Sends and receives, alone and in groups.

use maypole_algorithms::{DType, Rank, RedOp};
use maypole_reduce::FoldKernel;
use maypole_transport::ll::LL_CAPACITY;

use super::Communicator;
use super::backend::HostBackend;
use crate::channels;
use crate::element::Element;
use crate::engine::CallBuffers;
use crate::engine::interpreter::Interpreter;
use crate::engine::ll_transfer::LlTransfers;
use crate::engine::scratch::SendCopy;
use crate::engine::wait::WaitLoop;
use crate::error::Error;
use crate::plan::NON_TEMPORAL_BYTES;
use crate::plan::transfers::bind_transfers;
use crate::transfer::{self, Transfer};

impl Communicator {
    /// Sends `data` to `peer`, which receives it with [`recv`](Self::recv) into as many elements.
    /// Returns when `data` may be changed. Two ranks that send to each other must use
    /// [`send_recv`](Self::send_recv) or a [`group`](Self::group): with `send` each would wait for
    /// the other to receive.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange). [`Error::InvalidUsage`], harmless, for this rank as
    /// its own peer.
    pub fn send<T: Element>(&mut self, data: &[T], peer: u32) -> Result<(), Error> {
        let transfer =
            Transfer::Send { data: data.as_ptr().cast(), bytes: size_of_val(data), peer };
        // SAFETY: the slice is borrowed for the call.
        unsafe { self.exchange(&[transfer]) }
    }

    /// Receives into `data` what `peer` sends with [`send`](Self::send), exactly as many elements.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange). [`Error::InvalidUsage`], harmless, for this rank as
    /// its own peer.
    pub fn recv<T: Element>(&mut self, data: &mut [T], peer: u32) -> Result<(), Error> {
        let bytes = size_of_val(data);
        let transfer = Transfer::Receive { data: data.as_mut_ptr().cast(), bytes, peer };
        // SAFETY: the slice is borrowed for the call, and its type has no invalid values.
        unsafe { self.exchange(&[transfer]) }
    }

    /// Sends and receives, all at once. Returns when all transfers are done, in whatever order they
    /// and their partners on the other ranks are listed. Transfers between two ranks are matched in
    /// their order. A transfer to this rank itself needs its partner in the same list.
    /// [`group`](Self::group) is the safe form.
    ///
    /// # Errors
    /// A rank that does not exist, or a transfer to this rank without a partner (both harmless); a
    /// partner of another length; a dead or aborted peer.
    ///
    /// # Safety
    /// The memory of each transfer is valid for its length. During the call nobody else writes to
    /// it or reads what is received, and no received range overlaps another received range. Where
    /// one overlaps a range that is sent, what is sent is the content before the call on host
    /// memory, and undefined on a device.
    pub unsafe fn exchange(&mut self, transfers: &[Transfer]) -> Result<(), Error> {
        if self.device.is_some() {
            // SAFETY: the caller's promise.
            return self.catch(|comm| unsafe { comm.exchange_on_device(transfers) });
        }
        self.host.control.check_fork()?;
        self.check_transfers(transfers)?;
        let copied;
        let own = transfer::own_copies(transfers, self.rank)?;
        let (transfers, own) = if overwrites_sent(transfers) {
            // SAFETY: the caller's promise.
            let result = unsafe { with_copies(transfers, &mut self.host.send_copy) };
            copied = result.map_err(|error| self.fail(error))?;
            (&*copied, transfer::own_copies(&copied, self.rank)?)
        } else {
            (transfers, own)
        };
        for (from, to, bytes) in own {
            // SAFETY: the caller's promise; each send is as long as its receive.
            unsafe { std::ptr::copy(from, to, bytes) };
        }
        // Transfers are not calls of all ranks, so they carry no hash of one.
        // SAFETY: the caller's promise.
        self.catch(|comm| unsafe { comm.exchange_with_peers(transfers, 0, 0) })
            .map_err(|e| self.fail(e))
    }

    /// Fails if the communicator is broken, or if a transfer has a peer that does not exist.
    #[inline]
    pub(super) fn check_transfers(&self, transfers: &[Transfer]) -> Result<(), Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if let Some(bad) = transfers.iter().find(|t| t.peer() >= self.nranks) {
            return Err(Error::InvalidArgument {
                what: format!("peer {} in a communicator of {} ranks", bad.peer(), self.nranks),
            });
        }
        Ok(())
    }

    /// Runs those transfers that are with other ranks. `call` and `history` are the hashes of the
    /// vector call that they are a part of and of the calls before it; 0 for sends and receives.
    ///
    /// # Safety
    /// As for [`exchange`](Self::exchange).
    pub(super) unsafe fn exchange_with_peers(
        &mut self,
        transfers: &[Transfer],
        call: u32,
        history: u32,
    ) -> Result<(), Error> {
        let small = self.open_links_of(transfers)?;
        let HostBackend {
            endpoint,
            links,
            control,
            spin_policy,
            scratch,
            isa,
            pending_transfers,
            ..
        } = &mut self.host;
        if small {
            let mut execution = LlTransfers {
                transfers,
                rank: self.rank,
                tag: call ^ history,
                links,
                pending: pending_transfers,
                endpoint,
                spin_policy: *spin_policy,
                watch: control,
            };
            // SAFETY: the caller's promise.
            return unsafe { execution.run() };
        }
        let program = bind_transfers(transfers, self.rank, self.tuner.slot_bytes, call, links)?;
        let peers = transfers.iter().filter(|transfer| transfer.peer() != self.rank);
        let mut interpreter = Interpreter {
            program: &program,
            // The extents of the program are addresses.
            buffers: CallBuffers { send: std::ptr::null(), recv: std::ptr::null_mut() },
            kernel: FoldKernel::select(DType::Uint8, RedOp::Max.into(), self.nranks, *isa),
            size: 1,
            scaled: false,
            non_temporal: peers.map(Transfer::bytes).sum::<usize>() >= NON_TEMPORAL_BYTES,
            history,
            links,
            scratch,
        };
        // SAFETY: the caller's promise.
        unsafe { interpreter.run(WaitLoop::new(endpoint, *spin_policy, control)) }
    }

    /// Opens the links of the transfers, as far as they are not open. Returns whether all transfers
    /// travel as LL messages.
    #[inline]
    fn open_links_of(&mut self, transfers: &[Transfer]) -> Result<bool, Error> {
        let mut small = true;
        for transfer in transfers {
            let peer = transfer.peer();
            if peer == self.rank {
                continue;
            }
            let ll = match self.host.links.transfers_with(peer) {
                Some(link) => link.ll,
                None => self.open_transfer_link(peer)?,
            };
            small &= ll && transfer.bytes() <= LL_CAPACITY;
        }
        Ok(small)
    }

    /// Opens the link for transfers with `peer`; returns whether it carries LL messages.
    #[cold]
    fn open_transfer_link(&mut self, peer: Rank) -> Result<bool, Error> {
        let deadline = self.membership.link_deadline();
        let HostBackend { endpoint, addresses, links, control, .. } = &mut self.host;
        let link = links.open(endpoint, addresses, peer, channels::TRANSFERS, deadline, control)?;
        links.use_for_transfers(peer, link, self.tuner.transfers_by_ll());
        Ok(links.transfers_with(peer).is_some_and(|link| link.ll))
    }
}

/// Whether a received range overlaps one that is sent.
fn overwrites_sent(transfers: &[Transfer]) -> bool {
    let sends = || {
        transfers.iter().filter_map(|transfer| match *transfer {
            Transfer::Send { data, bytes, .. } if bytes > 0 => Some((data.addr(), bytes)),
            _ => None,
        })
    };
    let receives = || {
        transfers.iter().filter_map(|transfer| match *transfer {
            Transfer::Receive { data, bytes, .. } if bytes > 0 => Some((data.addr(), bytes)),
            _ => None,
        })
    };
    // Nearly always the sends and the receives are in two buffers, which is seen at their ends.
    let start = |range: (usize, usize)| range.0;
    let end = |range: (usize, usize)| range.0 + range.1;
    let apart = sends().map(end).max() <= receives().map(start).min()
        || receives().map(end).max() <= sends().map(start).min();
    let overlap = |a, b| start(a) < end(b) && start(b) < end(a);
    !apart && sends().any(|sent| receives().any(|received| overlap(sent, received)))
}

/// The transfers, with sends from copies.
///
/// # Errors
/// The process has no memory left.
///
/// # Safety
/// The memory of the sends is valid for their lengths.
unsafe fn with_copies(transfers: &[Transfer], copy: &mut SendCopy) -> Result<Vec<Transfer>, Error> {
    let sends = transfers.iter().filter_map(|transfer| match *transfer {
        Transfer::Send { data, bytes, .. } => Some((data, bytes)),
        Transfer::Receive { .. } => None,
    });
    // SAFETY: the caller's promise.
    let mut next = unsafe { copy.of(sends)? };
    let copied = transfers.iter().map(|transfer| match *transfer {
        Transfer::Send { bytes, peer, .. } => {
            let data = next;
            next = next.wrapping_add(bytes);
            Transfer::Send { data, bytes, peer }
        }
        receive => receive,
    });
    Ok(copied.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_of_a_send_and_a_receive_is_noticed() {
        let mut memory = [0u8; 16];
        let base = memory.as_mut_ptr();
        let send = |at: usize, bytes| {
            let data = base.wrapping_add(at).cast_const();
            Transfer::Send { data, bytes, peer: 1 }
        };
        let recv = |at: usize, bytes| {
            let data = base.wrapping_add(at);
            Transfer::Receive { data, bytes, peer: 1 }
        };
        for (transfers, overlap) in [
            (vec![], false),
            (vec![send(0, 8)], false),
            (vec![recv(0, 8), recv(8, 8)], false),
            (vec![send(0, 8), recv(8, 8)], false),
            (vec![send(8, 8), recv(0, 8)], false),
            (vec![send(0, 8), recv(0, 8)], true),
            (vec![send(0, 9), recv(8, 8)], true),
            (vec![send(4, 4), recv(0, 2), recv(8, 2)], false),
            (vec![send(4, 4), recv(0, 2), recv(7, 2)], true),
            // No bytes, no overlap.
            (vec![send(0, 0), recv(0, 8)], false),
        ] {
            assert_eq!(overwrites_sent(&transfers), overlap, "{transfers:?}");
        }
    }
}
