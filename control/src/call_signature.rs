//! The signature of a call: everything that must be the same on all ranks that make the call, in
//! two words.

use std::fmt;

use maypole_algorithms::{Collective, DType, Rank, RedOp};

/// Everything that must be the same on all ranks of a call, in two words.
///
/// The control plane compares signatures to prove that two ranks make different calls, and their
/// hash travels with every message as its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSignature {
    /// From the low end: collective, element type, operator and form, 8 bits each, then 32 bits for
    /// the root. Where all ranks know the lengths of uneven blocks, a hash of the lengths takes the
    /// place of the root.
    pub what: u64,
    /// Elements per block. For uneven blocks: elements of all blocks together, or 0 where not every
    /// rank knows all lengths.
    pub count: u64,
}

/// The number of collectives.
pub const COLLECTIVES: usize = 8;
/// The value of the operator field for a collective that does not reduce.
const NO_OP: u64 = 0xff;

/// The form of a call whose blocks are all of one length.
const EVEN: u64 = 0;
/// The form of a vector collective.
const VECTOR: u64 = 1;
/// The form of a barrier.
const BARRIER: u64 = 2;

impl CallSignature {
    /// The signature of a collective whose blocks all have `count` elements.
    pub fn even(collective: Collective, dtype: DType, op: RedOp, count: u64) -> Self {
        Self { count, ..Self::without_count(collective, dtype, op) }
    }

    /// The signature of a barrier.
    pub fn barrier() -> Self {
        let call = Self::without_count(Collective::AllReduce, DType::Uint8, RedOp::Max);
        Self { what: call.what | BARRIER << 24, count: 1 }
    }

    /// The signature of a vector collective whose blocks have these lengths, which every rank
    /// knows.
    pub fn of_lengths(
        collective: Collective,
        dtype: DType,
        op: RedOp,
        lengths: impl Iterator<Item = u64> + Clone,
    ) -> Self {
        let call = Self::without_count(collective, dtype, op);
        let count = lengths.clone().sum();
        let hash = lengths.fold(0, |hash, len| Self { what: len, count }.extend(hash)) >> 32;
        Self { what: call.what | VECTOR << 24 | hash << 32, count }
    }

    /// The signature of a vector collective in which a rank knows only the lengths of its own
    /// blocks.
    pub fn of_unknown_lengths(collective: Collective, dtype: DType) -> Self {
        let call = Self::without_count(collective, dtype, RedOp::Max);
        Self { what: call.what | VECTOR << 24, ..call }
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
    pub fn extend(self, history: u64) -> u64 {
        let mixed = (history ^ self.what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32 ^ self.count).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    /// The number of the collective: from 0 to 7 all-reduce, reduce-scatter, all-gather, broadcast,
    /// reduce, all-to-all, gather and scatter.
    #[inline]
    pub fn code(self) -> usize {
        (self.what & 0xff) as usize
    }

    fn collective(self) -> Option<Collective> {
        let root = (self.what >> 32) as Rank;
        Some(match self.code() {
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
            VECTOR if self.count > 0 => {
                write!(f, "{name}_v of {} {dtype} in blocks of lengths {upper:08x}", self.count)?;
            }
            VECTOR => match collective.root() {
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

    #[test]
    fn a_signature_reads_as_a_sentence() {
        let broadcast = Collective::Broadcast { root: 3 };
        let even = |collective| CallSignature::even(collective, DType::Int32, RedOp::Sum, 5);
        assert_eq!(even(broadcast).to_string(), "broadcast from/to rank 3 of 5 int32");
        assert_eq!(even(Collective::AllReduce).to_string(), "all_reduce of 5 int32 sum");
        assert_eq!(CallSignature::barrier().to_string(), "barrier");
        let vector = |lengths: [u64; 2]| {
            let (collective, lengths) = (Collective::ReduceScatter, lengths.into_iter());
            CallSignature::of_lengths(collective, DType::Int32, RedOp::Sum, lengths).to_string()
        };
        let (one, other) = (vector([3, 4]), vector([4, 3]));
        assert!(one.starts_with("reduce_scatter_v of 7 int32 in blocks of lengths "), "{one}");
        assert!(one.ends_with(" sum") && one != other, "{one}, {other}");
        let pairs =
            |collective| CallSignature::of_unknown_lengths(collective, DType::Int8).to_string();
        assert_eq!(pairs(Collective::AllToAll), "alltoall_v of int8");
        assert_eq!(pairs(Collective::Gather { root: 2 }), "gather_v from/to rank 2 of int8");
    }
}
