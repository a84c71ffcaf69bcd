//! What the kernels compute, as plain functions on the bits of single elements.

use half::bf16;
use maypole_algorithms::interpret::Algebra;
use maypole_algorithms::{DType, RedOp};
use maypole_cuda::launch::operation;

/// A reduction over one element type. Elements are their bits, widened to 32.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    /// [`Work::operation`](maypole_cuda::launch::Work).
    pub(crate) code: u32,
    /// Bytes of an element.
    pub(crate) size: usize,
    /// An element out of 64 random bits.
    pub(crate) sample: fn(u64) -> u32,
    /// [`Work::parameter`](maypole_cuda::launch::Work) for a rank of so many.
    pub(crate) parameter: fn(u32, u32) -> u64,
    contribute: fn(u32, u64) -> u32,
    combine: fn(u32, u32) -> u32,
    finish: fn(u32, u64) -> u32,
}

pub(crate) const SUM_F32: Operation = Operation {
    code: operation(DType::Float32, RedOp::Sum),
    size: 4,
    sample: float,
    parameter: |_, _| 0,
    contribute: |x, _| x,
    combine: add_f32,
    finish: |x, _| x,
};

pub(crate) const PREMULSUM_F32: Operation = Operation {
    code: operation(DType::Float32, RedOp::PreMulSum),
    parameter: |rank, _| u64::from((0.3 + rank as f32).to_bits()),
    contribute: |x, factor| (f32::from_bits(x) * f32::from_bits(factor as u32)).to_bits(),
    ..SUM_F32
};

pub(crate) const SUM_BF16: Operation = Operation {
    code: operation(DType::Bfloat16, RedOp::Sum),
    size: 2,
    sample: |random| float(random) >> 16,
    combine: |low, high| {
        let sum = bf16::from_bits(low as u16).to_f32() + bf16::from_bits(high as u16).to_f32();
        u32::from(bf16::from_f32(sum).to_bits())
    },
    ..SUM_F32
};

pub(crate) const AVG_I32: Operation = Operation {
    code: operation(DType::Int32, RedOp::Avg),
    sample: |random| random as u32,
    parameter: |_, nranks| u64::from(nranks),
    combine: u32::wrapping_add,
    finish: |x, nranks| (x as i32 / nranks as i32) as u32,
    ..SUM_F32
};

/// Either sign, exponents over 16 binades: most sums round, and differently in another order.
fn float(random: u64) -> u32 {
    let exponent = 127 - 8 + (random >> 40 & 15) as u32;
    (random as u32 & 0x807f_ffff) | exponent << 23
}

fn add_f32(low: u32, high: u32) -> u32 {
    (f32::from_bits(low) + f32::from_bits(high)).to_bits()
}

/// The operation as one rank applies it to chunks.
pub(crate) struct OnRank {
    pub(crate) operation: Operation,
    pub(crate) parameter: u64,
}

impl Algebra for OnRank {
    type Value = Vec<u32>;

    fn contribute(&mut self, value: Vec<u32>) -> Vec<u32> {
        value.into_iter().map(|x| (self.operation.contribute)(x, self.parameter)).collect()
    }

    fn combine(&mut self, left: Vec<u32>, right: Vec<u32>) -> Vec<u32> {
        left.into_iter().zip(right).map(|(l, r)| (self.operation.combine)(l, r)).collect()
    }

    fn finish(&mut self, value: Vec<u32>) -> Vec<u32> {
        value.into_iter().map(|x| (self.operation.finish)(x, self.parameter)).collect()
    }
}
