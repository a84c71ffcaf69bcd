//! The handshake: three messages of fixed sizes that prove to both ends that the other knows the secret, before either
//! parses anything else.
//!
//! ```text
//! dialer   -> Hello      magic, role, from, to, nranks, nonce          56 bytes
//! listener -> Challenge  magic, nonce, proof over Hello and nonce      72 bytes
//! dialer   -> Proof      over Hello and Challenge                      32 bytes
//! listener -> WELCOME                                                   1 byte
//! ```
//!
//! The listener proves itself first, so that a rank with another job's id learns it from the root's answer. A stranger
//! learns 32 bytes of HMAC-SHA256 from it, which is of no use without the 256-bit key. The proofs of the two directions
//! have different purposes, so neither can be reflected; both are bound to role, ranks and fresh nonces.

use super::secret::{BYTES, Secret};

pub(super) const HELLO_BYTES: usize = 56;
pub(super) const CHALLENGE_BYTES: usize = 72;
pub(super) const PROOF_BYTES: usize = BYTES;
/// What a listener that is convinced answers.
pub(super) const WELCOME: u8 = b'W';

/// The last byte is the version of the protocol.
const MAGIC: [u8; 8] = *b"MAYPOLE\x01";

/// The ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A rank dials the root.
    Root,
    /// A rank dials its parent in the control tree.
    Tree,
}

/// Who dials whom. `to` is 0 if the root is dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) role: Role,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) nranks: u32,
    pub(super) nonce: [u8; BYTES],
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = match self.role {
            Role::Root => 1,
            Role::Tree => 2,
        };
        out[12..16].copy_from_slice(&self.from.to_le_bytes());
        out[16..20].copy_from_slice(&self.to.to_le_bytes());
        out[20..24].copy_from_slice(&self.nranks.to_le_bytes());
        out[24..].copy_from_slice(&self.nonce);
        out
    }

    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let role = match bytes[8..12] {
            [1, 0, 0, 0] => Role::Root,
            [2, 0, 0, 0] => Role::Tree,
            _ => return None,
        };
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut nonce = [0; BYTES];
        nonce.copy_from_slice(&bytes[24..]);
        let hello = Self { role, from: word(12), to: word(16), nranks: word(20), nonce };
        (bytes[..8] == MAGIC && hello.from < hello.nranks && hello.to < hello.nranks)
            .then_some(hello)
    }
}

/// The listener's answer to a hello.
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

/// What the dialer makes of the listener's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Prove yourself by this.
    Proof([u8; PROOF_BYTES]),
    /// It speaks our protocol but does not know the secret.
    WrongId,
    /// It is something else.
    NotOurs,
}

/// Checks the listener's proof.
pub(super) fn answer(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
) -> Answer {
    if challenge[..8] != MAGIC {
        Answer::NotOurs
    } else if secret.verify("listener", &[hello, &challenge[8..40]], &challenge[40..]) {
        Answer::Proof(secret.prove("dialer", &[hello, challenge]))
    } else {
        Answer::WrongId
    }
}

/// Whether the dialer knows the secret.
pub(super) fn convinced(
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
        Hello { role: Role::Tree, from: 3, to: 1, nranks: 7, nonce: [9; BYTES] }
    }

    #[test]
    fn both_ends_are_convinced_by_the_secret_alone() {
        let (ours, other) = (Secret::new([1; BYTES]), Secret::new([2; BYTES]));
        let hello = hello().encode();
        let sent = challenge(&ours, &hello, &[5; BYTES]);
        assert_eq!(answer(&other, &hello, &sent), Answer::WrongId);
        let Answer::Proof(proof) = answer(&ours, &hello, &sent) else { panic!("ours") };
        assert!(convinced(&ours, &hello, &sent, &proof));
        // The listener's own proof sent back to it does not do, nor does a proof for another hello.
        let mut reflected = [0; PROOF_BYTES];
        reflected.copy_from_slice(&sent[40..]);
        assert!(!convinced(&ours, &hello, &sent, &reflected));
        let mut altered = hello;
        altered[12] ^= 1;
        assert!(!convinced(&ours, &altered, &sent, &proof));
        assert_eq!(answer(&ours, &altered, &sent), Answer::WrongId);
        assert_eq!(answer(&ours, &hello, &[0; CHALLENGE_BYTES]), Answer::NotOurs);
    }

    proptest! {
        #[test]
        fn a_hello_that_decodes_is_what_it_encodes(mut bytes: Vec<u8>, plant: bool) {
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
    fn round_trip() {
        assert_eq!(Hello::decode(&hello().encode()), Some(hello()));
        assert_eq!(Hello::decode(&Hello { from: 7, ..hello() }.encode()), None);
    }
}
