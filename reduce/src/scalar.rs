//! The fold of one element at a time: the loops for any machine, and the reference for tests.
//!
//! The public functions define a reduction bit for bit. Every kernel, and every collective by a
//! canonical schedule, gives what these functions give when they are applied along its reduction
//! tree, except that a sum or product that is NaN may be any NaN. They take and return an element
//! in the low bytes of a `u64`.

use super::Reduction;

/// The value of a binary node of the fold, where `a` stands for the lower positions.
pub fn combine(dtype: DType, op: RedOp, a: u64, b: u64) -> u64 {
    fn of<E: Arithmetic>(op: RedOp, a: u64, b: u64) -> u64 {
        let (a, b) = (E::from_bits(a), E::from_bits(b));
        match op {
            RedOp::Sum | RedOp::Avg | RedOp::PreMulSum => a.sum(b),
            RedOp::Prod => a.prod(b),
            RedOp::Max => a.max(b),
            RedOp::Min => a.min(b),
        }
        .to_bits()
    }
    for_element_type!(dtype, of(op, a, b))
}

/// The contribution of a rank whose send buffer holds `value`: scaled, where the operation scales.
pub fn contribute(dtype: DType, reduction: Reduction, nranks: u32, value: u64) -> u64 {
    fn of<E: Arithmetic>(value: u64, scale: u64) -> u64 {
        E::from_bits(value).prod(E::from_bits(scale)).to_bits()
    }
    match factor(dtype, reduction, nranks) {
        Some(scale) => for_element_type!(dtype, of(value, scale)),
        None => value,
    }
}

/// The last step of a reduction: the division of an integer average, which truncates toward zero.
/// Other operations leave the value as it is.
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

/// The factor of each contribution, for operations that scale contributions.
pub fn factor(dtype: DType, reduction: Reduction, nranks: u32) -> Option<u64> {
    fn reciprocal<E: Arithmetic>(n: u32) -> u64 {
        E::reciprocal(n).to_bits()
    }
    match reduction.op {
        RedOp::PreMulSum => Some(reduction.scalar),
        RedOp::Avg if dtype.is_float() => Some(for_element_type!(dtype, reciprocal(nranks))),
        _ => None,
    }
}

/// The "register" of one element, which every processor has.
pub(super) struct Single<E>(PhantomData<E>);

impl<E> Clone for Single<E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Single<E> {}

// SAFETY: BYTES is the size of the one element that is loaded and stored.
unsafe impl<E: Arithmetic> Vector for Single<E> {
    type Element = E;
    type Register = E;
    const BYTES: usize = size_of::<E>();

    #[inline(always)]
    unsafe fn new() -> Self {
        Self(PhantomData)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> E {
        // SAFETY: the caller gives the memory of an element.
        unsafe { from.cast::<E>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, value: E) {
        // SAFETY: the caller gives the memory of an element.
        unsafe { to.cast::<E>().write_unaligned(value) }
    }

    #[inline(always)]
    fn sum(self, a: E, b: E) -> E {
        a.sum(b)
    }

    #[inline(always)]
    fn prod(self, a: E, b: E) -> E {
        a.prod(b)
    }

    #[inline(always)]
    fn max(self, a: E, b: E) -> E {
        a.max(b)
    }

    #[inline(always)]
    fn min(self, a: E, b: E) -> E {
        a.min(b)
    }
}

/// Stores of the baseline instruction set: non-temporal ones on x86-64, ordinary ones elsewhere.
#[derive(Clone, Copy)]
pub(super) struct BaselineStore;

impl NonTemporalStore for BaselineStore {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn copy_cache_line(self, to: *mut u8, from: *const u8) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

        let (to, from): (*mut __m128i, *const __m128i) = (to.cast(), from.cast());
        for i in 0..4 {
            // SAFETY: SSE2 is part of x86-64, and the caller gives 64 bytes, aligned in the
            // destination.
            unsafe { _mm_stream_si128(to.add(i), _mm_loadu_si128(from.add(i))) }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    unsafe fn copy_cache_line(self, to: *mut u8, from: *const u8) {
        // SAFETY: the caller gives 64 bytes that do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to, 64) }
    }
}

super::loops::kernel_table! { Single, BaselineStore }
