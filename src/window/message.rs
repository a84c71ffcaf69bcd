//! The form of a put or a signal on its way, a header and the bytes to be written; and of what ranks tell each other of a new window.

/// What all of these messages carry where those of a call have its hash.
pub(crate) const WINDOW_TAG: u32 = 0x7769_6e64;

/// Bytes of the header; what follows it is aligned.
pub(crate) const HEADER_BYTES: usize = 64;

/// What to do with the bytes that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowMessage {
    /// Number of the window; 0 for a signal alone.
    pub(crate) window: u32,
    /// Where in the window.
    pub(crate) offset: u64,
    /// A signal comes with it, after the bytes.
    pub(crate) signals: bool,
}

impl WindowMessage {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.window.to_le_bytes());
        bytes[4] = self.signals.into();
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// None if no correct rank writes this.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
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

/// A rank's part of a new window, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowInfo {
    /// Bytes of the part.
    pub(crate) bytes: u64,
    /// The segment that it is in, which peers of the host were offered; 0 if they cannot reach it.
    pub(crate) segment: u64,
    /// Where in the segment it begins.
    pub(crate) offset: u64,
    /// The segment of the rank's signal_words.
    pub(crate) signal_words: u64,
}

impl WindowInfo {
    pub(crate) fn encode(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.bytes, self.segment, self.offset, self.signal_words];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// None if no correct rank writes this.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u64::from_le_bytes(*bytes[at..].first_chunk()?));
        Some(Self {
            bytes: word(0)?,
            segment: word(8)?,
            offset: word(16)?,
            signal_words: word(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let message = WindowMessage { window: 7, offset: 1 << 40, signals: true };
        assert_eq!(WindowMessage::decode(&message.encode()), Some(message));
        let mut bytes = message.encode();
        bytes[4] = 2;
        assert_eq!(WindowMessage::decode(&bytes), None);
    }
}
