//! Which ranks run on one host, that is, may share memory and see each other's processes: the only
//! notion of it in the library.
//!
//! A [`HostId`] that a process computes of itself is a hint: it differs for most hosts, but not for
//! machines that were resumed from one snapshot, or where the kernel hides what it is made of.
//! Before ranks rely on it they prove it, by a random word that each reads from memory of the other
//! ([`Endpoint::prove_host`](crate::endpoint::Endpoint::prove_host)).

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use crate::Rank;
use crate::noise::sha256;

/// Equal for processes that seem to run on one host; after a proof, for ranks that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId([u8; 16]);

impl HostId {
    /// The host of this process as it seems: its running kernel, and the network namespace, which
    /// is the scope of the names of abstract UNIX sockets.
    pub fn current() -> Self {
        let mut host = b"maypole host 2".to_vec();
        match std::fs::read("/proc/sys/kernel/random/boot_id") {
            Ok(boot) => host.extend(boot),
            Err(_) => host.extend(node_name()),
        }
        match std::fs::metadata("/proc/self/ns/net") {
            Ok(namespace) => {
                host.extend(namespace.dev().to_le_bytes());
                host.extend(namespace.ino().to_le_bytes());
            }
            Err(_) => host.extend(network_cookie().unwrap_or(0).to_le_bytes()),
        }
        let digest = sha256(&[&host]);
        Self(std::array::from_fn(|index| digest[index]))
    }

    /// The host of the ranks of which `lowest` is proven to be the lowest.
    pub(crate) fn proven(lowest: Rank) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&lowest.to_le_bytes());
        Self(bytes)
    }

    /// The value with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A shorter form, for where a mistake costs an attempt to connect and no more.
    pub fn tag(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|at| self.0[at]))
    }
}

/// The name of the host, which needs no file.
fn node_name() -> Vec<u8> {
    // SAFETY: all zeros is a valid value, and the structure is writable.
    let names = unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut names);
        names
    };
    names.nodename.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect()
}

/// A number of the network namespace that differs from those of other namespaces of the kernel.
fn network_cookie() -> Option<u64> {
    let socket = UnixDatagram::unbound().ok()?;
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the cookie is writable for `len` bytes.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    (status == 0).then_some(cookie)
}

/// The option by which Linux (from 5.14 on) gives the number.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_host() {
        assert_eq!(HostId::current(), HostId::current());
        assert_ne!(HostId::current(), HostId::proven(0));
        assert_ne!(HostId::proven(1), HostId::proven(0));
        let id = HostId::current();
        assert_eq!(HostId::from_bytes(*id.bytes()), id);
        assert!(network_cookie().is_some() && !node_name().is_empty());
    }
}
