//! A TCP connection between two who know the same secret: every message is encrypted and authenticated.
//!
//! ```text
//!   both    "MAYPLAU1", 32 random bytes
//!   then    length (4 bytes), ChaCha20-Poly1305 of the message with the length as associated data
//! ```
//!
//! The key of each direction is an HMAC-SHA256, under the secret, of both random values, so a recorded connection cannot be
//! played again; the nonce counts messages. A first message that opens proves that its sender knows the secret.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::LONGEST;

/// Bytes of a secret.
pub(super) const SECRET_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"MAYPLAU1";
/// What authentication adds to a message.
const TAG_BYTES: usize = 16;

/// One end.
pub(super) struct Sealed {
    stream: TcpStream,
    send: Direction,
    receive: Direction,
}

struct Direction {
    cipher: ChaCha20Poly1305,
    count: u64,
}

impl Sealed {
    /// Exchanges random values and makes the keys. Both must call it, one of them as the one who `dialed`.
    pub(super) fn new(
        mut stream: TcpStream,
        secret: &[u8; SECRET_BYTES],
        dialed: bool,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mine = random()?;
        stream.write_all(&[&MAGIC[..], &mine].concat())?;
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no process of a benchmark is there",
            ));
        }
        let mut theirs = [0; SECRET_BYTES];
        stream.read_exact(&mut theirs)?;
        let (dialer, listener) = if dialed { (mine, theirs) } else { (theirs, mine) };
        let key = |from: &[u8]| {
            Direction::new(&mac(secret, &[b"maypole launch ", from, &dialer, &listener]))
        };
        let (from_dialer, from_listener) = (key(b"dialer"), key(b"listener"));
        let (send, receive) =
            if dialed { (from_dialer, from_listener) } else { (from_listener, from_dialer) };
        Ok(Self { stream, send, receive })
    }

    /// The connection itself, for its timeouts.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let len = (message.len() as u32).to_le_bytes();
        let payload = Payload { msg: message, aad: &len };
        let nonce = self.send.nonce();
        let body = self.send.cipher.encrypt(&nonce, payload);
        let body = body.map_err(|_| io::Error::other("a message that is too long"))?;
        self.stream.write_all(&[&len[..], &body].concat())
    }

    pub(super) fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        let most = u32::from_le_bytes(len) as usize;
        if most > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of absurd length"));
        }
        let mut body = vec![0; most + TAG_BYTES];
        self.stream.read_exact(&mut body)?;
        let payload = Payload { msg: &body, aad: &len };
        let nonce = self.receive.nonce();
        self.receive.cipher.decrypt(&nonce, payload).map_err(|_| {
            let what = "the other end does not know the job's secret (is MAYPOLE_SECRET_FILE the same for all?)";
            io::Error::new(io::ErrorKind::PermissionDenied, what)
        })
    }
}

impl Direction {
    fn new(key: &[u8; SECRET_BYTES]) -> Self {
        Self { cipher: ChaCha20Poly1305::new(&(*key).into()), count: 0 }
    }

    /// Never the same twice: a 64-bit counter does not come round.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.count.to_le_bytes());
        self.count += 1;
        nonce.into()
    }
}

/// HMAC-SHA256 of these parts, one after the other.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; SECRET_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Unpredictable bytes of the kernel.
pub(super) fn random() -> io::Result<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
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

    /// Both ends, with these secrets.
    fn sealed(secrets: [[u8; SECRET_BYTES]; 2]) -> (Sealed, Sealed) {
        let (dialer, listener) = pair();
        let other = std::thread::spawn(move || Sealed::new(listener, &secrets[1], false).unwrap());
        (Sealed::new(dialer, &secrets[0], true).unwrap(), other.join().unwrap())
    }

    #[test]
    fn messages_pass_both_ways_in_order() {
        let (mut a, mut b) = sealed([[7; 32]; 2]);
        for text in [&b"one"[..], b"", &[5; 100_000]] {
            a.send(text).unwrap();
            assert_eq!(b.receive().unwrap(), text);
            b.send(text).unwrap();
            assert_eq!(a.receive().unwrap(), text);
        }
    }

    #[test]
    fn who_does_not_know_the_secret_is_not_heard() {
        let (mut a, mut b) = sealed([[7; 32], [8; 32]]);
        a.send(b"let me in").unwrap();
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn nothing_is_sent_in_clear_and_nothing_survives_a_flipped_bit() {
        let (dialer, mut listener) = pair();
        let thread = std::thread::spawn(move || {
            let mut it = Sealed::new(dialer, &[7; 32], true).unwrap();
            it.send(b"a secret of many bytes").unwrap();
            it
        });
        let mut hello = [0; 40];
        listener.read_exact(&mut hello).unwrap();
        listener.write_all(&hello).unwrap();
        let mut raw = [0; 4 + 22 + 16];
        listener.read_exact(&mut raw).unwrap();
        assert!(!raw.windows(6).any(|part| part == b"secret"));
        // The listener's keys, of the same two random values; a flipped bit of the text, then of the length.
        drop(thread.join().unwrap());
        for at in [0, 4, 30] {
            let (mut forged, other) = pair();
            let mine: [u8; 32] = hello[8..].try_into().unwrap();
            let key = mac(&[7; 32], &[b"maypole launch ", b"dialer", &mine, &mine]);
            let mut damaged = raw;
            damaged[at] ^= 1;
            forged.write_all(&damaged).unwrap();
            forged.write_all(&[0; 8]).unwrap();
            let mut reader =
                Sealed { stream: other, send: Direction::new(&key), receive: Direction::new(&key) };
            assert!(reader.receive().is_err(), "byte {at}");
        }
    }

    #[test]
    fn strangers_are_turned_away() {
        let (mut stranger, listener) = pair();
        stranger.write_all(&[b'x'; 64]).unwrap();
        assert!(Sealed::new(listener, &[7; 32], false).is_err());
    }
}
