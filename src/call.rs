//! One collective call, as the caller states it, and what of it decides about its plan.

use std::sync::Arc;

use maypole_algorithms::{Collective, DType, Rank, RedOp};

use crate::error::Error;
use crate::reduce::Reduction;

/// What a caller asks for. Pointers are to host memory; `nccl.h`'s rules for in-place use apply.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What is to be achieved.
    pub collective: Collective,
    /// The send buffer: `count` elements per block, see [`Collective`].
    pub send: *const u8,
    /// The receive buffer, likewise.
    pub recv: *mut u8,
    /// Elements per block: for all-reduce, broadcast and reduce the length of the vector; for all-gather what each rank sends, for
    /// reduce-scatter what each rank receives.
    pub count: usize,
    /// The element type.
    pub dtype: DType,
    /// How contributions are combined; ignored by collectives that do not reduce.
    pub reduction: Reduction,
}

/// Blocks of a buffer: block `i` is `counts[i]` elements from element `displacements[i]` on. Blocks may lie in any order,
/// with gaps between them; blocks that are written must not overlap.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Elements of each block.
    pub counts: &'a [usize],
    /// Where each block begins, in elements.
    pub displacements: &'a [usize],
}

/// A collective call whose blocks differ in length from rank to rank. Pointers are to host memory.
///
/// | collective | `sends` | `recvs` | who must agree |
/// |---|---|---|---|
/// | `AllGather` | one block, the own contribution | a block per rank | all ranks on all counts |
/// | `ReduceScatter` | a block per rank | one block, the own result | all ranks on all counts |
/// | `AllToAll` | a block per rank | a block per rank | each pair on what it exchanges |
/// | `Gather` | one block | on the root a block per rank, elsewhere none | each rank with the root |
/// | `Scatter` | on the root a block per rank, elsewhere none | one block | each rank with the root |
///
/// In place, where `nccl.h` has that for the even forms: the one block is the memory of the rank's own block on the other side.
#[derive(Clone, Copy, Debug)]
pub struct VectorCall<'a> {
    /// One of the five above.
    pub collective: Collective,
    /// The send buffer.
    pub send: *const u8,
    /// Its blocks.
    pub sends: Blocks<'a>,
    /// The receive buffer.
    pub recv: *mut u8,
    /// Its blocks.
    pub recvs: Blocks<'a>,
    /// The element type.
    pub dtype: DType,
    /// How contributions are combined; ignored by collectives that do not reduce.
    pub reduction: Reduction,
}

/// A piece of a buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub(crate) struct Extent {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Extent {
    /// The part that tile number `tile` covers, in tiles of `elements`.
    pub(crate) fn slice(self, elements: usize, tile: u64) -> Self {
        let skip = (tile as usize * elements).min(self.len);
        Self { start: self.start + skip, len: elements.min(self.len - skip) }
    }

    /// Whether they have an element in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < (self.start + self.len).min(other.start + other.len)
    }
}

/// What is to be done, apart from where its memory is: all that a choice and a plan depend on.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) collective: Collective,
    pub(crate) extents: Extents,
    pub(crate) dtype: DType,
    /// With the scalar of one call, which may differ in the next.
    pub(crate) reduction: Reduction,
    /// It is a barrier, whatever the rest says of how that is made.
    pub(crate) barrier: bool,
}

/// Where the ranks' blocks lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extents {
    /// One after the other, each of so many elements.
    Even(usize),
    /// As listed, by rank.
    Vector(Arc<[Extent]>),
}

impl Extents {
    /// Elements of the longest block.
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
    /// No collective waits for all ranks and moves nothing; an all-reduce of one byte waits for all ranks: it is proved that its result
    /// holds the contribution of each.
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

    /// How contributions are combined. Collectives that do not reduce move them as they are, whatever the call says.
    pub(crate) fn reduction(&self) -> Reduction {
        if self.collective.reduces() { self.reduction } else { RedOp::Max.into() }
    }

    /// Bytes of the longest block.
    pub(crate) fn bytes(&self) -> usize {
        self.extents.longest().saturating_mul(self.dtype.size())
    }
}

impl<'a> Blocks<'a> {
    /// One block at the beginning of the buffer.
    pub const fn one(count: &'a usize) -> Self {
        Self { counts: std::slice::from_ref(count), displacements: &[0] }
    }

    /// No blocks: there is no buffer.
    pub const fn none() -> Self {
        Self { counts: &[], displacements: &[] }
    }

    /// Block `index`.
    pub(crate) fn extent(&self, index: usize) -> Extent {
        Extent { start: self.displacements[index], len: self.counts[index] }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Extent> + 'a {
        let pairs = self.displacements.iter().zip(self.counts);
        pairs.map(|(&start, &len)| Extent { start, len })
    }

    /// Elements that a buffer must have for these blocks.
    pub(crate) fn end(&self) -> usize {
        let ends = self.iter().filter(|e| e.len > 0).map(|e| e.start.saturating_add(e.len));
        ends.max().unwrap_or(0)
    }

    /// That there are as many as the `side` of a call has, and that a buffer of `size` bytes per element can hold them.
    fn check(&self, side: &str, expected: usize, size: usize) -> Result<(), Error> {
        let Self { counts, displacements } = self;
        if counts.len() != expected || displacements.len() != expected {
            return Err(invalid(format!(
                "{} counts and {} displacements of {side} blocks, which are {expected} on this rank",
                counts.len(),
                displacements.len()
            )));
        }
        if self.end().checked_mul(size).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(invalid(format!("{side} blocks that end beyond the address space")));
        }
        Ok(())
    }

    fn overlap(&self) -> bool {
        let mut extents: Vec<Extent> = self.iter().filter(|e| e.len > 0).collect();
        extents.sort_unstable_by_key(|e| e.start);
        extents.windows(2).any(|pair| pair[0].start + pair[0].len > pair[1].start)
    }
}

impl VectorCall<'_> {
    /// That it is a call that rank `rank` of `nranks` can make.
    pub(crate) fn check(&self, rank: Rank, nranks: u32) -> Result<(), Error> {
        let all = nranks as usize;
        let at_root = |root: Rank| if root == rank { all } else { 0 };
        let (sends, recvs) = match self.collective {
            Collective::AllGather => (1, all),
            Collective::ReduceScatter => (all, 1),
            Collective::AllToAll => (all, all),
            Collective::Gather { root } => (1, at_root(root)),
            Collective::Scatter { root } => (at_root(root), 1),
            other => return Err(invalid(format!("{other} has no blocks that could be uneven"))),
        };
        if let Some(root) = self.collective.root().filter(|&r| r >= nranks) {
            return Err(no_such_root(root, nranks));
        }
        self.sends.check("send", sends, self.dtype.size())?;
        self.recvs.check("receive", recvs, self.dtype.size())?;
        let own = rank as usize;
        let (here, there) = match self.collective {
            Collective::ReduceScatter => (self.recvs.counts[0], self.sends.counts[own]),
            Collective::Scatter { .. } if sends == 0 => return Ok(()),
            Collective::Scatter { .. } => (self.recvs.counts[0], self.sends.counts[own]),
            Collective::AllToAll => (self.sends.counts[own], self.recvs.counts[own]),
            Collective::Gather { .. } if recvs == 0 => return Ok(()),
            _ => (self.sends.counts[0], self.recvs.counts[own]),
        };
        if here != there {
            let name = self.collective.name();
            return Err(invalid(format!(
                "{name}_v whose own block is of {here} elements on one side and of {there} on the other"
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

/// A root that is none of the ranks.
#[cold]
pub(crate) fn no_such_root(root: Rank, nranks: u32) -> Error {
    invalid(format!("root {root} in a communicator of {nranks} ranks"))
}
