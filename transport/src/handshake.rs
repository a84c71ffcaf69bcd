//! The handshake of a new connection: both sides prove that they know the communicator's secret
//! before anything else is parsed.
//!
//! ```text
//! listener                                                      dialer
//!    | ---- challenge: nonce (32) -------------------------------> |
//!    | <--- hello: rank (4), stream (4), nonce (32), proof (32) -- |
//!    | ---- proof (32), and data of the link kind ---------------> |
//!    | <--- what the kind adds --------------------------------- |
//! ```
//!
//! The data are inboxes for `shm`, and the shape of the links for `tcp`.
//!
//! A proof is the HMAC-SHA256, under the secret, of version, direction, link kind, both nonces,
//! both ranks, the number of the stream and the size of the communicator. It can therefore not be
//! replayed, reflected, or used for another pair of ranks, another stream or another kind of link.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::Rank;
use crate::error::LinkError;
use crate::random::random_bytes;

/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 32;
/// Bytes of a proof.
pub(crate) const PROOF_BYTES: usize = 32;
/// Bytes of the dialer's hello message.
pub(crate) const HELLO_BYTES: usize = 8 + NONCE_BYTES + PROOF_BYTES;

pub(crate) type Nonce = [u8; NONCE_BYTES];
pub(crate) type Proof = [u8; PROOF_BYTES];

/// What a rank proves in every handshake.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) secret: [u8; 32],
    pub(crate) rank: Rank,
    pub(crate) nranks: u32,
}

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionKind {
    /// Passing memory over a UNIX socket.
    Shm,
    /// Messages over TCP.
    Tcp,
}

#[derive(Clone, Copy)]
enum ProofDirection {
    DialerToListener,
    ListenerToDialer,
}

/// All that a proof is bound to, besides the secret and its direction.
#[derive(Clone, Copy)]
struct HandshakeSession {
    kind: ConnectionKind,
    stream: u32,
    challenge: Nonce,
    nonce: Nonce,
    from: Rank,
    to: Rank,
}

/// What the dialer keeps in order to check the listener's proof.
pub(crate) struct SentHello(HandshakeSession);

impl Credentials {
    pub(crate) fn nonce() -> Result<Nonce, LinkError> {
        random_bytes()
    }

    /// The dialer's hello message, in reply to the challenge of rank `to`, on a stream of this
    /// number.
    pub(crate) fn hello(
        &self,
        (kind, stream): (ConnectionKind, u32),
        to: Rank,
        challenge: Nonce,
    ) -> Result<(SentHello, [u8; HELLO_BYTES]), LinkError> {
        let session = HandshakeSession {
            kind,
            stream,
            challenge,
            nonce: Self::nonce()?,
            from: self.rank,
            to,
        };
        let mut hello = [0; HELLO_BYTES];
        hello[..4].copy_from_slice(&self.rank.to_le_bytes());
        hello[4..8].copy_from_slice(&stream.to_le_bytes());
        hello[8..8 + NONCE_BYTES].copy_from_slice(&session.nonce);
        let proof = self.mac(ProofDirection::DialerToListener, &session).finalize().into_bytes();
        hello[8 + NONCE_BYTES..].copy_from_slice(&proof);
        Ok((SentHello(session), hello))
    }

    /// The listener's check of a hello message. Returns the dialer's rank, the number of its stream
    /// and the proof to answer with; `None` if the dialer does not know the secret.
    pub(crate) fn check_hello(
        &self,
        kind: ConnectionKind,
        challenge: Nonce,
        hello: &[u8; HELLO_BYTES],
    ) -> Option<(Rank, u32, Proof)> {
        let (rank, rest) = hello.split_first_chunk()?;
        let (stream, rest) = rest.split_first_chunk()?;
        let (nonce, proof) = rest.split_first_chunk()?;
        let from = Rank::from_le_bytes(*rank);
        let stream = u32::from_le_bytes(*stream);
        let session =
            HandshakeSession { kind, stream, challenge, nonce: *nonce, from, to: self.rank };
        // Takes constant time.
        self.mac(ProofDirection::DialerToListener, &session).verify_slice(proof).ok()?;
        // The lower rank dials.
        (from < self.rank).then(|| {
            let proof =
                self.mac(ProofDirection::ListenerToDialer, &session).finalize().into_bytes();
            (from, stream, proof.into())
        })
    }

    /// The dialer's check of the listener's proof.
    pub(crate) fn check_proof(&self, sent: &SentHello, proof: &Proof) -> bool {
        self.mac(ProofDirection::ListenerToDialer, &sent.0).verify_slice(proof).is_ok()
    }

    fn mac(&self, direction: ProofDirection, session: &HandshakeSession) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.secret_block().into());
        // Every field has a fixed size, so no two sessions give the same text.
        mac.update(b"maypole hello 2");
        mac.update(&[direction as u8, session.kind as u8]);
        mac.update(&session.challenge);
        mac.update(&session.nonce);
        for number in [session.from, session.to, session.stream, self.nranks] {
            mac.update(&number.to_le_bytes());
        }
        mac
    }

    /// HMAC pads a short key with zeros to the block size of the hash. Padding here makes the key's
    /// length part of its type.
    fn secret_block(&self) -> [u8; 64] {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.secret);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP3: (ConnectionKind, u32) = (ConnectionKind::Tcp, 3);

    fn credentials(secret: u8, rank: Rank, nranks: u32) -> Credentials {
        Credentials { secret: [secret; 32], rank, nranks }
    }

    #[test]
    fn both_ends_prove_the_secret() {
        let (dialer, listener) = (credentials(1, 2, 8), credentials(1, 5, 8));
        let challenge = Credentials::nonce().unwrap();
        let (sent, hello) = dialer.hello(TCP3, 5, challenge).unwrap();
        let (from, stream, proof) =
            listener.check_hello(ConnectionKind::Tcp, challenge, &hello).unwrap();
        assert_eq!((from, stream), (2, 3));
        assert!(dialer.check_proof(&sent, &proof));
    }

    #[test]
    fn only_the_same_session_is_accepted() {
        let (dialer, listener) = (credentials(1, 2, 8), credentials(1, 5, 8));
        let challenge = Credentials::nonce().unwrap();
        let (sent, hello) = dialer.hello(TCP3, 5, challenge).unwrap();
        // Another secret, size, addressee or challenge; any flipped bit; the higher rank dialing.
        for other in [credentials(2, 5, 8), credentials(1, 5, 9), credentials(1, 6, 8)] {
            assert!(other.check_hello(ConnectionKind::Tcp, challenge, &hello).is_none());
        }
        assert!(
            listener
                .check_hello(ConnectionKind::Tcp, Credentials::nonce().unwrap(), &hello)
                .is_none()
        );
        assert!(listener.check_hello(ConnectionKind::Shm, challenge, &hello).is_none());
        for bit in 0..HELLO_BYTES * 8 {
            let mut hello = hello;
            hello[bit / 8] ^= 1 << (bit % 8);
            assert!(listener.check_hello(ConnectionKind::Tcp, challenge, &hello).is_none());
        }
        let (_, reverse) = listener.hello(TCP3, 2, challenge).unwrap();
        assert!(dialer.check_hello(ConnectionKind::Tcp, challenge, &reverse).is_none());
        // The dialer's own proof is not accepted as the answer.
        let (_, _, mut proof) =
            listener.check_hello(ConnectionKind::Tcp, challenge, &hello).unwrap();
        let reflected = hello[8 + NONCE_BYTES..].try_into().unwrap();
        assert!(!dialer.check_proof(&sent, &reflected));
        proof[31] ^= 1;
        assert!(!dialer.check_proof(&sent, &proof));
    }
}
