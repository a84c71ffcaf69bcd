//! The signature of a call: everything that must be the same on all ranks that make the call, in
//! two words.
//!
//! The control plane compares signatures to prove that two ranks make different calls, and their
//! hash travels with every message as its tag.

use std::fmt;

use maypole_algorithms::{Collective, DType, Rank, RedOp};

use crate::call::{Extents, Task};

/// Everything that must be the same on all ranks of a call, in two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CallSignature {
    /// From the low end: collective, element type, operator and form, 8 bits each, then 32 bits for
    /// the root. Where all ranks know the lengths of uneven blocks, a hash of the lengths takes the
    /// place of the root.
    pub(crate) what: u64,
    /// Elements per block. For uneven blocks: elements of all blocks together, or 0 where not every
    /// rank knows all lengths.
    pub(crate) count: u64,
}

/// The value of the operator field for a collective that does not reduce.
const NO_OP: u64 = 0xff;

/// The form of a call whose blocks are all of one length.
const EVEN: u64 = 0;
/// The form of a vector collective.
const UNEVEN: u64 = 1;
/// The form of a barrier.
const BARRIER: u64 = 2;

impl CallSignature {
    /// The signature of `task`.
    pub(crate) fn of(task: &Task) -> Self {
        let signature = Self::without_count(task.collective, task.dtype, task.reduction().op);
        match &task.extents {
            _ if task.barrier => Self { what: signature.what | BARRIER << 24, count: 1 },
            Extents::Even(count) => Self { count: *count as u64, ..signature },
            Extents::Vector(extents) => {
                let count = extents.iter().map(|e| e.len as u64).sum();
                let each = |hash, len: usize| Self { what: len as u64, count }.extend(hash);
                let hash = extents.iter().fold(0, |hash, extent| each(hash, extent.len)) >> 32;
                Self { what: signature.what | UNEVEN << 24 | hash << 32, count }
            }
        }
    }

    /// The signature of a vector collective in which a rank knows only the lengths of its own
    /// blocks.
    pub(crate) fn of_unknown_lengths(collective: Collective, dtype: DType) -> Self {
        let signature = Self::without_count(collective, dtype, RedOp::Max);
        Self { what: signature.what | UNEVEN << 24, ..signature }
    }

    fn without_count(collective: Collective, dtype: DType, op: RedOp) -> Self {
        let (code, root) = match collective {
            Collective::AllReduce => (0, 0),
            Collective::ReduceScatter => (1, 0),
            Collective::AllGather => (2, 0),
            Collective::Broadcast { root } => (3, root),
            Collective::Reduce { root } => (4, root),
            Collective::AllToAll => (5, 0),
            Collective::Gather { root } => (6, root),
            Collective::Scatter { root } => (7, root),
        };
        let op = if collective.reduces() { op as u64 } else { NO_OP };
        Self { what: code | (dtype as u64) << 8 | op << 16 | u64::from(root) << 32, count: 0 }
    }

    /// The hash of all calls so far, after this call is added to the hash `history` of those before
    /// it: a multiply-xorshift step for each word.
    #[inline]
    pub(crate) fn extend(self, history: u64) -> u64 {
        let mixed = (history ^ self.what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32 ^ self.count).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    fn collective(self) -> Option<Collective> {
        let root = (self.what >> 32) as Rank;
        Some(match self.what & 0xff {
            0 => Collective::AllReduce,
            1 => Collective::ReduceScatter,
            2 => Collective::AllGather,
            3 => Collective::Broadcast { root },
            4 => Collective::Reduce { root },
            5 => Collective::AllToAll,
            6 => Collective::Gather { root },
            7 => Collective::Scatter { root },
            _ => return None,
        })
    }
}

impl fmt::Display for CallSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = DType::from_code((self.what >> 8 & 0xff) as i32);
        let (Some(collective), Some(dtype)) = (self.collective(), dtype) else {
            return f.write_str("a call that this version does not know");
        };
        let (name, upper) = (collective.name(), self.what >> 32);
        match self.what >> 24 & 0xff {
            EVEN => write!(f, "{collective} of {} {dtype}", self.count)?,
            BARRIER => return f.write_str("barrier"),
            UNEVEN if self.count > 0 => {
                write!(f, "{name}_v of {} {dtype} in blocks of lengths {upper:08x}", self.count)?;
            }
            UNEVEN => match collective.root() {
                Some(root) => write!(f, "{name}_v from/to rank {root} of {dtype}")?,
                None => write!(f, "{name}_v of {dtype}")?,
            },
            _ => return f.write_str("a call that this version does not know"),
        }
        match RedOp::ALL.get((self.what >> 16 & 0xff) as usize) {
            Some(op) => write!(f, " {op}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Extent;

    #[test]
    fn a_signature_reads_as_a_sentence() {
        let task = Task {
            collective: Collective::Broadcast { root: 3 },
            extents: Extents::Even(5),
            dtype: DType::Int32,
            reduction: RedOp::Sum.into(),
            barrier: false,
        };
        let text = |task: &Task| CallSignature::of(task).to_string();
        assert_eq!(text(&task), "broadcast from/to rank 3 of 5 int32");
        let task = Task { collective: Collective::AllReduce, ..task };
        assert_eq!(text(&task), "all_reduce of 5 int32 sum");
        assert_eq!(text(&Task::barrier()), "barrier");
        let uneven = |lens: [usize; 2]| Task {
            collective: Collective::ReduceScatter,
            extents: Extents::Vector(lens.map(|len| Extent { start: 0, len }).into()),
            ..task.clone()
        };
        let (one, other) = (text(&uneven([3, 4])), text(&uneven([4, 3])));
        assert!(one.starts_with("reduce_scatter_v of 7 int32 in blocks of lengths "), "{one}");
        assert!(one.ends_with(" sum") && one != other, "{one}, {other}");
        let pairs =
            |collective| CallSignature::of_unknown_lengths(collective, DType::Int8).to_string();
        assert_eq!(pairs(Collective::AllToAll), "alltoall_v of int8");
        assert_eq!(pairs(Collective::Gather { root: 2 }), "gather_v from/to rank 2 of int8");
    }
}
