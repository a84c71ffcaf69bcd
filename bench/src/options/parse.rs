//! Values of the options of a benchmark, read from text.

use std::ffi::CString;
use std::str::FromStr;

use maypole_algorithms::types::UnknownName;
use maypole_algorithms::{DType, RedOp};

use super::{DataTypes, Reductions, RootChoice, ShownTime};
use crate::operation::Operation;

/// A number of bytes, as sscanf of C reads it by "%lf %1s": a number with an optional fraction,
/// then K, M or G, or nothing. What follows the letter is ignored, so `64KiB` is `64 K`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let bad = || format!("'{text}' is not a size: write a number, then K, M, G or nothing");
    let start = CString::new(text).map_err(|_| bad())?;
    let mut end = std::ptr::null_mut();
    // SAFETY: the text ends in a zero, and `end` may be written.
    let number = unsafe { libc::strtod(start.as_ptr(), &raw mut end) };
    // The number ends within the text, or at its end.
    let len = end.addr() - start.as_ptr().addr();
    let unit = match text.as_bytes()[len..].trim_ascii_start().first() {
        None => 1,
        Some(b'K' | b'k') => 1 << 10,
        Some(b'M' | b'm') => 1 << 20,
        Some(b'G' | b'g') => 1 << 30,
        Some(_) => return Err(bad()),
    };
    let bytes = number * f64::from(unit);
    if len == 0 || !(0.0..2f64.powi(60)).contains(&bytes) {
        return Err(bad());
    }
    Ok(bytes as usize)
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
    if ["all", "-1"].contains(&text) {
        return Ok(None);
    }
    let number = text.parse().map(Some);
    number.map_err(|_| format!("'{text}' is neither the number of a rank nor all (-1)"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_by_sscanf() {
        for (text, bytes) in [
            ("0", 0),
            ("8", 8),
            ("1.5K", 1536),
            ("1k", 1024),
            ("1MB", 1 << 20),
            ("64KiB", 64 << 10),
            ("64 K", 64 << 10),
            ("2 GB", 2 << 30),
            (" 8", 8),
            ("1e3", 1000),
            ("0x10", 16),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1x", "1 B", "-1", "nan", "inf", "1e30", "x8"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
