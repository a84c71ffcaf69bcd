//! The element types and the operations on one element, whose results every vector kernel
//! reproduces.

use super::convert::{self, Format};

/// The operations on a type of `ncclDataType_t`, as it lies in memory.
pub(super) trait Arithmetic: Copy {
    /// Whether the type is an integer. An average of integers is divided at the end; an average of
    /// floats scales each contribution at the start.
    const INTEGER: bool;

    /// `self + other`, rounded once; integers wrap around.
    fn sum(self, other: Self) -> Self;
    /// `self * other`, rounded once; integers wrap around.
    fn prod(self, other: Self) -> Self;
    /// The greater one: see [`super`] for NaN and zeros.
    fn max(self, other: Self) -> Self;
    /// The lesser one.
    fn min(self, other: Self) -> Self;
    /// 1/n rounded to the type. Integers never use it.
    fn reciprocal(n: u32) -> Self;
    /// `self / n` truncated toward zero, for `n > 0`. Integers only; floats are returned unchanged.
    fn divide(self, n: u32) -> Self;
    /// The element in the low bytes of `bits`.
    fn from_bits(bits: u64) -> Self;
    /// The element in the low bytes; the other bytes are zero.
    fn to_bits(self) -> u64;
}

/// Calls `$f::<E>`, where `E` is the element type of `$dtype`.
macro_rules! for_element_type {
    ($dtype:expr, $f:ident($($argument:expr),*)) => {
        match $dtype {
            DType::Int8 => $f::<i8>($($argument),*),
            DType::Uint8 => $f::<u8>($($argument),*),
            DType::Int32 => $f::<i32>($($argument),*),
            DType::Uint32 => $f::<u32>($($argument),*),
            DType::Int64 => $f::<i64>($($argument),*),
            DType::Uint64 => $f::<u64>($($argument),*),
            DType::Float16 => $f::<$crate::element::F16>($($argument),*),
            DType::Float32 => $f::<f32>($($argument),*),
            DType::Float64 => $f::<f64>($($argument),*),
            DType::Bfloat16 => $f::<$crate::element::Bf16>($($argument),*),
            DType::Float8E4M3 => $f::<$crate::element::E4m3>($($argument),*),
            DType::Float8E5M2 => $f::<$crate::element::E5m2>($($argument),*),
        }
    };
}

pub(super) use for_element_type;

/// Divides an integer, through a float type because vector units divide floats only. The float type
/// holds every value of the integer type and every divisor that does not make the quotient zero. A
/// quotient that is less than a whole number is less by more than half a unit in the last place, so
/// it does not round up to that number.
macro_rules! divide {
    ($x:expr, $n:expr, $t:ty, f32) => {{
        // Every divisor above 255 gives 0.
        let quotient = f32::from($x) / (Ord::min($n, 256) as f32);
        // SAFETY: the quotient's magnitude is at most the dividend's, which is of type $t.
        unsafe { quotient.to_int_unchecked::<$t>() }
    }};
    ($x:expr, $n:expr, $t:ty, f64) => {{
        let quotient = f64::from($x) / f64::from($n);
        // SAFETY: the quotient's magnitude is at most the dividend's, which is of type $t.
        unsafe { quotient.to_int_unchecked::<$t>() }
    }};
    ($x:expr, $n:expr, $t:ty, integer) => {
        $x / <$t>::from($n)
    };
}

macro_rules! integer {
    ($t:ty, $bits:ty, $how:tt) => {
        impl Arithmetic for $t {
            const INTEGER: bool = true;

            #[inline(always)]
            fn sum(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn prod(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                Ord::max(self, other)
            }

            #[inline(always)]
            fn min(self, other: Self) -> Self {
                Ord::min(self, other)
            }

            fn reciprocal(n: u32) -> Self {
                Self::from(n == 1)
            }

            #[inline(always)]
            fn divide(self, n: u32) -> Self {
                divide!(self, n, $t, $how)
            }

            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as Self
            }

            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self as $bits)
            }
        }
    };
}

integer!(i8, u8, f32);
integer!(u8, u8, f32);
integer!(i32, u32, f64);
integer!(u32, u32, f64);
integer!(i64, u64, integer);
integer!(u64, u64, integer);

macro_rules! float {
    ($t:ty, $bits:ty) => {
        impl Arithmetic for $t {
            const INTEGER: bool = false;

            #[inline(always)]
            fn sum(self, other: Self) -> Self {
                self + other
            }

            #[inline(always)]
            fn prod(self, other: Self) -> Self {
                self * other
            }

            // A comparison selects the second operand for equal numbers and if either is a NaN, so
            // both orders of the operands together give both zeros, and each NaN only where the
            // other order does not. Without branches, so that compilers make vectors of it.
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                let all_if = |nan: bool| if nan { <$bits>::MAX } else { 0 };
                let right = if self > other { self } else { other };
                let left = if other > self { other } else { self };
                let right = right.to_bits() | all_if(other.is_nan());
                let left = left.to_bits() | all_if(self.is_nan());
                Self::from_bits(right & left)
            }

            #[inline(always)]
            fn min(self, other: Self) -> Self {
                let all_if = |nan: bool| if nan { <$bits>::MAX } else { 0 };
                let (nan, other_nan) = (all_if(self.is_nan()), all_if(other.is_nan()));
                let right = if self < other { self } else { other };
                let left = if other < self { other } else { self };
                let (right, left) = (right.to_bits() & !other_nan, left.to_bits() & !nan);
                Self::from_bits(right | left | (nan & other_nan))
            }

            fn reciprocal(n: u32) -> Self {
                1.0 / n as Self
            }

            #[inline(always)]
            fn divide(self, _: u32) -> Self {
                self
            }

            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }

            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self.to_bits())
            }
        }
    };
}

float!(f32, u32);
float!(f64, u64);

/// A float narrower than binary32.
pub(super) trait NarrowFloat {
    /// Its format.
    const FORMAT: Format;
}

/// Defines a [`NarrowFloat`] type. Sums and products are computed in binary32 and rounded. Maxima
/// and minima are selected and not rounded, so they are always one of the operands.
macro_rules! narrow {
    ($(#[$doc:meta])* $t:ident($bits:ty), $format:expr, |$x:ident| $decode:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub(super) struct $t(pub(super) $bits);

        impl NarrowFloat for $t {
            const FORMAT: Format = $format;
        }

        impl $t {
            #[inline(always)]
            fn widen(self) -> f32 {
                let $x = self.0;
                $decode
            }

            #[inline(always)]
            fn round(value: f32) -> Self {
                Self(Self::FORMAT.encode(value) as $bits)
            }

            /// The same number, or the NaN with all bits set.
            #[inline(always)]
            fn canonical(self) -> Self {
                let nan = (self.0 & (<$bits>::MAX >> 1)) > Self::FORMAT.last_number as $bits;
                if nan { Self(<$bits>::MAX) } else { self }
            }

            /// Unsigned integers in the order of canonical floats. The NaN is the lowest.
            #[inline(always)]
            fn order(self) -> $bits {
                let sign = <$bits>::MAX ^ (<$bits>::MAX >> 1);
                if self.0 & sign == 0 { self.0 | sign } else { !self.0 }
            }
        }

        impl Arithmetic for $t {
            const INTEGER: bool = false;

            #[inline(always)]
            fn sum(self, other: Self) -> Self {
                Self::round(self.widen() + other.widen())
            }

            #[inline(always)]
            fn prod(self, other: Self) -> Self {
                Self::round(self.widen() * other.widen())
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                let (a, b) = (self.canonical(), other.canonical());
                if a.order() > b.order() { a } else { b }
            }

            #[inline(always)]
            fn min(self, other: Self) -> Self {
                let (a, b) = (self.canonical(), other.canonical());
                // Subtracting 1 makes the lowest number the highest.
                if a.order().wrapping_sub(1) < b.order().wrapping_sub(1) { a } else { b }
            }

            fn reciprocal(n: u32) -> Self {
                Self::round(1.0 / n as f32)
            }

            #[inline(always)]
            fn divide(self, _: u32) -> Self {
                self
            }

            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                Self(bits as $bits)
            }

            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self.0)
            }
        }
    };
}

narrow!(
    /// IEEE 754 binary16.
    F16(u16), convert::F16, |x| Self::FORMAT.decode(u32::from(x))
);
narrow!(
    /// The upper half of a binary32.
    Bf16(u16), convert::BF16, |x| f32::from_bits(u32::from(x) << 16)
);
narrow!(
    /// OCP FP8 E4M3.
    E4m3(u8), convert::E4M3, |x| E4M3_VALUES[usize::from(x)]
);
narrow!(
    /// OCP FP8 E5M2.
    E5m2(u8), convert::E5M2, |x| E5M2_VALUES[usize::from(x)]
);

static E4M3_VALUES: [f32; 256] = convert::E4M3.table();
static E5M2_VALUES: [f32; 256] = convert::E5M2.table();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_integers_divide_exactly() {
        for n in (1..=300).chain([65_536, u32::MAX - 1, u32::MAX]) {
            for x in i8::MIN..=i8::MAX {
                assert_eq!(i64::from(x.divide(n)), i64::from(x) / i64::from(n), "{x} / {n}");
            }
            for x in u8::MIN..=u8::MAX {
                assert_eq!(u64::from(x.divide(n)), u64::from(x) / u64::from(n), "{x} / {n}");
            }
        }
    }

    #[test]
    fn wide_integers_divide_exactly_around_every_multiple() {
        for n in (1..=64).chain([1000, 65_535, 1 << 24, i32::MAX as u32, u32::MAX - 1, u32::MAX]) {
            let most = u32::MAX / n;
            for k in (0..=Ord::min(most, 64)).chain(most.saturating_sub(64)..=most) {
                for x in [k * n, (k * n).wrapping_sub(1), (k * n).wrapping_add(n - 1)] {
                    assert_eq!(x.divide(n), x / n, "{x} / {n}");
                    let signed = x as i32;
                    let quotient = i64::from(signed) / i64::from(n);
                    assert_eq!(i64::from(signed.divide(n)), quotient, "{signed} / {n}");
                }
            }
        }
        assert_eq!(i64::MIN.divide(3), i64::MIN / 3);
        assert_eq!(u64::MAX.divide(u32::MAX), u64::MAX / u64::from(u32::MAX));
    }

    #[test]
    fn the_mean_of_floats_scales_by_the_rounded_reciprocal() {
        assert_eq!(<f64 as Arithmetic>::reciprocal(3), 1.0 / 3.0);
        assert_eq!(Bf16::reciprocal(3).0, half::bf16::from_f32(1.0 / 3.0).to_bits());
        assert_eq!(F16::reciprocal(7).0, half::f16::from_f32(1.0 / 7.0).to_bits());
        assert_eq!(E4m3::reciprocal(8).0, 0x20);
    }
}
