//! Parsers of the values in the environment. Each returns None for text that is not valid.

use std::net::IpAddr;
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

/// The value of a setting whose negative values mean its default.
fn unless_negative(text: &str, high: i64) -> Option<Option<i64>> {
    let value = integer(text).filter(|value| *value <= high)?;
    Some((value >= 0).then_some(value))
}

pub(super) fn parse_gid_index(text: &str) -> Option<Option<u32>> {
    unless_negative(text, 255).map(|index| index.map(|index| index as u32))
}

pub(super) fn parse_small(text: &str, high: u8) -> Option<u8> {
    unless_negative(text, high.into()).map(|value| value.unwrap_or(0) as u8)
}

/// Settings that are 0, 1, or decided by the library.
pub(super) fn parse_decided(text: &str) -> Option<Option<bool>> {
    let value = integer(text).filter(|value| *value <= 2)?;
    Some((0..2).contains(&value).then_some(value == 1))
}

/// An address and the number of its bits that count, as `10.0.0.0/8`.
pub(super) fn parse_address_range(text: &str) -> Option<Option<(IpAddr, u8)>> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.trim().parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    integer_in(bits.trim(), 0, most).map(|bits| Some((address, bits as u8)))
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
