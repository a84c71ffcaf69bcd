//! Numbers in the kernel's text files.

/// The number of cores in `cpu.max`: `200000 100000` is 2, `max 100000` is no limit.
pub(super) fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then(|| quota / period)
}

/// A limit or a counter of a control group; None for `max`, which is no limit.
pub(super) fn limit(text: &Option<String>) -> Option<u64> {
    text.as_deref()?.trim().parse().ok()
}

/// A value of `/proc/meminfo`: in bytes if it has a unit, otherwise unchanged.
pub(super) fn meminfo(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        let mut words = rest.split_ascii_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        Some(if words.next() == Some("kB") { number << 10 } else { number })
    })
}

/// How many numbers are in a list such as `0-3,8`.
pub(super) fn list_length(text: &str) -> usize {
    let one = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first).map(|more| more + 1)
    };
    text.trim().split(',').filter_map(one).sum()
}

/// The chosen word of a list such as `always [madvise] never`.
pub(super) fn chosen_word(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// A number of bytes with a suitable unit.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        _ if bytes == u64::MAX => "unlimited".to_owned(),
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_parsed() {
        assert_eq!(cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!((cpu_max("max 100000"), cpu_max("1 0"), cpu_max("")), (None, None, None));
        assert_eq!(limit(&Some("4096\n".into())), Some(4096));
        assert_eq!((limit(&Some("max\n".into())), limit(&None)), (None, None));
        let text = "MemTotal:       16 kB\nHugePages_Total:       3\n";
        assert_eq!(
            (meminfo(text, "MemTotal"), meminfo(text, "HugePages_Total")),
            (Some(16384), Some(3))
        );
        assert_eq!((meminfo(text, "Mem"), meminfo(text, "X")), (None, None));
        assert_eq!(
            (list_length("0-3,8\n"), list_length("0"), list_length(""), list_length("3-1")),
            (5, 1, 0, 0)
        );
        assert_eq!(
            (chosen_word("always [madvise] never"), chosen_word("x")),
            (Some("madvise"), None)
        );
        assert_eq!(
            (bytes(512), bytes(3 << 29), bytes(u64::MAX)),
            ("512 B".into(), "1.5 GiB".into(), "unlimited".into())
        );
    }
}
