//! The instructions of AVX2 and F16C, on registers of 32 bytes.

use std::arch::x86_64::*;

use super::simd::{self, Simd, instructions};

/// The proof that the processor has AVX2 and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

type Packed<E> = simd::Packed<Avx2, E>;

super::loops::kernel_table! {
    #[target_feature(enable = "avx2,f16c")]
    Packed, Avx2
}

impl NonTemporalStore for Avx2 {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    unsafe fn copy_cache_line(self, to: *mut u8, from: *const u8) {
        let (to, from): (*mut __m256i, *const __m256i) = (to.cast(), from.cast());
        // SAFETY: the caller gives 64 bytes, aligned in the destination; `self` proves the
        // instruction set.
        unsafe {
            _mm256_stream_si256(to, _mm256_loadu_si256(from));
            _mm256_stream_si256(to.add(1), _mm256_loadu_si256(from.add(1)));
        }
    }
}

// SAFETY: loads and stores are of 32 bytes, at any alignment.
unsafe impl Simd for Avx2 {
    type Integers = __m256i;
    type Singles = __m256;
    type Doubles = __m256d;
    // All ones in a lane are true, zeros are false.
    type Mask8 = __m256i;
    type Mask16 = __m256i;
    type Mask32 = __m256i;
    type Mask64 = __m256i;
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m256i {
        // SAFETY: the caller gives 32 bytes; `self` proves the instruction set.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, value: __m256i) {
        // SAFETY: the caller gives 32 bytes; `self` proves the instruction set.
        unsafe { _mm256_storeu_si256(to.cast(), value) }
    }

    instructions! {
        add_8(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi8(a, b);
        add_16(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(a, b);
        add_32(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        add_64(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi64(a, b);
        sub_32(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        mul_16(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi16(a, b);
        mul_32(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
        mul_64(a: __m256i, b: __m256i) -> __m256i = {
            // By the products of the 32-bit halves.
            let low_high = _mm256_mul_epu32(a, _mm256_srli_epi64(b, 32));
            let high_low = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
            let cross = _mm256_slli_epi64(_mm256_add_epi64(low_high, high_low), 32);
            _mm256_add_epi64(_mm256_mul_epu32(a, b), cross)
        };
        max_i8(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epi8(a, b);
        min_i8(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epi8(a, b);
        max_u8(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epu8(a, b);
        min_u8(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epu8(a, b);
        max_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epi32(a, b);
        min_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epi32(a, b);
        max_u32(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epu32(a, b);
        min_u32(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epu32(a, b);
        max_i64(a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b));
        min_i64(a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(b, a));
        max_u64(a: __m256i, b: __m256i) -> __m256i = _mm256_blendv_epi8(b, a, greater_u64(a, b));
        min_u64(a: __m256i, b: __m256i) -> __m256i = _mm256_blendv_epi8(b, a, greater_u64(b, a));

        and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        or(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
        xor(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
        splat_8(value: u8) -> __m256i = _mm256_set1_epi8(value as i8);
        splat_16(value: u16) -> __m256i = _mm256_set1_epi16(value as i16);
        splat_32(value: u32) -> __m256i = _mm256_set1_epi32(value as i32);
        splat_64(value: u64) -> __m256i = _mm256_set1_epi64x(value as i64);
        shift_left_32(x: __m256i, by: u32) -> __m256i =
            _mm256_sll_epi32(x, _mm_cvtsi32_si128(by as i32));
        shift_right_32(x: __m256i, by: u32) -> __m256i =
            _mm256_srl_epi32(x, _mm_cvtsi32_si128(by as i32));
        odd_bytes_to_even(x: __m256i) -> __m256i = _mm256_srli_epi16(x, 8);
        even_bytes_to_odd(x: __m256i) -> __m256i = _mm256_slli_epi16(x, 8);
        interleave_8(even: __m256i, odd: __m256i) -> __m256i =
            _mm256_blendv_epi8(odd, even, _mm256_set1_epi16(0xff));
        interleave_16(even: __m256i, odd: __m256i) -> __m256i =
            _mm256_blend_epi16::<0xaa>(even, odd);
        sign_8(x: __m256i) -> __m256i = _mm256_cmpgt_epi8(_mm256_setzero_si256(), x);
        sign_16(x: __m256i) -> __m256i = _mm256_srai_epi16(x, 15);

        greater_8(a: __m256i, b: __m256i) -> __m256i = _mm256_cmpgt_epi8(a, b);
        greater_16(a: __m256i, b: __m256i) -> __m256i = _mm256_cmpgt_epi16(a, b);
        greater_32(a: __m256i, b: __m256i) -> __m256i = _mm256_cmpgt_epi32(a, b);
        equal_32(a: __m256i, b: __m256i) -> __m256i = _mm256_cmpeq_epi32(a, b);
        is_nan_32(x: __m256) -> __m256i = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        is_nan_64(x: __m256d) -> __m256i =
            _mm256_castpd_si256(_mm256_cmp_pd::<_CMP_UNORD_Q>(x, x));
        set_where_8(mask: __m256i, x: __m256i) -> __m256i = _mm256_or_si256(mask, x);
        set_where_16(mask: __m256i, x: __m256i) -> __m256i = _mm256_or_si256(mask, x);
        set_where_32(mask: __m256i, x: __m256i) -> __m256i = _mm256_or_si256(mask, x);
        set_where_64(mask: __m256i, x: __m256i) -> __m256i = _mm256_or_si256(mask, x);
        choose_8(mask: __m256i, a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, mask);
        choose_16(mask: __m256i, a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, mask);
        choose_64(mask: __m256i, a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, mask);
        choose_32(mask: __m256i, a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, mask);

        singles(bits: __m256i) -> __m256 = _mm256_castsi256_ps(bits);
        single_bits(x: __m256) -> __m256i = _mm256_castps_si256(x);
        add_f32(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        mul_f32(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        greater_f32(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        less_f32(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        doubles(bits: __m256i) -> __m256d = _mm256_castsi256_pd(bits);
        double_bits(x: __m256d) -> __m256i = _mm256_castpd_si256(x);
        add_f64(a: __m256d, b: __m256d) -> __m256d = _mm256_add_pd(a, b);
        mul_f64(a: __m256d, b: __m256d) -> __m256d = _mm256_mul_pd(a, b);
        greater_f64(a: __m256d, b: __m256d) -> __m256d = _mm256_max_pd(a, b);
        less_f64(a: __m256d, b: __m256d) -> __m256d = _mm256_min_pd(a, b);

        widen_f16(x: __m256i) -> [__m256; 2] = {
            let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        };
        narrow_f16(halves: [__m256; 2]) -> __m256i = {
            let low = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(halves[0]);
            let high = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(halves[1]);
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        };
        widen_bytes(x: __m256i) -> [__m256i; 4] = {
            let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            [
                _mm256_cvtepu8_epi32(low),
                _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(low, low)),
                _mm256_cvtepu8_epi32(high),
                _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(high, high)),
            ]
        };
        narrow_bytes(quarters: [__m256i; 4]) -> __m256i = {
            let [q0, q1, q2, q3] = quarters;
            let (low, high) = (_mm256_packus_epi32(q0, q1), _mm256_packus_epi32(q2, q3));
            // Packing works within 128-bit halves: the groups of four elements come out in the
            // order 0 2 4 6 1 3 5 7.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order)
        };
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn greater_u64(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let top = _mm256_set1_epi64x(i64::MIN);
        _mm256_cmpgt_epi64(_mm256_xor_si256(a, top), _mm256_xor_si256(b, top))
    }
}
