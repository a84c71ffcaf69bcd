//! The elements that ranks contribute in tests.

use super::{DType, Random};

/// The bits of element `index` of the contribution of `rank`: floats of similar magnitude, so that
/// sums are rounded, and no NaN.
pub(crate) fn element(dtype: DType, seed: u64, rank: u32, index: usize) -> u64 {
    let bits = Random(seed ^ u64::from(rank) << 40 ^ index as u64).next();
    let mask = u64::MAX >> (64 - 8 * dtype.size());
    let (exponent, fraction) = match dtype {
        DType::Float16 => (5, 10),
        DType::Bfloat16 => (8, 7),
        DType::Float32 => (8, 23),
        DType::Float64 => (11, 52),
        DType::Float8E4M3 => (4, 3),
        DType::Float8E5M2 => (5, 2),
        _ => return bits & mask,
    };
    let middle = (1u64 << (exponent - 1)) - 2 + (bits >> 60 & 3);
    let sign = bits >> 59 & 1;
    sign << (exponent + fraction) | middle << fraction | bits & ((1 << fraction) - 1)
}
