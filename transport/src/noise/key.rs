//! Secrets, and the keys that are derived from them.

use std::fmt;
use std::io;

use snow::params::HashChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::Hash;
use zeroize::Zeroize;

pub use super::secret_memory::KEY_BYTES;
use super::secret_memory::SecretBytes;
use crate::random::random_bytes;

/// 256 bits that only some ranks know. They are erased when the value is dropped, in no core dump,
/// and never shown.
pub struct Key(SecretBytes);

impl Key {
    /// The key of these bytes. The caller erases its own copy, if it has one.
    pub fn new(mut bytes: [u8; KEY_BYTES]) -> Self {
        let key = Self::filled(|key| *key = bytes);
        bytes.zeroize();
        key
    }

    /// The key that `fill` writes over zeros, without another copy of it.
    pub fn filled(fill: impl FnOnce(&mut [u8; KEY_BYTES])) -> Self {
        let mut key = SecretBytes::zeroed();
        fill(key.get_mut());
        Self(key)
    }

    /// A fresh key.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub fn random() -> io::Result<Self> {
        random().map(Self::new)
    }

    /// The bytes, for messages to those who may know them.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        self.0.get()
    }

    /// A key that can only be made by those who know this one (HMAC-SHA256). Different labels or
    /// parts give unrelated keys. A zero byte ends the label, so that no label is the beginning of
    /// another; the lengths of the parts precede them.
    pub fn derive(&self, label: &str, parts: &[&[u8]]) -> Self {
        let mut message = [label.as_bytes(), &[0]].concat();
        for part in parts {
            message.extend((part.len() as u64).to_le_bytes());
            message.extend(*part);
        }
        let key = Self::filled(|key| hash().hmac(self.bytes(), &message, key));
        message.zeroize();
        key
    }
}

impl Clone for Key {
    fn clone(&self) -> Self {
        Self::filled(|key| *key = *self.bytes())
    }
}

impl From<[u8; KEY_BYTES]> for Key {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The SHA-256 of the concatenation of these parts.
pub fn sha256(parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut hash = hash();
    hash.reset();
    parts.iter().for_each(|part| hash.input(part));
    let mut digest = [0; KEY_BYTES];
    hash.result(&mut digest);
    digest
}

/// Bytes that nobody can guess, from the kernel.
///
/// # Errors
/// The kernel gives none.
pub fn random() -> io::Result<[u8; KEY_BYTES]> {
    random_bytes().map_err(io::Error::other)
}

fn hash() -> Box<dyn Hash> {
    DefaultResolver.resolve_hash(&HashChoice::SHA256).expect("the crate is built with SHA-256")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_key_depends_on_key_label_and_parts() {
        let key = Key::new([1; 32]);
        let derived = |label, parts: &[&[u8]]| *key.derive(label, parts).bytes();
        let one = derived("a", &[b"message"]);
        assert_eq!(derived("a", &[b"message"]), one);
        assert_ne!(derived("a", &[b"mess", b"age"]), one);
        assert_ne!(derived("b", &[b"message"]), one);
        assert_ne!(derived("a", &[]), derived("a", &[b""]));
        assert_ne!(*Key::new([2; 32]).derive("a", &[b"message"]).bytes(), one);
        assert_ne!(random().unwrap(), random().unwrap());
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        // FIPS 180-4, the example "abc".
        assert_eq!(
            hex(&sha256(&[b"a", b"bc"])),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // RFC 4231, test case 2: the HMAC-SHA256 of "what do ya want for nothing?" under "Jefe".
        let mut mac = [0; 32];
        hash().hmac(b"Jefe", b"what do ya want for nothing?", &mut mac);
        assert_eq!(hex(&mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", Key::new([7; 32])), "Key(..)");
    }
}
