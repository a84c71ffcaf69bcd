//! Tests of every kernel against the scalar reference, bit for bit.

mod extremes;

use maypole_algorithms::semantics::{self, Algebra};
use maypole_algorithms::{DType, RedOp};
use maypole_reduce::{FoldKernel, FoldOperands, Isa, Reduction, scalar};

const COUNTS: [usize; 14] = [0, 1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 65, 1000, 5000];
const NRANKS: u32 = 5;

/// The operations of a step on elements of `dtype`, by the scalar reference.
struct ScalarAlgebra {
    dtype: DType,
    reduction: Reduction,
}

impl Algebra for ScalarAlgebra {
    type Value = u64;

    fn contribute(&mut self, value: u64) -> u64 {
        scalar::contribute(self.dtype, self.reduction, NRANKS, value)
    }

    fn combine(&mut self, left: u64, right: u64) -> u64 {
        scalar::combine(self.dtype, self.reduction.op, left, right)
    }

    fn finish(&mut self, value: u64) -> u64 {
        scalar::finish(self.dtype, self.reduction.op, NRANKS, value)
    }
}

/// Deterministic random numbers, by SplitMix64.
struct RandomNumbers(u64);

impl RandomNumbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// An element: any bits, a value of moderate size, or an extreme value.
    fn element(&mut self, dtype: DType) -> u64 {
        let any = self.next();
        let width = 8 * dtype.size() as u32;
        let mask = u64::MAX >> (64 - width);
        let sign = (any & 1) << (width - 1);
        let small = (any >> 8) % 200;
        let Some(shape) = FloatLayout::of(dtype) else {
            let extremes = [0, 1, mask, mask >> 1, (mask >> 1) + 1];
            return match any >> 62 {
                0 => extremes[self.below(extremes.len())],
                1 => small.wrapping_sub(100) & mask,
                _ => any & mask,
            };
        };
        match self.below(4) {
            0 => sign | shape.specials()[self.below(7)],
            1 => any & mask,
            // Within a few powers of two of 1, so that sums round and cancel.
            _ => {
                let bias = (1_u64 << (shape.exponent_bits - 1)) - 1;
                let exponent = bias + small % 5 - 2;
                sign | exponent << shape.fraction_bits
                    | (any >> 16) & ((1 << shape.fraction_bits) - 1)
            }
        }
    }
}

/// The bit layout of a float type.
struct FloatLayout {
    exponent_bits: u32,
    fraction_bits: u32,
    /// The magnitude with all exponent bits set.
    infinity: u64,
}

impl FloatLayout {
    fn of(dtype: DType) -> Option<Self> {
        let (exponent_bits, fraction_bits) = match dtype {
            DType::Float16 => (5, 10),
            DType::Float32 => (8, 23),
            DType::Float64 => (11, 52),
            DType::Bfloat16 => (8, 7),
            DType::Float8E4M3 => (4, 3),
            DType::Float8E5M2 => (5, 2),
            _ => return None,
        };
        let infinity = ((1 << exponent_bits) - 1) << fraction_bits;
        Some(Self { exponent_bits, fraction_bits, infinity })
    }

    /// Zero, the ends of the subnormal and of the normal numbers, infinity, and NaN. E4M3 has a
    /// number in the place of infinity.
    fn specials(&self) -> [u64; 7] {
        let normal = 1 << self.fraction_bits;
        let nan = self.infinity | (normal - 1);
        [0, 1, normal - 1, normal, self.infinity - 1, self.infinity, nan]
    }

    fn is_nan(&self, dtype: DType, bits: u64) -> bool {
        let magnitude = bits & (self.infinity | ((1 << self.fraction_bits) - 1));
        match dtype {
            DType::Float8E4M3 => magnitude == 0x7f,
            _ => magnitude > self.infinity,
        }
    }
}

/// Whether two results are equal, or both NaN for an operation whose NaN may be any NaN.
fn same(dtype: DType, op: RedOp, a: u64, b: u64) -> bool {
    let nan = |s: FloatLayout| s.is_nan(dtype, a) && s.is_nan(dtype, b);
    let selects = matches!(op, RedOp::Max | RedOp::Min);
    a == b || (!selects && FloatLayout::of(dtype).is_some_and(nan))
}

fn get(dtype: DType, from: &[u8], i: usize) -> u64 {
    let mut bytes = [0; 8];
    let size = dtype.size();
    bytes[..size].copy_from_slice(&from[i * size..][..size]);
    u64::from_le_bytes(bytes)
}

const GUARD: u8 = 0xa5;
/// Bytes before and after the content, for guards and alignment.
const MARGIN: usize = 192;

/// Memory at an offset from a multiple of 64, between guard bytes.
struct GuardedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl GuardedBuffer {
    fn new(len: usize, offset: usize) -> Self {
        let bytes = vec![GUARD; len + 2 * MARGIN];
        let start = bytes.as_ptr().align_offset(64) + 64 + offset;
        Self { bytes, start, len }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    fn pointer(&mut self) -> *mut u8 {
        self.as_mut().as_mut_ptr()
    }

    fn content(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn guarded(&self) -> bool {
        let (before, rest) = self.bytes.split_at(self.start);
        before.iter().chain(&rest[self.len..]).all(|&b| b == GUARD)
    }
}

/// A fold: inputs, how they are folded, and the expected result.
struct FoldCase {
    dtype: DType,
    reduction: Reduction,
    own: u8,
    finish: bool,
    inputs: Vec<Vec<u8>>,
    expected: Vec<u64>,
}

impl FoldCase {
    fn new(
        numbers: &mut RandomNumbers,
        dtype: DType,
        op: RedOp,
        fan_in: usize,
        count: usize,
    ) -> Self {
        let size = dtype.size();
        let scalar = numbers.element(dtype);
        let mut elements =
            ScalarAlgebra { dtype, reduction: Reduction { op, scalar, resident: false } };
        let own =
            if numbers.below(2) == 0 { 1 << numbers.below(fan_in) } else { numbers.next() as u8 };
        let finish = numbers.below(2) == 0;
        let inputs: Vec<Vec<u8>> = (0..fan_in)
            .map(|_| {
                let all = (0..count).map(|_| numbers.element(dtype).to_le_bytes());
                all.flat_map(|bytes| bytes.into_iter().take(size)).collect()
            })
            .collect();
        let expected = (0..count)
            .map(|i| {
                let values: Vec<u64> = (0..fan_in)
                    .map(|k| match get(dtype, &inputs[k], i) {
                        value if own >> k & 1 != 0 => elements.contribute(value),
                        value => value,
                    })
                    .collect();
                let value = semantics::fold(&mut elements, &values);
                if finish { elements.finish(value) } else { value }
            })
            .collect();
        Self { dtype, reduction: elements.reduction, own, finish, inputs, expected }
    }

    /// Runs the fold and checks the result. Output `i` is the memory of input `in_place[i]`, or
    /// memory of its own.
    fn check(&self, numbers: &mut RandomNumbers, isa: Isa, in_place: &[Option<usize>]) {
        let Self { dtype, reduction, .. } = *self;
        let count = self.expected.len();
        let len = count * dtype.size();
        let mut inputs: Vec<GuardedBuffer> = (self.inputs.iter())
            .map(|content| {
                let mut buffer = GuardedBuffer::new(len, numbers.below(64));
                buffer.as_mut().copy_from_slice(content);
                buffer
            })
            .collect();
        let mut outputs: Vec<GuardedBuffer> =
            in_place.iter().map(|_| GuardedBuffer::new(len, numbers.below(64))).collect();
        let from: Vec<*const u8> = inputs.iter_mut().map(|b| b.pointer().cast_const()).collect();
        let to: Vec<*mut u8> = (in_place.iter().zip(&mut outputs))
            .map(|(place, own)| place.map_or(own.pointer(), |i| from[i].cast_mut()))
            .collect();
        let non_temporal = numbers.next() as u8;
        let operands = FoldOperands {
            inputs: &from,
            own: self.own,
            outputs: &to,
            non_temporal,
            count,
            finish: self.finish,
        };
        let kernel = FoldKernel::select(dtype, reduction, NRANKS, isa);
        // SAFETY: the buffers hold `count` elements, and are distinct except for outputs that are
        // inputs.
        unsafe { kernel.run(&operands) };
        let what = || {
            format!(
                "{dtype} {} by {isa:?}: {} inputs, own {:#b}, finish {}, {in_place:?}, \
                 non-temporal {non_temporal:#b}, {count} elements",
                reduction.op,
                from.len(),
                self.own,
                self.finish,
            )
        };
        for (output, place) in outputs.iter().zip(in_place) {
            let output = place.map_or(output, |i| &inputs[i]);
            for (i, &expected) in self.expected.iter().enumerate() {
                let found = get(dtype, output.content(), i);
                assert!(
                    same(dtype, reduction.op, found, expected),
                    "{}: element {i} is {found:#x}, not {expected:#x}",
                    what()
                );
            }
        }
        assert!(
            inputs.iter().chain(&outputs).all(GuardedBuffer::guarded),
            "{}: written outside",
            what()
        );
        for (i, (input, before)) in inputs.iter().zip(&self.inputs).enumerate() {
            let written = in_place.contains(&Some(i));
            assert!(written || input.content() == before, "{}: input {i} changed", what());
        }
    }
}

/// Checks every operation, fan-in, fan-out and count on `dtype`, by every instruction set.
fn check_all(dtype: DType) {
    let mut numbers = RandomNumbers(dtype as u64);
    for op in RedOp::ALL {
        for fan_in in 1..=8 {
            for count in COUNTS {
                let case = FoldCase::new(&mut numbers, dtype, op, fan_in, count);
                for isa in Isa::available() {
                    case.check(&mut numbers, isa, &[None]);
                    case.check(&mut numbers, isa, &[None, None]);
                    case.check(&mut numbers, isa, &[None, None, None]);
                    let place = numbers.below(fan_in);
                    case.check(&mut numbers, isa, &[Some(place)]);
                    // The first output is the last input, and the last output the first input.
                    case.check(
                        &mut numbers,
                        isa,
                        &[Some(fan_in - 1), None, (fan_in > 1).then_some(0)],
                    );
                }
            }
        }
    }
}

#[test]
fn integers_of_8_bits() {
    check_all(DType::Int8);
    check_all(DType::Uint8);
}

#[test]
fn integers_of_32_bits() {
    check_all(DType::Int32);
    check_all(DType::Uint32);
}

#[test]
fn integers_of_64_bits() {
    check_all(DType::Int64);
    check_all(DType::Uint64);
}

#[test]
fn floats_of_8_bits() {
    check_all(DType::Float8E4M3);
    check_all(DType::Float8E5M2);
}

#[test]
fn floats_of_16_bits() {
    check_all(DType::Float16);
    check_all(DType::Bfloat16);
}

#[test]
fn floats_of_32_and_64_bits() {
    check_all(DType::Float32);
    check_all(DType::Float64);
}

/// Checks all pairs of values of the 8-bit types, and every value of the 16-bit types with sixteen
/// others.
#[test]
fn narrow_types_exhaustively() {
    for dtype in [DType::Float8E4M3, DType::Float8E5M2, DType::Float16, DType::Bfloat16] {
        let size = dtype.size();
        let values = 1_u64 << (8 * size);
        let mut numbers = RandomNumbers(7);
        let left: Vec<u8> =
            (0..values).flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect();
        for op in [RedOp::Sum, RedOp::Prod, RedOp::Max, RedOp::Min] {
            for round in 0..256 {
                let other = if size == 1 { round } else { numbers.element(dtype) };
                let right = other.to_le_bytes()[..size].repeat(values as usize);
                for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Scalar) {
                    if size == 2 && round >= 16 {
                        break;
                    }
                    let kernel = FoldKernel::select(dtype, op.into(), 1, isa);
                    let mut result = vec![0; left.len()];
                    let operands = FoldOperands {
                        inputs: &[left.as_ptr(), right.as_ptr()],
                        own: 0,
                        outputs: &[result.as_mut_ptr()],
                        non_temporal: 0,
                        count: values as usize,
                        finish: false,
                    };
                    // SAFETY: the operands are three vectors of `count` elements.
                    unsafe { kernel.run(&operands) };
                    for value in 0..values {
                        let found = get(dtype, &result, value as usize);
                        let expected = scalar::combine(dtype, op, value, other);
                        assert!(
                            same(dtype, op, found, expected),
                            "{dtype} {op} by {isa:?} of {value:#x} and {other:#x}: {found:#x}, \
                             not {expected:#x}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn extremes_are_selected_not_rounded() {
    let (nan, infinity) = (0x7e, 0x7c);
    let max = |a, b| scalar::combine(DType::Float8E5M2, RedOp::Max, a, b);
    assert_eq!(max(infinity, 0x3c), infinity);
    assert_eq!(max(0x3c, nan), 0x3c);
    assert_eq!(max(nan, 0x3c), 0x3c);
    assert_eq!(max(nan, 0xfd), 0xff);
    assert_eq!(max(0x00, 0x80), 0x00);
    assert_eq!(max(0x80, 0x00), 0x00);
}
