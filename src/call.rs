//! Calls as the caller states them, and the part of a call on which its plan depends.

use std::sync::Arc;

use maypole_algorithms::{Collective, DType, Rank, RedOp};
use maypole_reduce::Reduction;

use crate::error::Error;

/// A collective call. Pointers are to memory of the host, or to memory that the device of the
/// communicator reaches. The rules of `nccl.h` for calls in place apply.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The collective.
    pub collective: Collective,
    /// The send buffer: `count` elements per block, see [`Collective`].
    pub send: *const u8,
    /// The receive buffer: `count` elements per block, see [`Collective`].
    pub recv: *mut u8,
    /// The elements of each block. For all-reduce, broadcast and reduce a block is the whole
    /// vector; for all-gather and gather what each rank sends; for reduce-scatter and scatter what
    /// each rank receives; for all-to-all what each rank sends to each other.
    pub count: usize,
    /// The element type.
    pub dtype: DType,
    /// How contributions are combined; ignored by collectives that do not reduce.
    pub reduction: Reduction,
}

/// Blocks of a buffer, for vector collectives: block `i` is `counts[i]` elements from element
/// `displacements[i]` on. Blocks may lie in any order and have gaps between them. Blocks that are
/// written must not overlap.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// The number of elements of each block.
    pub counts: &'a [usize],
    /// The first element of each block.
    pub displacements: &'a [usize],
}

/// A vector collective: its blocks differ in length between ranks. Pointers are as in [`Call`].
///
/// | collective | `sends` | `recvs` | who must agree |
/// |---|---|---|---|
/// | `AllGather` | this rank's contribution | a block per rank | all ranks on all counts |
/// | `ReduceScatter` | a block per rank | this rank's result | all ranks on all counts |
/// | `AllToAll` | a block per rank | a block per rank | each pair on its two blocks |
/// | `Gather` | one block | root: a block per rank | each rank with the root |
/// | `Scatter` | root: a block per rank | one block | each rank with the root |
///
/// On ranks other than the root, a gather has no `recvs` and a scatter no `sends`. In place, where
/// `nccl.h` allows that for the ordinary collective, the one block is the memory of this rank's own
/// block on the other side.
#[derive(Clone, Copy, Debug)]
pub struct VectorCall<'a> {
    /// One of these five.
    pub collective: Collective,
    /// The send buffer.
    pub send: *const u8,
    /// The blocks of the send buffer.
    pub sends: Blocks<'a>,
    /// The receive buffer.
    pub recv: *mut u8,
    /// The blocks of the receive buffer.
    pub recvs: Blocks<'a>,
    /// The element type.
    pub dtype: DType,
    /// How contributions are combined; ignored by collectives that do not reduce.
    pub reduction: Reduction,
}

/// A range of elements of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub(crate) struct Extent {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Extent {
    /// The part of it that tile number `tile` covers, in tiles of `elements` elements.
    pub(crate) fn slice(self, elements: usize, tile: u64) -> Self {
        let skip = (tile as usize * elements).min(self.len);
        Self { start: self.start + skip, len: elements.min(self.len - skip) }
    }

    /// Whether the two have an element in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < (self.start + self.len).min(other.start + other.len)
    }
}

/// What a call asks for, without its memory: all that the choice of a schedule and a plan depend
/// on.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) collective: Collective,
    pub(crate) extents: Extents,
    pub(crate) dtype: DType,
    /// With the scalar of one call; the next call by the same plan may have another.
    pub(crate) reduction: Reduction,
    /// The call is a barrier, which is made of the collective that the other fields say.
    pub(crate) barrier: bool,
}

/// The blocks of all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extents {
    /// Blocks of so many elements each, one after the other.
    Even(usize),
    /// Blocks of a vector collective, by rank.
    Vector(Arc<[Extent]>),
}

impl Extents {
    /// The number of elements of the longest block.
    pub(crate) fn longest(&self) -> usize {
        match self {
            Self::Even(count) => *count,
            Self::Vector(extents) => extents.iter().map(|e| e.len).max().unwrap_or(0),
        }
    }

    /// Block number `index`.
    pub(crate) fn block(&self, index: u32) -> Extent {
        match self {
            Self::Even(count) => Extent { start: index as usize * count, len: *count },
            Self::Vector(extents) => extents[index as usize],
        }
    }
}

impl From<&Call> for Task {
    fn from(call: &Call) -> Self {
        let Call { collective, count, dtype, reduction, .. } = *call;
        Self { collective, extents: Extents::Even(count), dtype, reduction, barrier: false }
    }
}

impl Task {
    /// A barrier: an all-reduce of one byte. It is proved that its result holds the contribution of
    /// each rank, so it waits for all of them.
    pub(crate) fn barrier() -> Self {
        let call = Call {
            collective: Collective::AllReduce,
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count: 1,
            dtype: DType::Uint8,
            reduction: RedOp::Max.into(),
        };
        Self { barrier: true, ..Self::from(&call) }
    }

    /// The reduction that the call runs with. Collectives that do not reduce copy elements as they
    /// are, whatever the call says.
    pub(crate) fn reduction(&self) -> Reduction {
        if self.collective.reduces() { self.reduction } else { RedOp::Max.into() }
    }

    /// The number of bytes of the longest block.
    pub(crate) fn bytes(&self) -> usize {
        self.extents.longest().saturating_mul(self.dtype.size())
    }
}

impl<'a> Blocks<'a> {
    /// Blocks of these lengths that begin at these elements.
    pub const fn new(counts: &'a [usize], displacements: &'a [usize]) -> Self {
        Self { counts, displacements }
    }

    /// One block at the beginning of the buffer.
    pub const fn one(count: &'a usize) -> Self {
        Self { counts: std::slice::from_ref(count), displacements: &[0] }
    }

    /// No blocks, where a rank has no buffer.
    pub const fn none() -> Self {
        Self { counts: &[], displacements: &[] }
    }

    /// Block `index`.
    pub(crate) fn extent(&self, index: usize) -> Extent {
        Extent { start: self.displacements[index], len: self.counts[index] }
    }

    /// All blocks, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Extent> + 'a {
        let pairs = self.displacements.iter().zip(self.counts);
        pairs.map(|(&start, &len)| Extent { start, len })
    }

    /// The number of elements that a buffer must have to hold these blocks.
    pub(crate) fn end(&self) -> usize {
        let ends = self.iter().filter(|e| e.len > 0).map(|e| e.start.saturating_add(e.len));
        ends.max().unwrap_or(0)
    }

    /// Checks that there are `expected` blocks on the `side` of a call, and that a buffer of `size`
    /// bytes per element can hold them.
    fn check(&self, side: &str, expected: usize, size: usize) -> Result<(), Error> {
        let Self { counts, displacements } = self;
        if counts.len() != expected || displacements.len() != expected {
            return Err(invalid(format!(
                "{} counts and {} displacements of {side} blocks; this rank needs {expected} of \
                 each",
                counts.len(),
                displacements.len()
            )));
        }
        if self.end().checked_mul(size).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(invalid(format!("{side} blocks that end beyond the address space")));
        }
        Ok(())
    }

    /// Whether any two blocks overlap.
    fn overlap(&self) -> bool {
        let filled = || self.iter().filter(|e| e.len > 0);
        // Nearly always they follow each other, which is seen without sorting.
        let mut end = 0;
        if filled().all(|e| e.start >= std::mem::replace(&mut end, e.start + e.len)) {
            return false;
        }
        let mut extents: Vec<Extent> = filled().collect();
        extents.sort_unstable_by_key(|e| e.start);
        extents.windows(2).any(|pair| pair[0].start + pair[0].len > pair[1].start)
    }
}

impl VectorCall<'_> {
    /// Checks that rank `rank` of `nranks` can make this call.
    pub(crate) fn check(&self, rank: Rank, nranks: u32) -> Result<(), Error> {
        let all = nranks as usize;
        let at_root = |root: Rank| if root == rank { all } else { 0 };
        let (sends, recvs) = match self.collective {
            Collective::AllGather => (1, all),
            Collective::ReduceScatter => (all, 1),
            Collective::AllToAll => (all, all),
            Collective::Gather { root } => (1, at_root(root)),
            Collective::Scatter { root } => (at_root(root), 1),
            other => return Err(invalid(format!("{other} is not a vector collective"))),
        };
        if let Some(root) = self.collective.root().filter(|&r| r >= nranks) {
            return Err(no_such_root(root, nranks));
        }
        self.sends.check("send", sends, self.dtype.size())?;
        self.recvs.check("receive", recvs, self.dtype.size())?;
        let own = rank as usize;
        let (one_side, other_side) = match self.collective {
            Collective::ReduceScatter => (self.recvs.counts[0], self.sends.counts[own]),
            Collective::Scatter { .. } if sends == 0 => return Ok(()),
            Collective::Scatter { .. } => (self.recvs.counts[0], self.sends.counts[own]),
            Collective::AllToAll => (self.sends.counts[own], self.recvs.counts[own]),
            Collective::Gather { .. } if recvs == 0 => return Ok(()),
            _ => (self.sends.counts[0], self.recvs.counts[own]),
        };
        if one_side != other_side {
            let name = self.collective.name();
            return Err(invalid(format!(
                "{name}_v with {one_side} elements in this rank's own block on one side and \
                 {other_side} on the other"
            )));
        }
        if self.recvs.overlap() {
            return Err(invalid(String::from("receive blocks that overlap")));
        }
        Ok(())
    }
}

fn invalid(what: String) -> Error {
    Error::InvalidArgument { what }
}

/// The error for a root that is not a rank of the communicator.
#[cold]
pub(crate) fn no_such_root(root: Rank, nranks: u32) -> Error {
    invalid(format!(
        "root {root} in a communicator of {nranks} ranks; ranks go from 0 to nranks - 1"
    ))
}
