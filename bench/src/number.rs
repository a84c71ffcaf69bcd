//! Elements as numbers, converted to and from bytes without the library's conversions.
//!
//! The check of a benchmark must not rely on the code that it checks, so here is a second, slower
//! set of conversions: every float is a binary64 until it is rounded, once, to its type.

use maypole_algorithms::DType;

/// A value of an element type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    /// An integer modulo 2^64, of which the type keeps the low bits.
    Int(u64),
    /// The exact value of a float.
    Float(f64),
}

/// The significand bits of a float type, with the hidden bit. Integers up to 2 to this power are
/// exact.
pub(crate) fn precision(dtype: DType) -> u32 {
    format(dtype).fraction + 1
}

/// The smallest normal number of a float type.
pub(crate) fn smallest_normal(dtype: DType) -> f64 {
    2f64.powi(2 - (1 << (format(dtype).exponent - 1)))
}

/// Appends `number` as an element of `dtype`.
pub(crate) fn write(dtype: DType, number: Number, to: &mut Vec<u8>) {
    let bits = match number {
        Number::Int(value) => value,
        Number::Float(value) if dtype == DType::Float64 => value.to_bits(),
        Number::Float(value) => encode(format(dtype), value),
    };
    to.extend_from_slice(&bits.to_le_bytes()[..dtype.size()]);
}

/// The value that the low bits of `value` have in an integer type.
pub(crate) fn extend(dtype: DType, value: u64) -> i128 {
    let unused = 64 - 8 * dtype.size() as u32;
    match dtype {
        DType::Int8 | DType::Int32 | DType::Int64 => {
            i128::from((value << unused).cast_signed() >> unused)
        }
        _ => i128::from(value << unused >> unused),
    }
}

/// The value of a float type that is nearest to `value`.
pub(crate) fn round(dtype: DType, value: f64) -> f64 {
    if dtype == DType::Float64 {
        return value;
    }
    let format = format(dtype);
    decode(format, encode(format, value))
}

/// A binary float format: the bits of its exponent and of its fraction.
#[derive(Clone, Copy)]
struct FloatFormat {
    exponent: u32,
    fraction: u32,
}

fn format(dtype: DType) -> FloatFormat {
    let (exponent, fraction) = match dtype {
        DType::Float16 => (5, 10),
        DType::Float32 => (8, 23),
        DType::Float64 => (11, 52),
        DType::Bfloat16 => (8, 7),
        DType::Float8E4M3 => (4, 3),
        DType::Float8E5M2 => (5, 2),
        _ => unreachable!("{dtype} is an integer type"),
    };
    FloatFormat { exponent, fraction }
}

/// Rounds to nearest, ties to even. The value must be finite in the format, as all test data is,
/// and the smallest number of the format must be a normal binary64.
fn encode(FloatFormat { exponent, fraction }: FloatFormat, value: f64) -> u64 {
    let sign = u64::from(value.is_sign_negative()) << (exponent + fraction);
    let bias = (1 << (exponent - 1)) - 1;
    // The exponent of the value's first bit, but at least that of the smallest normal number.
    let lead = match value.abs() {
        0.0 => return sign,
        magnitude => (((magnitude.to_bits() >> 52) as i32) - 1023).max(1 - bias),
    };
    // In units in the last place. A significand that is rounded up to the next power of two carries
    // into the exponent.
    let units = (value.abs() * power(fraction as i32 - lead)).round_ties_even() as u64;
    sign | ((((lead + bias - 1) as u64) << fraction) + units)
}

fn decode(FloatFormat { exponent, fraction }: FloatFormat, bits: u64) -> f64 {
    let bias = (1 << (exponent - 1)) - 1;
    let biased = (bits >> fraction) as i32 & ((1 << exponent) - 1);
    let units = bits & ((1 << fraction) - 1) | u64::from(biased > 0) << fraction;
    let magnitude = units as f64 * power(biased.max(1) - bias - fraction as i32);
    if bits >> (exponent + fraction) & 1 == 1 { -magnitude } else { magnitude }
}

/// 2^exponent, for exponents of normal binary64 numbers.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(dtype: DType, value: f64) -> u64 {
        encode(format(dtype), value)
    }

    #[test]
    fn the_standard_formats_are_those_of_the_compiler() {
        for value in [0.0, -0.0, 1.0, -1.5, 1.0 / 3.0, 65536.0, -1e-3, 7e20, 1e-40] {
            assert_eq!(bits(DType::Float32, value), u64::from((value as f32).to_bits()), "{value}");
        }
        let third = 1.0 / 3.0;
        let mut bytes = Vec::new();
        write(DType::Float64, Number::Float(third), &mut bytes);
        assert_eq!(bytes, f64::to_le_bytes(third));
        assert_eq!(round(DType::Float64, third), third);
        assert_eq!(round(DType::Float32, third), f64::from(third as f32));
    }

    #[test]
    fn narrow_formats_round_to_nearest_even() {
        assert_eq!(bits(DType::Float16, 1.0), 0x3c00);
        assert_eq!(bits(DType::Float16, 1.0 / 3.0), 0x3555);
        assert_eq!(bits(DType::Float16, 2f64.powi(-24)), 1);
        assert_eq!(bits(DType::Bfloat16, -2.0), 0xc000);
        assert_eq!(bits(DType::Bfloat16, 257.0), 0x4380);
        assert_eq!(bits(DType::Bfloat16, 259.0), 0x4382);
        assert_eq!(bits(DType::Float8E4M3, 448.0), 0x7e);
        assert_eq!(bits(DType::Float8E4M3, 15.9), 0x58);
        assert_eq!(bits(DType::Float8E4M3, 2f64.powi(-9)), 1);
        assert_eq!(bits(DType::Float8E5M2, 57344.0), 0x7b);
        assert_eq!(bits(DType::Float8E5M2, 2f64.powi(-16)), 1);
        assert_eq!(round(DType::Float8E4M3, 1.0 / 3.0), 0.34375);
    }

    #[test]
    fn every_finite_value_survives_a_round_trip() {
        for dtype in [DType::Float16, DType::Bfloat16, DType::Float8E4M3, DType::Float8E5M2] {
            let format = format(dtype);
            let infinity = ((1 << format.exponent) - 1) << format.fraction;
            assert!(
                (0..infinity).all(|b| encode(format, decode(format, b)) == b),
                "{dtype}: a decoded value is encoded as different bits"
            );
            assert_eq!(decode(format, 1 << format.fraction), smallest_normal(dtype));
        }
    }

    #[test]
    fn integers_keep_their_low_bits() {
        assert_eq!(extend(DType::Int8, 0x1ff), -1);
        assert_eq!(extend(DType::Uint8, 0x1ff), 255);
        assert_eq!(extend(DType::Uint64, u64::MAX), i128::from(u64::MAX));
        assert_eq!(extend(DType::Int64, u64::MAX), -1);
        let mut bytes = Vec::new();
        write(DType::Int32, Number::Int(0x1_0203_0405), &mut bytes);
        assert_eq!(bytes, [5, 4, 3, 2]);
    }
}
