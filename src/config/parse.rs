//! Values as they are written in the environment. Each reader gives None for what it does not understand.

use std::time::Duration;

use super::values::{
    AddressFamily, BitsSetting, DebugLevel, DeviceKind, IsaSetting, ProtocolSetting,
};

/// An integer in a setting, as C's `strtoll` with base 0 reads it, but with nothing left over.
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

pub(super) fn integer_in(text: &str, low: i64, high: i64) -> Option<i64> {
    integer(text).filter(|value| (low..=high).contains(value))
}

pub(super) fn one_of<T: Copy>(text: &str, values: &[(&str, T)]) -> Option<T> {
    values.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|&(_, value)| value)
}

pub(super) fn parse_bool(text: &str) -> Option<bool> {
    integer(text).map(|value| value != 0)
}

pub(super) fn parse_seconds(text: &str) -> Option<Duration> {
    // A hundred years: so that adding it to a clock never overflows.
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

/// None if nothing is left, too.
pub(super) fn parse_nccl_protocol(text: &str) -> Option<ProtocolSetting> {
    let (negated, list) = match text.strip_prefix('^') {
        Some(list) => (true, list),
        None => (false, text),
    };
    let (mut line, mut slots) = (negated, negated);
    for name in list.split(',') {
        match name.trim().to_ascii_lowercase().as_str() {
            // Forbidding one kind of lines leaves the other.
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
