//! A TCP connection between two processes that know the same secret. Every message is encrypted and
//! authenticated.
//!
//! ```text
//!   both    "MAYPLAU1", 32 random bytes
//!   then    length (4 bytes), ChaCha20-Poly1305 of the message with the length as associated data
//! ```
//!
//! The key of each direction is an HMAC-SHA256, under the secret, of both random values, so a
//! recorded connection cannot be replayed. The nonce counts the messages. The first message that
//! can be decrypted proves that its sender knows the secret.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::MAX_CONTRIBUTION;
use crate::bootstrap;

/// Bytes of a secret, of a key and of a random value.
pub(super) const SECRET_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"MAYPLAU1";
/// How many bytes authentication adds to a message.
const TAG_BYTES: usize = 16;

/// One end of an encrypted connection.
pub(super) struct EncryptedConnection {
    stream: TcpStream,
    send: CipherDirection,
    receive: CipherDirection,
}

/// Which end of a connection this process is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The end that connected.
    Dialer,
    /// The end that accepted.
    Listener,
}

/// The key and the message counter of one direction.
struct CipherDirection {
    cipher: ChaCha20Poly1305,
    count: u64,
}

impl EncryptedConnection {
    /// Exchanges random values with the other end and derives the keys. Both ends must call it.
    ///
    /// # Errors
    /// The other end is not a process of Maypole, or the connection breaks. Whether the other end
    /// knows the secret shows when its first message is received.
    pub(super) fn new(
        mut stream: TcpStream,
        secret: &[u8; SECRET_BYTES],
        side: Side,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mine = bootstrap::random().map_err(io::Error::other)?;
        stream.write_all(&[&MAGIC[..], &mine].concat())?;
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic)?;
        if magic != MAGIC {
            let what = "the other end is not a process of Maypole";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut theirs = [0; SECRET_BYTES];
        stream.read_exact(&mut theirs)?;
        let (dialer, listener) = match side {
            Side::Dialer => (mine, theirs),
            Side::Listener => (theirs, mine),
        };
        let direction = |from: &[u8]| {
            let key = mac(secret, &[b"maypole launch ", from, &dialer, &listener]);
            CipherDirection::new(&key)
        };
        let (from_dialer, from_listener) = (direction(b"dialer"), direction(b"listener"));
        let (send, receive) = match side {
            Side::Dialer => (from_dialer, from_listener),
            Side::Listener => (from_listener, from_dialer),
        };
        Ok(Self { stream, send, receive })
    }

    /// The connection itself, for its timeouts.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends one message.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let len = (message.len() as u32).to_le_bytes();
        let payload = Payload { msg: message, aad: &len };
        let nonce = self.send.next_nonce();
        let body = self.send.cipher.encrypt(&nonce, payload);
        let body = body.map_err(|_| io::Error::other("the message is too long to encrypt"))?;
        self.stream.write_all(&[&len[..], &body].concat())
    }

    /// Receives one message.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] if the other end does not know the secret, or if the
    /// message was changed on its way.
    pub(super) fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let len = u32::from_le_bytes(prefix) as usize;
        if len > MAX_CONTRIBUTION {
            let what = format!("a message of {len} bytes; at most {MAX_CONTRIBUTION} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut body = vec![0; len + TAG_BYTES];
        self.stream.read_exact(&mut body)?;
        let payload = Payload { msg: &body, aad: &prefix };
        let nonce = self.receive.next_nonce();
        self.receive.cipher.decrypt(&nonce, payload).map_err(|_| {
            let what = "the other end does not know the job's secret; is MAYPOLE_SECRET_FILE the \
                        same for all ranks?";
            io::Error::new(io::ErrorKind::PermissionDenied, what)
        })
    }
}

impl CipherDirection {
    fn new(key: &[u8; SECRET_BYTES]) -> Self {
        Self { cipher: ChaCha20Poly1305::new(&(*key).into()), count: 0 }
    }

    /// A nonce that was not used before: the 64-bit counter does not wrap in practice.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.count.to_le_bytes());
        self.count += 1;
        nonce.into()
    }
}

/// HMAC-SHA256 of the concatenation of these parts.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; SECRET_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (dialer, listener.accept().unwrap().0)
    }

    /// Both ends of a connection, the dialer with the first secret, the listener with the second.
    fn connected_with(
        secrets: [[u8; SECRET_BYTES]; 2],
    ) -> (EncryptedConnection, EncryptedConnection) {
        let (dialer, listener) = pair();
        let other = std::thread::spawn(move || {
            EncryptedConnection::new(listener, &secrets[1], Side::Listener).unwrap()
        });
        (
            EncryptedConnection::new(dialer, &secrets[0], Side::Dialer).unwrap(),
            other.join().unwrap(),
        )
    }

    #[test]
    fn messages_arrive_in_both_directions_in_order() {
        let (mut a, mut b) = connected_with([[7; 32]; 2]);
        for text in [&b"one"[..], b"", &[5; 100_000]] {
            a.send(text).unwrap();
            assert_eq!(b.receive().unwrap(), text);
            b.send(text).unwrap();
            assert_eq!(a.receive().unwrap(), text);
        }
    }

    #[test]
    fn a_peer_with_another_secret_is_refused() {
        let (mut a, mut b) = connected_with([[7; 32], [8; 32]]);
        a.send(b"let me in").unwrap();
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn messages_are_encrypted_and_a_flipped_bit_is_detected() {
        let (dialer, mut listener) = pair();
        let thread = std::thread::spawn(move || {
            let mut it = EncryptedConnection::new(dialer, &[7; 32], Side::Dialer).unwrap();
            it.send(b"a secret of many bytes").unwrap();
            it
        });
        let mut hello = [0; 40];
        listener.read_exact(&mut hello).unwrap();
        listener.write_all(&hello).unwrap();
        let mut raw = [0; 4 + 22 + 16];
        listener.read_exact(&mut raw).unwrap();
        assert!(!raw.windows(6).any(|part| part == b"secret"));
        // The listener's keys follow from the same two random values. One bit is flipped: of the
        // length, of the text's first byte, of a later byte.
        drop(thread.join().unwrap());
        for at in [0, 4, 30] {
            let (mut forged, other) = pair();
            let mine: [u8; 32] = hello[8..].try_into().unwrap();
            let key = mac(&[7; 32], &[b"maypole launch ", b"dialer", &mine, &mine]);
            let mut damaged = raw;
            damaged[at] ^= 1;
            forged.write_all(&damaged).unwrap();
            forged.write_all(&[0; 8]).unwrap();
            let mut reader = EncryptedConnection {
                stream: other,
                send: CipherDirection::new(&key),
                receive: CipherDirection::new(&key),
            };
            assert!(reader.receive().is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_stranger_is_refused() {
        let (mut stranger, listener) = pair();
        stranger.write_all(&[b'x'; 64]).unwrap();
        assert!(EncryptedConnection::new(listener, &[7; 32], Side::Listener).is_err());
    }
}
