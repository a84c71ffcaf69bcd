//! The handshake: both sides prove that they know the communicator's secret before anything else is looked at.
//!
//! ```text
//! listener                                                      dialer
//!    | ---- challenge: nonce (32) -------------------------------> |
//!    | <--- hello: rank (4), stream (4), nonce (32), proof (32) -- |
//!    | ---- proof (32), and what the medium adds ----------------> |
//!    | <--- what the medium adds --------------------------------- |
//! ```
//!
//! `shm` adds inboxes, `tcp` the shape of the links.
//!
//! A proof is HMAC-SHA256 under the secret of: direction, version, medium, both nonces, both ranks, number of the stream, size
//! of the communicator. So it can be neither replayed nor reflected nor carried over to another pair of ranks, another stream
//! or another medium.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::Rank;
use crate::error::LinkError;
use crate::memory;

pub(crate) const NONCE: usize = 32;
pub(crate) const PROOF: usize = 32;
pub(crate) const HELLO: usize = 8 + NONCE + PROOF;

pub(crate) type Nonce = [u8; NONCE];
pub(crate) type Proof = [u8; PROOF];

/// What a rank brings into every handshake.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) secret: [u8; 32],
    pub(crate) rank: Rank,
    pub(crate) nranks: u32,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// Passing memory over a UNIX socket.
    Shm,
    /// Messages over TCP.
    Tcp,
}

#[derive(Clone, Copy)]
enum Direction {
    Dial,
    Answer,
}

/// Both nonces and both ranks of a handshake.
#[derive(Clone, Copy)]
struct Session {
    medium: Medium,
    stream: u32,
    challenge: Nonce,
    nonce: Nonce,
    from: Rank,
    to: Rank,
}

/// What the dialer keeps to check the answer.
pub(crate) struct Dialed(Session);

impl Credentials {
    pub(crate) fn nonce() -> Result<Nonce, LinkError> {
        memory::random()
    }

    /// The dialer's answer to a challenge of rank `to` on their stream of this number.
    pub(crate) fn dial(
        &self,
        (medium, stream): (Medium, u32),
        to: Rank,
        challenge: Nonce,
    ) -> Result<(Dialed, [u8; HELLO]), LinkError> {
        let session =
            Session { medium, stream, challenge, nonce: Self::nonce()?, from: self.rank, to };
        let mut hello = [0; HELLO];
        hello[..4].copy_from_slice(&self.rank.to_le_bytes());
        hello[4..8].copy_from_slice(&stream.to_le_bytes());
        hello[8..8 + NONCE].copy_from_slice(&session.nonce);
        let proof = self.mac(Direction::Dial, &session).finalize().into_bytes();
        hello[8 + NONCE..].copy_from_slice(&proof);
        Ok((Dialed(session), hello))
    }

    /// The listener's check of a hello: who it is, on which stream, and the proof to answer with. None is a stranger.
    pub(crate) fn answer(
        &self,
        medium: Medium,
        challenge: Nonce,
        hello: &[u8; HELLO],
    ) -> Option<(Rank, u32, Proof)> {
        let (rank, rest) = hello.split_first_chunk()?;
        let (stream, rest) = rest.split_first_chunk()?;
        let (nonce, proof) = rest.split_first_chunk()?;
        let from = Rank::from_le_bytes(*rank);
        let stream = u32::from_le_bytes(*stream);
        let session = Session { medium, stream, challenge, nonce: *nonce, from, to: self.rank };
        // In constant time.
        self.mac(Direction::Dial, &session).verify_slice(proof).ok()?;
        // The lower rank dials.
        (from < self.rank).then(|| {
            let proof = self.mac(Direction::Answer, &session).finalize().into_bytes();
            (from, stream, proof.into())
        })
    }

    /// The dialer's check of the listener's proof.
    pub(crate) fn accepts(&self, dialed: &Dialed, proof: &Proof) -> bool {
        self.mac(Direction::Answer, &dialed.0).verify_slice(proof).is_ok()
    }

    fn mac(&self, direction: Direction, session: &Session) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.secret_block().into());
        // Every field has a fixed size, so that no two sessions have the same text.
        mac.update(b"maypole hello 2");
        mac.update(&[direction as u8, session.medium as u8]);
        mac.update(&session.challenge);
        mac.update(&session.nonce);
        for number in [session.from, session.to, session.stream, self.nranks] {
            mac.update(&number.to_le_bytes());
        }
        mac
    }

    /// HMAC pads a short key with zeros to the block of the hash; doing so here makes the key's length a type.
    fn secret_block(&self) -> [u8; 64] {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.secret);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP3: (Medium, u32) = (Medium::Tcp, 3);

    fn party(secret: u8, rank: Rank, nranks: u32) -> Credentials {
        Credentials { secret: [secret; 32], rank, nranks }
    }

    #[test]
    fn both_ends_prove_the_secret() {
        let (dialer, listener) = (party(1, 2, 8), party(1, 5, 8));
        let challenge = Credentials::nonce().unwrap();
        let (dialed, hello) = dialer.dial(TCP3, 5, challenge).unwrap();
        let (from, stream, proof) = listener.answer(Medium::Tcp, challenge, &hello).unwrap();
        assert_eq!((from, stream), (2, 3));
        assert!(dialer.accepts(&dialed, &proof));
    }

    #[test]
    fn nothing_but_the_very_session_is_accepted() {
        let (dialer, listener) = (party(1, 2, 8), party(1, 5, 8));
        let challenge = Credentials::nonce().unwrap();
        let (dialed, hello) = dialer.dial(TCP3, 5, challenge).unwrap();
        // Another secret, size, addressee or challenge; any flipped bit; the higher rank dialing.
        for other in [party(2, 5, 8), party(1, 5, 9), party(1, 6, 8)] {
            assert!(other.answer(Medium::Tcp, challenge, &hello).is_none());
        }
        assert!(listener.answer(Medium::Tcp, Credentials::nonce().unwrap(), &hello).is_none());
        assert!(listener.answer(Medium::Shm, challenge, &hello).is_none());
        for bit in 0..HELLO * 8 {
            let mut hello = hello;
            hello[bit / 8] ^= 1 << (bit % 8);
            assert!(listener.answer(Medium::Tcp, challenge, &hello).is_none());
        }
        let (_, reverse) = listener.dial(TCP3, 2, challenge).unwrap();
        assert!(dialer.answer(Medium::Tcp, challenge, &reverse).is_none());
        // The dialer's own proof does not serve as the answer.
        let (_, _, mut proof) = listener.answer(Medium::Tcp, challenge, &hello).unwrap();
        let reflected = hello[8 + NONCE..].try_into().unwrap();
        assert!(!dialer.accepts(&dialed, &reflected));
        proof[31] ^= 1;
        assert!(!dialer.accepts(&dialed, &proof));
    }
}
