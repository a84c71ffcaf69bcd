//! Reduction kernels for host memory: one pass that folds up to eight inputs and writes up to eight outputs.
//!
//! A [`FoldKernel`] is chosen once, by element type, operation and instruction set, and runs any number of [`FoldOperands`]. What
//! a pass computes is what [`maypole_algorithms::semantics`] says of a step: contributions are scaled where the
//! operation says so, inputs are folded by the balanced tree over their positions, the value is rounded to the element
//! type once per binary node, and a finishing pass divides an integer average. [`scalar`] says the same one element at
//! a time; every kernel gives its bits, except that a NaN may be any NaN.
//!
//! * Integers wrap around. An integer average divides by the number of ranks, truncating toward zero.
//! * A float average scales each contribution by 1/nranks rounded to the type.
//! * binary16, bfloat16 and the 8-bit floats are added and multiplied as binary32, then rounded to nearest even. The
//!   8-bit floats saturate at their largest finite value; see `convert`.
//! * The maximum of floats is `a > b ? a : b`, `a` being the lower position, and the minimum `a < b ? a : b`: if either is
//!   a NaN, and for two zeros, it is `b`. It is always one of the operands, never rounded or saturated.
//! * Nothing is contracted to a fused multiply-add, and subnormal numbers are kept, given the processor's default
//!   modes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod convert;
mod element;
mod lanes;
mod pass;
pub mod scalar;

#[cfg(test)]
mod tests;

use maypole_algorithms::{DType, RedOp};

use lanes::Loops;
pub use pass::FoldOperands;

/// A reduction operation with its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    /// The operation.
    pub op: RedOp,
    /// [`RedOp::PreMulSum`]: this rank's factor, an element in the low bytes. Not looked at otherwise.
    pub scalar: u64,
    /// `scalar` is the address of the factor, in memory that the device of the communicator reaches, where it is read when the call runs
    /// there. Not for communicators of host memory.
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
    /// One element at a time, or what the compiler makes of that for the target at hand.
    Scalar,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Self {
        *Self::available().last().expect("the scalar kernels are always there")
    }

    /// All that this machine has, the best last.
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

/// The loops for one element type, one reduction and one instruction set.
#[derive(Clone, Copy)]
pub struct FoldKernel {
    loops: &'static Loops,
    /// What contributions are multiplied by, where they are.
    factor: Option<u64>,
    /// What a finishing pass divides by, where it does.
    divisor: Option<u32>,
}

impl FoldKernel {
    /// The kernel for `reduction` of `nranks` ranks' contributions.
    ///
    /// # Panics
    /// If this machine lacks `isa`, or `nranks` is 0.
    pub fn select(dtype: DType, reduction: Reduction, nranks: u32, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "this machine has no {isa:?}");
        assert!(nranks > 0, "a communicator has a rank");
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
