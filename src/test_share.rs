//! How much of its cases a test runs: all, or the share that the short test command asks for.

/// The elements of `all` that a test of element number `index` of its outer loop uses: all of them,
/// or one in turn if `MAYPOLE_TEST_SHARE` asks for a smaller share (in percent) than 100.
pub(crate) fn some_of<T: Copy>(all: &[T], index: usize) -> Vec<T> {
    if share() < 100 { vec![all[index % all.len()]] } else { all.to_vec() }
}

/// How many of `cases` random cases a test runs: all of them, or a third if a smaller share is
/// asked for.
pub(crate) fn some_cases(cases: u64) -> u64 {
    if share() < 100 { cases.div_ceil(3) } else { cases }
}

fn share() -> usize {
    let share = std::env::var("MAYPOLE_TEST_SHARE").ok();
    share.map_or(100, |text| text.parse().expect("a percentage"))
}
