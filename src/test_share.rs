//! How much of its cases a test runs: all, or the share that the short test command asks for.

/// The elements of `all` that a test of element number `index` of its outer loop uses: all of them,
/// or one in turn if `MAYPOLE_TEST_SHARE` asks for a smaller share (in percent) than 100.
pub(crate) fn some_of<T: Copy>(all: &[T], index: usize) -> Vec<T> {
    let share = std::env::var("MAYPOLE_TEST_SHARE").ok();
    let share: usize = share.map_or(100, |text| text.parse().expect("a percentage"));
    match share {
        100.. => all.to_vec(),
        _ => vec![all[index % all.len()]],
    }
}
