//! A function of the C library that the pictures need. glibc 2.35 has a new version of it, and a
//! program that is built there and takes that one does not start on older systems. With this one
//! the programs need glibc 2.34.

/// The length of a vector, as C defines it: infinite if a part is infinite, even beside a NaN.
// SAFETY: the name, the arguments and the result are those of the C library, so that callers of
// that function get what they expect.
#[unsafe(no_mangle)]
extern "C" fn hypotf(x: f32, y: f32) -> f32 {
    if x.is_infinite() || y.is_infinite() {
        return f32::INFINITY;
    }
    // The squares of two `f32` and their sum neither overflow nor vanish in an `f64`.
    let (x, y) = (f64::from(x), f64::from(y));
    (x * x + y * y).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::hypotf;

    #[test]
    fn lengths_are_those_of_c() {
        assert_eq!(hypotf(3.0, -4.0), 5.0);
        assert_eq!(hypotf(0.0, 0.0), 0.0);
        assert_eq!(hypotf(f32::NEG_INFINITY, f32::NAN), f32::INFINITY);
        assert!(hypotf(f32::NAN, 1.0).is_nan());
        assert_eq!(hypotf(f32::MIN_POSITIVE, 0.0), f32::MIN_POSITIVE);
        assert_eq!(hypotf(f32::MAX, f32::MAX), f32::INFINITY);
        // `f32::hypot` is compiled to a call of it.
        assert_eq!(5.0_f32.hypot(12.0), 13.0);
    }
}
