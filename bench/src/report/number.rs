//! Formats numbers as nccl-tests does, with C's rules.

/// A number in `width` columns, with two decimals, or as many as fit.
pub(crate) fn fixed(value: f64, width: usize) -> String {
    if !value.is_finite() {
        // Rust writes these as C does.
        return format!("{value:width$}").to_lowercase();
    }
    // The number of digits before the decimal point.
    let mut digits = 0;
    let mut power = 1.0;
    while value >= power {
        digits += 1;
        power *= 10.0;
    }
    match digits {
        d if d < width - 2 => format!("{value:width$.2}"),
        d if d < width - 1 => format!("{value:width$.1}"),
        d if d < width + 1 => format!("{value:width$.0}"),
        _ => scientific(value, usize::from(width >= 7), width),
    }
}

/// A number as C's %e prints it.
fn scientific(value: f64, decimals: usize, width: usize) -> String {
    let text = format!("{value:.decimals$e}");
    let (mantissa, exponent) = text.split_once('e').expect("Rust writes an exponent");
    let exponent: i32 = exponent.parse().expect("Rust writes an integer");
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{:>width$}", format!("{mantissa}e{sign}{:02}", exponent.abs()))
}

/// A number as C's %g prints it: six significant digits, no trailing zeros.
pub(crate) fn general(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    // The exponent, after rounding to six digits.
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("Rust writes an exponent");
    let exponent: i32 = exponent.parse().expect("Rust writes an integer");
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..6).contains(&exponent) {
        trim(&format!("{value:.*}", (5 - exponent) as usize))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    }
}

/// A number of bytes in three digits, with a suitable unit.
pub(crate) fn bytes(value: f64) -> String {
    let (mut value, mut unit) = (value, "B");
    for next in ["KB", "MB", "GB"] {
        if value.abs() >= 1024.0 {
            (value, unit) = (value / 1024.0, next);
        }
    }
    let decimals = match value.abs() {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_width() {
        assert_eq!(fixed(0.0, 7), "   0.00");
        assert_eq!(fixed(0.999, 7), "   1.00");
        assert_eq!(fixed(9.0, 6), "  9.00");
        assert_eq!(
            (fixed(f64::INFINITY, 7), fixed(f64::NAN, 6)),
            ("    inf".into(), "   nan".into())
        );
        assert_eq!(fixed(999.0, 6), "999.00");
        assert_eq!(fixed(1000.0, 6), "1000.0");
        assert_eq!(fixed(123_456.0, 6), "123456");
        assert_eq!(fixed(1_234_567.0, 7), "1234567");
        assert_eq!(fixed(12_345_678.0, 7), "1.2e+07");
        assert_eq!(fixed(1_234_567.0, 6), " 1e+06");
    }

    #[test]
    fn general_numbers_have_the_form_of_c() {
        let cases = [
            (3.0, "3"),
            (1e6, "1e+06"),
            (123_456.0, "123456"),
            (0.5, "0.5"),
            (12.345_678, "12.3457"),
        ];
        for (value, text) in cases {
            assert_eq!(general(value), text);
        }
        assert_eq!(general(999_999.6), "1e+06");
        assert_eq!(general(0.000_012_3), "1.23e-05");
    }

    #[test]
    fn bytes_have_three_digits() {
        assert_eq!(bytes(12.0), "12.0 B");
        assert_eq!(bytes(1536.0), "1.50 KB");
        assert_eq!(bytes(64.0 * 1024.0 * 1024.0), "64.0 MB");
        assert_eq!(bytes(5e12), "4657 GB");
    }
}
