//! The fold operations on vector registers, written once for all vector instruction sets.
//!
//! [`Simd`] lists the instructions that the operations need; each instruction set implements it
//! in a file of its own. Results are those of [`element`](super::element), bit for bit, except
//! that a sum or product that is NaN may be any NaN.

use std::marker::PhantomData;

use super::convert::Format;
use super::element::{Bf16, E4m3, E5m2, F16, NarrowFloat};
use super::loops::{NonTemporalStore, Vector};

/// The registers of an instruction set and its instructions on them. A value of an implementing
/// type proves that the processor has the instruction set.
///
/// The number in a name is the bits of each lane of the register. All methods are
/// `inline(always)`: they become single instructions inside a function that enables the
/// instruction set.
///
/// # Safety
/// `load` and `store` move exactly [`BYTES`](Self::BYTES) bytes at any alignment.
pub(super) unsafe trait Simd: NonTemporalStore {
    /// A register of integers of any width.
    type Integers: Copy;
    /// A register of binary32 numbers.
    type Singles: Copy;
    /// A register of binary64 numbers.
    type Doubles: Copy;
    /// A truth value per 8-bit lane.
    type Mask8: Copy;
    /// A truth value per 16-bit lane.
    type Mask16: Copy;
    /// A truth value per 32-bit lane.
    type Mask32: Copy;
    /// A truth value per 64-bit lane.
    type Mask64: Copy;
    /// Bytes of a register.
    const BYTES: usize;

    /// # Safety
    /// `from` is valid for reads of a register.
    unsafe fn load(self, from: *const u8) -> Self::Integers;
    /// # Safety
    /// `to` is valid for writes of a register.
    unsafe fn store(self, to: *mut u8, value: Self::Integers);

    // Integer arithmetic, modulo the width of the lane.
    fn add_8(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn add_16(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn add_32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn add_64(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn sub_32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn mul_16(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn mul_32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn mul_64(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn max_i8(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn min_i8(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn max_u8(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn min_u8(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn max_i32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn min_i32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn max_u32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn min_u32(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn max_i64(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn min_i64(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn max_u64(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn min_u64(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;

    // Bits, shifts and constants.
    fn and(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn or(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn xor(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn splat_8(self, value: u8) -> Self::Integers;
    fn splat_16(self, value: u16) -> Self::Integers;
    fn splat_32(self, value: u32) -> Self::Integers;
    fn splat_64(self, value: u64) -> Self::Integers;
    fn shift_left_32(self, x: Self::Integers, by: u32) -> Self::Integers;
    fn shift_right_32(self, x: Self::Integers, by: u32) -> Self::Integers;
    /// The odd bytes, moved to the even ones; zeros in their place.
    fn odd_bytes_to_even(self, x: Self::Integers) -> Self::Integers;
    /// The even bytes, moved to the odd ones; zeros in their place.
    fn even_bytes_to_odd(self, x: Self::Integers) -> Self::Integers;
    /// The even lanes of one register and the odd lanes of another.
    fn interleave_8(self, even: Self::Integers, odd: Self::Integers) -> Self::Integers;
    fn interleave_16(self, even: Self::Integers, odd: Self::Integers) -> Self::Integers;
    /// All ones in the lanes that are negative, else zeros.
    fn sign_8(self, x: Self::Integers) -> Self::Integers;
    fn sign_16(self, x: Self::Integers) -> Self::Integers;

    // Signed comparisons, masks, and the choice of `a` where the mask is true, else `b`.
    fn greater_8(self, a: Self::Integers, b: Self::Integers) -> Self::Mask8;
    fn greater_16(self, a: Self::Integers, b: Self::Integers) -> Self::Mask16;
    fn greater_32(self, a: Self::Integers, b: Self::Integers) -> Self::Mask32;
    fn equal_32(self, a: Self::Integers, b: Self::Integers) -> Self::Mask32;
    fn is_nan_32(self, x: Self::Singles) -> Self::Mask32;
    fn is_nan_64(self, x: Self::Doubles) -> Self::Mask64;
    /// `x`, with all bits of the lane set where the mask is true.
    fn set_where_8(self, mask: Self::Mask8, x: Self::Integers) -> Self::Integers;
    fn set_where_16(self, mask: Self::Mask16, x: Self::Integers) -> Self::Integers;
    fn set_where_32(self, mask: Self::Mask32, x: Self::Integers) -> Self::Integers;
    fn set_where_64(self, mask: Self::Mask64, x: Self::Integers) -> Self::Integers;
    fn choose_8(self, mask: Self::Mask8, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn choose_16(self, mask: Self::Mask16, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn choose_32(self, mask: Self::Mask32, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn choose_64(self, mask: Self::Mask64, a: Self::Integers, b: Self::Integers) -> Self::Integers;

    // Floats. Those that select return `a > b ? a : b` and `a < b ? a : b`.
    fn singles(self, bits: Self::Integers) -> Self::Singles;
    fn single_bits(self, x: Self::Singles) -> Self::Integers;
    fn add_f32(self, a: Self::Singles, b: Self::Singles) -> Self::Singles;
    fn mul_f32(self, a: Self::Singles, b: Self::Singles) -> Self::Singles;
    fn greater_f32(self, a: Self::Singles, b: Self::Singles) -> Self::Singles;
    fn less_f32(self, a: Self::Singles, b: Self::Singles) -> Self::Singles;
    fn doubles(self, bits: Self::Integers) -> Self::Doubles;
    fn double_bits(self, x: Self::Doubles) -> Self::Integers;
    fn add_f64(self, a: Self::Doubles, b: Self::Doubles) -> Self::Doubles;
    fn mul_f64(self, a: Self::Doubles, b: Self::Doubles) -> Self::Doubles;
    fn greater_f64(self, a: Self::Doubles, b: Self::Doubles) -> Self::Doubles;
    fn less_f64(self, a: Self::Doubles, b: Self::Doubles) -> Self::Doubles;

    // Conversions between lane widths. Halves and quarters of a register may be in any order, as
    // long as narrowing reverses widening.
    /// The binary16 numbers in the halves of a register.
    fn widen_f16(self, x: Self::Integers) -> [Self::Singles; 2];
    /// Rounds to nearest even.
    fn narrow_f16(self, halves: [Self::Singles; 2]) -> Self::Integers;
    /// The bytes in the quarters of a register, each in a 32-bit lane, extended by zeros.
    fn widen_bytes(self, x: Self::Integers) -> [Self::Integers; 4];
    /// The low byte of each lane, which holds at most 255.
    fn narrow_bytes(self, quarters: [Self::Integers; 4]) -> Self::Integers;
}

/// A register of elements of type `E`.
pub(super) struct Packed<S, E>(S, PhantomData<E>);

impl<S: Copy, E> Clone for Packed<S, E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Copy, E> Copy for Packed<S, E> {}

/// Implements [`Vector`] for `Packed<S, $element>` by four expressions in the instructions `$s`
/// and the registers `$a` and `$b`, and for floats those that prepare `$a` for an extreme.
/// (Closures would not do: they need not be inlined, and would lack the instruction set where they
/// are not.)
macro_rules! packed {
    (
        $element:ty, |$s:ident, $a:ident, $b:ident|
        sum: $sum:expr, prod: $prod:expr, max: $max:expr, min: $min:expr
        $(, $own:ident: $prepared:expr)*
    ) => {
        // SAFETY: loads and stores are those of `S`, which move `S::BYTES` bytes.
        unsafe impl<S: Simd> Vector for Packed<S, $element> {
            type Element = $element;
            type Register = S::Integers;
            const BYTES: usize = S::BYTES;

            #[inline(always)]
            unsafe fn new() -> Self {
                // SAFETY: the caller has the instruction set.
                Self(unsafe { S::new() }, PhantomData)
            }

            #[inline(always)]
            unsafe fn load(self, from: *const u8) -> S::Integers {
                // SAFETY: the caller gives a register's bytes.
                unsafe { self.0.load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut u8, value: S::Integers) {
                // SAFETY: the caller gives a register's bytes.
                unsafe { self.0.store(to, value) }
            }

            packed!(@ sum, $s, $a, $b, $sum);
            packed!(@ prod, $s, $a, $b, $prod);
            packed!(@ max, $s, $a, $b, $max);
            packed!(@ min, $s, $a, $b, $min);

            $(
                #[inline(always)]
                fn $own(self, $a: S::Integers) -> S::Integers {
                    let $s = self.0;
                    $prepared
                }
            )*
        }
    };
    (@ $name:ident, $s:ident, $a:ident, $b:ident, $result:expr) => {
        #[inline(always)]
        fn $name(self, $a: S::Integers, $b: S::Integers) -> S::Integers {
            let $s = self.0;
            $result
        }
    };
}

packed!(i8, |s, a, b|
    sum: s.add_8(a, b), prod: prod_8(s, a, b), max: s.max_i8(a, b), min: s.min_i8(a, b));
packed!(u8, |s, a, b|
    sum: s.add_8(a, b), prod: prod_8(s, a, b), max: s.max_u8(a, b), min: s.min_u8(a, b));
packed!(i32, |s, a, b|
    sum: s.add_32(a, b), prod: s.mul_32(a, b), max: s.max_i32(a, b), min: s.min_i32(a, b));
packed!(u32, |s, a, b|
    sum: s.add_32(a, b), prod: s.mul_32(a, b), max: s.max_u32(a, b), min: s.min_u32(a, b));
packed!(i64, |s, a, b|
    sum: s.add_64(a, b), prod: s.mul_64(a, b), max: s.max_i64(a, b), min: s.min_i64(a, b));
packed!(u64, |s, a, b|
    sum: s.add_64(a, b), prod: s.mul_64(a, b), max: s.max_u64(a, b), min: s.min_u64(a, b));
packed!(f32, |s, a, b|
    sum: s.single_bits(s.add_f32(s.singles(a), s.singles(b))),
    prod: s.single_bits(s.mul_f32(s.singles(a), s.singles(b))),
    max: max_f32(s, s.singles(a), s.singles(b)),
    min: min_f32(s, s.singles(a), s.singles(b)),
    prepare_max: s.set_where_32(s.is_nan_32(s.singles(a)), a),
    prepare_min: s.choose_32(s.is_nan_32(s.singles(a)), s.splat_32(u32::MAX >> 1), a),
    finish_min: s.set_where_32(s.is_nan_32(s.singles(a)), a));
packed!(f64, |s, a, b|
    sum: s.double_bits(s.add_f64(s.doubles(a), s.doubles(b))),
    prod: s.double_bits(s.mul_f64(s.doubles(a), s.doubles(b))),
    max: max_f64(s, s.doubles(a), s.doubles(b)),
    min: min_f64(s, s.doubles(a), s.doubles(b)),
    prepare_max: s.set_where_64(s.is_nan_64(s.doubles(a)), a),
    prepare_min: s.choose_64(s.is_nan_64(s.doubles(a)), s.splat_64(u64::MAX >> 1), a),
    finish_min: s.set_where_64(s.is_nan_64(s.doubles(a)), a));
packed!(F16, |s, a, b|
    sum: f16::<S, SUM>(s, a, b), prod: f16::<S, PROD>(s, a, b),
    max: extreme_16::<S, MAX>(s, a, b),
    min: extreme_16::<S, MIN>(s, a, b),
    prepare_max: canonical_16(s, F16::FORMAT, a),
    prepare_min: canonical_16(s, F16::FORMAT, a));
packed!(Bf16, |s, a, b|
    sum: bf16::<S, SUM>(s, a, b), prod: bf16::<S, PROD>(s, a, b),
    max: extreme_16::<S, MAX>(s, a, b),
    min: extreme_16::<S, MIN>(s, a, b),
    prepare_max: canonical_16(s, Bf16::FORMAT, a),
    prepare_min: canonical_16(s, Bf16::FORMAT, a));
packed!(E4m3, |s, a, b|
    sum: fp8::<S, SUM>(s, E4m3::FORMAT, a, b), prod: fp8::<S, PROD>(s, E4m3::FORMAT, a, b),
    max: extreme_8::<S, MAX>(s, a, b),
    min: extreme_8::<S, MIN>(s, a, b),
    prepare_max: canonical_8(s, E4m3::FORMAT, a),
    prepare_min: canonical_8(s, E4m3::FORMAT, a));
packed!(E5m2, |s, a, b|
    sum: fp8::<S, SUM>(s, E5m2::FORMAT, a, b), prod: fp8::<S, PROD>(s, E5m2::FORMAT, a, b),
    max: extreme_8::<S, MAX>(s, a, b),
    min: extreme_8::<S, MIN>(s, a, b),
    prepare_max: canonical_8(s, E5m2::FORMAT, a),
    prepare_min: canonical_8(s, E5m2::FORMAT, a));

/// Products modulo 256: the even bytes and the odd bytes apart, as 16-bit lanes.
#[inline(always)]
fn prod_8<S: Simd>(s: S, a: S::Integers, b: S::Integers) -> S::Integers {
    let even = s.mul_16(a, b);
    let odd = s.mul_16(s.odd_bytes_to_even(a), s.odd_bytes_to_even(b));
    s.interleave_8(even, s.even_bytes_to_odd(odd))
}

/// The operation of a function of narrow floats that computes in binary32 and rounds.
const SUM: bool = false;
const PROD: bool = true;

#[inline(always)]
fn arithmetic<S: Simd, const PRODUCT: bool>(s: S, a: S::Singles, b: S::Singles) -> S::Singles {
    if PRODUCT { s.mul_f32(a, b) } else { s.add_f32(a, b) }
}

#[inline(always)]
fn f16<S: Simd, const PRODUCT: bool>(s: S, a: S::Integers, b: S::Integers) -> S::Integers {
    let ([a0, a1], [b0, b1]) = (s.widen_f16(a), s.widen_f16(b));
    s.narrow_f16([arithmetic::<S, PRODUCT>(s, a0, b0), arithmetic::<S, PRODUCT>(s, a1, b1)])
}

/// Even and odd elements apart, so that widening is a shift or a mask.
#[inline(always)]
fn bf16<S: Simd, const PRODUCT: bool>(s: S, a: S::Integers, b: S::Integers) -> S::Integers {
    let (even_a, even_b) = (s.shift_left_32(a, 16), s.shift_left_32(b, 16));
    let upper = s.splat_32(0xffff_0000);
    let (odd_a, odd_b) = (s.and(a, upper), s.and(b, upper));
    let even = arithmetic::<S, PRODUCT>(s, s.singles(even_a), s.singles(even_b));
    let odd = arithmetic::<S, PRODUCT>(s, s.singles(odd_a), s.singles(odd_b));
    let (even, odd) = (bf16_round(s, even), bf16_round(s, odd));
    s.interleave_16(s.shift_right_32(even, 16), odd)
}

/// Rounds to nearest even into the upper half of each 32-bit lane. A NaN stays a NaN because its
/// quiet bit is set.
#[inline(always)]
fn bf16_round<S: Simd>(s: S, x: S::Singles) -> S::Integers {
    let bits = s.single_bits(x);
    let odd = s.and(s.shift_right_32(bits, 16), s.splat_32(1));
    let rounded = s.add_32(s.add_32(bits, s.splat_32(0x7fff)), odd);
    let quiet = s.or(bits, s.splat_32(0x0040_0000));
    s.choose_32(s.is_nan_32(x), quiet, rounded)
}

#[inline(always)]
fn fp8<S: Simd, const PRODUCT: bool>(
    s: S,
    format: Format,
    a: S::Integers,
    b: S::Integers,
) -> S::Integers {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (s.widen_bytes(a), s.widen_bytes(b));
    s.narrow_bytes([
        fp8_quarter::<S, PRODUCT>(s, format, a0, b0),
        fp8_quarter::<S, PRODUCT>(s, format, a1, b1),
        fp8_quarter::<S, PRODUCT>(s, format, a2, b2),
        fp8_quarter::<S, PRODUCT>(s, format, a3, b3),
    ])
}

#[inline(always)]
fn fp8_quarter<S: Simd, const PRODUCT: bool>(
    s: S,
    format: Format,
    a: S::Integers,
    b: S::Integers,
) -> S::Integers {
    encode(s, format, arithmetic::<S, PRODUCT>(s, decode(s, format, a), decode(s, format, b)))
}

/// [`Format::decode`] of an 8-bit format, one element in each 32-bit lane.
#[inline(always)]
fn decode<S: Simd>(s: S, format: Format, bits: S::Integers) -> S::Singles {
    let magnitude = s.and(bits, s.splat_32(0x7f));
    let sign = s.shift_left_32(s.xor(bits, magnitude), 24);
    let shifted = s.shift_left_32(magnitude, format.shift());
    let rebias = s.singles(s.splat_32(format.rebias()));
    let mut number = s.single_bits(s.mul_f32(s.singles(shifted), rebias));
    if let Some(infinity) = format.infinity {
        let is_infinite = s.equal_32(magnitude, s.splat_32(infinity));
        number = s.choose_32(is_infinite, s.splat_32(f32::INFINITY.to_bits()), number);
    }
    let is_nan = s.greater_32(magnitude, s.splat_32(format.last_number));
    number = s.choose_32(is_nan, s.splat_32(f32::NAN.to_bits()), number);
    s.singles(s.or(number, sign))
}

/// [`Format::encode`] of an 8-bit format, into the low byte of each 32-bit lane.
#[inline(always)]
fn encode<S: Simd>(s: S, format: Format, value: S::Singles) -> S::Integers {
    let bits = s.single_bits(value);
    let magnitude = s.and(bits, s.splat_32(0x7fff_ffff));
    let sign = s.shift_left_32(s.shift_right_32(bits, 31), 7);

    let odd = s.and(s.shift_right_32(magnitude, format.shift()), s.splat_32(1));
    // The change of the bias commutes with the shift, so both constants are added at once.
    let rebias = (127 - format.bias) << 23;
    let offset = ((1_u32 << (format.shift() - 1)) - 1).wrapping_sub(rebias);
    let sum = s.add_32(s.add_32(magnitude, s.splat_32(offset)), odd);
    let number = s.shift_right_32(sum, format.shift());
    let number = s.min_u32(number, s.splat_32(format.overflow));

    let rounder = s.splat_32(format.rounder());
    let small = s.add_f32(s.singles(magnitude), s.singles(rounder));
    let small = s.sub_32(s.single_bits(small), rounder);
    let is_small = s.greater_32(s.splat_32(format.smallest_normal()), magnitude);
    let number = s.choose_32(is_small, small, number);

    let is_nan = s.greater_32(magnitude, s.splat_32(f32::INFINITY.to_bits()));
    let number = s.choose_32(is_nan, s.splat_32(format.nan), number);
    s.or(number, sign)
}

/// Defines the maximum and the minimum of floats that vector units compare, of prepared values: a
/// NaN has all bits set for a maximum, and all but the sign for a minimum.
///
/// Each comparison selects `b` for equal numbers and if either is a NaN, so both orders of the
/// operands together give both zeros, and a NaN beside a number. The conjunction of these is the
/// maximum, and the minimum of them as signed integers is the minimum.
macro_rules! extremes {
    (
        $max:ident, $min:ident, $registers:ident, $bits:ident, $greater:ident, $less:ident,
        $lesser:ident
    ) => {
        #[inline(always)]
        fn $max<S: Simd>(s: S, a: S::$registers, b: S::$registers) -> S::Integers {
            s.and(s.$bits(s.$greater(a, b)), s.$bits(s.$greater(b, a)))
        }

        #[inline(always)]
        fn $min<S: Simd>(s: S, a: S::$registers, b: S::$registers) -> S::Integers {
            s.$lesser(s.$bits(s.$less(a, b)), s.$bits(s.$less(b, a)))
        }
    };
}

extremes!(max_f32, min_f32, Singles, single_bits, greater_f32, less_f32, min_i32);
extremes!(max_f64, min_f64, Doubles, double_bits, greater_f64, less_f64, min_i64);

/// The operation of a function that returns an extreme.
const MAX: bool = false;
const MIN: bool = true;

/// The maximum or the minimum of 16-bit floats, each NaN of which has all bits set.
#[inline(always)]
fn extreme_16<S: Simd, const LEAST: bool>(s: S, a: S::Integers, b: S::Integers) -> S::Integers {
    let (order_a, order_b) = (order_16(s, a), order_16(s, b));
    if LEAST {
        // Subtracting 1 makes the lowest number the highest.
        let minus_one = s.splat_16(u16::MAX);
        let (order_a, order_b) = (s.add_16(order_a, minus_one), s.add_16(order_b, minus_one));
        s.choose_16(s.greater_16(order_b, order_a), a, b)
    } else {
        s.choose_16(s.greater_16(order_a, order_b), a, b)
    }
}

/// The maximum or the minimum of 8-bit floats, each NaN of which has all bits set.
#[inline(always)]
fn extreme_8<S: Simd, const LEAST: bool>(s: S, a: S::Integers, b: S::Integers) -> S::Integers {
    let (order_a, order_b) = (order_8(s, a), order_8(s, b));
    if LEAST {
        let minus_one = s.splat_8(u8::MAX);
        let (order_a, order_b) = (s.add_8(order_a, minus_one), s.add_8(order_b, minus_one));
        s.choose_8(s.greater_8(order_b, order_a), a, b)
    } else {
        s.choose_8(s.greater_8(order_a, order_b), a, b)
    }
}

/// The 16-bit floats `x`, where each NaN is the one with all bits set.
#[inline(always)]
fn canonical_16<S: Simd>(s: S, format: Format, x: S::Integers) -> S::Integers {
    let magnitude = s.and(x, s.splat_16(0x7fff));
    s.set_where_16(s.greater_16(magnitude, s.splat_16(format.last_number as u16)), x)
}

/// As [`canonical_16`], for 8-bit floats.
#[inline(always)]
fn canonical_8<S: Simd>(s: S, format: Format, x: S::Integers) -> S::Integers {
    let magnitude = s.and(x, s.splat_8(0x7f));
    s.set_where_8(s.greater_8(magnitude, s.splat_8(format.last_number as u8)), x)
}

/// Signed integers in the order of the floats `x`, where the NaN with all bits set is the lowest.
/// Read as two's complement, negative floats are in reverse order; inverting their magnitude
/// corrects that.
#[inline(always)]
fn order_16<S: Simd>(s: S, x: S::Integers) -> S::Integers {
    s.xor(x, s.and(s.sign_16(x), s.splat_16(0x7fff)))
}

/// As [`order_16`], for 8-bit floats.
#[inline(always)]
fn order_8<S: Simd>(s: S, x: S::Integers) -> S::Integers {
    s.xor(x, s.and(s.sign_8(x), s.splat_8(0x7f)))
}

/// Methods of an implementation of [`Simd`] or [`NonTemporalStore`], each one expression.
macro_rules! instructions {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) -> $result {
            // SAFETY: `self` proves that the processor has the instruction set.
            unsafe { $body }
        }
    )*};
}

pub(super) use instructions;
