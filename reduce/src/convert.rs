//! Conversion between binary32 and the narrow floating-point formats, one value at a time.
//!
//! Decoding is exact. Encoding rounds to nearest, ties to even, subnormal results included. On
//! overflow:
//!
//! * binary16 and bfloat16 become infinite, as IEEE 754 says;
//! * both 8-bit formats *saturate*: a result beyond the largest finite value, infinity included,
//!   becomes that value with its sign (448 for E4M3, 57344 for E5M2). This is `__NV_SATFINITE` of
//!   CUDA's `cuda_fp8.h`, the mode that `__nv_fp8_e4m3(float)` and `__nv_fp8_e5m2(float)` use, so
//!   sums on host and GPU agree. E5M2 can hold infinities, but arithmetic never makes one and does
//!   not keep one.
//!
//! A NaN becomes a NaN of unspecified sign and payload.

/// A binary floating-point format of at most 16 bits, with an exponent range within that of
/// binary32.
#[derive(Clone, Copy)]
pub(super) struct Format {
    /// Bits of sign, exponent and fraction together.
    pub(super) width: u32,
    /// Bits of the fraction.
    pub(super) fraction: u32,
    /// Bias of the exponent.
    pub(super) bias: u32,
    /// Magnitudes above this are NaN.
    pub(super) last_number: u32,
    /// The magnitude that stands for infinity, if there is one.
    pub(super) infinity: Option<u32>,
    /// The magnitude that an overflow results in.
    pub(super) overflow: u32,
    /// The magnitude of the NaN that encoding produces.
    pub(super) nan: u32,
}

/// IEEE 754 binary16.
pub(super) const F16: Format = Format {
    width: 16,
    fraction: 10,
    bias: 15,
    last_number: 0x7c00,
    infinity: Some(0x7c00),
    overflow: 0x7c00,
    nan: 0x7e00,
};

/// The upper half of a binary32.
pub(super) const BF16: Format = Format {
    width: 16,
    fraction: 7,
    bias: 127,
    last_number: 0x7f80,
    infinity: Some(0x7f80),
    overflow: 0x7f80,
    nan: 0x7fc0,
};

/// OCP FP8 E4M3: no infinities, one NaN magnitude.
pub(super) const E4M3: Format = Format {
    width: 8,
    fraction: 3,
    bias: 7,
    last_number: 0x7e,
    infinity: None,
    overflow: 0x7e,
    nan: 0x7f,
};

/// OCP FP8 E5M2.
pub(super) const E5M2: Format = Format {
    width: 8,
    fraction: 2,
    bias: 15,
    last_number: 0x7c,
    infinity: Some(0x7c),
    overflow: 0x7b,
    nan: 0x7f,
};

impl Format {
    /// The shift that moves exponent and fraction to their places in a binary32.
    pub(super) const fn shift(self) -> u32 {
        23 - self.fraction
    }

    /// The factor 2^(127 - bias), as binary32 bits, that corrects the exponent of a shifted
    /// magnitude, subnormals included.
    pub(super) const fn rebias(self) -> u32 {
        (127 + 127 - self.bias) << 23
    }

    /// The smallest normal number, as binary32 bits.
    pub(super) const fn smallest_normal(self) -> u32 {
        (127 + 1 - self.bias) << 23
    }

    /// The power of two, as binary32 bits, whose unit in the last place is the smallest subnormal
    /// of this format. Adding it to a smaller magnitude rounds to a multiple of that subnormal.
    pub(super) const fn rounder(self) -> u32 {
        (127 + 1 - self.bias + self.shift()) << 23
    }

    /// The value of `bits`.
    #[inline(always)]
    pub(super) const fn decode(self, bits: u32) -> f32 {
        let sign = bits >> (self.width - 1) << 31;
        let magnitude = bits & ((1 << (self.width - 1)) - 1);
        let number = f32::from_bits(magnitude << self.shift()) * f32::from_bits(self.rebias());
        let magnitude = match self.infinity {
            _ if magnitude > self.last_number => f32::NAN.to_bits(),
            Some(infinity) if magnitude == infinity => f32::INFINITY.to_bits(),
            _ => number.to_bits(),
        };
        f32::from_bits(sign | magnitude)
    }

    /// The bits of the representable value nearest to `value`.
    #[inline(always)]
    pub(super) const fn encode(self, value: f32) -> u32 {
        let bits = value.to_bits();
        let sign = bits >> 31 << (self.width - 1);
        let magnitude = bits & 0x7fff_ffff;
        sign | if magnitude > f32::INFINITY.to_bits() {
            self.nan
        } else if magnitude < self.smallest_normal() {
            let rounded = f32::from_bits(magnitude) + f32::from_bits(self.rounder());
            rounded.to_bits() - self.rounder()
        } else {
            let odd = (magnitude >> self.shift()) & 1;
            let rounded = (magnitude + (1 << (self.shift() - 1)) - 1 + odd) >> self.shift();
            let rebiased = rounded - ((127 - self.bias) << self.fraction);
            if rebiased > self.overflow { self.overflow } else { rebiased }
        }
    }

    /// The values of an 8-bit format, by their bits.
    pub(super) const fn table(self) -> [f32; 256] {
        let mut table = [0.0; 256];
        let mut bits = 0;
        while bits < 256 {
            table[bits] = self.decode(bits as u32);
            bits += 1;
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether two values are equal in value and sign, or both NaN.
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    /// Every 251st binary32, and the values around each boundary between two neighbours of
    /// `format`.
    fn floats(format: Format) -> impl Iterator<Item = f32> {
        let spread = (0..=u32::MAX).step_by(251).map(f32::from_bits);
        let edges = (0..1 << format.width).flat_map(move |bits| {
            let value = format.decode(bits).to_bits();
            let half = 1 << (format.shift() - 1);
            [0, 1, half - 1, half, half + 1]
                .into_iter()
                .flat_map(move |d| [value.wrapping_add(d), value.wrapping_sub(d)])
                .map(f32::from_bits)
        });
        spread.chain(edges)
    }

    #[test]
    fn half_types_agree_with_half() {
        for bits in 0..=u16::MAX {
            let (f, b) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            assert!(same(F16.decode(u32::from(bits)), f.to_f32()), "f16 {bits:#x}");
            assert!(same(BF16.decode(u32::from(bits)), b.to_f32()), "bf16 {bits:#x}");
        }
        for value in floats(F16) {
            let (ours, theirs) = (F16.encode(value), half::f16::from_f32(value));
            let nan = ours & 0x7fff > 0x7c00;
            assert!(ours == u32::from(theirs.to_bits()) || (nan && theirs.is_nan()), "{value:e}");
        }
        for value in floats(BF16) {
            let (ours, theirs) = (BF16.encode(value), half::bf16::from_f32(value));
            let nan = ours & 0x7fff > 0x7f80;
            assert!(ours == u32::from(theirs.to_bits()) || (nan && theirs.is_nan()), "{value:e}");
        }
    }

    #[test]
    fn fp8_decodes_as_float8_does() {
        for bits in 0..=u8::MAX {
            let wide = u32::from(bits);
            assert!(same(E4M3.decode(wide), float8::F8E4M3::from_bits(bits).to_f32()), "{bits:#x}");
            assert!(same(E5M2.decode(wide), float8::F8E5M2::from_bits(bits).to_f32()), "{bits:#x}");
        }
    }

    /// The nearest finite value, by a search through all values. A tie goes to the even fraction.
    fn nearest(format: Format, value: f32) -> u32 {
        let sign = value.to_bits() >> 31 << 7;
        if value.is_nan() {
            return sign | format.nan;
        }
        if value.abs() > format.decode(format.overflow) {
            return sign | format.overflow;
        }
        let distance = |m: u32| (f64::from(format.decode(m)) - f64::from(value.abs())).abs();
        let magnitude = (0..=format.overflow)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
        sign | magnitude.expect("a format has finite values")
    }

    #[test]
    fn fp8_encodes_to_the_nearest_and_saturates() {
        for format in [E4M3, E5M2] {
            let spread = (0..=u32::MAX).step_by(100_003).map(f32::from_bits);
            for value in floats(format).skip((1 << 32) / 251 + 1).chain(spread) {
                assert_eq!(format.encode(value), nearest(format, value), "{value:e}");
            }
        }
        assert_eq!(E4M3.decode(E4M3.encode(f32::MAX)), 448.0);
        assert_eq!(E5M2.decode(E5M2.encode(f32::NEG_INFINITY)), -57344.0);
    }

    #[test]
    fn fp8_encodes_as_float8_does_within_the_finite_range() {
        for value in floats(E4M3).filter(|v| v.abs() <= 448.0) {
            assert_eq!(E4M3.encode(value), u32::from(float8::F8E4M3::from_f32(value).to_bits()));
        }
        for value in floats(E5M2).filter(|v| v.abs() <= 57344.0) {
            assert_eq!(E5M2.encode(value), u32::from(float8::F8E5M2::from_f32(value).to_bits()));
        }
    }
}
