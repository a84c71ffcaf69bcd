//! 64 bytes at a time: AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use maypole_algorithms::{DType, RedOp};

use super::convert::Format;
use super::element::{Bf16, E4m3, E5m2, Element, F16, Narrow};
use super::lanes::{self, Lanes, Loops, Max, Min, Node, Prod, Sum};

/// A register of 64 bytes.
pub(super) struct Packed<E>(PhantomData<E>);

/// [`Lanes`] of `$t` by four expressions in the registers `$a` and `$b`. (Not closures: those need not be inlined, and
/// would lack the instruction set where they are not.)
macro_rules! packed {
    ($t:ty, $a:ident, $b:ident, $sum:expr, $prod:expr, $max:expr, $min:expr) => {
        // SAFETY: loads and stores are of 64 bytes.
        unsafe impl Lanes for Packed<$t> {
            type Element = $t;
            type Register = __m512i;
            const BYTES: usize = 64;

            #[inline(always)]
            unsafe fn load(from: *const u8) -> __m512i {
                // SAFETY: the caller gives 64 bytes and has the instruction set.
                unsafe { _mm512_loadu_si512(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store(to: *mut u8, value: __m512i) {
                // SAFETY: the caller gives 64 bytes and has the instruction set.
                unsafe { _mm512_storeu_si512(to.cast(), value) }
            }

            packed!(@ sum, $a, $b, $sum);
            packed!(@ prod, $a, $b, $prod);
            packed!(@ max, $a, $b, $max);
            packed!(@ min, $a, $b, $min);
        }
    };
    (@ $name:ident, $a:ident, $b:ident, $result:expr) => {
        #[inline(always)]
        unsafe fn $name($a: __m512i, $b: __m512i) -> __m512i {
            // SAFETY: the caller has the instruction set.
            unsafe { $result }
        }
    };
}

packed!(
    i8,
    a,
    b,
    _mm512_add_epi8(a, b),
    prod_8(a, b),
    _mm512_max_epi8(a, b),
    _mm512_min_epi8(a, b)
);
packed!(
    u8,
    a,
    b,
    _mm512_add_epi8(a, b),
    prod_8(a, b),
    _mm512_max_epu8(a, b),
    _mm512_min_epu8(a, b)
);
packed!(
    i32,
    a,
    b,
    _mm512_add_epi32(a, b),
    _mm512_mullo_epi32(a, b),
    _mm512_max_epi32(a, b),
    _mm512_min_epi32(a, b)
);
packed!(
    u32,
    a,
    b,
    _mm512_add_epi32(a, b),
    _mm512_mullo_epi32(a, b),
    _mm512_max_epu32(a, b),
    _mm512_min_epu32(a, b)
);
packed!(
    i64,
    a,
    b,
    _mm512_add_epi64(a, b),
    _mm512_mullo_epi64(a, b),
    _mm512_max_epi64(a, b),
    _mm512_min_epi64(a, b)
);
packed!(
    u64,
    a,
    b,
    _mm512_add_epi64(a, b),
    _mm512_mullo_epi64(a, b),
    _mm512_max_epu64(a, b),
    _mm512_min_epu64(a, b)
);
packed!(
    f32,
    a,
    b,
    from_ps(_mm512_add_ps(ps(a), ps(b))),
    from_ps(_mm512_mul_ps(ps(a), ps(b))),
    from_ps(_mm512_max_ps(ps(a), ps(b))),
    from_ps(_mm512_min_ps(ps(a), ps(b)))
);
packed!(
    f64,
    a,
    b,
    from_pd(_mm512_add_pd(pd(a), pd(b))),
    from_pd(_mm512_mul_pd(pd(a), pd(b))),
    from_pd(_mm512_max_pd(pd(a), pd(b))),
    from_pd(_mm512_min_pd(pd(a), pd(b)))
);
packed!(
    F16,
    a,
    b,
    f16::<SUM>(a, b),
    f16::<PROD>(a, b),
    select_16(F16::FORMAT, a, b, a, b),
    select_16(F16::FORMAT, a, b, b, a)
);
packed!(
    Bf16,
    a,
    b,
    bf16::<SUM>(a, b),
    bf16::<PROD>(a, b),
    select_16(Bf16::FORMAT, a, b, a, b),
    select_16(Bf16::FORMAT, a, b, b, a)
);
packed!(
    E4m3,
    a,
    b,
    fp8::<E4m3, SUM>(a, b),
    fp8::<E4m3, PROD>(a, b),
    select_8(E4m3::FORMAT, a, b, a, b),
    select_8(E4m3::FORMAT, a, b, b, a)
);
packed!(
    E5m2,
    a,
    b,
    fp8::<E5m2, SUM>(a, b),
    fp8::<E5m2, PROD>(a, b),
    select_8(E5m2::FORMAT, a, b, a, b),
    select_8(E5m2::FORMAT, a, b, b, a)
);

lanes::loops! {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    stream
}

/// See [`lanes::Stream`].
#[target_feature(enable = "avx512f")]
unsafe fn stream(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: `lanes::stream` gives whole lines, aligned in the destination.
    let line = |to: *mut u8, from: *const u8| unsafe {
        _mm512_stream_si512(to.cast(), _mm512_loadu_si512(from.cast()));
    };
    // SAFETY: the same contract.
    unsafe { lanes::stream(to, from, bytes, line) }
}

/// Products modulo 256: of the even bytes and of the odd ones, as 16-bit words.
#[inline(always)]
unsafe fn prod_8(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let even = _mm512_mullo_epi16(a, b);
        let odd = _mm512_mullo_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, even, _mm512_slli_epi16(odd, 8))
    }
}

#[inline(always)]
unsafe fn ps(x: __m512i) -> __m512 {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm512_castsi512_ps(x) }
}

#[inline(always)]
unsafe fn from_ps(x: __m512) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm512_castps_si512(x) }
}

#[inline(always)]
unsafe fn pd(x: __m512i) -> __m512d {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm512_castsi512_pd(x) }
}

#[inline(always)]
unsafe fn from_pd(x: __m512d) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm512_castpd_si512(x) }
}

#[inline(always)]
unsafe fn splat(bits: u32) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm512_set1_epi32(bits as i32) }
}

/// Which of the two rounding operations a function of narrow floats is.
const SUM: bool = false;
const PROD: bool = true;

#[inline(always)]
unsafe fn arithmetic<const PRODUCT: bool>(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller has the instruction set.
    unsafe { if PRODUCT { _mm512_mul_ps(a, b) } else { _mm512_add_ps(a, b) } }
}

/// Half a register of binary16.
#[inline(always)]
unsafe fn f16_half<const PRODUCT: bool>(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let value = arithmetic::<PRODUCT>(_mm512_cvtph_ps(a), _mm512_cvtph_ps(b));
        _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value)
    }
}

#[inline(always)]
unsafe fn f16<const PRODUCT: bool>(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let low = f16_half::<PRODUCT>(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b));
        let high = f16_half::<PRODUCT>(
            _mm512_extracti64x4_epi64::<1>(a),
            _mm512_extracti64x4_epi64::<1>(b),
        );
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// Even and odd elements apart, so that widening is a shift or a mask.
#[inline(always)]
unsafe fn bf16<const PRODUCT: bool>(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let upper = splat(0xffff_0000);
        let even =
            arithmetic::<PRODUCT>(ps(_mm512_slli_epi32(a, 16)), ps(_mm512_slli_epi32(b, 16)));
        let odd =
            arithmetic::<PRODUCT>(ps(_mm512_and_si512(a, upper)), ps(_mm512_and_si512(b, upper)));
        let (even, odd) = (bf16_round(even), bf16_round(odd));
        _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32(even, 16), odd)
    }
}

/// To nearest even, in the upper half of each word; a NaN stays one by its quiet bit.
#[inline(always)]
unsafe fn bf16_round(x: __m512) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let bits = from_ps(x);
        let tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), splat(1));
        let sum = _mm512_add_epi32(_mm512_add_epi32(bits, splat(0x7fff)), tie);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_or_epi32(sum, nan, bits, splat(0x0040_0000))
    }
}

#[inline(always)]
unsafe fn fp8<E: Narrow, const PRODUCT: bool>(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let q0 = fp8_quarter::<E, PRODUCT>(_mm512_castsi512_si128(a), _mm512_castsi512_si128(b));
        let q1 = fp8_quarter::<E, PRODUCT>(quarter::<1>(a), quarter::<1>(b));
        let q2 = fp8_quarter::<E, PRODUCT>(quarter::<2>(a), quarter::<2>(b));
        let q3 = fp8_quarter::<E, PRODUCT>(quarter::<3>(a), quarter::<3>(b));
        let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q0), q1);
        let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q2), q3);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

#[inline(always)]
unsafe fn quarter<const I: i32>(x: __m512i) -> __m128i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm512_extracti32x4_epi32::<I>(x) }
}

/// 16 elements; see [`Format::decode`] and [`Format::encode`].
#[inline(always)]
unsafe fn fp8_quarter<E: Narrow, const PRODUCT: bool>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let (a, b) = (decode(E::FORMAT, a), decode(E::FORMAT, b));
        encode(E::FORMAT, arithmetic::<PRODUCT>(a, b))
    }
}

#[inline(always)]
unsafe fn decode(format: Format, bits: __m128i) -> __m512 {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let bits = _mm512_cvtepu8_epi32(bits);
        let magnitude = _mm512_and_si512(bits, splat(0x7f));
        let sign = _mm512_slli_epi32(_mm512_xor_si512(bits, magnitude), 24);
        let shifted = _mm512_sll_epi32(magnitude, _mm_cvtsi32_si128(format.shift() as i32));
        let rebias = _mm512_castsi512_ps(splat(format.rebias()));
        let mut number = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(shifted), rebias));
        if let Some(infinity) = format.infinity {
            let is = _mm512_cmpeq_epi32_mask(magnitude, splat(infinity));
            number = _mm512_mask_mov_epi32(number, is, splat(f32::INFINITY.to_bits()));
        }
        let nan = _mm512_cmpgt_epi32_mask(magnitude, splat(format.last_number));
        number = _mm512_mask_mov_epi32(number, nan, splat(f32::NAN.to_bits()));
        _mm512_castsi512_ps(_mm512_or_si512(number, sign))
    }
}

#[inline(always)]
unsafe fn encode(format: Format, value: __m512) -> __m128i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let shift = _mm_cvtsi32_si128(format.shift() as i32);
        let bits = _mm512_castps_si512(value);
        let magnitude = _mm512_and_si512(bits, splat(0x7fff_ffff));
        let sign = _mm512_slli_epi32(_mm512_srli_epi32(bits, 31), 7);

        let odd = _mm512_and_si512(_mm512_srl_epi32(magnitude, shift), splat(1));
        // The rebiasing commutes with the shift: both constants are added at once.
        let rebias = (127 - format.bias) << 23;
        let offset = ((1_u32 << (format.shift() - 1)) - 1).wrapping_sub(rebias);
        let sum = _mm512_add_epi32(_mm512_add_epi32(magnitude, splat(offset)), odd);
        let number = _mm512_srl_epi32(sum, shift);
        let number = _mm512_min_epu32(number, splat(format.overflow));

        let rounder = splat(format.rounder());
        let small = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(rounder));
        let small = _mm512_sub_epi32(_mm512_castps_si512(small), rounder);
        let is_small = _mm512_cmplt_epi32_mask(magnitude, splat(format.smallest_normal()));
        let number = _mm512_mask_mov_epi32(number, is_small, small);

        let nan = _mm512_cmpgt_epi32_mask(magnitude, splat(f32::INFINITY.to_bits()));
        let number = _mm512_mask_mov_epi32(number, nan, splat(format.nan));
        _mm512_cvtepi32_epi8(_mm512_or_si512(number, sign))
    }
}

/// `x > y ? a : b` of 16-bit floats.
#[inline(always)]
unsafe fn select_16(format: Format, a: __m512i, b: __m512i, x: __m512i, y: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let rest = _mm512_set1_epi16(0x7fff);
        let last = _mm512_set1_epi16(format.last_number as i16);
        let numbers = _mm512_cmple_epi16_mask(_mm512_and_si512(a, rest), last)
            & _mm512_cmple_epi16_mask(_mm512_and_si512(b, rest), last);
        let not_zeros = _mm512_test_epi16_mask(_mm512_or_si512(a, b), rest);
        let greater = _mm512_cmpgt_epi16_mask(key_16(x), key_16(y));
        _mm512_mask_mov_epi16(b, greater & not_zeros & numbers, a)
    }
}

/// `x > y ? a : b` of 8-bit floats.
#[inline(always)]
unsafe fn select_8(format: Format, a: __m512i, b: __m512i, x: __m512i, y: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let rest = _mm512_set1_epi8(0x7f);
        let last = _mm512_set1_epi8(format.last_number as i8);
        let numbers = _mm512_cmple_epi8_mask(_mm512_and_si512(a, rest), last)
            & _mm512_cmple_epi8_mask(_mm512_and_si512(b, rest), last);
        let not_zeros = _mm512_test_epi8_mask(_mm512_or_si512(a, b), rest);
        let greater = _mm512_cmpgt_epi8_mask(key_8(x), key_8(y));
        _mm512_mask_mov_epi8(b, greater & not_zeros & numbers, a)
    }
}

/// As two's complement, negative floats run the wrong way round: turned, all but zeros and NaN are in order.
#[inline(always)]
unsafe fn key_16(x: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let negative = _mm512_movm_epi16(_mm512_movepi16_mask(x));
        _mm512_xor_si512(x, _mm512_and_si512(negative, _mm512_set1_epi16(0x7fff)))
    }
}

/// As [`key_16`].
#[inline(always)]
unsafe fn key_8(x: __m512i) -> __m512i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let negative = _mm512_movm_epi8(_mm512_movepi8_mask(x));
        _mm512_xor_si512(x, _mm512_and_si512(negative, _mm512_set1_epi8(0x7f)))
    }
}
