//! The test data: what each rank contributes, and the exact result.
//!
//! Values are functions of (seed, rank, index) and repeat with [`PERIOD`]. They are chosen so that
//! the result does not depend on the order of the reduction. Integers wrap around, so all bits are
//! allowed. Floats are small whole numbers (for products powers of two) whose partial results, over
//! any subset of the ranks, are exact in their type. If a type has too few bits for every rank to
//! contribute to every element, the ranks contribute in turns.

use maypole_algorithms::{DType, RedOp};

use crate::number::{self, Number};

/// The number of elements after which the data repeats. It is a prime, so that no whole number of
/// chunks or tiles has this length, and data in the wrong place is detected.
pub(crate) const PERIOD: usize = 16381;

/// One set of test data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestData {
    /// The element type.
    pub(crate) dtype: DType,
    /// The reduction of the elements; None if they are only moved.
    pub(crate) op: Option<RedOp>,
    /// The number of ranks that contribute.
    pub(crate) nranks: u32,
    /// The number of this set; sets with different seeds differ.
    pub(crate) seed: u64,
}

impl TestData {
    /// The first `len` elements of `rank`'s contribution, but at most one period, as bytes.
    pub(crate) fn contribution(&self, rank: u32, len: usize) -> Vec<u8> {
        self.bytes(len, |index| self.element(rank, index))
    }

    /// The first `len` elements of the reduction of all contributions, but at most one period, as
    /// bytes.
    pub(crate) fn reduced(&self, len: usize) -> Vec<u8> {
        self.bytes(len, |index| self.reduce(index))
    }

    /// The factor of `rank` for [`RedOp::PreMulSum`], as an element in the low bytes of the word.
    pub(crate) fn scalar(&self, rank: u32) -> u64 {
        let factor = Self::factor(rank);
        let number =
            if self.dtype.is_float() { Number::Float(factor as f64) } else { Number::Int(factor) };
        let mut bytes = Vec::new();
        number::write(self.dtype, number, &mut bytes);
        bytes.resize(8, 0);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    fn bytes(&self, len: usize, element: impl Fn(u64) -> Number) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len.min(PERIOD) * self.dtype.size());
        (0..len.min(PERIOD)).for_each(|i| number::write(self.dtype, element(i as u64), &mut bytes));
        bytes
    }

    const fn factor(rank: u32) -> u64 {
        1 + (rank % 2) as u64
    }

    fn element(&self, rank: u32, index: u64) -> Number {
        let noise = mix(self.seed ^ mix((u64::from(rank) << 32) + index));
        match self.op {
            // Data that is only moved may be any bits, in float types too.
            None => Number::Int(noise),
            Some(_) if self.dtype.is_float() => Number::Float(self.float(rank, index, noise)),
            // Odd factors, since products of many even factors are all 0.
            Some(RedOp::Prod) => Number::Int(noise | 1),
            Some(_) => Number::Int(noise),
        }
    }

    fn float(&self, rank: u32, index: u64, noise: u64) -> f64 {
        let n = u64::from(self.nranks);
        let sign = if noise >> 63 == 0 { 1.0 } else { -1.0 };
        // Whether this rank contributes to this element, if only one of every `of` ranks does.
        let turn = |of: u64| (u64::from(rank) + mix(self.seed ^ index)).is_multiple_of(of);
        match self.op {
            Some(RedOp::Prod) => {
                // At most 4 ranks scale by 2 or 1/2, so every partial product is between 2^-4 and
                // 2^4.
                let scale = [1.0, 2.0, 0.5, 1.0][noise as usize % 4];
                if turn(n.div_ceil(4)) { sign * scale } else { sign }
            }
            Some(RedOp::Avg) if !self.exact_reciprocal() => {
                // 1/n is rounded, and a sum of three such values may be rounded again, depending on
                // the order. So only two ranks contribute, with the same magnitude.
                let active = mix(self.seed ^ index) % n;
                let partner = (active + 1) % n;
                let magnitude = [1.0, 2.0, 4.0][mix(index) as usize % 3];
                let takes_part = [active, partner].contains(&u64::from(rank));
                if takes_part { sign * magnitude } else { 0.0 }
            }
            _ => {
                // The sums of all ranks' values are whole numbers of at most `precision` bits.
                let budget = 1 << number::precision(self.dtype);
                let share = budget / (n * Self::factor(1));
                if share > 0 {
                    (noise % (2 * share + 1)) as f64 - share as f64
                } else if turn((n * Self::factor(1)).div_ceil(budget)) {
                    sign
                } else {
                    0.0
                }
            }
        }
    }

    /// Whether 1/nranks, and small multiples of it, are exact in the float type.
    fn exact_reciprocal(&self) -> bool {
        self.nranks.is_power_of_two()
            && 1.0 / f64::from(self.nranks) >= number::smallest_normal(self.dtype)
    }

    fn reduce(&self, index: u64) -> Number {
        let op = self.op.expect("data that is only moved is not reduced");
        let all = (0..self.nranks).map(|rank| (rank, self.element(rank, index)));
        if self.dtype.is_float() {
            let all = all.map(|(rank, number)| match number {
                Number::Float(value) => (rank, value),
                Number::Int(_) => unreachable!("floats are made as floats"),
            });
            return Number::Float(self.reduce_floats(op, all));
        }
        let all = all.map(|(rank, number)| match number {
            Number::Int(value) => (rank, value),
            Number::Float(_) => unreachable!("integers are made as integers"),
        });
        Number::Int(self.reduce_ints(op, all))
    }

    fn reduce_floats(&self, op: RedOp, all: impl Iterator<Item = (u32, f64)>) -> f64 {
        let values = all.map(|(_, value)| value);
        match op {
            RedOp::Sum => values.sum(),
            RedOp::Prod => values.product(),
            RedOp::Max => values.fold(f64::NEG_INFINITY, f64::max),
            RedOp::Min => values.fold(f64::INFINITY, f64::min),
            RedOp::Avg => {
                let reciprocal = number::round(self.dtype, 1.0 / f64::from(self.nranks));
                values.map(|value| value * reciprocal).sum()
            }
            RedOp::PreMulSum => (0..).zip(values).map(|(r, v)| v * Self::factor(r) as f64).sum(),
        }
    }

    fn reduce_ints(&self, op: RedOp, all: impl Iterator<Item = (u32, u64)>) -> u64 {
        let extended = |value| number::extend(self.dtype, value);
        let wrapped = |value: i128| value as u64;
        let values = all.map(|(rank, value)| match op {
            RedOp::PreMulSum => value.wrapping_mul(Self::factor(rank)),
            _ => value,
        });
        match op {
            RedOp::Sum | RedOp::PreMulSum => values.fold(0, u64::wrapping_add),
            RedOp::Prod => values.fold(1, u64::wrapping_mul),
            RedOp::Max => wrapped(values.map(extended).max().expect("there is a rank")),
            RedOp::Min => wrapped(values.map(extended).min().expect("there is a rank")),
            RedOp::Avg => {
                let sum = extended(values.fold(0, u64::wrapping_add));
                wrapped(sum / i128::from(self.nranks))
            }
        }
    }
}

/// A well-mixed word (the finalizer of splitmix64).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(dtype: DType, op: RedOp, nranks: u32) -> TestData {
        TestData { dtype, op: Some(op), nranks, seed: 7 }
    }

    /// Reduces floats in some order, rounding to the type at every step as a library does.
    fn rounded(data: &TestData, index: u64, order: &[u32]) -> f64 {
        let value = |&rank: &u32| {
            let Number::Float(value) = data.element(rank, index) else { panic!("an integer") };
            assert_eq!(
                number::round(data.dtype, value),
                value,
                "an input is not a value of its type"
            );
            let factor = match data.op {
                Some(RedOp::Avg) => number::round(data.dtype, 1.0 / f64::from(data.nranks)),
                Some(RedOp::PreMulSum) => TestData::factor(rank) as f64,
                _ => 1.0,
            };
            number::round(data.dtype, value * factor)
        };
        let combine = |a: f64, b: f64| match data.op {
            Some(RedOp::Prod) => a * b,
            Some(RedOp::Max) => a.max(b),
            Some(RedOp::Min) => a.min(b),
            _ => a + b,
        };
        let fold = |part: &[u32]| {
            part.iter().map(value).reduce(|a, b| number::round(data.dtype, combine(a, b)))
        };
        let (low, high) = order.split_at(order.len() / 2);
        [fold(low), fold(high)]
            .into_iter()
            .flatten()
            .reduce(|a, b| number::round(data.dtype, combine(a, b)))
            .expect("there is a rank")
    }

    #[test]
    fn float_results_do_not_depend_on_the_order() {
        for dtype in DType::ALL.into_iter().filter(|d| d.is_float()) {
            for op in RedOp::ALL {
                for n in [1, 2, 3, 4, 5, 7, 8, 16, 33, 64, 100] {
                    let data = data(dtype, op, n);
                    let up: Vec<u32> = (0..n).collect();
                    let down: Vec<u32> = (0..n).rev().collect();
                    let mut shuffled = up.clone();
                    shuffled.sort_by_key(|&rank| mix(u64::from(rank)));
                    for index in 0..50 {
                        let Number::Float(expected) = data.reduce(index) else { panic!() };
                        for order in [&up, &down, &shuffled] {
                            let got = rounded(&data, index, order);
                            assert_eq!(
                                got.to_bits(),
                                expected.to_bits(),
                                "{dtype} {op} of {n}: {got} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_rank_contributes() {
        for dtype in DType::ALL {
            for op in [RedOp::Sum, RedOp::Prod, RedOp::Avg, RedOp::PreMulSum] {
                let data = data(dtype, op, 13);
                for rank in 0..13 {
                    let neutral = match (dtype.is_float(), op) {
                        (true, RedOp::Prod) => Number::Float(1.0),
                        (true, _) => Number::Float(0.0),
                        (false, RedOp::Prod) => Number::Int(1),
                        (false, _) => Number::Int(0),
                    };
                    assert!(
                        (0..1000).any(|index| data.element(rank, index) != neutral),
                        "{dtype} {op}: rank {rank} contributes nothing"
                    );
                }
            }
        }
    }

    #[test]
    fn integers_wrap_and_averages_truncate() {
        let data = data(DType::Int8, RedOp::Avg, 2);
        let reduce = |op, values: [i64; 2]| {
            let values = values.map(i64::cast_unsigned);
            number::extend(DType::Int8, data.reduce_ints(op, (0..).zip(values)))
        };
        assert_eq!(reduce(RedOp::Sum, [100, 100]), -56);
        assert_eq!(reduce(RedOp::Avg, [100, 100]), -28);
        assert_eq!(reduce(RedOp::Avg, [-3, 0]), -1);
        assert_eq!(reduce(RedOp::Max, [-3, 2]), 2);
        assert_eq!(reduce(RedOp::Min, [-3, 2]), -3);
        assert_eq!(reduce(RedOp::Prod, [-3, 2]), -6);
        assert_eq!(reduce(RedOp::PreMulSum, [1, 5]), 11);
    }

    #[test]
    fn scalars_are_one_or_two_by_parity() {
        assert_eq!(data(DType::Float32, RedOp::PreMulSum, 2).scalar(0), u64::from(1f32.to_bits()));
        assert_eq!(data(DType::Float32, RedOp::PreMulSum, 2).scalar(3), u64::from(2f32.to_bits()));
        assert_eq!(data(DType::Int64, RedOp::PreMulSum, 2).scalar(1), 2);
        assert_eq!(data(DType::Float8E4M3, RedOp::PreMulSum, 2).scalar(1), 0x40);
    }

    #[test]
    fn ranks_seeds_and_indices_give_different_data() {
        let data = data(DType::Float32, RedOp::Sum, 4);
        let other = TestData { seed: 8, ..data };
        assert_ne!(data.contribution(0, 64), data.contribution(1, 64));
        assert_ne!(data.contribution(0, 64), other.contribution(0, 64));
        let all = data.contribution(0, 64);
        assert_ne!(all[..32], all[32..64]);
    }
}
