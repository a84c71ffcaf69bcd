//! The handshake of a connection of the bootstrap: each end proves that it knows the secret, before
//! the other end reads anything else from it. This module has the messages and the proofs; `accept`
//! and `dial` send them over sockets.
//!
//! ```text
//! dialer   -> Hello      magic, kind, from, to, nranks, nonce          56 bytes
//! listener -> Challenge  magic, nonce, proof over Hello and nonce      72 bytes
//! dialer   -> Proof      over Hello and Challenge                      32 bytes
//! listener -> WELCOME                                                   1 byte
//! ```
//!
//! The listener proves itself first, so that a rank with the unique id of another job learns that
//! from the answer of the root. A stranger gets 32 bytes of HMAC-SHA256 from the listener, which
//! are of no use without the 256-bit key. The proofs of the two directions have different purposes,
//! so that neither can be reflected. Both cover the kind of the connection, the ranks and fresh
//! nonces.

use super::secret::{BYTES, Secret};

/// Bytes of a hello.
pub(super) const HELLO_BYTES: usize = 56;
/// Bytes of a challenge.
pub(super) const CHALLENGE_BYTES: usize = 72;
/// Bytes of a proof.
pub(super) const PROOF_BYTES: usize = BYTES;
/// The byte by which a listener accepts a proof.
pub(super) const WELCOME: u8 = b'W';

/// The last byte is the version of the protocol.
const MAGIC: [u8; 8] = *b"MAYPOLE\x01";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionKind {
    /// A rank connects to the bootstrap root.
    Root,
    /// A rank connects to its parent in the control tree.
    Tree,
}

/// The first message of a connection: which rank connects to which. `to` is 0 if the listener is
/// the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) kind: ConnectionKind,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) nranks: u32,
    pub(super) nonce: [u8; BYTES],
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = match self.kind {
            ConnectionKind::Root => 1,
            ConnectionKind::Tree => 2,
        };
        out[12..16].copy_from_slice(&self.from.to_le_bytes());
        out[16..20].copy_from_slice(&self.to.to_le_bytes());
        out[20..24].copy_from_slice(&self.nranks.to_le_bytes());
        out[24..].copy_from_slice(&self.nonce);
        out
    }

    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let kind = match bytes[8..12] {
            [1, 0, 0, 0] => ConnectionKind::Root,
            [2, 0, 0, 0] => ConnectionKind::Tree,
            _ => return None,
        };
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut nonce = [0; BYTES];
        nonce.copy_from_slice(&bytes[24..]);
        let hello = Self { kind, from: word(12), to: word(16), nranks: word(20), nonce };
        (bytes[..8] == MAGIC && hello.from < hello.nranks && hello.to < hello.nranks)
            .then_some(hello)
    }
}

/// The answer of the listener to a hello.
pub(super) fn challenge(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    nonce: &[u8; BYTES],
) -> [u8; CHALLENGE_BYTES] {
    let mut out = [0; CHALLENGE_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..40].copy_from_slice(nonce);
    out[40..].copy_from_slice(&secret.prove("listener", &[hello, nonce]));
    out
}

/// What the dialer finds in the challenge of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChallengeAnswer {
    /// The listener knows the secret; this is the proof to send to it.
    Proof([u8; PROOF_BYTES]),
    /// The listener speaks the protocol but does not know the secret.
    WrongId,
    /// The listener does not speak the protocol.
    NotMaypole,
}

/// Checks the proof of the listener.
pub(super) fn answer_challenge(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
) -> ChallengeAnswer {
    if challenge[..8] != MAGIC {
        ChallengeAnswer::NotMaypole
    } else if secret.verify("listener", &[hello, &challenge[8..40]], &challenge[40..]) {
        ChallengeAnswer::Proof(secret.prove("dialer", &[hello, challenge]))
    } else {
        ChallengeAnswer::WrongId
    }
}

/// Whether the proof shows that the dialer knows the secret.
pub(super) fn is_proof_valid(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
    proof: &[u8; PROOF_BYTES],
) -> bool {
    secret.verify("dialer", &[hello, challenge], proof)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello { kind: ConnectionKind::Tree, from: 3, to: 1, nranks: 7, nonce: [9; BYTES] }
    }

    #[test]
    fn each_end_accepts_the_secret_and_nothing_else() {
        let (ours, other) = (Secret::new([1; BYTES]), Secret::new([2; BYTES]));
        let hello = hello().encode();
        let sent = challenge(&ours, &hello, &[5; BYTES]);
        assert_eq!(answer_challenge(&other, &hello, &sent), ChallengeAnswer::WrongId);
        let ChallengeAnswer::Proof(proof) = answer_challenge(&ours, &hello, &sent) else {
            panic!("ours")
        };
        assert!(is_proof_valid(&ours, &hello, &sent, &proof));
        // The proof of the listener, sent back to it, is refused, and so is a proof for another
        // hello.
        let mut reflected = [0; PROOF_BYTES];
        reflected.copy_from_slice(&sent[40..]);
        assert!(!is_proof_valid(&ours, &hello, &sent, &reflected));
        let mut altered = hello;
        altered[12] ^= 1;
        assert!(!is_proof_valid(&ours, &altered, &sent, &proof));
        assert_eq!(answer_challenge(&ours, &altered, &sent), ChallengeAnswer::WrongId);
        assert_eq!(
            answer_challenge(&ours, &hello, &[0; CHALLENGE_BYTES]),
            ChallengeAnswer::NotMaypole
        );
    }

    proptest! {
        #[test]
        fn a_decoded_hello_encodes_to_the_same_bytes(mut bytes: Vec<u8>, plant: bool) {
            bytes.resize(HELLO_BYTES, 0);
            let mut bytes: [u8; HELLO_BYTES] = bytes.try_into().unwrap();
            if plant {
                bytes[..12].copy_from_slice(b"MAYPOLE\x01\x01\0\0\0");
            }
            if let Some(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(hello.encode(), bytes);
                prop_assert!(hello.from < hello.nranks);
            }
        }
    }

    #[test]
    fn a_hello_round_trips() {
        assert_eq!(Hello::decode(&hello().encode()), Some(hello()));
        assert_eq!(Hello::decode(&Hello { from: 7, ..hello() }.encode()), None);
    }
}
