//! Which host this is: ranks with the same answer can pass each other memory.

use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

/// A digest of the running kernel and the network namespace (in which the names of sockets hold).
pub(crate) type HostId = [u8; 16];

/// This process' host.
pub(crate) fn id() -> HostId {
    let mut digest = Sha256::new().chain_update(b"maypole host 1");
    for kernel in ["/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname"] {
        digest.update(std::fs::read(kernel).unwrap_or_default());
    }
    if let Ok(namespace) = std::fs::metadata("/proc/self/ns/net") {
        digest.update(namespace.dev().to_le_bytes());
        digest.update(namespace.ino().to_le_bytes());
    }
    let digest: [u8; 32] = digest.finalize().into();
    std::array::from_fn(|at| digest[at])
}
