//! One element at a time: the loops for any machine, and the reference for tests.
//!
//! The functions say what a reduction is, bit for bit: every kernel, and every collective of a canonical schedule,
//! gives what they give when they are applied along its tree (any NaN for a NaN). They take and return elements as
//! the low bytes of a `u64`.

use std::marker::PhantomData;

use maypole_algorithms::{DType, RedOp};

use super::Reduction;
use super::element::{Bf16, E4m3, E5m2, Element, F16};
use super::lanes::{self, Lanes, Loops, Max, Min, Node, Prod, Sum};

/// Calls `$f::<E>` for the element type of `$dtype`.
macro_rules! typed {
    ($dtype:expr, $f:ident($($argument:expr),*)) => {
        match $dtype {
            DType::Int8 => $f::<i8>($($argument),*),
            DType::Uint8 => $f::<u8>($($argument),*),
            DType::Int32 => $f::<i32>($($argument),*),
            DType::Uint32 => $f::<u32>($($argument),*),
            DType::Int64 => $f::<i64>($($argument),*),
            DType::Uint64 => $f::<u64>($($argument),*),
            DType::Float16 => $f::<F16>($($argument),*),
            DType::Float32 => $f::<f32>($($argument),*),
            DType::Float64 => $f::<f64>($($argument),*),
            DType::Bfloat16 => $f::<Bf16>($($argument),*),
            DType::Float8E4M3 => $f::<E4m3>($($argument),*),
            DType::Float8E5M2 => $f::<E5m2>($($argument),*),
        }
    };
}

/// One binary node: `a` stands for the lower positions.
pub fn combine(dtype: DType, op: RedOp, a: u64, b: u64) -> u64 {
    fn of<E: Element>(op: RedOp, a: u64, b: u64) -> u64 {
        let (a, b) = (E::from_bits(a), E::from_bits(b));
        match op {
            RedOp::Sum | RedOp::Avg | RedOp::PreMulSum => a.sum(b),
            RedOp::Prod => a.prod(b),
            RedOp::Max => a.max(b),
            RedOp::Min => a.min(b),
        }
        .to_bits()
    }
    typed!(dtype, of(op, a, b))
}

/// A rank's own contribution, from what its send buffer holds.
pub fn contribute(dtype: DType, reduction: Reduction, nranks: u32, value: u64) -> u64 {
    fn of<E: Element>(value: u64, scale: u64) -> u64 {
        E::from_bits(value).prod(E::from_bits(scale)).to_bits()
    }
    match factor(dtype, reduction, nranks) {
        Some(scale) => typed!(dtype, of(value, scale)),
        None => value,
    }
}

/// The closing function: the integer average's division, which truncates toward zero.
pub fn finish(dtype: DType, op: RedOp, nranks: u32, value: u64) -> u64 {
    let n = i64::from(nranks);
    match (op, dtype) {
        (RedOp::Avg, DType::Int8) => u64::from((i64::from(value as i8) / n) as u8),
        (RedOp::Avg, DType::Int32) => u64::from((i64::from(value as i32) / n) as u32),
        (RedOp::Avg, DType::Int64) => (value as i64 / n) as u64,
        (RedOp::Avg, DType::Uint8 | DType::Uint32 | DType::Uint64) => value / u64::from(nranks),
        _ => value,
    }
}

/// What contributions are multiplied by, where they are.
pub(crate) fn factor(dtype: DType, reduction: Reduction, nranks: u32) -> Option<u64> {
    fn reciprocal<E: Element>(n: u32) -> u64 {
        E::reciprocal(n).to_bits()
    }
    match reduction.op {
        RedOp::PreMulSum => Some(reduction.scalar),
        RedOp::Avg if dtype.is_float() => Some(typed!(dtype, reciprocal(nranks))),
        _ => None,
    }
}

/// A register that holds one element.
pub(super) struct Packed<E>(PhantomData<E>);

// SAFETY: BYTES is the size of the one element that is loaded and stored.
unsafe impl<E: Element> Lanes for Packed<E> {
    type Element = E;
    type Register = E;
    const BYTES: usize = size_of::<E>();

    #[inline(always)]
    unsafe fn load(from: *const u8) -> E {
        // SAFETY: the caller gives an element's memory.
        unsafe { from.cast::<E>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, value: E) {
        // SAFETY: the caller gives an element's memory.
        unsafe { to.cast::<E>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn sum(a: E, b: E) -> E {
        a.sum(b)
    }

    #[inline(always)]
    unsafe fn prod(a: E, b: E) -> E {
        a.prod(b)
    }

    #[inline(always)]
    unsafe fn max(a: E, b: E) -> E {
        a.max(b)
    }

    #[inline(always)]
    unsafe fn min(a: E, b: E) -> E {
        a.min(b)
    }
}

lanes::loops! { stream }

/// See [`lanes::Stream`].
#[cfg(target_arch = "x86_64")]
unsafe fn stream(to: *mut u8, from: *const u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    // SAFETY: SSE2 is part of x86-64; `lanes::stream` gives whole lines, aligned in the destination.
    let line = |to: *mut u8, from: *const u8| unsafe {
        for i in 0..4 {
            _mm_stream_si128(
                to.cast::<__m128i>().add(i),
                _mm_loadu_si128(from.cast::<__m128i>().add(i)),
            );
        }
    };
    // SAFETY: the same contract.
    unsafe { lanes::stream(to, from, bytes, line) }
}

/// See [`lanes::Stream`]; an ordinary copy where the language has no non-temporal stores.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the same contract.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) }
}
