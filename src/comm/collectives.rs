//! The collectives on slices of elements. In their docs `n` is the number of ranks.

use maypole_algorithms::{Collective, RedOp};
use maypole_reduce::Reduction;

use super::Communicator;
use crate::call::Call;
use crate::element::Element;
use crate::error::Error;

impl Communicator {
    /// Reduces `send` of all ranks element by element. Every rank gets the result in `recv`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if the slices differ in length; else those of
    /// [`run`](Self::run).
    pub fn all_reduce<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        check_equal("all_reduce", send.len(), recv.len())?;
        let count = recv.len();
        self.call(Collective::AllReduce, send, recv, count, reduction)
    }

    /// The same as [`all_reduce`](Self::all_reduce), with the result in place of the contribution.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn all_reduce_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let count = data.len();
        self.call_in_place(Collective::AllReduce, data, (0, 0), count, reduction)
    }

    /// Reduces `send` of all ranks, which is `n` blocks as long as `recv`. Rank `r` gets block `r`
    /// of the result in `recv`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if `send` is not `n` times as long as `recv`; else
    /// those of [`run`](Self::run).
    pub fn reduce_scatter<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        self.check_blocks("reduce_scatter", send.len(), recv.len())?;
        let count = recv.len();
        self.call(Collective::ReduceScatter, send, recv, count, reduction)
    }

    /// The same as [`reduce_scatter`](Self::reduce_scatter) of `data`, with the result in place of
    /// block `rank`. The other blocks do not change.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if the length is not a multiple of `n`; else those of
    /// [`run`](Self::run).
    pub fn reduce_scatter_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let (count, own) = self.own_block("reduce_scatter", data.len())?;
        self.call_in_place(Collective::ReduceScatter, data, (0, own), count, reduction)
    }

    /// Gathers `send` of all ranks in `recv` of every rank: that of rank `r` becomes block `r` of
    /// `n` blocks as long as `send`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if `recv` is not `n` times as long as `send`; else
    /// those of [`run`](Self::run).
    pub fn all_gather<T: Element>(&mut self, send: &[T], recv: &mut [T]) -> Result<(), Error> {
        self.check_blocks("all_gather", recv.len(), send.len())?;
        self.call(Collective::AllGather, send, recv, send.len(), RedOp::Max)
    }

    /// The same as [`all_gather`](Self::all_gather) into `data`, whose block `rank` is the
    /// contribution.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if the length is not a multiple of `n`; else those of
    /// [`run`](Self::run).
    pub fn all_gather_in_place<T: Element>(&mut self, data: &mut [T]) -> Result<(), Error> {
        let (count, own) = self.own_block("all_gather", data.len())?;
        self.call_in_place(Collective::AllGather, data, (own, 0), count, RedOp::Max)
    }

    /// Copies `send` of rank `root` to `recv` of every rank. On other ranks `send` is ignored and
    /// may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, or the slices differ in
    /// length on the root; else those of [`run`](Self::run).
    pub fn broadcast<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            check_equal("broadcast", send.len(), recv.len())?;
        }
        let count = recv.len();
        self.call(Collective::Broadcast { root }, send, recv, count, RedOp::Max)
    }

    /// Copies `data` of rank `root` to `data` of every rank.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank; else those of
    /// [`run`](Self::run).
    pub fn broadcast_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        let count = data.len();
        self.call_in_place(Collective::Broadcast { root }, data, (0, 0), count, RedOp::Max)
    }

    /// Reduces `send` of all ranks element by element. Rank `root` gets the result in `recv`. On
    /// other ranks `recv` does not change and may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, or the slices differ in
    /// length on the root; else those of [`run`](Self::run).
    pub fn reduce<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            check_equal("reduce", send.len(), recv.len())?;
        }
        self.call(Collective::Reduce { root }, send, recv, send.len(), reduction)
    }

    /// The same as [`reduce`](Self::reduce), with the result in place of the contribution of rank
    /// `root`. On other ranks `data` does not change.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank; else those of
    /// [`run`](Self::run).
    pub fn reduce_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
        root: u32,
    ) -> Result<(), Error> {
        let count = data.len();
        self.call_in_place(Collective::Reduce { root }, data, (0, 0), count, reduction)
    }

    /// Sends block `r` of `send` to rank `r`, which receives it as block `rank` of its `recv`. Both
    /// slices are `n` blocks of one length. There is no form in place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if the slices differ in length, or their length is not
    /// a multiple of `n`; else those of [`run`](Self::run).
    pub fn all_to_all<T: Element>(&mut self, send: &[T], recv: &mut [T]) -> Result<(), Error> {
        check_equal("alltoall", send.len(), recv.len())?;
        let (count, _) = self.own_block("alltoall", send.len())?;
        self.call(Collective::AllToAll, send, recv, count, RedOp::Max)
    }

    /// Gathers `send` of all ranks in `recv` of rank `root`: that of rank `r` becomes block `r` of
    /// `n` blocks as long as `send`. On other ranks `recv` does not change and may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, or `recv` is not `n` times
    /// as long as `send` on the root; else those of [`run`](Self::run).
    pub fn gather<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            self.check_blocks("gather", recv.len(), send.len())?;
        }
        self.call(Collective::Gather { root }, send, recv, send.len(), RedOp::Max)
    }

    /// The same as [`gather`](Self::gather) in place. On rank `root`, `data` is `n` blocks, and
    /// block `root` is its contribution. On other ranks `data` is the contribution and does not
    /// change.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, or the length on the root is
    /// not a multiple of `n`; else those of [`run`](Self::run).
    pub fn gather_in_place<T: Element>(&mut self, data: &mut [T], root: u32) -> Result<(), Error> {
        let (count, own) =
            if root == self.rank { self.own_block("gather", data.len())? } else { (data.len(), 0) };
        self.call_in_place(Collective::Gather { root }, data, (own, 0), count, RedOp::Max)
    }

    /// Sends block `r` of `send` of rank `root` to rank `r`, where `send` is `n` blocks as long as
    /// `recv`. On other ranks `send` is ignored and may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, or `send` is not `n` times
    /// as long as `recv` on the root; else those of [`run`](Self::run).
    pub fn scatter<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.rank {
            self.check_blocks("scatter", send.len(), recv.len())?;
        }
        let count = recv.len();
        self.call(Collective::Scatter { root }, send, recv, count, RedOp::Max)
    }

    /// The same as [`scatter`](Self::scatter) in place. On rank `root`, `data` is `n` blocks and
    /// does not change. On other ranks `data` receives the rank's block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if there is no such rank, or the length on the root is
    /// not a multiple of `n`; else those of [`run`](Self::run).
    pub fn scatter_in_place<T: Element>(&mut self, data: &mut [T], root: u32) -> Result<(), Error> {
        let (count, own) = if root == self.rank {
            self.own_block("scatter", data.len())?
        } else {
            (data.len(), 0)
        };
        self.call_in_place(Collective::Scatter { root }, data, (0, own), count, RedOp::Max)
    }

    /// Runs a call on slices of the lengths that the collective needs for `count`; a slice that
    /// this rank does not need may be shorter.
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
        // SAFETY: the slices are borrowed for the call and of a type without invalid values. They
        // are long enough, by the caller's checks, or unused: schedules name no chunk of a buffer
        // that a rank does not need.
        unsafe { self.run(&call) }
    }

    /// Runs a call whose send and receive buffers begin at these elements of `data` and lie within
    /// it.
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
        // SAFETY: as in `call`; the buffers overlap only where `nccl.h` calls that in place.
        unsafe { self.run(&call) }
    }

    /// Checks that `all` elements are one block of `one` elements for each rank.
    fn check_blocks(&self, name: &str, all: usize, one: usize) -> Result<(), Error> {
        if one.checked_mul(self.nranks as usize) != Some(all) {
            return Err(Error::InvalidArgument {
                what: format!(
                    "{name}: {all} elements are not {} blocks of {one} elements, one for each rank",
                    self.nranks
                ),
            });
        }
        Ok(())
    }

    /// The length of each of the `n` blocks that `all` elements are, and the first element of the
    /// block of this rank.
    fn own_block(&self, name: &str, all: usize) -> Result<(usize, usize), Error> {
        let count = all / self.nranks as usize;
        self.check_blocks(name, all, count)?;
        Ok((count, count * self.rank as usize))
    }
}

/// Checks that both buffers of a collective are equally long.
fn check_equal(name: &str, send: usize, recv: usize) -> Result<(), Error> {
    if send != recv {
        return Err(Error::InvalidArgument {
            what: format!("{name} of {send} elements into a buffer of {recv}"),
        });
    }
    Ok(())
}
