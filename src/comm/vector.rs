//! Collectives whose blocks differ in length from rank to rank: the V forms.
//!
//! Where all ranks know all lengths (all-gather, reduce-scatter), the call runs a schedule of its even form, with the chunks bound to
//! the blocks as they are. Where a rank knows only its own (all-to-all, gather, scatter), it is a group of transfers, each bound from
//! local knowledge: every message carries a hash of how long both ends think it is.

use maypole_algorithms::Collective;

use super::Communicator;
use crate::call::{Blocks, Call, Extents, Task, VectorCall};
use crate::call_signature::CallSignature;
use crate::element::Element;
use crate::error::Error;
use crate::reduce::Reduction;
use crate::transfer::Transfer;

/// How an uneven call is run.
pub(super) enum VectorRun {
    /// As the even call, by this plan.
    Planned(usize, Call),
    /// As a group of transfers.
    Pairs,
    /// There is nothing to do.
    Nothing,
}

/// From where to where a rank's own block goes, and how many bytes it has.
pub(super) type OwnBlock = (*const u8, *mut u8, usize);

impl Communicator {
    /// Every rank gets `send` of all ranks in `recv`: that of rank `r` as block `r`. All ranks give the same counts; displacements
    /// are their own affair.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for blocks that are not one per rank, overlap or lie beyond the slice, and if `send` is not as long
    /// as block `rank`; else what [`run_vector`](Self::run_vector) returns.
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

    /// As [`all_gather_v`](Self::all_gather_v) into `data`, whose block `rank` is the contribution.
    ///
    /// # Errors
    /// As [`all_gather_v`](Self::all_gather_v).
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
        // SAFETY: the blocks lie within the slice, which is borrowed for the call; it is in place.
        unsafe { self.run_vector(&call) }
    }

    /// Reduces the blocks of `send` of all ranks; rank `r` gets block `r` of the result in `recv`. All ranks give the same counts;
    /// displacements are their own affair.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for blocks that are not one per rank or lie beyond the slice, and if `recv` is not as long as
    /// block `rank`; else what [`run_vector`](Self::run_vector) returns.
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

    /// As [`reduce_scatter_v`](Self::reduce_scatter_v) of `data`, with the result in place of block `rank` of it. The other blocks
    /// are as they were; no block may overlap that one.
    ///
    /// # Errors
    /// As [`reduce_scatter_v`](Self::reduce_scatter_v).
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
        // SAFETY: the blocks lie within the slice, which is borrowed for the call; it is in place.
        unsafe { self.run_vector(&call) }
    }

    /// Sends block `r` of `send` to rank `r`, which gets it as block `rank` of its `recv`. Each rank knows only its own blocks; what
    /// it sends to a rank must be as long as what that rank receives from it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for blocks that are not one per rank, overlap where they are received, or lie beyond the slices;
    /// else what [`run_vector`](Self::run_vector) returns.
    pub fn all_to_all_v<T: Element>(
        &mut self,
        send: &[T],
        sends: Blocks<'_>,
        recv: &mut [T],
        recvs: Blocks<'_>,
    ) -> Result<(), Error> {
        self.call_vector(Collective::AllToAll, (send, sends), (recv, recvs), no_reduction())
    }

    /// Rank `root` gets `send` of rank `r` as block `r` of its `recv`. On other ranks `recv` and `blocks` are not looked at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, for blocks that are not one per rank, overlap or lie beyond the slice, and
    /// if `send` of the root is not as long as its block; else what [`run_vector`](Self::run_vector) returns.
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

    /// Rank `r` gets block `r` of `send` of rank `root` in `recv`. On other ranks `send` and `blocks` are not looked at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, for blocks that are not one per rank or lie beyond the slice, and if
    /// `recv` of the root is not as long as its block; else what [`run_vector`](Self::run_vector) returns.
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

    /// Runs a collective call of uneven blocks; returns when its result is there. An all-gather or reduce-scatter of no elements at all
    /// does nothing; else a rank without elements takes part like any other.
    ///
    /// # Errors
    /// What [`run`](Self::run) returns; counts on which ranks do not agree are mismatched calls, and the error names two ranks.
    ///
    /// # Safety
    /// The buffers are valid for their blocks, and nobody else writes them, or reads the blocks that are received, during the
    /// call. The rank's one block is the memory of its own block on the other side, or overlaps nothing; nothing else overlaps.
    pub unsafe fn run_vector(&mut self, call: &VectorCall<'_>) -> Result<(), Error> {
        self.watch.check_fork()?;
        match self.plan_vector(call)? {
            // SAFETY: the caller's promise; the plan's extents are the call's blocks.
            VectorRun::Planned(number, call) => unsafe { self.run_plan(number, &call) },
            // SAFETY: the caller's promise.
            VectorRun::Pairs => unsafe { self.run_pairs(call) },
            VectorRun::Nothing => Ok(()),
        }
    }

    /// How `call` is run.
    pub(super) fn plan_vector(&mut self, call: &VectorCall<'_>) -> Result<VectorRun, Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        call.check(self.rank, self.nranks)?;
        let blocks = match call.collective {
            Collective::AllGather => call.recvs,
            Collective::ReduceScatter => call.sends,
            _ => return Ok(VectorRun::Pairs),
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

    /// All-to-all, gather and scatter: a transfer for each pair of ranks that has one.
    unsafe fn run_pairs(&mut self, call: &VectorCall<'_>) -> Result<(), Error> {
        if self.device.is_some() {
            // SAFETY: the caller's promise.
            return unsafe { self.run_pairs_on_device(call) };
        }
        let (transfers, own) = self.pairs(call);
        if let Some((from, to, bytes)) = own {
            // SAFETY: both blocks are valid by the caller's promise and of the same length, which was checked; they may be the same
            // memory.
            unsafe { std::ptr::copy(from, to, bytes) };
        }
        let signature = CallSignature::of_unknown_lengths(call.collective, call.dtype);
        self.watch.begin_call(signature);
        let (hash, history) = (signature.extend(0) as u32, self.watch.history());
        // SAFETY: the caller's promise.
        match unsafe { self.exchange_with_peers(&transfers, hash, history) } {
            Ok(()) => {
                self.watch.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// The transfers with other ranks of an all-to-all, gather or scatter, also those of no bytes, so that both ranks are told if they do not
    /// agree; and the own block, from where to where and how many bytes.
    pub(super) fn pairs(&self, call: &VectorCall<'_>) -> (Vec<Transfer>, Option<OwnBlock>) {
        let size = call.dtype.size();
        let VectorCall { collective, send, sends, recv, recvs, .. } = *call;
        let (own, ranks) = (self.rank as usize, 0..self.nranks);
        // The other ranks of each block, in the order of the blocks.
        let (to, from) = match collective {
            Collective::Gather { root } => (root..root + 1, ranks),
            Collective::Scatter { root } => (ranks, root..root + 1),
            _ => (ranks.clone(), ranks),
        };
        let mut transfers = Vec::new();
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
            // One block, which is the own one on the root of a gather or scatter.
            1 => Some(blocks.extent(0)),
            _ => Some(blocks.extent(own)),
        };
        let has_own = collective.root().is_none_or(|root| root == self.rank);
        let own = match (has_own, at(sends), at(recvs)) {
            (true, Some(from), Some(to)) => Some((
                send.wrapping_add(from.start * size),
                recv.wrapping_add(to.start * size),
                from.len * size,
            )),
            _ => None,
        };
        (transfers, own)
    }

    fn call_vector<T: Element>(
        &mut self,
        collective: Collective,
        (send, sends): (&[T], Blocks<'_>),
        (recv, recvs): (&mut [T], Blocks<'_>),
        reduction: Reduction,
    ) -> Result<(), Error> {
        within(sends, send.len(), "send")?;
        within(recvs, recv.len(), "receive")?;
        let call = VectorCall {
            collective,
            send: send.as_ptr().cast(),
            sends,
            recv: recv.as_mut_ptr().cast(),
            recvs,
            dtype: T::DTYPE,
            reduction,
        };
        // SAFETY: the blocks lie within the slices, which are borrowed for the call and of a type without invalid values.
        unsafe { self.run_vector(&call) }
    }

    /// Length and beginning of this rank's block, all blocks being within `len` elements.
    fn own_vector_block(&self, blocks: Blocks<'_>, len: usize) -> Result<(usize, usize), Error> {
        within(blocks, len, "all")?;
        let own = self.rank as usize;
        match (blocks.counts.get(own), blocks.displacements.get(own)) {
            (Some(&count), Some(&start)) => Ok((count, start)),
            _ => Err(Error::InvalidArgument {
                what: format!("there is no block of rank {own} in {} blocks", blocks.counts.len()),
            }),
        }
    }
}

fn within(blocks: Blocks<'_>, len: usize, side: &str) -> Result<(), Error> {
    if blocks.end() > len {
        return Err(Error::InvalidArgument {
            what: format!("{side} blocks that end at element {} of {len}", blocks.end()),
        });
    }
    Ok(())
}

/// For collectives that do not reduce.
fn no_reduction() -> Reduction {
    maypole_algorithms::RedOp::Max.into()
}
