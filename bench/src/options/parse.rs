//! Values of the options of a benchmark, read from text.

use std::str::FromStr;

use maypole_algorithms::types::UnknownName;
use maypole_algorithms::{DType, RedOp};

use super::{DataTypes, Reductions, RootChoice, ShownTime};
use crate::operation::Operation;

/// A number of bytes with an optional fraction and an optional K, M or G.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let unit = match text.as_bytes().last() {
        Some(b'K' | b'k') => 1 << 10,
        Some(b'M' | b'm') => 1 << 20,
        Some(b'G' | b'g') => 1 << 30,
        _ => 1,
    };
    let number = if unit == 1 { text } else { &text[..text.len() - 1] };
    match number.parse::<f64>() {
        Ok(value) if value >= 0.0 && value * (unit as f64) < 2f64.powi(60) => {
            Ok((value * unit as f64) as usize)
        }
        _ => Err(format!("'{text}' is not a size: write a number, then K, M, G or nothing")),
    }
}

/// A collective by its name, or by the name of nccl-tests' program, such as `all_reduce_perf`.
pub(crate) fn operation(name: &str) -> Result<Operation, String> {
    Operation::named(name.trim_end_matches("_perf")).ok_or_else(|| {
        let known = Operation::ALL.map(Operation::name).join(", ");
        format!("'{name}' is not a collective that can be measured; known are: {known}")
    })
}

pub(super) fn zero_or_one(text: &str) -> Result<bool, String> {
    choice(text, &[false, true])
}

pub(super) fn blocking_mode(text: &str) -> Result<u32, String> {
    choice(text, &[0, 1, 2, 3])
}

pub(super) fn shown_time(text: &str) -> Result<ShownTime, String> {
    choice(text, &[ShownTime::First, ShownTime::Mean, ShownTime::Min, ShownTime::Max])
}

pub(super) fn all_or_data_type(text: &str) -> Result<DataTypes, String> {
    all_or_one(text, DType::ALL)
}

pub(super) fn all_or_reduction(text: &str) -> Result<Reductions, String> {
    all_or_one(text, RedOp::ALL)
}

pub(super) fn root(text: &str) -> Result<RootChoice, String> {
    if text == "all" {
        return Ok(None);
    }
    let number = text.parse().map(Some);
    number.map_err(|_| format!("'{text}' is neither the number of a rank nor all"))
}

/// The value that a number stands for.
fn choice<T: Copy>(text: &str, all: &[T]) -> Result<T, String> {
    let index: Option<usize> = text.parse().ok();
    index
        .and_then(|index| all.get(index))
        .copied()
        .ok_or_else(|| format!("{text} is not supported; the values are 0 to {}", all.len() - 1))
}

fn all_or_one<T: FromStr<Err = UnknownName>>(
    text: &str,
    all: impl IntoIterator<Item = T>,
) -> Result<Vec<T>, String> {
    if text == "all" {
        return Ok(all.into_iter().collect());
    }
    text.parse().map(|one| vec![one]).map_err(|error: UnknownName| error.to_string())
}
