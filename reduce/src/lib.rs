//! Reduction kernels for host memory: each folds up to eight inputs into up to eight outputs.
//!
//! A [`FoldKernel`] is chosen once, by element type, operation and instruction set, and runs on any
//! number of [`FoldOperands`]. It computes what [`maypole_algorithms::semantics`] says of a step:
//! contributions are scaled where the operation scales, inputs are folded by the balanced tree over
//! their positions, the value is rounded to the element type once per binary node, and the fold
//! that closes the reduction divides an integer average. [`scalar`] computes the same one element
//! at a time; every kernel gives the same bits, except that a sum or product that is NaN may be any
//! NaN.
//!
//! * Integers wrap around. An integer average divides by the number of ranks, truncating toward
//!   zero.
//! * A float average scales each contribution by 1/nranks, rounded to the type.
//! * binary16, bfloat16 and the 8-bit floats are added and multiplied as binary32, then rounded to
//!   nearest even. The 8-bit floats saturate at their largest finite value; see `convert`.
//! * The maximum and the minimum of floats depend on the set of inputs alone, not on their order,
//!   bit for bit. -0 is less than +0. A NaN is ignored, as `fmaxf` and `fminf` do it, unless all of
//!   at least two inputs are NaN: then the result is the NaN with all bits set, whatever their
//!   signs and payloads. Any other result is one of the inputs, never rounded or saturated.
//! * Nothing is contracted to a fused multiply-add, and subnormal numbers are kept, given the
//!   default modes of the processor.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod convert;
mod element;
pub mod environment;
mod fold;
mod loops;
pub mod scalar;
#[cfg(target_arch = "x86_64")]
mod simd;

use maypole_algorithms::{DType, RedOp};

pub use fold::FoldOperands;
use loops::Loops;

/// A reduction operation with its factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    /// The operation.
    pub op: RedOp,
    /// The factor of this rank for [`RedOp::PreMulSum`], an element in the low bytes. Other
    /// operations ignore it.
    pub scalar: u64,
    /// Whether `scalar` is the address of the factor instead, in memory that the communicator's
    /// device reaches. The device reads it when the call runs. Communicators of host memory refuse
    /// such a factor.
    pub resident: bool,
}

impl From<RedOp> for Reduction {
    fn from(op: RedOp) -> Self {
        Self { op, scalar: 0, resident: false }
    }
}

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// The compiler's baseline: one element at a time, or what the compiler makes of such loops.
    Scalar,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The widest that this machine has.
    pub fn detect() -> Self {
        *Self::available().last().expect("the scalar kernels are always available")
    }

    /// All that this machine has, the widest last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            all.extend(avx2.then_some(Self::Avx2));
            all.extend(avx512.then_some(Self::Avx512));
        }
        all
    }
}

/// The kernel of one element type, one reduction and one instruction set.
#[derive(Clone, Copy)]
pub struct FoldKernel {
    loops: &'static Loops,
    /// The factor of each contribution, if the operation scales contributions.
    factor: Option<u64>,
    /// The divisor of the fold that closes the reduction, if the operation is an integer average.
    divisor: Option<u32>,
}

impl FoldKernel {
    /// The kernel for `reduction` of the contributions of `nranks` ranks.
    ///
    /// # Panics
    /// If this machine lacks `isa`, or `nranks` is 0.
    pub fn select(dtype: DType, reduction: Reduction, nranks: u32, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "this machine has no {isa:?}");
        assert!(nranks > 0, "nranks is 0, but a communicator has at least one rank");
        let loops = match isa {
            Isa::Scalar => scalar::loops(dtype, reduction.op),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::loops(dtype, reduction.op),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::loops(dtype, reduction.op),
        };
        let average = reduction.op == RedOp::Avg && !dtype.is_float();
        let factor = scalar::factor(dtype, reduction, nranks);
        Self { loops, factor, divisor: average.then_some(nranks) }
    }
}
