//! The types that all crates share: ranks, element types, reduction operations and collectives.

use std::fmt;
use std::str::FromStr;

/// The number of a participant of a communicator, in `0..nranks`.
pub type Rank = u32;

/// An element type. The discriminants are those of `ncclDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// Signed 8-bit integer.
    Int8 = 0,
    /// Unsigned 8-bit integer.
    Uint8 = 1,
    /// Signed 32-bit integer.
    Int32 = 2,
    /// Unsigned 32-bit integer.
    Uint32 = 3,
    /// Signed 64-bit integer.
    Int64 = 4,
    /// Unsigned 64-bit integer.
    Uint64 = 5,
    /// IEEE 754 binary16.
    Float16 = 6,
    /// IEEE 754 binary32.
    Float32 = 7,
    /// IEEE 754 binary64.
    Float64 = 8,
    /// The upper half of a binary32: 8 exponent bits, 7 fraction bits.
    Bfloat16 = 9,
    /// 8-bit float of 4 exponent and 3 fraction bits (OCP FP8, finite and NaN only).
    Float8E4M3 = 10,
    /// 8-bit float of 5 exponent and 2 fraction bits (OCP FP8).
    Float8E5M2 = 11,
}

impl DType {
    /// All element types, in the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::Int8,
        Self::Uint8,
        Self::Int32,
        Self::Uint32,
        Self::Int64,
        Self::Uint64,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::Bfloat16,
        Self::Float8E4M3,
        Self::Float8E5M2,
    ];

    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Int8 | Self::Uint8 | Self::Float8E4M3 | Self::Float8E5M2 => 1,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Int64 | Self::Uint64 | Self::Float64 => 8,
        }
    }

    /// Whether it is a floating-point type, whose sums are rounded.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Self::Float16
                | Self::Float32
                | Self::Float64
                | Self::Bfloat16
                | Self::Float8E4M3
                | Self::Float8E5M2
        )
    }

    /// The type with this discriminant (`ncclDataType_t`), if there is one.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// The name that nccl-tests prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Int32 => "int32",
            Self::Uint32 => "uint32",
            Self::Int64 => "int64",
            Self::Uint64 => "uint64",
            Self::Float16 => "half",
            Self::Float32 => "float",
            Self::Float64 => "double",
            Self::Bfloat16 => "bfloat16",
            Self::Float8E4M3 => "f8e4m3",
            Self::Float8E5M2 => "f8e5m2",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| UnknownName::new("data type", s, &Self::ALL.map(Self::name)))
    }
}

/// A reduction operation. The discriminants of the first five are those of `ncclRedOp_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RedOp {
    /// Addition; integers wrap around.
    Sum = 0,
    /// Multiplication; integers wrap around.
    Prod = 1,
    /// The larger operand.
    Max = 2,
    /// The smaller operand.
    Min = 3,
    /// The mean. Integers: the wrapped sum, divided by nranks and truncated toward zero. Floats:
    /// every contribution is multiplied by 1/nranks, rounded to the type, and then summed.
    Avg = 4,
    /// Every rank's contribution is first multiplied by that rank's own scalar, then summed.
    PreMulSum = 5,
}

impl RedOp {
    /// All operations, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::Sum, Self::Prod, Self::Max, Self::Min, Self::Avg, Self::PreMulSum];

    /// The name that nccl-tests prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "max",
            Self::Min => "min",
            Self::Avg => "avg",
            Self::PreMulSum => "mulsum",
        }
    }
}

impl fmt::Display for RedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RedOp {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|o| o.name() == s)
            .ok_or_else(|| UnknownName::new("operation", s, &Self::ALL.map(Self::name)))
    }
}

/// The operation that a schedule carries out. What its outputs must hold is derived from this
/// alone.
///
/// With `k` parts per rank block: `AllReduce`, `Broadcast` and `Reduce` have `k` input and `k`
/// output chunks; `AllGather` and `Gather` have `k` and `n*k`; `ReduceScatter` and `Scatter` have
/// `n*k` and `k`; `AllToAll` has `n*k` and `n*k`. Chunk `r*k + i` of a large side is part `i` of
/// rank `r`'s block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Every rank ends with the reduction of all inputs.
    AllReduce,
    /// Rank `r` ends with block `r` of the reduction of all inputs.
    ReduceScatter,
    /// Every rank ends with the inputs of all ranks, in rank order.
    AllGather,
    /// Every rank ends with the root's input.
    Broadcast {
        /// The rank whose input is distributed.
        root: Rank,
    },
    /// The root ends with the reduction of all inputs.
    Reduce {
        /// The rank that receives the reduction.
        root: Rank,
    },
    /// Rank `r` ends with block `r` of every rank's input, in rank order.
    AllToAll,
    /// The root ends with the inputs of all ranks, in rank order.
    Gather {
        /// The rank that receives.
        root: Rank,
    },
    /// Rank `r` ends with block `r` of the root's input.
    Scatter {
        /// The rank whose input is distributed.
        root: Rank,
    },
}

impl Collective {
    /// All collectives; `root` is the root of those that have one.
    pub const fn all(root: Rank) -> [Self; 8] {
        [
            Self::AllReduce,
            Self::ReduceScatter,
            Self::AllGather,
            Self::Broadcast { root },
            Self::Reduce { root },
            Self::AllToAll,
            Self::Gather { root },
            Self::Scatter { root },
        ]
    }

    /// The collective with this [`name`](Self::name), if there is one; `root` is its root where it
    /// has one.
    pub fn from_name(name: &str, root: Rank) -> Option<Self> {
        Self::all(root).into_iter().find(|collective| collective.name() == name)
    }

    /// Input chunks per rank at `parts` parts per block.
    pub const fn input_chunks(self, nranks: u32, parts: u32) -> u32 {
        match self {
            Self::ReduceScatter | Self::AllToAll | Self::Scatter { .. } => nranks * parts,
            _ => parts,
        }
    }

    /// Output chunks per rank at `parts` parts per block.
    pub const fn output_chunks(self, nranks: u32, parts: u32) -> u32 {
        match self {
            Self::AllGather | Self::AllToAll | Self::Gather { .. } => nranks * parts,
            _ => parts,
        }
    }

    /// Whether contributions of several ranks are combined.
    pub const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::ReduceScatter | Self::Reduce { .. })
    }

    /// The root, where the collective has one.
    pub const fn root(self) -> Option<Rank> {
        match self {
            Self::Broadcast { root }
            | Self::Reduce { root }
            | Self::Gather { root }
            | Self::Scatter { root } => Some(root),
            _ => None,
        }
    }

    /// The input chunk that is the same memory as output chunk `output` of `rank` in a call in
    /// place, by the rules of `nccl.h`; None if the output chunk shares no memory with the input.
    pub fn in_place(self, nranks: u32, parts: u32, rank: Rank, output: u32) -> Option<u32> {
        let own = rank * parts..(rank + 1) * parts;
        match self {
            Self::AllReduce | Self::Broadcast { .. } | Self::Reduce { .. } => Some(output),
            Self::AllGather => own.contains(&output).then(|| output - own.start),
            Self::ReduceScatter => Some(own.start + output),
            Self::Gather { root } => {
                (rank == root && own.contains(&output)).then(|| output - own.start)
            }
            Self::Scatter { root } => (rank == root).then(|| own.start + output),
            Self::AllToAll => {
                let _ = nranks;
                None
            }
        }
    }

    /// Whether a rank may give overlapping buffers: some output chunk shares memory with an input
    /// chunk, see [`in_place`](Self::in_place).
    pub const fn can_run_in_place(self) -> bool {
        !matches!(self, Self::AllToAll)
    }

    /// The name without the root, as nccl-tests writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast { .. } => "broadcast",
            Self::Reduce { .. } => "reduce",
            Self::AllToAll => "alltoall",
            Self::Gather { .. } => "gather",
            Self::Scatter { .. } => "scatter",
        }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.root() {
            Some(root) => write!(f, "{} from/to rank {root}", self.name()),
            None => f.pad(self.name()),
        }
    }
}

/// A name that is not among the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not a {kind}; known are: {known}")]
pub struct UnknownName {
    kind: &'static str,
    given: String,
    known: String,
}

impl UnknownName {
    /// `given` was read as the name of a `kind`; `known` are all names of that kind.
    pub fn new(kind: &'static str, given: &str, known: &[&str]) -> Self {
        Self { kind, given: given.to_owned(), known: known.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collective_can_run_in_place_if_some_output_shares_memory() {
        for (nranks, parts) in [(1, 1), (2, 3), (5, 1)] {
            for collective in Collective::all(nranks - 1) {
                let mut chunks = (0..nranks).flat_map(|rank| {
                    (0..collective.output_chunks(nranks, parts)).map(move |output| (rank, output))
                });
                let place = |(rank, output)| collective.in_place(nranks, parts, rank, output);
                let has = chunks.any(|chunk| place(chunk).is_some());
                assert_eq!(has, collective.can_run_in_place(), "{collective}");
            }
        }
    }
}
