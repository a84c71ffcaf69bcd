//! The collectives on slices of elements. `n` is the number of ranks.

use maypole_algorithms::{Collective, RedOp};

use super::Communicator;
use crate::call::Call;
use crate::element::Element;
use crate::error::Error;
use crate::reduce::Reduction;

impl Communicator {
    /// Reduces `send` of all ranks, element by element; every rank gets the result in `recv`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the slices differ in length; else what [`run`](Self::run) returns.
    pub fn all_reduce<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        equal("all_reduce", send.len(), recv.len())?;
        let count = recv.len();
        self.call(Collective::AllReduce, send, recv, count, reduction)
    }

    /// As [`all_reduce`](Self::all_reduce), with the result in place of the contribution.
    ///
    /// # Errors
    /// What [`run`](Self::run) returns.
    pub fn all_reduce_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let count = data.len();
        self.call_in_place(Collective::AllReduce, data, (0, 0), count, reduction)
    }

    /// Reduces `send` of all ranks, `n` blocks as long as `recv`; rank `r` gets block `r` of the result in `recv`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `send` is not `n` times as long as `recv`; else what [`run`](Self::run) returns.
    pub fn reduce_scatter<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        self.blocks("reduce_scatter", send.len(), recv.len())?;
        let count = recv.len();
        self.call(Collective::ReduceScatter, send, recv, count, reduction)
    }

    /// As [`reduce_scatter`](Self::reduce_scatter) of `data`, with the result in place of block `rank` of it. The other blocks are as
    /// they were.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the length is not a multiple of `n`; else what [`run`](Self::run) returns.
    pub fn reduce_scatter_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let (count, own) = self.own_block("reduce_scatter", data.len())?;
        self.call_in_place(Collective::ReduceScatter, data, (0, own), count, reduction)
    }

    /// Every rank gets `send` of all ranks in `recv`: that of rank `r` as block `r`, of `n` blocks as long as `send`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `recv` is not `n` times as long as `send`; else what [`run`](Self::run) returns.
    pub fn all_gather<T: Element>(&mut self, send: &[T], recv: &mut [T]) -> Result<(), Error> {
        self.blocks("all_gather", recv.len(), send.len())?;
        self.call(Collective::AllGather, send, recv, send.len(), RedOp::Max)
    }

    /// As [`all_gather`](Self::all_gather) into `data`, whose block `rank` is the contribution.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the length is not a multiple of `n`; else what [`run`](Self::run) returns.
    pub fn all_gather_in_place<T: Element>(&mut self, data: &mut [T]) -> Result<(), Error> {
        let (count, own) = self.own_block("all_gather", data.len())?;
        self.call_in_place(Collective::AllGather, data, (own, 0), count, RedOp::Max)
    }

    /// Every rank gets `send` of rank `root` in `recv`. On other ranks `send` is not looked at and may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, or the slices differ in length on the root; else what
    /// [`run`](Self::run) returns.
    pub fn broadcast<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            equal("broadcast", send.len(), recv.len())?;
        }
        let count = recv.len();
        self.call(Collective::Broadcast { root }, send, recv, count, RedOp::Max)
    }

    /// Every rank gets `data` of rank `root` in its own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank; else what [`run`](Self::run) returns.
    pub fn broadcast_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        let count = data.len();
        self.call_in_place(Collective::Broadcast { root }, data, (0, 0), count, RedOp::Max)
    }

    /// Reduces `send` of all ranks, element by element; rank `root` gets the result in `recv`. On other ranks `recv` is left as it is and
    /// may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, or the slices differ in length on the root; else what
    /// [`run`](Self::run) returns.
    pub fn reduce<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            equal("reduce", send.len(), recv.len())?;
        }
        self.call(Collective::Reduce { root }, send, recv, send.len(), reduction)
    }

    /// As [`reduce`](Self::reduce), with the result in place of the contribution on rank `root`; elsewhere `data` stays as it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank; else what [`run`](Self::run) returns.
    pub fn reduce_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
        root: u32,
    ) -> Result<(), Error> {
        let count = data.len();
        self.call_in_place(Collective::Reduce { root }, data, (0, 0), count, reduction)
    }

    /// Sends block `r` of `send` to rank `r`, which gets it as block `rank` of its `recv`; both are `n` blocks of the same length.
    /// There is no form in place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the slices differ in length, or that is not a multiple of `n`; else what
    /// [`run`](Self::run) returns.
    pub fn all_to_all<T: Element>(&mut self, send: &[T], recv: &mut [T]) -> Result<(), Error> {
        equal("alltoall", send.len(), recv.len())?;
        let (count, _) = self.own_block("alltoall", send.len())?;
        self.call(Collective::AllToAll, send, recv, count, RedOp::Max)
    }

    /// Rank `root` gets `send` of all ranks in `recv`: that of rank `r` as block `r`, of `n` blocks as long as `send`. On other ranks
    /// `recv` is left as it is and may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, or `recv` is not `n` times as long as `send` on the root; else what
    /// [`run`](Self::run) returns.
    pub fn gather<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            self.blocks("gather", recv.len(), send.len())?;
        }
        self.call(Collective::Gather { root }, send, recv, send.len(), RedOp::Max)
    }

    /// As [`gather`](Self::gather). On rank `root`, `data` is `n` blocks, of which block `root` is the contribution; elsewhere it is
    /// the contribution and stays as it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, or the length on the root is not a multiple of `n`; else what
    /// [`run`](Self::run) returns.
    pub fn gather_in_place<T: Element>(&mut self, data: &mut [T], root: u32) -> Result<(), Error> {
        let (count, own) =
            if root == self.rank { self.own_block("gather", data.len())? } else { (data.len(), 0) };
        self.call_in_place(Collective::Gather { root }, data, (own, 0), count, RedOp::Max)
    }

    /// Rank `r` gets block `r` of `send` of rank `root`, which is `n` blocks as long as `recv`. On other ranks `send` is not looked at
    /// and may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, or `send` is not `n` times as long as `recv` on the root; else what
    /// [`run`](Self::run) returns.
    pub fn scatter<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            self.blocks("scatter", send.len(), recv.len())?;
        }
        let count = recv.len();
        self.call(Collective::Scatter { root }, send, recv, count, RedOp::Max)
    }

    /// As [`scatter`](Self::scatter). On rank `root`, `data` is `n` blocks and stays as it is; elsewhere it receives the rank's block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such rank, or the length on the root is not a multiple of `n`; else what
    /// [`run`](Self::run) returns.
    pub fn scatter_in_place<T: Element>(&mut self, data: &mut [T], root: u32) -> Result<(), Error> {
        let (count, own) = if root == self.rank {
            self.own_block("scatter", data.len())?
        } else {
            (data.len(), 0)
        };
        self.call_in_place(Collective::Scatter { root }, data, (0, own), count, RedOp::Max)
    }

    /// The slices have the lengths that the collective asks for at `count`, where this rank has a buffer at all.
    fn call<T: Element>(
        &mut self,
        collective: Collective,
        send: &[T],
        recv: &mut [T],
        count: usize,
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let call = Call {
            collective,
            send: send.as_ptr().cast(),
            recv: recv.as_mut_ptr().cast(),
            count,
            dtype: T::DTYPE,
            reduction: reduction.into(),
        };
        // SAFETY: the slices are borrowed for the call, long enough as the caller says, and of a type without invalid values.
        // Schedules name no chunk of a buffer that a rank does not have.
        unsafe { self.run(&call) }
    }

    /// The send and the receive buffer begin at these elements of `data`, and lie within it.
    fn call_in_place<T: Element>(
        &mut self,
        collective: Collective,
        data: &mut [T],
        (send, recv): (usize, usize),
        count: usize,
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        debug_assert!(send.max(recv) <= data.len());
        let base = data.as_mut_ptr();
        let call = Call {
            collective,
            send: base.wrapping_add(send).cast_const().cast(),
            recv: base.wrapping_add(recv).cast(),
            count,
            dtype: T::DTYPE,
            reduction: reduction.into(),
        };
        // SAFETY: as in `call`; the two are the same memory where `nccl.h` calls that in place.
        unsafe { self.run(&call) }
    }

    /// That `all` elements are one block of `one` for each rank.
    fn blocks(&self, name: &str, all: usize, one: usize) -> Result<(), Error> {
        if one.checked_mul(self.nranks as usize) != Some(all) {
            return Err(Error::InvalidArgument {
                what: format!("{name}: {all} elements are not {} blocks of {one}", self.nranks),
            });
        }
        Ok(())
    }

    /// Elements of each of the blocks, one per rank, that `all` elements are, and where this rank's begins.
    fn own_block(&self, name: &str, all: usize) -> Result<(usize, usize), Error> {
        let count = all / self.nranks as usize;
        self.blocks(name, all, count)?;
        Ok((count, count * self.rank as usize))
    }
}

fn equal(name: &str, send: usize, recv: usize) -> Result<(), Error> {
    if send != recv {
        return Err(Error::InvalidArgument {
            what: format!("{name} of {send} elements into a buffer of {recv}"),
        });
    }
    Ok(())
}
