//! Elements of all types as bits, and the expected result of an operation on two elements.

use half::{bf16, f16};
use maypole_algorithms::{DType, RedOp};

/// A reduction of the contributions of two ranks.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) dtype: DType,
    pub(crate) op: RedOp,
    /// The parameter for the kernel, by rank.
    pub(crate) parameter: [u64; 2],
    /// The result for the bits of rank 0's element and rank 1's.
    pub(crate) result: fn(u64, u64) -> u64,
}

const fn operation(dtype: DType, op: RedOp, result: fn(u64, u64) -> u64) -> Operation {
    Operation { dtype, op, parameter: [0; 2], result }
}

pub(crate) const SUM_I32: Operation =
    operation(DType::Int32, RedOp::Sum, |a, b| u64::from((a as u32).wrapping_add(b as u32)));

pub(crate) const SUM_F32: Operation =
    operation(DType::Float32, RedOp::Sum, |a, b| bits32(single(a) + single(b)));

/// Each kind of arithmetic once; `abi` has them all, against host memory.
pub(crate) const OPERATIONS: [Operation; 10] = [
    SUM_I32,
    SUM_F32,
    operation(DType::Uint8, RedOp::Sum, |a, b| (a + b) & 0xff),
    operation(DType::Int64, RedOp::Min, |a, b| (a as i64).min(b as i64) as u64),
    operation(DType::Uint32, RedOp::Max, |a, b| a.max(b)),
    operation(DType::Float64, RedOp::Prod, |a, b| {
        (f64::from_bits(a) * f64::from_bits(b)).to_bits()
    }),
    operation(DType::Float16, RedOp::Sum, |a, b| {
        let [a, b] = [a, b].map(|bits| f16::from_bits(bits as u16).to_f32());
        f16::from_f32(a + b).to_bits().into()
    }),
    operation(DType::Bfloat16, RedOp::Sum, |a, b| {
        let [a, b] = [a, b].map(|bits| bf16::from_bits(bits as u16).to_f32());
        bf16::from_f32(a + b).to_bits().into()
    }),
    Operation {
        parameter: [2; 2],
        ..operation(DType::Int32, RedOp::Avg, |a, b| {
            ((a as i32).wrapping_add(b as i32) / 2) as u32 as u64
        })
    },
    Operation {
        parameter: [0x3eaa_aaab, 0xc020_0000],
        ..operation(DType::Float32, RedOp::PreMulSum, |a, b| {
            let factor = [0x3eaa_aaab, 0xc020_0000].map(f32::from_bits);
            bits32(single(a) * factor[0] + single(b) * factor[1])
        })
    },
];

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits32(value: f32) -> u64 {
    value.to_bits().into()
}

/// The bits of an element of the type, from random bits: floats of both signs and some binades
/// around 1, so that most results are rounded and none overflows; any integer.
pub(crate) fn sample(dtype: DType, random: u64) -> u64 {
    // Bits of the fraction and of the exponent, and the exponent of 1.
    let (fraction, exponent, one) = match dtype {
        DType::Float16 => (10, 5, 15),
        DType::Float32 => (23, 8, 127),
        DType::Float64 => (52, 11, 1023),
        DType::Bfloat16 => (7, 8, 127),
        DType::Float8E4M3 => (3, 4, 7),
        DType::Float8E5M2 => (2, 5, 15),
        _ => return random & (u64::MAX >> (64 - 8 * dtype.size())),
    };
    let near = one - 2 + (random >> 58) % 4;
    (random & ((1 << fraction) - 1))
        | near << fraction
        | (random >> 57 & 1) << (fraction + exponent)
}

/// A pseudorandom number for each rank and element.
pub(crate) fn random(seed: u64, rank: u64, index: u64) -> u64 {
    let mut z =
        (seed << 48 ^ rank << 40 ^ index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `count` elements of `rank`, as they lie in memory.
pub(crate) fn input(dtype: DType, seed: u64, rank: u64, count: usize) -> Vec<u8> {
    let size = dtype.size();
    let mut bytes = Vec::with_capacity(count * size);
    for index in 0..count as u64 {
        let bits = sample(dtype, random(seed, rank, index)).to_le_bytes();
        bytes.extend_from_slice(&bits[..size]);
    }
    bytes
}

/// What both ranks have to receive for these inputs.
pub(crate) fn expected(operation: &Operation, inputs: &[Vec<u8>; 2]) -> Vec<u8> {
    let size = operation.dtype.size();
    let wide = |bytes: &[u8]| bytes.iter().rev().fold(0, |wide, byte| wide << 8 | u64::from(*byte));
    let [a, b] = inputs;
    let pairs = a.chunks_exact(size).zip(b.chunks_exact(size));
    let mut bytes = Vec::with_capacity(a.len());
    for (a, b) in pairs {
        bytes.extend_from_slice(&(operation.result)(wide(a), wide(b)).to_le_bytes()[..size]);
    }
    bytes
}

/// Says where and how `found` differs; nothing if it does not.
pub(crate) fn difference(found: &[u8], expected: &[u8], size: usize) -> Option<String> {
    let element = |bytes: &[u8], i: usize| -> String {
        bytes[i * size..][..size].iter().rev().map(|byte| format!("{byte:02x}")).collect()
    };
    if found.len() != expected.len() {
        return Some(format!("{} bytes, and not {}", found.len(), expected.len()));
    }
    let pairs = found.chunks_exact(size).zip(expected.chunks_exact(size));
    let wrong: Vec<usize> =
        pairs.enumerate().filter(|(_, (f, e))| f != e).map(|(i, _)| i).collect();
    let first = *wrong.first()?;
    Some(format!(
        "{} of {} elements are wrong, the first is {first}: {}, and not {}; the last is {}",
        wrong.len(),
        found.len() / size,
        element(found, first),
        element(expected, first),
        wrong[wrong.len() - 1]
    ))
}
