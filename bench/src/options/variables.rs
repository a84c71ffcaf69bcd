//! The environment variables of nccl-tests, and one of our own.

use std::path::PathBuf;

use crate::status::Failure;

/// The values of the environment variables.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TestVariables {
    /// NCCL_TESTS_SPLIT or NCCL_TESTS_SPLIT_MASK.
    pub(crate) split: Option<ProcessSplit>,
    /// NCCL_TESTS_MIN_BW in GB/s.
    pub(crate) min_bandwidth: Option<f64>,
    /// NCCL_TESTS_DEVICE.
    pub(crate) device: Option<u32>,
    /// NCCL_TESTS_ALLTOALLV_SPREAD.
    pub(crate) spread: f64,
    /// NCCL_TESTS_ALLTOALLV_MATRIX_FILE.
    pub(crate) matrix_file: Option<PathBuf>,
    /// NCCL_TESTS_ALLTOALLV_MATRIX_SCALE.
    pub(crate) matrix_scale: f64,
    /// NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY.
    pub(crate) summary: bool,
    /// MAYPOLE_BENCH_CORRUPT.
    pub(crate) corrupt: bool,
}

/// How processes are divided into groups: by the result of this operation on their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessSplit {
    /// The number and a mask.
    And(u32),
    /// The number or a mask.
    Or(u32),
    /// The remainder.
    Mod(u32),
    /// The quotient.
    Div(u32),
}

impl ProcessSplit {
    /// The group of a process.
    pub(crate) fn color(self, process: u32) -> u32 {
        match self {
            Self::And(mask) => process & mask,
            Self::Or(mask) => process | mask,
            Self::Mod(by) => process % by,
            Self::Div(by) => process / by,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let words = ["AND", "&", "OR", "|", "MOD", "%", "DIV", "/"];
        let word = words.into_iter().find(|word| upper.starts_with(word))?;
        let number = integer(&upper[word.len()..])?;
        let split = match word {
            "AND" | "&" => Self::And(number),
            "OR" | "|" => Self::Or(number),
            "MOD" | "%" => Self::Mod(number),
            _ => Self::Div(number),
        };
        (!matches!(split, Self::Mod(0) | Self::Div(0))).then_some(split)
    }
}

impl Default for TestVariables {
    fn default() -> Self {
        Self {
            split: None,
            min_bandwidth: None,
            device: None,
            spread: 1.0,
            matrix_file: None,
            matrix_scale: 1.0,
            summary: false,
            corrupt: false,
        }
    }
}

impl TestVariables {
    /// Reads the variables by `lookup`. An empty value counts as not set.
    ///
    /// # Errors
    /// Names the first variable whose value is not understood.
    pub(crate) fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut variables = Self::default();
        let bad = |name: &str, value: &str, what: &str| {
            Failure::usage(format!("{name}={value} is not {what}"))
        };
        if let Some(value) = lookup("NCCL_TESTS_SPLIT_MASK") {
            let digits = value.trim_start_matches("0x").trim_start_matches("0X");
            let Ok(mask) = u32::from_str_radix(digits, 16) else {
                return Err(bad("NCCL_TESTS_SPLIT_MASK", &value, "a hexadecimal number"));
            };
            variables.split = Some(ProcessSplit::And(mask));
        } else if let Some(value) = lookup("NCCL_TESTS_SPLIT") {
            variables.split = ProcessSplit::parse(&value);
            if variables.split.is_none() {
                let known = "AND, OR, MOD or DIV with a number, as in 'MOD 2'";
                return Err(bad("NCCL_TESTS_SPLIT", &value, known));
            }
        }
        if let Some(value) = lookup("NCCL_TESTS_DEVICE") {
            let Ok(device) = value.parse() else {
                return Err(bad("NCCL_TESTS_DEVICE", &value, "the number of a device"));
            };
            variables.device = Some(device);
        }
        let number = |name: &str, range: std::ops::RangeInclusive<f64>| match lookup(name) {
            None => Ok(None),
            Some(value) => match value.parse() {
                Ok(number) if range.contains(&number) => Ok(Some(number)),
                _ => {
                    let range = format!("a number from {} to {}", range.start(), range.end());
                    Err(bad(name, &value, &range))
                }
            },
        };
        variables.min_bandwidth = number("NCCL_TESTS_MIN_BW", 0.0..=1e9)?;
        variables.spread = number("NCCL_TESTS_ALLTOALLV_SPREAD", 0.0..=1.0)?.unwrap_or(1.0);
        variables.matrix_scale =
            number("NCCL_TESTS_ALLTOALLV_MATRIX_SCALE", 0.0..=1e9)?.unwrap_or(1.0);
        variables.matrix_file = lookup("NCCL_TESTS_ALLTOALLV_MATRIX_FILE").map(PathBuf::from);
        let truth = |name| lookup(name).is_some_and(|value| value != "0");
        variables.summary = truth("NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY");
        variables.corrupt = truth("MAYPOLE_BENCH_CORRUPT");
        Ok(variables)
    }
}

/// A number in C's notation: after 0x hexadecimal, after 0b binary, after 0 octal.
fn integer(text: &str) -> Option<u32> {
    let text = text.trim().to_ascii_lowercase();
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x', ..] => (&text[2..], 16),
        [b'0', b'b', ..] => (&text[2..], 2),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (&text[..], 10),
    };
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<TestVariables, String> {
        TestVariables::read(&|wanted| (wanted == name).then(|| value.to_owned()))
            .map_err(|f| f.text)
    }

    #[test]
    fn splits_are_those_of_nccl_tests() {
        for (text, colors) in [
            ("AND 0x1", [0, 1, 0, 1]),
            ("and0b10", [0, 0, 2, 2]),
            ("&1", [0, 1, 0, 1]),
            ("OR 2", [2, 3, 2, 3]),
            ("| 1", [1, 1, 3, 3]),
            ("MOD 3", [0, 1, 2, 0]),
            ("%2", [0, 1, 0, 1]),
            ("DIV 02", [0, 0, 1, 1]),
            ("/ 3", [0, 0, 0, 1]),
        ] {
            let split = read("NCCL_TESTS_SPLIT", text).unwrap().split.unwrap();
            assert_eq!([0, 1, 2, 3].map(|process| split.color(process)), colors, "{text}");
        }
        for mask in ["0x7", "7"] {
            let split = read("NCCL_TESTS_SPLIT_MASK", mask).unwrap().split;
            assert_eq!(split, Some(ProcessSplit::And(7)));
        }
    }

    #[test]
    fn the_mask_takes_precedence() {
        let both = TestVariables::read(&|name| match name {
            "NCCL_TESTS_SPLIT" => Some("MOD 2".to_owned()),
            "NCCL_TESTS_SPLIT_MASK" => Some("1F".to_owned()),
            _ => None,
        });
        assert_eq!(both.unwrap().split, Some(ProcessSplit::And(31)));
    }

    #[test]
    fn values_that_are_not_understood_are_named() {
        for (name, value) in [
            ("NCCL_TESTS_SPLIT", "MOD"),
            ("NCCL_TESTS_SPLIT", "MOD 0"),
            ("NCCL_TESTS_SPLIT", "XOR 1"),
            ("NCCL_TESTS_SPLIT_MASK", "0xg"),
            ("NCCL_TESTS_MIN_BW", "fast"),
            ("NCCL_TESTS_DEVICE", "-1"),
            ("NCCL_TESTS_ALLTOALLV_SPREAD", "1.5"),
            ("NCCL_TESTS_ALLTOALLV_MATRIX_SCALE", "NaN"),
        ] {
            let error = read(name, value).expect_err(value);
            assert!(error.starts_with(&format!("{name}={value} is not ")), "{error}");
        }
        assert_eq!(read("NCCL_TESTS_SPLIT", ""), Ok(TestVariables::default()));
        assert_eq!(read("NCCL_TESTS_MIN_BW", "12.5").unwrap().min_bandwidth, Some(12.5));
    }
}
