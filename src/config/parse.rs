//! Parsers of the values in the environment. Each returns None for text that is not valid.

use std::time::Duration;

use super::number::{integer, integer_in};
use super::values::{
    AddressFamily, BitsSetting, DebugLevel, DeviceKind, IsaSetting, ProtocolSetting,
};

/// The value whose name is `text`, in any case.
fn one_of<T: Copy>(text: &str, values: &[(&str, T)]) -> Option<T> {
    values.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|&(_, value)| value)
}

pub(super) fn parse_bool(text: &str) -> Option<bool> {
    integer(text).map(|value| value != 0)
}

pub(super) fn parse_seconds(text: &str) -> Option<Duration> {
    // At most a hundred years, so that adding it to a clock never overflows.
    integer_in(text, 1, 3_153_600_000).map(|seconds| Duration::from_secs(seconds as u64))
}

pub(super) fn parse_signal(text: &str) -> Option<Option<i32>> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let names = [
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("HUP", libc::SIGHUP),
        ("WINCH", libc::SIGWINCH),
        ("URG", libc::SIGURG),
    ];
    one_of(name, &names).or_else(|| integer_in(text, 1, 64).map(|n| n as i32)).map(Some)
}

pub(super) fn parse_slot_bytes(text: &str) -> Option<Option<usize>> {
    integer_in(text, 64, 1 << 30).filter(|bytes| bytes % 64 == 0).map(|bytes| Some(bytes as usize))
}

pub(super) fn parse_debug(text: &str) -> Option<DebugLevel> {
    one_of(
        text,
        &[
            ("VERSION", DebugLevel::Version),
            ("WARN", DebugLevel::Warn),
            ("INFO", DebugLevel::Info),
            ("TRACE", DebugLevel::Trace),
        ],
    )
}

pub(super) fn parse_family(text: &str) -> Option<Option<AddressFamily>> {
    one_of(text, &[("AF_INET", Some(AddressFamily::V4)), ("AF_INET6", Some(AddressFamily::V6))])
}

pub(super) fn parse_bits(text: &str) -> Option<BitsSetting> {
    one_of(
        text,
        &[
            ("canonical", BitsSetting::Canonical),
            ("fast", BitsSetting::Fast),
            ("default", BitsSetting::Default),
        ],
    )
}

pub(super) fn parse_device(text: &str) -> Option<DeviceKind> {
    let kinds =
        [("auto", DeviceKind::Auto), ("host", DeviceKind::Host), ("cuda", DeviceKind::Cuda)];
    one_of(text, &kinds)
}

pub(super) fn parse_isa(text: &str) -> Option<IsaSetting> {
    one_of(
        text,
        &[
            ("auto", IsaSetting::Auto),
            ("scalar", IsaSetting::Scalar),
            ("avx2", IsaSetting::Avx2),
            ("avx512", IsaSetting::Avx512),
        ],
    )
}

pub(super) fn parse_protocol(text: &str) -> Option<ProtocolSetting> {
    one_of(
        text,
        &[
            ("auto", ProtocolSetting::Auto),
            ("line", ProtocolSetting::Line),
            ("slots", ProtocolSetting::Slots),
        ],
    )
}

/// Also None if the list excludes every protocol.
pub(super) fn parse_nccl_protocol(text: &str) -> Option<ProtocolSetting> {
    let (negated, list) = match text.strip_prefix('^') {
        Some(list) => (true, list),
        None => (false, text),
    };
    let (mut line, mut slots) = (negated, negated);
    for name in list.split(',') {
        match name.trim().to_ascii_lowercase().as_str() {
            // Excluding LL128 leaves LL.
            "ll" | "ll128" if !negated => line = true,
            "ll" => line = false,
            "ll128" => {}
            "simple" => slots = !negated,
            _ => return None,
        }
    }
    match (line, slots) {
        (true, true) => Some(ProtocolSetting::Auto),
        (true, false) => Some(ProtocolSetting::Line),
        (false, true) => Some(ProtocolSetting::Slots),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_protocol_lists_are_parsed() {
        let cases = [
            ("LL", Some(ProtocolSetting::Line)),
            ("ll128,LL", Some(ProtocolSetting::Line)),
            ("Simple", Some(ProtocolSetting::Slots)),
            ("LL,Simple", Some(ProtocolSetting::Auto)),
            ("^LL", Some(ProtocolSetting::Slots)),
            ("^LL128", Some(ProtocolSetting::Auto)),
            ("^Simple", Some(ProtocolSetting::Line)),
            ("^LL,Simple", None),
            ("fast", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_nccl_protocol(text), expected, "{text}");
        }
    }
}
