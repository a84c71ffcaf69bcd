//! The maximum and the minimum of floats depend on the set of inputs alone, bit for bit: tests of
//! all permutations of special values, all trees, all types and all kernels.

use maypole_algorithms::{DType, RedOp};
use maypole_reduce::{FoldKernel, FoldOperands, Isa, scalar};

use super::{FloatLayout, RandomNumbers, get};

const FLOATS: [DType; 6] = [
    DType::Float16,
    DType::Bfloat16,
    DType::Float32,
    DType::Float64,
    DType::Float8E4M3,
    DType::Float8E5M2,
];

/// NaNs of both signs and several payloads, quiet and signalling; zeros, subnormal numbers, the
/// largest numbers and infinities of both signs; and 1.
fn special_values(dtype: DType) -> Vec<u64> {
    let layout = FloatLayout::of(dtype).expect("a float type");
    let sign = 1 << (8 * dtype.size() - 1);
    let (infinity, fraction) = (layout.infinity, (1 << layout.fraction_bits) - 1);
    let one = ((1 << (layout.exponent_bits - 1)) - 1) << layout.fraction_bits;
    let nans = [1, 1 << (layout.fraction_bits - 1), fraction].map(|payload| infinity | payload);
    let numbers = [0, 1, fraction, infinity - 1, infinity];
    let mut all: Vec<u64> =
        nans.into_iter().chain(numbers).flat_map(|bits| [bits, bits | sign]).collect();
    all.push(one);
    all.sort_unstable();
    all.dedup();
    all
}

/// The value of an element, which binary64 holds exactly.
fn value(dtype: DType, bits: u64) -> f64 {
    match dtype {
        DType::Float16 => half::f16::from_bits(bits as u16).to_f64(),
        DType::Bfloat16 => half::bf16::from_bits(bits as u16).to_f64(),
        DType::Float32 => f64::from(f32::from_bits(bits as u32)),
        DType::Float64 => f64::from_bits(bits),
        DType::Float8E4M3 => float8::F8E4M3::from_bits(bits as u8).to_f64(),
        DType::Float8E5M2 => float8::F8E5M2::from_bits(bits as u8).to_f64(),
        _ => unreachable!("{dtype} is no float"),
    }
}

/// What the documentation says of at least two inputs.
fn expected(dtype: DType, op: RedOp, inputs: &[u64]) -> u64 {
    let numbers = inputs.iter().copied().filter(|bits| !value(dtype, *bits).is_nan());
    let compare = |a: &u64, b: &u64| value(dtype, *a).total_cmp(&value(dtype, *b));
    let extreme = if op == RedOp::Max { numbers.max_by(compare) } else { numbers.min_by(compare) };
    extreme.unwrap_or(u64::MAX >> (64 - 8 * dtype.size()))
}

/// The results of all trees over `values`, in their order.
fn all_trees(dtype: DType, op: RedOp, values: &[u64]) -> Vec<u64> {
    let mut results = Vec::new();
    for at in 1..values.len() {
        for left in all_trees(dtype, op, &values[..at]) {
            for right in all_trees(dtype, op, &values[at..]) {
                results.push(scalar::combine(dtype, op, left, right));
            }
        }
    }
    if let [single] = values { vec![*single] } else { results }
}

/// Every sequence of `len` of these values.
fn sequences(values: &[u64], len: u32) -> impl Iterator<Item = Vec<u64>> {
    (0..values.len().pow(len)).map(move |number| {
        (0..len).map(|k| values[number / values.len().pow(k) % values.len()]).collect()
    })
}

#[test]
fn neither_order_nor_tree_changes_an_extreme() {
    for dtype in FLOATS {
        let values = special_values(dtype);
        for op in [RedOp::Max, RedOp::Min] {
            for len in 2..=4 {
                for inputs in sequences(&values, len) {
                    let expected = expected(dtype, op, &inputs);
                    for found in all_trees(dtype, op, &inputs) {
                        assert_eq!(found, expected, "{dtype} {op} of {inputs:#x?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_kernel_finds_the_extremes() {
    let mut numbers = RandomNumbers(11);
    for dtype in FLOATS {
        let (values, size) = (special_values(dtype), dtype.size());
        for fan_in in 2..=8 {
            let folds: Vec<Vec<u64>> = if fan_in <= 3 {
                sequences(&values, fan_in).collect()
            } else {
                let mut pick = || values[numbers.below(values.len())];
                (0..2000).map(|_| (0..fan_in).map(|_| pick()).collect()).collect()
            };
            let inputs: Vec<Vec<u8>> = (0..fan_in as usize)
                .map(|k| folds.iter().flat_map(|f| f[k].to_le_bytes()[..size].to_vec()).collect())
                .collect();
            let from: Vec<*const u8> = inputs.iter().map(|input| input.as_ptr()).collect();
            for op in [RedOp::Max, RedOp::Min] {
                for isa in Isa::available() {
                    let mut result = vec![0; folds.len() * size];
                    let operands = FoldOperands {
                        inputs: &from,
                        own: 0,
                        outputs: &[result.as_mut_ptr()],
                        non_temporal: 0,
                        count: folds.len(),
                        finish: true,
                    };
                    // SAFETY: all operands are separate vectors of `count` elements.
                    unsafe { FoldKernel::select(dtype, op.into(), fan_in, isa).run(&operands) };
                    for (i, inputs) in folds.iter().enumerate() {
                        let found = get(dtype, &result, i);
                        let expected = expected(dtype, op, inputs);
                        assert_eq!(found, expected, "{dtype} {op} by {isa:?} of {inputs:#x?}");
                    }
                }
            }
        }
    }
}

/// NCCL's `fminf` and `fmaxf` give the same for one NaN among numbers.
#[test]
fn a_nan_loses_against_numbers() {
    let ranks = [1.0, f32::NAN, 3.0, 4.0].map(|x: f32| u64::from(x.to_bits()));
    let of = |op| all_trees(DType::Float32, op, &ranks);
    assert!(of(RedOp::Min).iter().all(|bits| *bits == u64::from(1.0_f32.to_bits())));
    assert!(of(RedOp::Max).iter().all(|bits| *bits == u64::from(4.0_f32.to_bits())));
}
