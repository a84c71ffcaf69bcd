//! The calls of the library that do one rank's work.

use maypole::{Call, Collective, Communicator, RedOp, Reduction, Transfer};

use super::Operation;
use super::work::RankWork;

/// The calls, prepared, so that the measured loop does nothing else.
pub(crate) enum WorkCalls {
    /// One collective call.
    Call(Call),
    /// A copy within the rank, if needed: from, to, bytes. Then groups of sends and receives, one
    /// after the other.
    Groups { copy: Option<(*const u8, *mut u8, usize)>, groups: Vec<Vec<Transfer>> },
}

impl WorkCalls {
    /// The calls for `work` between buffers at `send` and `recv`. `scalar` is this rank's factor
    /// for [`RedOp::PreMulSum`].
    pub(crate) fn new(work: &RankWork, send: *const u8, recv: *mut u8, scalar: u64) -> Self {
        let root = work.root.unwrap_or(0);
        let collective = match work.operation {
            Operation::AllReduce => Collective::AllReduce,
            Operation::AllGather => Collective::AllGather,
            Operation::ReduceScatter => Collective::ReduceScatter,
            Operation::Broadcast => Collective::Broadcast { root },
            Operation::Reduce => Collective::Reduce { root },
            Operation::AllToAll => Collective::AllToAll,
            Operation::Gather => Collective::Gather { root },
            Operation::Scatter => Collective::Scatter { root },
            Operation::SendRecv => return Self::send_to_next(work, send, recv),
            Operation::Hypercube => return Self::hypercube(work, send, recv),
            Operation::AllToAllV => return Self::all_to_all_v(work, send, recv),
        };
        let RankWork { count, dtype, .. } = *work;
        let op = work.op.unwrap_or(RedOp::Sum);
        let reduction = Reduction { scalar, ..op.into() };
        Self::Call(Call { collective, send, recv, count, dtype, reduction })
    }

    /// Makes the calls once.
    ///
    /// # Safety
    /// The buffers given to [`new`](Self::new) must be alive, and as large as the work says. In
    /// place, they must be the parts of one buffer that [`RankWork::in_place`] names. Nothing else
    /// may use them during the call.
    #[inline]
    pub(crate) unsafe fn run(&self, comm: &mut Communicator) -> Result<(), maypole::Error> {
        match self {
            // SAFETY: the caller vouches for the buffers.
            Self::Call(call) => unsafe { comm.run(call) },
            Self::Groups { copy, groups } => {
                if let Some((from, to, bytes)) = *copy {
                    // SAFETY: both blocks lie within the buffers, for which the caller vouches.
                    unsafe { std::ptr::copy(from, to, bytes) };
                }
                // SAFETY: all blocks lie within the buffers, for which the caller vouches.
                groups.iter().try_for_each(|group| unsafe { comm.exchange(group) })
            }
        }
    }

    fn send_to_next(work: &RankWork, send: *const u8, recv: *mut u8) -> Self {
        let RankWork { rank, nranks, .. } = *work;
        let bytes = work.count * work.dtype.size();
        let group = vec![
            Transfer::Send { data: send, bytes, peer: (rank + 1) % nranks },
            Transfer::Receive { data: recv, bytes, peer: (rank + nranks - 1) % nranks },
        ];
        Self::Groups { copy: None, groups: vec![group] }
    }

    /// In round k, the two ranks that differ only in bit k exchange all blocks that they have: 2^k.
    fn hypercube(work: &RankWork, send: *const u8, recv: *mut u8) -> Self {
        let RankWork { rank, nranks, .. } = *work;
        let block = work.count * work.dtype.size();
        let own = recv.wrapping_add(rank as usize * block);
        let copy = (!std::ptr::eq(own, send)).then_some((send, own, block));
        let rounds = (0..nranks.trailing_zeros()).map(|round| {
            let width = 1 << round;
            let mine = rank & !(width - 1);
            let theirs = mine ^ width;
            let (bytes, peer) = (block << round, rank ^ width);
            let at = |first: u32| recv.wrapping_add(first as usize * block);
            let data = at(mine).cast_const();
            vec![
                Transfer::Send { data, bytes, peer },
                Transfer::Receive { data: at(theirs), bytes, peer },
            ]
        });
        Self::Groups { copy, groups: rounds.collect() }
    }

    fn all_to_all_v(work: &RankWork, send: *const u8, recv: *mut u8) -> Self {
        let RankWork { rank, nranks, ref traffic, .. } = *work;
        let Some(traffic) = traffic else { return Self::Groups { copy: None, groups: Vec::new() } };
        let element = work.dtype.size();
        let mut group = Vec::new();
        let (mut from, mut to) = (send, recv);
        for peer in 0..nranks {
            let bytes = traffic.count(rank, peer) * element;
            if bytes > 0 {
                group.push(Transfer::Send { data: from, bytes, peer });
            }
            from = from.wrapping_add(bytes);
            let bytes = traffic.count(peer, rank) * element;
            if bytes > 0 {
                group.push(Transfer::Receive { data: to, bytes, peer });
            }
            to = to.wrapping_add(bytes);
        }
        Self::Groups { copy: None, groups: vec![group] }
    }
}
