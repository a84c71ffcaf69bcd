//! The calls of the library that do a rank's work.

use maypole::{Call, Collective, Communicator, RedOp, Reduction, Transfer};

use super::Operation;
use super::work::Work;

/// What is called, ready: the measured loop does nothing else.
pub(crate) enum Steps {
    /// One collective call.
    Call(Call),
    /// A copy within the rank, if there is one, then groups of sends and receives, one after the other.
    Groups { copy: Option<(*const u8, *mut u8, usize)>, groups: Vec<Vec<Transfer>> },
}

impl Steps {
    /// The calls for `work` between buffers at `send` and `recv`; `scalar` is this rank's for [`RedOp::PreMulSum`].
    pub(crate) fn new(work: &Work, send: *const u8, recv: *mut u8, scalar: u64) -> Self {
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
            Operation::SendRecv => return Self::neighbours(work, send, recv),
            Operation::Hypercube => return Self::hypercube(work, send, recv),
            Operation::AllToAllV => return Self::crossed(work, send, recv),
        };
        let Work { count, dtype, .. } = *work;
        let op = work.op.unwrap_or(RedOp::Sum);
        let reduction = Reduction { scalar, ..op.into() };
        Self::Call(Call { collective, send, recv, count, dtype, reduction })
    }

    /// Runs them once.
    ///
    /// # Safety
    /// The buffers are as large as the work says, and laid out for it where they are one.
    #[inline]
    pub(crate) unsafe fn run(&self, comm: &mut Communicator) -> Result<(), maypole::Error> {
        match self {
            // SAFETY: the caller's promise.
            Self::Call(call) => unsafe { comm.run(call) },
            Self::Groups { copy, groups } => {
                if let Some((from, to, bytes)) = *copy {
                    // SAFETY: the caller's promise; both lie within their buffers.
                    unsafe { std::ptr::copy(from, to, bytes) };
                }
                // SAFETY: the caller's promise.
                groups.iter().try_for_each(|group| unsafe { comm.exchange(group) })
            }
        }
    }

    fn neighbours(work: &Work, send: *const u8, recv: *mut u8) -> Self {
        let Work { rank, nranks, .. } = *work;
        let bytes = work.count * work.dtype.size();
        let group = vec![
            Transfer::Send { data: send, bytes, peer: (rank + 1) % nranks },
            Transfer::Receive { data: recv, bytes, peer: (rank + nranks - 1) % nranks },
        ];
        Self::Groups { copy: None, groups: vec![group] }
    }

    /// In round k ranks whose numbers differ in bit k alone exchange all that they have: 2^k blocks.
    fn hypercube(work: &Work, send: *const u8, recv: *mut u8) -> Self {
        let Work { rank, nranks, .. } = *work;
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

    fn crossed(work: &Work, send: *const u8, recv: *mut u8) -> Self {
        let Work { rank, nranks, ref traffic, .. } = *work;
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
