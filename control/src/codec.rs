//! Encodes and decodes integers and texts in messages of the bootstrap and the control plane.
//!
//! The decoder returns None for input that does not fit, and allocates nothing by a length that was
//! read.

use std::time::Duration;

/// Most bytes of a text.
const MOST_TEXT_BYTES: usize = 512;

/// Reads values from bytes, and never reads past their end.
pub struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    /// Reads from the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next 16 bits, little-endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next 32 bits, little-endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next 64 bits, little-endian.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Whether all bytes were read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A text as [`put_text`] writes it. Control characters become `?`: the text will be printed,
    /// and they could forge lines or move the cursor of a terminal.
    pub fn text(&mut self) -> Option<String> {
        let len = usize::from(self.u16()?);
        if len > MOST_TEXT_BYTES {
            return None;
        }
        let text = String::from_utf8_lossy(self.bytes(len)?);
        Some(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    }

    /// A duration as [`put_duration`] writes it, of at most 100 years, so that adding it to a clock
    /// cannot overflow.
    pub fn duration(&mut self) -> Option<Duration> {
        self.u64().filter(|&ms| ms <= 3_153_600_000_000).map(Duration::from_millis)
    }
}

/// Appends the length of a text in 16 bits, and the text, cut to 512 bytes.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    // The cut may fall within a character; the reader replaces what is left of it.
    let bytes = &text.as_bytes()[..text.len().min(MOST_TEXT_BYTES)];
    out.extend((bytes.len() as u16).to_le_bytes());
    out.extend(bytes);
}

/// Appends a duration in milliseconds.
pub fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    out.extend((duration.as_millis() as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_forge_lines() {
        let mut bytes = Vec::new();
        put_text(&mut bytes, "a\nb\x1b[2J");
        assert_eq!(ByteReader::new(&bytes).text().as_deref(), Some("a?b?[2J"));
    }
}
