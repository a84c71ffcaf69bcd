//! Vector collectives: their blocks differ in length between ranks.
//!
//! For all-gather and reduce-scatter all ranks know all lengths. The call runs a schedule of the
//! ordinary collective, with the chunks bound to the blocks as they are. For all-to-all, gather and
//! scatter a rank knows only the lengths of its own blocks. The call is a group of transfers, each
//! bound from local knowledge: every message carries a hash of the length that the sender expects,
//! so that a difference is an error.

use maypole_algorithms::Collective;
use maypole_reduce::Reduction;

use super::Communicator;
use crate::call::{Blocks, Call, Extents, Task, VectorCall};
use crate::call_signature::CallSignature;
use crate::element::Element;
use crate::error::Error;
use crate::transfer::Transfer;

/// How a vector call is run.
pub(super) enum VectorRun {
    /// As the ordinary collective, by the plan with this number.
    Planned(usize, Call),
    /// As a group of transfers.
    Transfers,
    /// Not at all: it has no elements.
    Nothing,
}

/// A copy within this rank: from where, to where, and how many bytes.
pub(super) type OwnBlock = (*const u8, *mut u8, usize);

impl Communicator {
    /// Gathers `send` of all ranks in `recv` of every rank: that of rank `r` becomes block `r`. All
    /// ranks pass the same counts; displacements may differ.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, for blocks that are not one per rank, that overlap or
    /// lie beyond the slice, and if `send` is not as long as block `rank`; else those of
    /// [`run_vector`](Self::run_vector).
    pub fn all_gather_v<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        blocks: Blocks<'_>,
    ) -> Result<(), Error> {
        let count = send.len();
        let sends = Blocks::one(&count);
        self.call_vector(Collective::AllGather, (send, sends), (recv, blocks), no_reduction())
    }

    /// The same as [`all_gather_v`](Self::all_gather_v) into `data`, whose block `rank` is the
    /// contribution.
    ///
    /// # Errors
    /// As for [`all_gather_v`](Self::all_gather_v).
    pub fn all_gather_v_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        blocks: Blocks<'_>,
    ) -> Result<(), Error> {
        let (count, own) = self.own_vector_block(blocks, data.len())?;
        let base = data.as_mut_ptr();
        let call = VectorCall {
            collective: Collective::AllGather,
            send: base.wrapping_add(own).cast_const().cast(),
            sends: Blocks::one(&count),
            recv: base.cast(),
            recvs: blocks,
            dtype: T::DTYPE,
            reduction: no_reduction(),
        };
        // SAFETY: the blocks lie within the slice, which is borrowed for the call, and overlap only
        // as the form in place allows.
        unsafe { self.run_vector(&call) }
    }

    /// Reduces the blocks of `send` of all ranks. Rank `r` gets block `r` of the result in `recv`.
    /// All ranks pass the same counts; displacements may differ.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, for blocks that are not one per rank or lie beyond the
    /// slice, and if `recv` is not as long as block `rank`; else those of
    /// [`run_vector`](Self::run_vector).
    pub fn reduce_scatter_v<T: Element>(
        &mut self,
        send: &[T],
        blocks: Blocks<'_>,
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let count = recv.len();
        let recvs = Blocks::one(&count);
        let collective = Collective::ReduceScatter;
        self.call_vector(collective, (send, blocks), (recv, recvs), reduction.into())
    }

    /// The same as [`reduce_scatter_v`](Self::reduce_scatter_v) of `data`, with the result in place
    /// of block `rank`. The other blocks do not change; none may overlap that one.
    ///
    /// # Errors
    /// As for [`reduce_scatter_v`](Self::reduce_scatter_v).
    pub fn reduce_scatter_v_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        blocks: Blocks<'_>,
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let (count, own) = self.own_vector_block(blocks, data.len())?;
        let base = data.as_mut_ptr();
        let call = VectorCall {
            collective: Collective::ReduceScatter,
            send: base.cast_const().cast(),
            sends: blocks,
            recv: base.wrapping_add(own).cast(),
            recvs: Blocks::one(&count),
            dtype: T::DTYPE,
            reduction: reduction.into(),
        };
        // SAFETY: the blocks lie within the slice, which is borrowed for the call, and overlap only
        // as the form in place allows.
        unsafe { self.run_vector(&call) }
    }

    /// Sends block `r` of `send` to rank `r`, which receives it as block `rank` of its `recv`. Each
    /// rank knows only its own blocks. What it sends to a rank must be as long as what that rank
    /// receives from it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, for blocks that are not one per rank, that overlap
    /// where they are received, or lie beyond the slices; else those of
    /// [`run_vector`](Self::run_vector).
    pub fn all_to_all_v<T: Element>(
        &mut self,
        send: &[T],
        sends: Blocks<'_>,
        recv: &mut [T],
        recvs: Blocks<'_>,
    ) -> Result<(), Error> {
        self.call_vector(Collective::AllToAll, (send, sends), (recv, recvs), no_reduction())
    }

    /// Gathers `send` of all ranks in `recv` of rank `root`: that of rank `r` becomes block `r`. On
    /// other ranks `recv` and `blocks` are ignored.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, for blocks that are not one
    /// per rank, that overlap or lie beyond the slice, and if `send` of the root is not as long as
    /// its block; else those of [`run_vector`](Self::run_vector).
    pub fn gather_v<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        blocks: Blocks<'_>,
        root: u32,
    ) -> Result<(), Error> {
        let (count, collective) = (send.len(), Collective::Gather { root });
        let blocks = if root == self.rank { blocks } else { Blocks::none() };
        self.call_vector(collective, (send, Blocks::one(&count)), (recv, blocks), no_reduction())
    }

    /// Sends block `r` of `send` of rank `root` to rank `r`, which receives it in `recv`. On other
    /// ranks `send` and `blocks` are ignored.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, for blocks that are not one
    /// per rank or lie beyond the slice, and if `recv` of the root is not as long as its block;
    /// else those of [`run_vector`](Self::run_vector).
    pub fn scatter_v<T: Element>(
        &mut self,
        send: &[T],
        blocks: Blocks<'_>,
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        let (count, collective) = (recv.len(), Collective::Scatter { root });
        let blocks = if root == self.rank { blocks } else { Blocks::none() };
        self.call_vector(collective, (send, blocks), (recv, Blocks::one(&count)), no_reduction())
    }

    /// Runs a vector collective; returns when its result is in the receive buffer. An all-gather or
    /// reduce-scatter without any elements returns at once; otherwise a rank without elements takes
    /// part like all others.
    ///
    /// # Errors
    /// Those of [`run`](Self::run). Counts that differ between ranks are mismatched calls, and the
    /// error names two ranks.
    ///
    /// # Safety
    /// The buffers are valid for their blocks. During the call nobody else writes to them or reads
    /// the blocks that are received. Where this rank has one block on a side, that is the memory of
    /// its own block on the other side or overlaps nothing; nothing else overlaps.
    pub unsafe fn run_vector(&mut self, call: &VectorCall<'_>) -> Result<(), Error> {
        self.host.control.check_fork()?;
        match self.plan_vector(call)? {
            // SAFETY: the caller's promise; the extents of the plan are the blocks of the call.
            VectorRun::Planned(number, call) => unsafe { self.run_plan(number, &call) },
            // SAFETY: the caller's promise.
            VectorRun::Transfers => unsafe { self.run_vector_transfers(call) },
            VectorRun::Nothing => Ok(()),
        }
    }

    /// Decides how `call` is run, and makes its plan if it needs one.
    pub(super) fn plan_vector(&mut self, call: &VectorCall<'_>) -> Result<VectorRun, Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        call.check(self.rank, self.nranks)?;
        let blocks = match call.collective {
            Collective::AllGather => call.recvs,
            Collective::ReduceScatter => call.sends,
            _ => return Ok(VectorRun::Transfers),
        };
        let task = Task {
            collective: call.collective,
            extents: Extents::Vector(blocks.iter().collect()),
            dtype: call.dtype,
            reduction: call.reduction,
            barrier: false,
        };
        let number = match self.plans.find_vector(&task) {
            Some(number) => number,
            None => match self.prepare(&task, |plans, plan| plans.insert_vector(&task, plan))? {
                Some(number) => number,
                None => return Ok(VectorRun::Nothing),
            },
        };
        let call = Call {
            collective: call.collective,
            send: call.send,
            recv: call.recv,
            count: task.extents.longest(),
            dtype: call.dtype,
            reduction: call.reduction,
        };
        Ok(VectorRun::Planned(number, call))
    }

    /// Runs an all-to-all, gather or scatter: one transfer for each pair of ranks that exchanges a
    /// block.
    ///
    /// # Safety
    /// As for [`run_vector`](Self::run_vector).
    unsafe fn run_vector_transfers(&mut self, call: &VectorCall<'_>) -> Result<(), Error> {
        if self.device.is_some() {
            // SAFETY: the caller's promise.
            return unsafe { self.run_vector_on_device(call) };
        }
        let mut transfers = self.host.spare_transfers.take();
        let own = self.vector_transfers(call, &mut transfers);
        if let Some((from, to, bytes)) = own {
            // SAFETY: both blocks are valid by the caller's promise, and of the same length, which
            // was checked. They may be the same memory.
            unsafe { std::ptr::copy(from, to, bytes) };
        }
        let signature = CallSignature::of_unknown_lengths(call.collective, call.dtype);
        self.host.control.begin_call(signature);
        let (hash, history) = (signature.extend(0) as u32, self.host.control.history());
        // SAFETY: the caller's promise.
        let result =
            self.catch(|comm| unsafe { comm.exchange_with_peers(&transfers, hash, history) });
        self.host.spare_transfers.keep(transfers);
        match result {
            Ok(()) => {
                self.host.control.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// Adds the transfers of an all-to-all, gather or scatter with other ranks to `transfers`;
    /// returns the copy of this rank's own block. Transfers of no bytes are among them, so that
    /// both ranks notice if they differ.
    pub(super) fn vector_transfers(
        &self,
        call: &VectorCall<'_>,
        transfers: &mut Vec<Transfer>,
    ) -> Option<OwnBlock> {
        let size = call.dtype.size();
        let VectorCall { collective, send, sends, recv, recvs, .. } = *call;
        let (own, ranks) = (self.rank as usize, 0..self.nranks);
        // The other ranks of the blocks, in the order of the blocks.
        let (to, from) = match collective {
            Collective::Gather { root } => (root..root + 1, ranks),
            Collective::Scatter { root } => (ranks, root..root + 1),
            _ => (ranks.clone(), ranks),
        };
        for (peer, extent) in to.zip(sends.iter()).filter(|(peer, _)| *peer != self.rank) {
            let data = send.wrapping_add(extent.start * size);
            transfers.push(Transfer::Send { data, bytes: extent.len * size, peer });
        }
        for (peer, extent) in from.zip(recvs.iter()).filter(|(peer, _)| *peer != self.rank) {
            let data = recv.wrapping_add(extent.start * size);
            transfers.push(Transfer::Receive { data, bytes: extent.len * size, peer });
        }
        let at = |blocks: Blocks<'_>| match blocks.counts.len() {
            0 => None,
            // On the root of a gather or scatter the one block is its own.
            1 => Some(blocks.extent(0)),
            _ => Some(blocks.extent(own)),
        };
        let has_own = collective.root().is_none_or(|root| root == self.rank);
        match (has_own, at(sends), at(recvs)) {
            (true, Some(from), Some(to)) => Some((
                send.wrapping_add(from.start * size),
                recv.wrapping_add(to.start * size),
                from.len * size,
            )),
            _ => None,
        }
    }

    /// Runs a vector collective on slices, after checking that the blocks lie within them.
    fn call_vector<T: Element>(
        &mut self,
        collective: Collective,
        (send, sends): (&[T], Blocks<'_>),
        (recv, recvs): (&mut [T], Blocks<'_>),
        reduction: Reduction,
    ) -> Result<(), Error> {
        check_within(sends, send.len(), "send")?;
        check_within(recvs, recv.len(), "receive")?;
        let call = VectorCall {
            collective,
            send: send.as_ptr().cast(),
            sends,
            recv: recv.as_mut_ptr().cast(),
            recvs,
            dtype: T::DTYPE,
            reduction,
        };
        // SAFETY: the blocks lie within the slices, which are borrowed for the call and of a type
        // without invalid values.
        unsafe { self.run_vector(&call) }
    }

    /// The length and the first element of this rank's block. All blocks must lie within `len`
    /// elements.
    fn own_vector_block(&self, blocks: Blocks<'_>, len: usize) -> Result<(usize, usize), Error> {
        check_within(blocks, len, "all")?;
        let own = self.rank as usize;
        match (blocks.counts.get(own), blocks.displacements.get(own)) {
            (Some(&count), Some(&start)) => Ok((count, start)),
            _ => Err(Error::InvalidArgument {
                what: format!("there is no block of rank {own} in {} blocks", blocks.counts.len()),
            }),
        }
    }
}

/// Checks that the blocks of the `side` of a call lie within `len` elements.
fn check_within(blocks: Blocks<'_>, len: usize, side: &str) -> Result<(), Error> {
    if blocks.end() > len {
        return Err(Error::InvalidArgument {
            what: format!(
                "{side} blocks that end at element {}, in a slice of {len} elements",
                blocks.end()
            ),
        });
    }
    Ok(())
}

/// The reduction of calls that do not reduce, where it is ignored.
fn no_reduction() -> Reduction {
    maypole_algorithms::RedOp::Max.into()
}
