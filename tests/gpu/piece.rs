//! A random call that all ranks make with different contributions, the position of its buffers in
//! the memory of a rank, and the call on host or device memory.

#[path = "../support/element_bits.rs"]
mod element_bits;

use std::fmt;

use crate::splitmix::Random;
use element_bits::element;
use maypole::DeviceCall;
use maypole::{
    Blocks, Call, Collective, Communicator, DType, Error, RedOp, Reduction, Transfer, VectorCall,
};

/// The bytes between buffers, and in receive buffers before the call.
pub(crate) const FILL: u8 = 0xa5;

/// Bytes between buffers.
const WALL: usize = 64;

/// A collective of even blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Even {
    pub(crate) collective: Collective,
    pub(crate) dtype: DType,
    pub(crate) op: RedOp,
    pub(crate) count: usize,
    pub(crate) in_place: bool,
    /// Bytes by which the buffers are misaligned.
    pub(crate) skew: usize,
    /// Whether the factor is in device memory.
    pub(crate) resident: bool,
}

/// The kind of call.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Even(Even),
    /// A vector collective, whose block lengths follow from the seed.
    Uneven(Collective, DType, RedOp),
    /// Sends and receives: from rank, to rank, bytes.
    Transfers(Vec<(u32, u32, usize)>),
    Barrier,
}

#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) what: What,
    pub(crate) seed: u64,
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (seed {:#x})", self.what, self.seed)
    }
}

/// Lengths and displacements of blocks, in elements.
#[derive(Clone, Debug, Default)]
struct Parts {
    counts: Vec<usize>,
    displacements: Vec<usize>,
    end: usize,
}

impl Parts {
    fn one(count: usize) -> Self {
        Self { counts: vec![count], displacements: vec![0], end: count }
    }

    /// Blocks with gaps between them, in reverse order if `backwards`.
    fn with_gaps(counts: Vec<usize>, gap: usize, backwards: bool) -> Self {
        let mut displacements = vec![0; counts.len()];
        let mut end = 0;
        for turn in 0..counts.len() {
            let at = if backwards { counts.len() - 1 - turn } else { turn };
            displacements[at] = end;
            end += counts[at] + gap;
        }
        Self { counts, displacements, end }
    }

    fn blocks(&self) -> Blocks<'_> {
        Blocks { counts: &self.counts, displacements: &self.displacements }
    }
}

/// A piece with the offsets of its buffers in the memory of a rank, in bytes.
pub(crate) struct Placed<'a> {
    pub(crate) piece: &'a Piece,
    rank: u32,
    nranks: u32,
    send: usize,
    send_bytes: usize,
    recv: usize,
    sends: Parts,
    recvs: Parts,
    /// The offset of the factor.
    factor: usize,
    pub(crate) end: usize,
}

impl Piece {
    /// The elements that `from` has for `to` in a vector collective.
    fn length(&self, from: u32, to: u32) -> usize {
        let seed = self.seed ^ u64::from(from) << 32 ^ u64::from(to) << 16;
        Random(seed).pick(&[0, 0, 1, 3, 40, 700])
    }

    /// Places the buffers from byte `start` on.
    pub(crate) fn place(&self, start: usize, rank: u32, nranks: u32) -> Placed<'_> {
        let start = start.next_multiple_of(256) + WALL;
        let factor = start;
        let mut placed = Placed {
            piece: self,
            rank,
            nranks,
            send: start + WALL,
            send_bytes: 0,
            recv: start + WALL,
            sends: Parts::default(),
            recvs: Parts::default(),
            factor,
            end: start + WALL,
        };
        let beside = |send: usize, bytes: usize| (send + bytes).next_multiple_of(64) + WALL;
        match &self.what {
            What::Even(even) => {
                let block = even.count * even.dtype.size();
                let send_bytes = even.collective.input_chunks(nranks, 1) as usize * block;
                let recv_bytes = even.collective.output_chunks(nranks, 1) as usize * block;
                let own = rank as usize * block;
                placed.send += even.skew;
                placed.send_bytes = send_bytes;
                if even.in_place {
                    let base = placed.send;
                    let (send, recv) = match even.collective {
                        Collective::AllGather => (own, 0),
                        Collective::ReduceScatter => (0, own),
                        Collective::Gather { root } if root == rank => (own, 0),
                        Collective::Scatter { root } if root == rank => (0, own),
                        _ => (0, 0),
                    };
                    (placed.send, placed.recv) = (base + send, base + recv);
                } else {
                    placed.recv = beside(placed.send, send_bytes) + (even.skew ^ 4);
                }
                placed.end = (placed.send + send_bytes).max(placed.recv + recv_bytes);
            }
            What::Uneven(collective, dtype, _) => {
                let (gap, backwards) = (self.seed as usize % 3, self.seed & 8 != 0);
                let all = |length: &dyn Fn(u32) -> usize| {
                    Parts::with_gaps((0..nranks).map(length).collect(), gap, backwards)
                };
                (placed.sends, placed.recvs) = match *collective {
                    Collective::AllGather => {
                        (Parts::one(self.length(rank, rank)), all(&|r| self.length(r, r)))
                    }
                    Collective::ReduceScatter => {
                        (all(&|r| self.length(r, r)), Parts::one(self.length(rank, rank)))
                    }
                    Collective::Gather { root } => (
                        Parts::one(self.length(rank, root)),
                        if rank == root {
                            all(&|r| self.length(r, root))
                        } else {
                            Parts::default()
                        },
                    ),
                    Collective::Scatter { root } => (
                        if rank == root {
                            all(&|r| self.length(root, r))
                        } else {
                            Parts::default()
                        },
                        Parts::one(self.length(root, rank)),
                    ),
                    _ => (all(&|r| self.length(rank, r)), all(&|r| self.length(r, rank))),
                };
                placed.send_bytes = placed.sends.end * dtype.size();
                placed.recv = beside(placed.send, placed.send_bytes);
                placed.end = placed.recv + placed.recvs.end * dtype.size();
            }
            What::Transfers(list) => {
                let sum = |ours: &dyn Fn(&(u32, u32, usize)) -> bool| {
                    list.iter().filter(|one| ours(one)).map(|one| one.2).sum::<usize>()
                };
                placed.send_bytes = sum(&|one| one.0 == rank);
                placed.recv = beside(placed.send, placed.send_bytes);
                placed.end = placed.recv + sum(&|one| one.1 == rank);
            }
            What::Barrier => {}
        }
        placed.end += WALL;
        placed
    }
}

impl Placed<'_> {
    fn dtype(&self) -> DType {
        match self.piece.what {
            What::Even(Even { dtype, .. }) | What::Uneven(_, dtype, _) => dtype,
            _ => DType::Uint8,
        }
    }

    /// The factor of this rank, an element.
    fn scalar(&self) -> u64 {
        element(self.dtype(), !self.piece.seed, self.rank, 0)
    }

    /// Writes the contribution of this rank into its memory; `salt` changes the contribution.
    pub(crate) fn fill(&self, memory: &mut [u8], salt: u64) {
        let (dtype, size) = (self.dtype(), self.dtype().size());
        let seed = self.piece.seed ^ salt << 20;
        let to = &mut memory[self.send..self.send + self.send_bytes];
        for (index, to) in to.chunks_exact_mut(size).enumerate() {
            to.copy_from_slice(&element(dtype, seed, self.rank, index).to_le_bytes()[..size]);
        }
        memory[self.factor..self.factor + 8].copy_from_slice(&self.scalar().to_le_bytes());
    }

    fn reduction(&self, op: RedOp, resident_at: Option<u64>) -> Reduction {
        match (op, resident_at) {
            (RedOp::PreMulSum, Some(scalar)) => Reduction { scalar, resident: true, ..op.into() },
            (RedOp::PreMulSum, None) => Reduction { scalar: self.scalar(), ..op.into() },
            _ => op.into(),
        }
    }

    /// The call on memory that begins at `base`.
    pub(crate) fn bind(&self, base: u64, on_device: bool) -> Bound<'_> {
        let (send, recv) = (base + self.send as u64, base + self.recv as u64);
        match &self.piece.what {
            What::Even(even) => Bound::Even(Call {
                collective: even.collective,
                send: send as *const u8,
                recv: recv as *mut u8,
                count: even.count,
                dtype: even.dtype,
                reduction: self.reduction(
                    even.op,
                    (on_device && even.resident).then_some(base + self.factor as u64),
                ),
            }),
            What::Uneven(collective, dtype, op) => Bound::Uneven(VectorCall {
                collective: *collective,
                send: send as *const u8,
                sends: self.sends.blocks(),
                recv: recv as *mut u8,
                recvs: self.recvs.blocks(),
                dtype: *dtype,
                reduction: self.reduction(*op, None),
            }),
            What::Transfers(list) => {
                let (mut from, mut to) = (send, recv);
                let mut transfers = Vec::new();
                for &(sender, receiver, bytes) in list {
                    if sender == self.rank {
                        let data = from as *const u8;
                        transfers.push(Transfer::Send { data, bytes, peer: receiver });
                        from += bytes as u64;
                    }
                    if receiver == self.rank {
                        let data = to as *mut u8;
                        transfers.push(Transfer::Receive { data, bytes, peer: sender });
                        to += bytes as u64;
                    }
                }
                Bound::Transfers(transfers)
            }
            What::Barrier => Bound::Barrier,
        }
    }

    /// Describes the use of byte `at` of the rank's memory by this call.
    pub(crate) fn describe(&self, at: usize) -> String {
        format!(
            "{:?} as rank {} of {}: byte {} from where it sends, {} from where it receives",
            self.piece,
            self.rank,
            self.nranks,
            at as i64 - self.send as i64,
            at as i64 - self.recv as i64
        )
    }
}

/// A call with addresses.
pub(crate) enum Bound<'a> {
    Even(Call),
    Uneven(VectorCall<'a>),
    Transfers(Vec<Transfer>),
    Barrier,
}

impl Bound<'_> {
    /// Makes the call and waits for it.
    ///
    /// # Safety
    /// The memory of the call is allocated.
    pub(crate) unsafe fn run(&self, comm: &mut Communicator) -> Result<(), Error> {
        // SAFETY: the caller keeps the memory allocated, and the buffers of a piece overlap only
        // where that is allowed.
        unsafe {
            match self {
                Self::Even(call) => comm.run(call),
                Self::Uneven(call) => comm.run_vector(call),
                Self::Transfers(transfers) => comm.exchange(transfers),
                Self::Barrier => comm.barrier(),
            }
        }
    }

    /// The call for a stream.
    pub(crate) fn queued(&self) -> DeviceCall<'_> {
        match self {
            Self::Even(call) => DeviceCall::Collective(*call),
            Self::Uneven(call) => DeviceCall::Vector(*call),
            Self::Transfers(transfers) => DeviceCall::Transfers(transfers),
            Self::Barrier => DeviceCall::Barrier,
        }
    }
}
