//! Integers as they are written in settings.

/// Parses an integer as C's `strtoll` with base 0 does, but accepts nothing after it.
pub fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) =
        if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            (hex, 16)
        } else if digits.len() > 1 && digits.starts_with('0') {
            (&digits[1..], 8)
        } else {
            (digits, 10)
        };
    // `from_str_radix` would accept a second sign.
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    let magnitude = i64::from_str_radix(digits, radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// Parses an integer and checks its range.
pub(super) fn integer_in(text: &str, low: i64, high: i64) -> Option<i64> {
    integer(text).filter(|value| (low..=high).contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_one_sign_and_fit_64_bits() {
        assert_eq!(integer("--1"), None);
        assert_eq!(integer("0x-1"), None);
        assert_eq!(integer("-12"), Some(-12));
        assert_eq!(integer("9223372036854775808"), None);
    }
}
