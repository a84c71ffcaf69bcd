//! 32 bytes at a time: AVX2 and F16C.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use maypole_algorithms::{DType, RedOp};

use super::convert::Format;
use super::element::{Bf16, E4m3, E5m2, Element, F16, Narrow};
use super::lanes::{self, Lanes, Loops, Max, Min, Node, Prod, Sum};

/// A register of 32 bytes.
pub(super) struct Packed<E>(PhantomData<E>);

/// [`Lanes`] of `$t` by four expressions in the registers `$a` and `$b`. (Not closures: those need not be inlined, and
/// would lack the instruction set where they are not.)
macro_rules! packed {
    ($t:ty, $a:ident, $b:ident, $sum:expr, $prod:expr, $max:expr, $min:expr) => {
        // SAFETY: loads and stores are of 32 bytes.
        unsafe impl Lanes for Packed<$t> {
            type Element = $t;
            type Register = __m256i;
            const BYTES: usize = 32;

            #[inline(always)]
            unsafe fn load(from: *const u8) -> __m256i {
                // SAFETY: the caller gives 32 bytes and has the instruction set.
                unsafe { _mm256_loadu_si256(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store(to: *mut u8, value: __m256i) {
                // SAFETY: the caller gives 32 bytes and has the instruction set.
                unsafe { _mm256_storeu_si256(to.cast(), value) }
            }

            packed!(@ sum, $a, $b, $sum);
            packed!(@ prod, $a, $b, $prod);
            packed!(@ max, $a, $b, $max);
            packed!(@ min, $a, $b, $min);
        }
    };
    (@ $name:ident, $a:ident, $b:ident, $result:expr) => {
        #[inline(always)]
        unsafe fn $name($a: __m256i, $b: __m256i) -> __m256i {
            // SAFETY: the caller has the instruction set.
            unsafe { $result }
        }
    };
}

packed!(
    i8,
    a,
    b,
    _mm256_add_epi8(a, b),
    prod_8(a, b),
    _mm256_max_epi8(a, b),
    _mm256_min_epi8(a, b)
);
packed!(
    u8,
    a,
    b,
    _mm256_add_epi8(a, b),
    prod_8(a, b),
    _mm256_max_epu8(a, b),
    _mm256_min_epu8(a, b)
);
packed!(
    i32,
    a,
    b,
    _mm256_add_epi32(a, b),
    _mm256_mullo_epi32(a, b),
    _mm256_max_epi32(a, b),
    _mm256_min_epi32(a, b)
);
packed!(
    u32,
    a,
    b,
    _mm256_add_epi32(a, b),
    _mm256_mullo_epi32(a, b),
    _mm256_max_epu32(a, b),
    _mm256_min_epu32(a, b)
);
packed!(
    i64,
    a,
    b,
    _mm256_add_epi64(a, b),
    prod_64(a, b),
    choose(_mm256_cmpgt_epi64(a, b), a, b),
    choose(_mm256_cmpgt_epi64(b, a), a, b)
);
packed!(
    u64,
    a,
    b,
    _mm256_add_epi64(a, b),
    prod_64(a, b),
    choose(greater_u64(a, b), a, b),
    choose(greater_u64(b, a), a, b)
);
packed!(
    f32,
    a,
    b,
    from_ps(_mm256_add_ps(ps(a), ps(b))),
    from_ps(_mm256_mul_ps(ps(a), ps(b))),
    from_ps(_mm256_max_ps(ps(a), ps(b))),
    from_ps(_mm256_min_ps(ps(a), ps(b)))
);
packed!(
    f64,
    a,
    b,
    from_pd(_mm256_add_pd(pd(a), pd(b))),
    from_pd(_mm256_mul_pd(pd(a), pd(b))),
    from_pd(_mm256_max_pd(pd(a), pd(b))),
    from_pd(_mm256_min_pd(pd(a), pd(b)))
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
    #[target_feature(enable = "avx2,f16c")]
    stream
}

/// See [`lanes::Stream`].
#[target_feature(enable = "avx2")]
unsafe fn stream(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: `lanes::stream` gives whole lines, aligned in the destination.
    let line = |to: *mut u8, from: *const u8| unsafe {
        let (to, from): (*mut __m256i, *const __m256i) = (to.cast(), from.cast());
        _mm256_stream_si256(to, _mm256_loadu_si256(from));
        _mm256_stream_si256(to.add(1), _mm256_loadu_si256(from.add(1)));
    };
    // SAFETY: the same contract.
    unsafe { lanes::stream(to, from, bytes, line) }
}

/// `a` where the mask is set, else `b`; byte by byte.
#[inline(always)]
unsafe fn choose(mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm256_blendv_epi8(b, a, mask) }
}

/// Products modulo 256: of the even bytes and of the odd ones, as 16-bit words.
#[inline(always)]
unsafe fn prod_8(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let even = _mm256_mullo_epi16(a, b);
        let odd = _mm256_mullo_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        choose(_mm256_set1_epi16(0xff), even, _mm256_slli_epi16(odd, 8))
    }
}

/// Products modulo 2^64: the halves' products, as on paper.
#[inline(always)]
unsafe fn prod_64(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let low_high = _mm256_mul_epu32(a, _mm256_srli_epi64(b, 32));
        let high_low = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
        let cross = _mm256_slli_epi64(_mm256_add_epi64(low_high, high_low), 32);
        _mm256_add_epi64(_mm256_mul_epu32(a, b), cross)
    }
}

#[inline(always)]
unsafe fn greater_u64(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let top = _mm256_set1_epi64x(i64::MIN);
        _mm256_cmpgt_epi64(_mm256_xor_si256(a, top), _mm256_xor_si256(b, top))
    }
}

#[inline(always)]
unsafe fn ps(x: __m256i) -> __m256 {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm256_castsi256_ps(x) }
}

#[inline(always)]
unsafe fn from_ps(x: __m256) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm256_castps_si256(x) }
}

#[inline(always)]
unsafe fn pd(x: __m256i) -> __m256d {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm256_castsi256_pd(x) }
}

#[inline(always)]
unsafe fn from_pd(x: __m256d) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm256_castpd_si256(x) }
}

#[inline(always)]
unsafe fn splat(bits: u32) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe { _mm256_set1_epi32(bits as i32) }
}

/// Which of the two rounding operations a function of narrow floats is.
const SUM: bool = false;
const PROD: bool = true;

#[inline(always)]
unsafe fn arithmetic<const PRODUCT: bool>(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller has the instruction set.
    unsafe { if PRODUCT { _mm256_mul_ps(a, b) } else { _mm256_add_ps(a, b) } }
}

/// Half a register of binary16.
#[inline(always)]
unsafe fn f16_half<const PRODUCT: bool>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let value = arithmetic::<PRODUCT>(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b));
        _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(value)
    }
}

#[inline(always)]
unsafe fn f16<const PRODUCT: bool>(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let low = f16_half::<PRODUCT>(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b));
        let high =
            f16_half::<PRODUCT>(_mm256_extracti128_si256::<1>(a), _mm256_extracti128_si256::<1>(b));
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    }
}

/// Even and odd elements apart, so that widening is a shift or a mask.
#[inline(always)]
unsafe fn bf16<const PRODUCT: bool>(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let upper = splat(0xffff_0000);
        let even =
            arithmetic::<PRODUCT>(ps(_mm256_slli_epi32(a, 16)), ps(_mm256_slli_epi32(b, 16)));
        let odd =
            arithmetic::<PRODUCT>(ps(_mm256_and_si256(a, upper)), ps(_mm256_and_si256(b, upper)));
        let (even, odd) = (bf16_round(even), bf16_round(odd));
        _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32(even, 16), odd)
    }
}

/// To nearest even, in the upper half of each word; a NaN stays one by its quiet bit.
#[inline(always)]
unsafe fn bf16_round(x: __m256) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let bits = from_ps(x);
        let tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), splat(1));
        let sum = _mm256_add_epi32(_mm256_add_epi32(bits, splat(0x7fff)), tie);
        let quiet = _mm256_or_si256(bits, splat(0x0040_0000));
        choose(from_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x)), quiet, sum)
    }
}

#[inline(always)]
unsafe fn fp8<E: Narrow, const PRODUCT: bool>(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let (a0, a2) = (_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        let (b0, b2) = (_mm256_castsi256_si128(b), _mm256_extracti128_si256::<1>(b));
        let q0 = fp8_quarter::<E, PRODUCT>(a0, b0);
        let q1 = fp8_quarter::<E, PRODUCT>(_mm_unpackhi_epi64(a0, a0), _mm_unpackhi_epi64(b0, b0));
        let q2 = fp8_quarter::<E, PRODUCT>(a2, b2);
        let q3 = fp8_quarter::<E, PRODUCT>(_mm_unpackhi_epi64(a2, a2), _mm_unpackhi_epi64(b2, b2));
        // Packing works within 128-bit halves: groups of four elements come out as 0 2 4 6 1 3 5 7.
        let packed = _mm256_packus_epi16(_mm256_packus_epi32(q0, q1), _mm256_packus_epi32(q2, q3));
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// 8 elements; see [`Format::decode`] and [`Format::encode`].
#[inline(always)]
unsafe fn fp8_quarter<E: Narrow, const PRODUCT: bool>(a: __m128i, b: __m128i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let (a, b) = (decode(E::FORMAT, a), decode(E::FORMAT, b));
        encode(E::FORMAT, arithmetic::<PRODUCT>(a, b))
    }
}

#[inline(always)]
unsafe fn decode(format: Format, bits: __m128i) -> __m256 {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let bits = _mm256_cvtepu8_epi32(bits);
        let magnitude = _mm256_and_si256(bits, splat(0x7f));
        let sign = _mm256_slli_epi32(_mm256_xor_si256(bits, magnitude), 24);
        let shifted = _mm256_sll_epi32(magnitude, _mm_cvtsi32_si128(format.shift() as i32));
        let rebias = _mm256_castsi256_ps(splat(format.rebias()));
        let mut number = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(shifted), rebias));
        if let Some(infinity) = format.infinity {
            let is = _mm256_cmpeq_epi32(magnitude, splat(infinity));
            number = choose(is, splat(f32::INFINITY.to_bits()), number);
        }
        let nan = _mm256_cmpgt_epi32(magnitude, splat(format.last_number));
        number = choose(nan, splat(f32::NAN.to_bits()), number);
        _mm256_castsi256_ps(_mm256_or_si256(number, sign))
    }
}

/// The result in the low byte of each 32-bit word.
#[inline(always)]
unsafe fn encode(format: Format, value: __m256) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let shift = _mm_cvtsi32_si128(format.shift() as i32);
        let bits = _mm256_castps_si256(value);
        let magnitude = _mm256_and_si256(bits, splat(0x7fff_ffff));
        let sign = _mm256_slli_epi32(_mm256_srli_epi32(bits, 31), 7);

        let odd = _mm256_and_si256(_mm256_srl_epi32(magnitude, shift), splat(1));
        // The rebiasing commutes with the shift: both constants are added at once.
        let rebias = (127 - format.bias) << 23;
        let offset = ((1_u32 << (format.shift() - 1)) - 1).wrapping_sub(rebias);
        let sum = _mm256_add_epi32(_mm256_add_epi32(magnitude, splat(offset)), odd);
        let number = _mm256_srl_epi32(sum, shift);
        let number = _mm256_min_epu32(number, splat(format.overflow));

        let rounder = splat(format.rounder());
        let small = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(rounder));
        let small = _mm256_sub_epi32(_mm256_castps_si256(small), rounder);
        let is_small = _mm256_cmpgt_epi32(splat(format.smallest_normal()), magnitude);
        let number = choose(is_small, small, number);

        let nan = _mm256_cmpgt_epi32(magnitude, splat(f32::INFINITY.to_bits()));
        let number = choose(nan, splat(format.nan), number);
        _mm256_or_si256(number, sign)
    }
}

/// `x > y ? a : b` of 16-bit floats.
#[inline(always)]
unsafe fn select_16(format: Format, a: __m256i, b: __m256i, x: __m256i, y: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let rest = _mm256_set1_epi16(0x7fff);
        let last = _mm256_set1_epi16(format.last_number as i16);
        let nan_a = _mm256_cmpgt_epi16(_mm256_and_si256(a, rest), last);
        let nan_b = _mm256_cmpgt_epi16(_mm256_and_si256(b, rest), last);
        let either = _mm256_and_si256(_mm256_or_si256(a, b), rest);
        let zeros = _mm256_cmpeq_epi16(either, _mm256_setzero_si256());
        let excluded = _mm256_or_si256(zeros, _mm256_or_si256(nan_a, nan_b));
        let greater = _mm256_cmpgt_epi16(key_16(x), key_16(y));
        choose(_mm256_andnot_si256(excluded, greater), a, b)
    }
}

/// `x > y ? a : b` of 8-bit floats.
#[inline(always)]
unsafe fn select_8(format: Format, a: __m256i, b: __m256i, x: __m256i, y: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let zero = _mm256_setzero_si256();
        let rest = _mm256_set1_epi8(0x7f);
        let last = _mm256_set1_epi8(format.last_number as i8);
        let nan_a = _mm256_cmpgt_epi8(_mm256_and_si256(a, rest), last);
        let nan_b = _mm256_cmpgt_epi8(_mm256_and_si256(b, rest), last);
        let either = _mm256_and_si256(_mm256_or_si256(a, b), rest);
        let zeros = _mm256_cmpeq_epi8(either, zero);
        let excluded = _mm256_or_si256(zeros, _mm256_or_si256(nan_a, nan_b));
        let greater = _mm256_cmpgt_epi8(key_8(x), key_8(y));
        choose(_mm256_andnot_si256(excluded, greater), a, b)
    }
}

/// As two's complement, negative floats run the wrong way round: turned, all but zeros and NaN are in order.
#[inline(always)]
unsafe fn key_16(x: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let negative = _mm256_srai_epi16(x, 15);
        _mm256_xor_si256(x, _mm256_and_si256(negative, _mm256_set1_epi16(0x7fff)))
    }
}

/// As [`key_16`].
#[inline(always)]
unsafe fn key_8(x: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), x);
        _mm256_xor_si256(x, _mm256_and_si256(negative, _mm256_set1_epi8(0x7f)))
    }
}
