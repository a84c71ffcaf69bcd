//! The operations of the kernels as plain functions on the bits of single elements, independent of
//! the kernels and of the host's loops: small floats by the crates `half` and `float8`, and 8-bit
//! rounding by a search for the nearest value.

use half::{bf16, f16};
use maypole_algorithms::semantics::Algebra;
use maypole_algorithms::{DType, RedOp};
use maypole_cuda::launch::operation;

/// A reduction on one element type. An element is represented by its bits, extended to 64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) dtype: DType,
    pub(crate) op: RedOp,
}

pub(crate) const SUM_F32: Operation = Operation { dtype: DType::Float32, op: RedOp::Sum };

impl Operation {
    /// [`KernelWork::operation`](maypole_cuda::launch::KernelWork).
    pub(crate) fn code(self) -> u32 {
        operation(self.dtype, self.op)
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> usize {
        self.dtype.size()
    }

    fn scales(self) -> bool {
        self.op == RedOp::PreMulSum || (self.op == RedOp::Avg && self.dtype.is_float())
    }

    /// [`KernelWork::parameter`](maypole_cuda::launch::KernelWork) for a rank of so many.
    pub(crate) fn parameter(self, rank: u32, nranks: u32) -> u64 {
        let float = self.dtype.is_float();
        match self.op {
            RedOp::PreMulSum if float => encode(self.dtype, 0.3 + f64::from(rank)),
            RedOp::PreMulSum => 7 + 3 * u64::from(rank),
            RedOp::Avg if float => encode(self.dtype, 1.0 / f64::from(nranks)),
            _ => u64::from(nranks),
        }
    }

    /// An element from 64 random bits: any integer, or a float of a few binades, so that most sums
    /// are rounded, and depend on their order.
    pub(crate) fn sample(self, random: u64) -> u64 {
        let spread = (random >> 32) as i64 - (1 << 31);
        match self.dtype {
            DType::Float64 => {
                (random & 0x800f_ffff_ffff_ffff) | (1023 - 8 + (random >> 52 & 15)) << 52
            }
            dtype if dtype.is_float() => {
                let scale = f64::from(1 << (random & 7)) / f64::from(1u32 << 31);
                encode(dtype, spread as f64 * scale)
            }
            _ => self.bits(random),
        }
    }

    /// An element of any bits, including infinities, NaN and subnormal numbers.
    pub(crate) fn special(self, random: u64) -> u64 {
        let wide: [u64; 8] = match self.dtype {
            DType::Float32 => {
                [0, 1 << 31, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 1, 0x7f7f_ffff, 0x807f_ffff]
            }
            DType::Float64 => [
                0,
                1 << 63,
                0x7ff << 52,
                0xfff << 52,
                0xfff8 << 48,
                1,
                (0x7ff << 52) - 1,
                (1 << 63 | 1 << 52) - 1,
            ],
            _ => return self.bits(random >> 16),
        };
        if random & 1 == 0 { wide[(random >> 1 & 7) as usize] } else { self.sample(random) }
    }

    fn bits(self, random: u64) -> u64 {
        random & u64::MAX >> (64 - 8 * self.size())
    }

    /// Whether both are equal, or both NaN for an operation that can make NaN.
    pub(crate) fn same(self, a: u64, b: u64) -> bool {
        let selects = matches!(self.op, RedOp::Min | RedOp::Max);
        let nan = |bits| !selects && self.dtype.is_float() && decode(self.dtype, bits).is_nan();
        a == b || (nan(a) && nan(b))
    }

    pub(crate) fn contribute(self, x: u64, parameter: u64) -> u64 {
        if self.scales() { self.node(RedOp::Prod, x, parameter) } else { x }
    }

    pub(crate) fn combine(self, low: u64, high: u64) -> u64 {
        self.node(self.op, low, high)
    }

    pub(crate) fn finish(self, x: u64, parameter: u64) -> u64 {
        if self.op != RedOp::Avg || self.dtype.is_float() {
            return x;
        }
        let wide = self.widen(x) / i128::from(parameter);
        self.bits(wide as u64)
    }

    /// A whole number.
    fn widen(self, x: u64) -> i128 {
        match self.dtype {
            DType::Int8 => i128::from(x as i8),
            DType::Int32 => i128::from(x as i32),
            DType::Int64 => i128::from(x as i64),
            _ => i128::from(x),
        }
    }

    fn node(self, op: RedOp, a: u64, b: u64) -> u64 {
        if !self.dtype.is_float() {
            let (x, y) = (self.widen(a), self.widen(b));
            return self.bits(match op {
                RedOp::Prod => x.wrapping_mul(y),
                RedOp::Max => x.max(y),
                RedOp::Min => x.min(y),
                _ => x + y,
            } as u64);
        }
        let (x, y) = (decode(self.dtype, a), decode(self.dtype, b));
        if matches!(op, RedOp::Max | RedOp::Min) {
            return match (x.is_nan(), y.is_nan()) {
                (true, true) => self.bits(u64::MAX),
                (true, false) => b,
                (false, true) => a,
                _ if x.total_cmp(&y).is_gt() == (op == RedOp::Max) => a,
                _ => b,
            };
        }
        let of = |x: f64, y: f64| if op == RedOp::Prod { x * y } else { x + y };
        if self.dtype == DType::Float64 {
            return of(x, y).to_bits();
        }
        // Rounded to binary32, as that would have computed it: binary64 has more than twice the
        // bits.
        encode(self.dtype, f64::from(of(x, y) as f32))
    }
}

/// The value of an element.
fn decode(dtype: DType, bits: u64) -> f64 {
    match dtype {
        DType::Float16 => f16::from_bits(bits as u16).to_f64(),
        DType::Bfloat16 => bf16::from_bits(bits as u16).to_f64(),
        DType::Float8E4M3 => float8::F8E4M3::from_bits(bits as u8).to_f64(),
        DType::Float8E5M2 => float8::F8E5M2::from_bits(bits as u8).to_f64(),
        DType::Float32 => f64::from(f32::from_bits(bits as u32)),
        DType::Float64 => f64::from_bits(bits),
        _ => unreachable!("{dtype} is no float"),
    }
}

/// The nearest element; 8-bit floats stay finite.
fn encode(dtype: DType, value: f64) -> u64 {
    match dtype {
        DType::Float16 => f16::from_f64(value).to_bits().into(),
        DType::Bfloat16 => bf16::from_f64(value).to_bits().into(),
        DType::Float8E4M3 => nearest(dtype, 0x7e, value),
        DType::Float8E5M2 => nearest(dtype, 0x7b, value),
        DType::Float32 => (value as f32).to_bits().into(),
        DType::Float64 => value.to_bits(),
        _ => unreachable!("{dtype} is no float"),
    }
}

/// By a search through all magnitudes up to `largest`; the even one of two that are as near.
fn nearest(dtype: DType, largest: u64, value: f64) -> u64 {
    let sign = u64::from(value.is_sign_negative()) << 7;
    if value.is_nan() {
        return 0x7f;
    }
    let (mut low, mut high) = (0, largest);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if decode(dtype, middle) <= value.abs() { low = middle } else { high = middle - 1 }
    }
    let distance = |m: u64| (decode(dtype, m) - value.abs()).abs();
    let up = (low + 1).min(largest);
    let nearer = distance(up) < distance(low) || (distance(up) == distance(low) && low & 1 == 1);
    sign | if nearer { up } else { low }
}

/// The operation as one rank applies it to chunks.
pub(crate) struct OnRank {
    pub(crate) operation: Operation,
    pub(crate) parameter: u64,
}

impl Algebra for OnRank {
    type Value = Vec<u64>;

    fn contribute(&mut self, value: Vec<u64>) -> Vec<u64> {
        value.into_iter().map(|x| self.operation.contribute(x, self.parameter)).collect()
    }

    fn combine(&mut self, left: Vec<u64>, right: Vec<u64>) -> Vec<u64> {
        left.into_iter().zip(right).map(|(l, r)| self.operation.combine(l, r)).collect()
    }

    fn finish(&mut self, value: Vec<u64>) -> Vec<u64> {
        value.into_iter().map(|x| self.operation.finish(x, self.parameter)).collect()
    }
}
