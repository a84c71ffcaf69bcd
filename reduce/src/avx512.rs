//! The instructions of AVX-512 F, BW, DQ and VL, on registers of 64 bytes.

use std::arch::x86_64::*;

use super::simd::{self, Simd, instructions};

/// The proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

type Packed<E> = simd::Packed<Avx512, E>;

super::loops::kernel_table! {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    Packed, Avx512
}

impl NonTemporalStore for Avx512 {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    unsafe fn copy_cache_line(self, to: *mut u8, from: *const u8) {
        // SAFETY: the caller gives 64 bytes, aligned in the destination; `self` proves the
        // instruction set.
        unsafe { _mm512_stream_si512(to.cast(), _mm512_loadu_si512(from.cast())) }
    }
}

// SAFETY: loads and stores are of 64 bytes, at any alignment.
unsafe impl Simd for Avx512 {
    type Integers = __m512i;
    type Singles = __m512;
    type Doubles = __m512d;
    type Mask8 = __mmask64;
    type Mask16 = __mmask32;
    type Mask32 = __mmask16;
    type Mask64 = __mmask8;
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: the caller gives 64 bytes; `self` proves the instruction set.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, value: __m512i) {
        // SAFETY: the caller gives 64 bytes; `self` proves the instruction set.
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    instructions! {
        add_8(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi8(a, b);
        add_16(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi16(a, b);
        add_32(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        add_64(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi64(a, b);
        sub_32(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        mul_16(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi16(a, b);
        mul_32(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
        mul_64(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi64(a, b);
        max_i8(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi8(a, b);
        min_i8(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epi8(a, b);
        max_u8(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epu8(a, b);
        min_u8(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epu8(a, b);
        max_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
        min_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epi32(a, b);
        max_u32(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epu32(a, b);
        min_u32(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epu32(a, b);
        max_i64(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi64(a, b);
        min_i64(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epi64(a, b);
        max_u64(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epu64(a, b);
        min_u64(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epu64(a, b);

        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        splat_8(value: u8) -> __m512i = _mm512_set1_epi8(value as i8);
        splat_16(value: u16) -> __m512i = _mm512_set1_epi16(value as i16);
        splat_32(value: u32) -> __m512i = _mm512_set1_epi32(value as i32);
        splat_64(value: u64) -> __m512i = _mm512_set1_epi64(value as i64);
        shift_left_32(x: __m512i, by: u32) -> __m512i =
            _mm512_sll_epi32(x, _mm_cvtsi32_si128(by as i32));
        shift_right_32(x: __m512i, by: u32) -> __m512i =
            _mm512_srl_epi32(x, _mm_cvtsi32_si128(by as i32));
        odd_bytes_to_even(x: __m512i) -> __m512i = _mm512_srli_epi16(x, 8);
        even_bytes_to_odd(x: __m512i) -> __m512i = _mm512_slli_epi16(x, 8);
        interleave_8(even: __m512i, odd: __m512i) -> __m512i =
            _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, even, odd);
        interleave_16(even: __m512i, odd: __m512i) -> __m512i =
            _mm512_mask_blend_epi16(0xaaaa_aaaa, even, odd);
        sign_8(x: __m512i) -> __m512i = _mm512_movm_epi8(_mm512_movepi8_mask(x));
        sign_16(x: __m512i) -> __m512i = _mm512_movm_epi16(_mm512_movepi16_mask(x));

        greater_8(a: __m512i, b: __m512i) -> __mmask64 = _mm512_cmpgt_epi8_mask(a, b);
        greater_16(a: __m512i, b: __m512i) -> __mmask32 = _mm512_cmpgt_epi16_mask(a, b);
        greater_32(a: __m512i, b: __m512i) -> __mmask16 = _mm512_cmpgt_epi32_mask(a, b);
        equal_32(a: __m512i, b: __m512i) -> __mmask16 = _mm512_cmpeq_epi32_mask(a, b);
        is_nan_32(x: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        is_nan_64(x: __m512d) -> __mmask8 = _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(x, x);
        set_where_8(mask: __mmask64, x: __m512i) -> __m512i =
            _mm512_mask_mov_epi8(x, mask, _mm512_set1_epi8(-1));
        set_where_16(mask: __mmask32, x: __m512i) -> __m512i =
            _mm512_mask_mov_epi16(x, mask, _mm512_set1_epi16(-1));
        set_where_32(mask: __mmask16, x: __m512i) -> __m512i =
            _mm512_mask_mov_epi32(x, mask, _mm512_set1_epi32(-1));
        set_where_64(mask: __mmask8, x: __m512i) -> __m512i =
            _mm512_mask_mov_epi64(x, mask, _mm512_set1_epi64(-1));
        choose_8(mask: __mmask64, a: __m512i, b: __m512i) -> __m512i =
            _mm512_mask_mov_epi8(b, mask, a);
        choose_16(mask: __mmask32, a: __m512i, b: __m512i) -> __m512i =
            _mm512_mask_mov_epi16(b, mask, a);
        choose_64(mask: __mmask8, a: __m512i, b: __m512i) -> __m512i =
            _mm512_mask_mov_epi64(b, mask, a);
        choose_32(mask: __mmask16, a: __m512i, b: __m512i) -> __m512i =
            _mm512_mask_mov_epi32(b, mask, a);

        singles(bits: __m512i) -> __m512 = _mm512_castsi512_ps(bits);
        single_bits(x: __m512) -> __m512i = _mm512_castps_si512(x);
        add_f32(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        mul_f32(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        greater_f32(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        less_f32(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        doubles(bits: __m512i) -> __m512d = _mm512_castsi512_pd(bits);
        double_bits(x: __m512d) -> __m512i = _mm512_castpd_si512(x);
        add_f64(a: __m512d, b: __m512d) -> __m512d = _mm512_add_pd(a, b);
        mul_f64(a: __m512d, b: __m512d) -> __m512d = _mm512_mul_pd(a, b);
        greater_f64(a: __m512d, b: __m512d) -> __m512d = _mm512_max_pd(a, b);
        less_f64(a: __m512d, b: __m512d) -> __m512d = _mm512_min_pd(a, b);

        widen_f16(x: __m512i) -> [__m512; 2] = {
            let (low, high) = (_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
            [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
        };
        narrow_f16(halves: [__m512; 2]) -> __m512i = {
            const ROUNDING: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let low = _mm512_cvtps_ph::<ROUNDING>(halves[0]);
            let high = _mm512_cvtps_ph::<ROUNDING>(halves[1]);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        };
        widen_bytes(x: __m512i) -> [__m512i; 4] = [
            _mm512_cvtepu8_epi32(_mm512_castsi512_si128(x)),
            _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<1>(x)),
            _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<2>(x)),
            _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<3>(x)),
        ];
        narrow_bytes(quarters: [__m512i; 4]) -> __m512i = {
            let [q0, q1, q2, q3] = quarters;
            let (q0, q1) = (_mm512_cvtepi32_epi8(q0), _mm512_cvtepi32_epi8(q1));
            let (q2, q3) = (_mm512_cvtepi32_epi8(q2), _mm512_cvtepi32_epi8(q3));
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q0), q1);
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q2), q3);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        };
    }
}
