//! The secret of a unique id, and the proofs and keys that are derived from it. The secret itself
//! is never sent.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::error::BootstrapError;

/// Bytes of a secret, a proof, a nonce and a derived key.
pub(super) const BYTES: usize = 32;

/// 256 bits that only the ranks of one communicator know.
#[derive(Clone)]
pub(super) struct Secret([u8; BYTES]);

impl Secret {
    /// The secret of these bytes.
    pub(super) fn new(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// The proof of knowing this secret, for a message of this purpose (HMAC-SHA256). A zero byte
    /// ends the purpose, so that no purpose is the beginning of another.
    pub(super) fn prove(&self, purpose: &str, message: &[&[u8]]) -> [u8; BYTES] {
        let mut proof = [0; BYTES];
        proof.copy_from_slice(&self.mac(purpose, message).finalize().into_bytes());
        proof
    }

    /// Whether `proof` is what [`prove`](Self::prove) returns. The time that this takes does not
    /// depend on where they differ.
    pub(super) fn verify(&self, purpose: &str, message: &[&[u8]], proof: &[u8]) -> bool {
        self.mac(purpose, message).verify_slice(proof).is_ok()
    }

    fn mac(&self, purpose: &str, message: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC is defined for keys of every length, so the error cannot occur.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            unreachable!("HMAC takes keys of every length")
        };
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        for part in message {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Unpredictable bytes from the kernel.
///
/// # Errors
/// [`BootstrapError::System`] if the kernel gives none.
pub(crate) fn random() -> Result<[u8; BYTES], BootstrapError> {
    let mut bytes = [0_u8; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is writable for its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(BootstrapError::system("getrandom", &error));
                }
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_depends_on_secret_purpose_and_message() {
        let (ours, other) = (Secret::new([1; BYTES]), Secret::new([2; BYTES]));
        let proof = ours.prove("a", &[b"message"]);
        assert!(ours.verify("a", &[b"mess", b"age"], &proof));
        assert!(!ours.verify("b", &[b"message"], &proof));
        assert!(!ours.verify("a", &[b"massage"], &proof));
        assert!(!other.verify("a", &[b"message"], &proof));
        assert!(!ours.verify("a", &[b"message"], &proof[..31]));
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }

    #[test]
    fn debug_output_does_not_show_the_secret() {
        assert_eq!(format!("{:?}", Secret::new([7; BYTES])), "Secret(..)");
    }
}
