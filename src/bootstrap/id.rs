//! The unique id: 128 bytes that one rank makes and all ranks need, to find the root and to prove themselves to it.
//!
//! ```text
//!   0   "MAYPOLE" and the version of this layout            8
//!   8   flags: 1 = the address was given by NCCL_COMM_ID,   1
//!              2 = it is a place where one root follows another
//!   9   secret                                             32
//!  41   host tag, count, addresses of the root             79, unused bytes are zero
//! 120   checksum: start of the SHA-256 of all before        8
//! ```
//!
//! Whoever has the id can join: treat it like a password.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

use sha2::{Digest, Sha256};

use super::address::{self, MOST_ADDRESSES, Reach};
use super::error::{BootstrapError, Options};
use super::root;
use super::secret::{self, BYTES, Secret};
use super::wire::Take;
use crate::config::{Config, HostPort};

/// Bytes of a unique id, as `NCCL_UNIQUE_ID_BYTES`.
pub const UNIQUE_ID_BYTES: usize = 128;

const MAGIC: [u8; 8] = *b"MAYPOLE\x01";
const FLAGS_AT: usize = 8;
const SECRET_AT: usize = 9;
const REACH_AT: usize = SECRET_AT + BYTES;
const CHECKSUM_AT: usize = UNIQUE_ID_BYTES - 8;
/// The root is not started by the id's maker but by rank 0 when it joins.
const FIXED: u8 = 1;
/// At the address there may still be the root of an earlier id.
const FOLLOWS: u8 = 2;
/// Fewest bytes of `MAYPOLE_SECRET_FILE`.
const LEAST_SECRET: usize = 16;

/// Names one communicator to be: made once, passed to every rank.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId {
    bytes: [u8; UNIQUE_ID_BYTES],
}

/// What an id says.
#[derive(Clone)]
pub(super) struct Contents {
    pub(super) secret: Secret,
    pub(super) reach: Reach,
    /// Rank 0 starts the root.
    pub(super) fixed: bool,
    /// The root of an earlier id may still be there.
    pub(super) follows: bool,
}

impl UniqueId {
    /// Makes an id and starts its root: a thread of this process that ends when all ranks have joined, when their
    /// deadline passes, or when nobody comes for an hour. With `NCCL_COMM_ID` set nothing is started: the id
    /// follows from that address and `MAYPOLE_SECRET_FILE`, and rank 0 will start the root when it joins.
    pub fn create() -> Result<Self, BootstrapError> {
        Self::create_with(&Options::default())
    }

    /// As [`create`](Self::create), with the time after which missing ranks are named.
    pub fn create_with(options: &Options) -> Result<Self, BootstrapError> {
        let config = Config::get();
        if let Some(place) = &config.comm_id {
            return Self::fixed(place, config);
        }
        let secret = secret::random()?;
        let (listeners, reach) = address::listen()?;
        root::start(Secret::new(secret), listeners, options, None)?;
        Ok(Self::assemble(0, &secret, &reach))
    }

    /// The bytes to pass to the other ranks.
    pub fn to_bytes(self) -> [u8; UNIQUE_ID_BYTES] {
        self.bytes
    }

    /// The id of these bytes.
    ///
    /// # Errors
    /// [`BootstrapError::NotAnId`] if they were not made by [`create`](Self::create) or were damaged on the way.
    pub fn from_bytes(bytes: [u8; UNIQUE_ID_BYTES]) -> Result<Self, BootstrapError> {
        let id = Self { bytes };
        id.contents().map(|_| id)
    }

    pub(super) fn contents(&self) -> Result<Contents, BootstrapError> {
        let not = |why| BootstrapError::NotAnId { why };
        if self.bytes[..7] != MAGIC[..7] {
            return Err(not("it does not begin like one"));
        }
        if self.bytes[7] != MAGIC[7] {
            return Err(not("it was made by another version of the library"));
        }
        if self.bytes[CHECKSUM_AT..] != checksum(&self.bytes[..CHECKSUM_AT]) {
            return Err(not("its checksum is wrong"));
        }
        let mut secret = [0; BYTES];
        secret.copy_from_slice(&self.bytes[SECRET_AT..REACH_AT]);
        let reach = Reach::decode(&mut Take::new(&self.bytes[REACH_AT..CHECKSUM_AT]))
            .filter(|reach| !reach.addresses.is_empty())
            .ok_or(not("it holds no address"))?;
        Ok(Contents {
            secret: Secret::new(secret),
            reach,
            fixed: self.bytes[FLAGS_AT] & FIXED != 0,
            follows: self.bytes[FLAGS_AT] & FOLLOWS != 0,
        })
    }

    fn fixed(place: &HostPort, config: &Config) -> Result<Self, BootstrapError> {
        let Some(file) = &config.secret_file else {
            return Err(BootstrapError::Setting {
                variable: "NCCL_COMM_ID",
                why: String::from(
                    "an address alone would let anyone join; set MAYPOLE_SECRET_FILE to a file of at least 16 secret \
                     bytes, the same for all ranks",
                ),
            });
        };
        let text = std::fs::read(file).map_err(|error| BootstrapError::Setting {
            variable: "MAYPOLE_SECRET_FILE",
            why: format!("{}: {error}", file.display()),
        })?;
        if text.len() < LEAST_SECRET {
            return Err(BootstrapError::Setting {
                variable: "MAYPOLE_SECRET_FILE",
                why: format!("{} has {} bytes; at least 16 are needed", file.display(), text.len()),
            });
        }
        let secret = Secret::new(Sha256::digest(&text).into()).prove("comm id", &[]);
        let addresses = (place.host.as_str(), place.port).to_socket_addrs().map_err(|error| {
            BootstrapError::Setting {
                variable: "NCCL_COMM_ID",
                why: format!("{}: {error}", place.host),
            }
        })?;
        let addresses: Vec<SocketAddr> = addresses.take(MOST_ADDRESSES).collect();
        Ok(Self::assemble(FIXED, &secret, &Reach { host_tag: 0, addresses }))
    }

    /// The id of a root that is, or will be, at `reach`, perhaps after others.
    pub(super) fn at(secret: &[u8; BYTES], reach: &Reach) -> Self {
        Self::assemble(FOLLOWS, secret, reach)
    }

    fn assemble(flags: u8, secret: &[u8; BYTES], reach: &Reach) -> Self {
        let mut bytes = Vec::with_capacity(UNIQUE_ID_BYTES);
        bytes.extend(MAGIC);
        bytes.push(flags);
        bytes.extend(secret);
        reach.encode(&mut bytes, CHECKSUM_AT - REACH_AT);
        bytes.resize(CHECKSUM_AT, 0);
        bytes.extend(checksum(&bytes));
        let mut id = [0; UNIQUE_ID_BYTES];
        id.copy_from_slice(&bytes);
        Self { bytes: id }
    }
}

impl fmt::Debug for UniqueId {
    /// Shows where the root is, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.contents().map(|contents| contents.reach.addresses);
        f.debug_struct("UniqueId").field("root", &addresses).finish_non_exhaustive()
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(bytes);
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What belongs at the end of these bytes.
    pub(in super::super) fn checksum_of(bytes: &[u8; UNIQUE_ID_BYTES]) -> [u8; 8] {
        checksum(&bytes[..CHECKSUM_AT])
    }

    /// An id whose root rank 0 starts at this port.
    pub(in super::super) fn fixed_at(port: u16) -> UniqueId {
        let addresses = vec![SocketAddr::from(([127, 0, 0, 1], port))];
        UniqueId::assemble(FIXED, &[8; BYTES], &Reach { host_tag: 0, addresses })
    }

    fn id() -> UniqueId {
        let reach = Reach { host_tag: 5, addresses: vec!["10.0.0.1:7".parse().unwrap()] };
        UniqueId::assemble(FIXED, &[3; BYTES], &reach)
    }

    #[test]
    fn says_what_it_was_made_of() {
        let id = UniqueId::from_bytes(id().to_bytes()).unwrap();
        let contents = id.contents().unwrap();
        assert!(contents.fixed);
        assert_eq!(contents.reach.addresses[0].port(), 7);
        assert!(!format!("{id:?}").contains("3, 3"));
    }

    proptest! {
        #[test]
        fn damage_is_seen(at in 0..UNIQUE_ID_BYTES, flip in 1..=255_u8) {
            let mut bytes = id().to_bytes();
            bytes[at] ^= flip;
            let refused = matches!(UniqueId::from_bytes(bytes), Err(BootstrapError::NotAnId { .. }));
            prop_assert!(refused);
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

    #[test]
    fn an_address_alone_is_refused() {
        let place = HostPort { host: "127.0.0.1".into(), port: 9 };
        let error = UniqueId::fixed(&place, &Config::default()).unwrap_err();
        assert!(error.to_string().contains("MAYPOLE_SECRET_FILE"));
    }

    #[test]
    fn ids_of_one_address_and_file_are_equal() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let place = HostPort { host: "127.0.0.1".into(), port: 9 };
        let config = Config { secret_file: Some(file.path().to_owned()), ..Config::default() };
        assert!(UniqueId::fixed(&place, &config).unwrap_err().to_string().contains("at least 16"));
        std::fs::write(file.path(), [7; 16]).unwrap();
        let ids = [(); 2].map(|()| UniqueId::fixed(&place, &config).unwrap());
        assert_eq!(ids[0], ids[1]);
    }
}
