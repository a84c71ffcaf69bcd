//! A TCP connection between two processes that know the same secret, after the handshake. Every
//! message is encrypted and authenticated. Calls wait.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use maypole_transport::noise::Session;

use super::MAX_CONTRIBUTION;
use crate::bootstrap::SecureStream;

/// Bytes of the length in front of a message.
const LENGTH_BYTES: usize = 4;
/// Bytes that one read takes from the socket.
const READ_BYTES: usize = 64 << 10;

/// One end of an encrypted connection.
pub(super) struct EncryptedConnection {
    stream: TcpStream,
    session: Session,
    /// Bytes that were received and are not yet a whole record.
    encrypted: Vec<u8>,
    /// Bytes that were decrypted and not yet taken as messages.
    received: Vec<u8>,
}

impl EncryptedConnection {
    /// A connection whose handshake has passed.
    ///
    /// # Errors
    /// The socket refuses the options.
    pub(super) fn new(secure: SecureStream) -> io::Result<Self> {
        let SecureStream { stream, session } = secure;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, session, encrypted: Vec::new(), received: Vec::new() })
    }

    /// The connection itself, for its timeouts.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends one message.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let plain = [&(message.len() as u32).to_le_bytes(), message].concat();
        let mut records = Vec::new();
        self.session.write_records(&plain, &mut records);
        self.stream.write_all(&records)
    }

    /// Receives one message.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the message was changed on its way.
    pub(super) fn receive(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some((prefix, rest)) = self.received.split_first_chunk::<LENGTH_BYTES>() {
                let len = u32::from_le_bytes(*prefix) as usize;
                if len > MAX_CONTRIBUTION {
                    let what =
                        format!("a message of {len} bytes; at most {MAX_CONTRIBUTION} are allowed");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                if let Some(message) = rest.get(..len) {
                    let message = message.to_vec();
                    self.received.drain(..LENGTH_BYTES + len);
                    return Ok(message);
                }
            }
            self.fill()?;
        }
    }

    /// Waits for more bytes.
    fn fill(&mut self) -> io::Result<()> {
        let old = self.encrypted.len();
        self.encrypted.resize(old + READ_BYTES, 0);
        let read = self.stream.read(&mut self.encrypted[old..]);
        self.encrypted.truncate(old + read.as_ref().map_or(0, |&count| count));
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
            Ok(_) => self
                .session
                .read_records(&mut self.encrypted, &mut self.received)
                .map_err(|forged| io::Error::new(io::ErrorKind::InvalidData, forged)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use maypole_transport::noise::{Binding, Dialer, Key, Listener, Purpose};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (dialer, listener.accept().unwrap().0)
    }

    /// Both ends of connections over these sockets, with the keys of one handshake.
    fn connected(dialer: TcpStream, listener: TcpStream) -> [EncryptedConnection; 2] {
        let (key, purpose) = (Key::new([7; 32]), Purpose::Launch);
        let binding = Binding { purpose, from: 1, to: 0, nranks: 2, stream: 0 };
        let (handshake, first) = Dialer::new(&key, &binding).unwrap();
        let (accepted, answer) = Listener::answer(&key, &first, &[0; 32], |_| true).ok().unwrap();
        let (at_dialer, _, confirmation) = handshake.finish(&answer, &[0; 32]).unwrap();
        let (at_listener, ..) = accepted.finish(&confirmation).unwrap();
        [(dialer, at_dialer), (listener, at_listener)].map(|(stream, session)| {
            EncryptedConnection::new(SecureStream { stream, session }).unwrap()
        })
    }

    #[test]
    fn messages_arrive_in_both_directions_in_order() {
        let (dialer, listener) = pair();
        let [mut a, mut b] = connected(dialer, listener);
        for text in [&b"one"[..], b"", &[5; 100_000]] {
            a.send(text).unwrap();
            assert_eq!(b.receive().unwrap(), text);
            b.send(text).unwrap();
            assert_eq!(a.receive().unwrap(), text);
        }
        drop(a);
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn messages_are_encrypted_and_a_flipped_bit_is_detected() {
        for at in [0, 4, 30] {
            // The receiver is behind one who changes a bit.
            let ((dialer, mut on_path), (mut forged, listener)) = (pair(), pair());
            let [mut a, mut b] = connected(dialer, listener);
            a.send(b"a secret of many bytes").unwrap();
            let mut raw = [0; 2 + 4 + 22 + 16];
            on_path.read_exact(&mut raw).unwrap();
            assert!(!raw.windows(6).any(|part| part == b"secret"));
            raw[at] ^= 1;
            forged.write_all(&raw).unwrap();
            forged.write_all(&[0; 8]).unwrap();
            assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
    }
}
