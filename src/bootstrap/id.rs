//! The unique id: 128 bytes that one rank makes and all ranks need to find the bootstrap root and
//! to prove themselves to it. This module has the layout of the bytes; `create` makes ids.
//!
//! ```text
//!   0   "MAYPOLE" and the version of this layout            8
//!   8   flags: 1 = the address was given by NCCL_COMM_ID,   1
//!              2 = the address is a rejoin listener, where one root follows another
//!   9   secret                                             32
//!  41   host tag, count, addresses of the root             79, unused bytes are zero
//! 120   checksum: start of the SHA-256 of all before        8
//! ```
//!
//! Everyone who has the id can join the communicator, so treat it like a password.

use std::fmt;
use std::net::SocketAddr;

use maypole_control::codec::ByteReader;
use maypole_control::listener_addresses::ListenerAddresses;
use maypole_transport::noise::{KEY_BYTES, Key, sha256};

use super::error::BootstrapError;

/// Bytes of a unique id, as `NCCL_UNIQUE_ID_BYTES`.
pub const UNIQUE_ID_BYTES: usize = 128;

const MAGIC: [u8; 8] = *b"MAYPOLE\x01";
const FLAGS_AT: usize = 8;
const SECRET_AT: usize = 9;
const REACH_AT: usize = SECRET_AT + KEY_BYTES;
const CHECKSUM_AT: usize = UNIQUE_ID_BYTES - 8;
/// Flag: rank 0 starts the root when it joins, instead of the rank that made the id.
const FIXED: u8 = 1;
/// Flag: the root of an earlier id may still listen at the address.
const FOLLOWS: u8 = 2;

/// Identifies a communicator that is to be made. One rank makes the id and passes it to all ranks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId {
    bytes: [u8; UNIQUE_ID_BYTES],
}

/// The contents of an id.
#[derive(Clone)]
pub(super) struct UniqueIdContents {
    pub(super) secret: Key,
    /// Where the root listens.
    pub(super) root: ListenerAddresses,
    /// Whether rank 0 starts the root.
    pub(super) fixed: bool,
    /// Whether the root of an earlier id may still listen there.
    pub(super) follows: bool,
}

impl UniqueId {
    /// The bytes to pass to the other ranks.
    pub fn to_bytes(self) -> [u8; UNIQUE_ID_BYTES] {
        self.bytes
    }

    /// Reads an id from the bytes of another rank.
    ///
    /// # Errors
    /// [`BootstrapError::NotAnId`] if the bytes are not those of an id, or were damaged.
    pub fn from_bytes(bytes: [u8; UNIQUE_ID_BYTES]) -> Result<Self, BootstrapError> {
        let id = Self { bytes };
        id.contents().map(|_| id)
    }

    /// Reads the contents of the id.
    pub(super) fn contents(&self) -> Result<UniqueIdContents, BootstrapError> {
        let error = |why| BootstrapError::NotAnId { why };
        if self.bytes[..7] != MAGIC[..7] {
            return Err(error("it begins differently"));
        }
        if self.bytes[7] != MAGIC[7] {
            return Err(error("it was made by another version of the library"));
        }
        if self.bytes[CHECKSUM_AT..] != checksum(&self.bytes[..CHECKSUM_AT]) {
            return Err(error("its checksum is wrong"));
        }
        let secret = Key::filled(|key| key.copy_from_slice(&self.bytes[SECRET_AT..REACH_AT]));
        let root =
            ListenerAddresses::decode(&mut ByteReader::new(&self.bytes[REACH_AT..CHECKSUM_AT]))
                .filter(|root| !root.addresses.is_empty())
                .ok_or(error("it holds no address"))?;
        Ok(UniqueIdContents {
            secret,
            root,
            fixed: self.bytes[FLAGS_AT] & FIXED != 0,
            follows: self.bytes[FLAGS_AT] & FOLLOWS != 0,
        })
    }

    /// The id of a root at a rejoin listener, where other roots may have been before.
    pub(super) fn at_listener(secret: &Key, root: &ListenerAddresses) -> Self {
        Self::assemble(FOLLOWS, secret, root)
    }

    /// The id whose rank 0 starts the root, at an address of the choice of the user.
    pub(super) fn at_fixed_address(secret: &Key, addresses: Vec<SocketAddr>) -> Self {
        Self::assemble(FIXED, secret, &ListenerAddresses { host_tag: 0, addresses })
    }

    /// The id of a root that runs already.
    pub(super) fn of_running_root(secret: &Key, root: &ListenerAddresses) -> Self {
        Self::assemble(0, secret, root)
    }

    fn assemble(flags: u8, secret: &Key, root: &ListenerAddresses) -> Self {
        let mut bytes = Vec::with_capacity(UNIQUE_ID_BYTES);
        bytes.extend(MAGIC);
        bytes.push(flags);
        bytes.extend(secret.bytes());
        root.encode(&mut bytes, CHECKSUM_AT - REACH_AT);
        bytes.resize(CHECKSUM_AT, 0);
        bytes.extend(checksum(&bytes));
        let mut id = [0; UNIQUE_ID_BYTES];
        id.copy_from_slice(&bytes);
        Self { bytes: id }
    }
}

impl fmt::Debug for UniqueId {
    /// Shows where the root is, and not the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.contents().map(|contents| contents.root.addresses);
        f.debug_struct("UniqueId").field("root", &addresses).finish_non_exhaustive()
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let digest = sha256(&[bytes]);
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The checksum that belongs at the end of these bytes.
    pub(in super::super) fn checksum_of(bytes: &[u8; UNIQUE_ID_BYTES]) -> [u8; 8] {
        checksum(&bytes[..CHECKSUM_AT])
    }

    /// An id whose root rank 0 starts at this port.
    pub(in super::super) fn fixed_at(port: u16) -> UniqueId {
        let addresses = vec![SocketAddr::from(([127, 0, 0, 1], port))];
        UniqueId::at_fixed_address(&[8; KEY_BYTES].into(), addresses)
    }

    fn id() -> UniqueId {
        let reach =
            ListenerAddresses { host_tag: 5, addresses: vec!["10.0.0.1:7".parse().unwrap()] };
        UniqueId::assemble(FIXED, &[3; KEY_BYTES].into(), &reach)
    }

    #[test]
    fn an_id_contains_what_it_was_made_of() {
        let id = UniqueId::from_bytes(id().to_bytes()).unwrap();
        let contents = id.contents().unwrap();
        assert!(contents.fixed);
        assert_eq!(contents.root.addresses[0].port(), 7);
        assert!(!format!("{id:?}").contains("3, 3"));
    }

    proptest! {
        #[test]
        fn damage_is_detected(at in 0..UNIQUE_ID_BYTES, flip in 1..=255_u8) {
            let mut bytes = id().to_bytes();
            bytes[at] ^= flip;
            let result = UniqueId::from_bytes(bytes);
            let is_refused = matches!(result, Err(BootstrapError::NotAnId { .. }));
            prop_assert!(is_refused);
        }

        #[test]
        fn contents_with_a_right_checksum_never_panic(mut bytes: Vec<u8>) {
            bytes.resize(UNIQUE_ID_BYTES, 0xff);
            let mut bytes: [u8; UNIQUE_ID_BYTES] = bytes.try_into().unwrap();
            bytes[..8].copy_from_slice(&MAGIC);
            let sum = checksum(&bytes[..CHECKSUM_AT]);
            bytes[CHECKSUM_AT..].copy_from_slice(&sum);
            let _ = UniqueId::from_bytes(bytes);
        }
    }
}
