//! The form of messages for windows: a put or a signal, as a header and the bytes to be written;
//! and the info about a new window that each rank gives to the others.

use super::signal_words::WINDOW_SLOTS;

/// The tag of these messages. Messages of a call carry the hash of the calls so far there.
pub(crate) const WINDOW_TAG: u32 = 0x7769_6e64;

/// Bytes of the header. The bytes after it are aligned to a cache line.
pub(crate) const HEADER_BYTES: usize = 64;

/// The header: what to do with the bytes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowMessage {
    /// The number of the window; 0 for a signal without a put.
    pub(crate) window: u32,
    /// The offset in the window in bytes.
    pub(crate) offset: u64,
    /// Whether a signal is added after the bytes were written.
    pub(crate) signals: bool,
}

impl WindowMessage {
    /// The bytes of it.
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.window.to_le_bytes());
        bytes[4] = self.signals.into();
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Reads a header. None if the bytes are malformed.
    pub(crate) fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let (window, rest) = bytes.split_first_chunk()?;
        let signals = match rest[0] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let offset = u64::from_le_bytes(*rest[4..].first_chunk()?);
        Some(Self { window: u32::from_le_bytes(*window), offset, signals })
    }
}

/// The part of a new window at one rank, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowInfo {
    /// The length of the part in bytes.
    pub(crate) bytes: u64,
    /// The segment of the part, which was offered to peers of the host; 0 if they cannot write to
    /// it directly.
    pub(crate) segment: u64,
    /// The offset in the segment at which the part begins.
    pub(crate) offset: u64,
    /// The segment of the signal words of the rank.
    pub(crate) signal_words: u64,
    /// The slot of the window among these words, if it has one.
    pub(crate) slot: Option<u32>,
}

/// Bytes of a [`WindowInfo`].
const INFO_BYTES: usize = 40;

impl WindowInfo {
    /// The bytes of it.
    pub(crate) fn encode(self) -> [u8; INFO_BYTES] {
        let mut bytes = [0; INFO_BYTES];
        let slot = self.slot.map_or(u64::MAX, u64::from);
        let words = [self.bytes, self.segment, self.offset, self.signal_words, slot];
        for (field, word) in bytes.chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads an info. None if the bytes are malformed.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; INFO_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u64::from_le_bytes(*bytes[at..].first_chunk()?));
        let slot = match word(32)? {
            u64::MAX => None,
            slot => Some(u32::try_from(slot).ok().filter(|slot| *slot < WINDOW_SLOTS)?),
        };
        Some(Self {
            bytes: word(0)?,
            segment: word(8)?,
            offset: word(16)?,
            signal_words: word(24)?,
            slot,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_round_trips() {
        let message = WindowMessage { window: 7, offset: 1 << 40, signals: true };
        assert_eq!(WindowMessage::decode(message.encode()), Some(message));
        let mut bytes = message.encode();
        bytes[4] = 2;
        assert_eq!(WindowMessage::decode(bytes), None);
    }

    #[test]
    fn an_info_round_trips() {
        let info =
            WindowInfo { bytes: 1 << 40, segment: 3, offset: 64, signal_words: 5, slot: None };
        for slot in [None, Some(0), Some(WINDOW_SLOTS - 1)] {
            let info = WindowInfo { slot, ..info };
            assert_eq!(WindowInfo::decode(&info.encode()), Some(info));
        }
        let wrong = WindowInfo { slot: Some(WINDOW_SLOTS), ..info };
        assert_eq!(WindowInfo::decode(&wrong.encode()), None);
    }
}
