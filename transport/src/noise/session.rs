//! A session: the keys of one connection after its handshake, and the records that are encrypted
//! with them.
//!
//! A record is sealed with ChaCha20-Poly1305 under the key of its direction, with its number as the
//! nonce, so that it can be opened once, in its place, by the other end.

use std::fmt;

use snow::params::CipherChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::Cipher;

use super::key::{KEY_BYTES, Key};

/// Bytes that authentication adds to a record.
pub const TAG_BYTES: usize = 16;

/// Most bytes of a sealed record in a stream of records: its length is two bytes.
const MOST_SEALED: usize = u16::MAX as usize;
/// Bytes of the length in front of a record.
const LENGTH_BYTES: usize = 2;

/// The keys of one connection, at one end. They are erased when the value is dropped.
pub struct Session {
    send: Direction,
    receive: Direction,
    /// From which [`derive`](Self::derive) makes further keys.
    exporter: Key,
}

/// What came is no record of the other end, or not the next one: someone changed, dropped, repeated
/// or injected it. Nothing that comes later on this connection is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record was changed on its way, or does not come from the other end")]
pub struct ForgedRecord;

/// The key and the number of the next record of one direction.
struct Direction {
    key: Key,
    count: u64,
    /// A forged record came.
    broken: bool,
}

impl Session {
    /// A session with these keys of its two directions.
    pub(super) fn new(send: Key, receive: Key, exporter: Key) -> Self {
        Self { send: Direction::new(send), receive: Direction::new(receive), exporter }
    }

    /// Appends a sealed record to `out`: as long as `plain` and [`TAG_BYTES`] more. The other end
    /// must know `associated`, which is authenticated and not sent.
    pub fn seal(&mut self, associated: &[u8], plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + plain.len() + TAG_BYTES, 0);
        let direction = &mut self.send;
        direction.cipher().0.encrypt(direction.count, associated, plain, &mut out[start..]);
        // 64 bits do not overflow: that would take centuries.
        direction.count += 1;
    }

    /// Opens the next record, and appends what it contains to `out`.
    ///
    /// # Errors
    /// [`ForgedRecord`], and from then on always.
    pub fn open(
        &mut self,
        associated: &[u8],
        sealed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ForgedRecord> {
        let direction = &mut self.receive;
        let len = sealed.len().checked_sub(TAG_BYTES).filter(|_| !direction.broken);
        let start = out.len();
        let opened = len.is_some_and(|len| {
            out.resize(start + len, 0);
            let to = &mut out[start..];
            direction.cipher().0.decrypt(direction.count, associated, sealed, to).is_ok()
        });
        if !opened {
            out.truncate(start);
            direction.broken = true;
            return Err(ForgedRecord);
        }
        direction.count += 1;
        Ok(())
    }

    /// Appends these bytes to `out` as records, each with its length in front of it.
    pub fn write_records(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for part in plain.chunks(MOST_SEALED - TAG_BYTES) {
            let length = ((part.len() + TAG_BYTES) as u16).to_le_bytes();
            out.extend(length);
            self.seal(&length, part, out);
        }
    }

    /// Takes the records that [`write_records`](Self::write_records) made and that have arrived
    /// completely out of `received`, and appends what they contain to `out`.
    ///
    /// # Errors
    /// [`ForgedRecord`]; `out` then has what came before it.
    pub fn read_records(
        &mut self,
        received: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), ForgedRecord> {
        let mut used = 0;
        let mut result = Ok(());
        while let Some((length, rest)) = received[used..].split_first_chunk::<LENGTH_BYTES>() {
            let sealed = usize::from(u16::from_le_bytes(*length));
            let Some(record) = rest.get(..sealed) else { break };
            result = self.open(length, record, out);
            if result.is_err() {
                break;
            }
            used += LENGTH_BYTES + sealed;
        }
        received.drain(..used);
        result
    }

    /// A further key of this connection, the same at both ends. Different labels give unrelated
    /// keys.
    pub fn derive(&self, label: &str) -> Key {
        self.exporter.derive(label, &[])
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)")
    }
}

impl Direction {
    fn new(key: Key) -> Self {
        Self { key, count: 0, broken: false }
    }

    /// The cipher for one record: it has the key in ordinary memory, and only for that time.
    fn cipher(&self) -> KeyedCipher {
        let cipher = DefaultResolver.resolve_cipher(&CipherChoice::ChaChaPoly);
        let mut cipher = cipher.expect("the crate is built with ChaCha20-Poly1305");
        cipher.set(self.key.bytes());
        KeyedCipher(cipher)
    }
}

/// A cipher that erases its key when it is dropped, which `snow` does not do itself.
struct KeyedCipher(Box<dyn Cipher>);

impl Drop for KeyedCipher {
    fn drop(&mut self) {
        self.0.set(&[0; KEY_BYTES]);
    }
}
