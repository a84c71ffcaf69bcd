//! Names a process so that another process of the same host can find it.

use std::os::unix::fs::MetadataExt;

use maypole_transport::noise;

use super::PerProcess;
use super::watch::ProcessWatch;

/// A process, named such that another process of its host can find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: u32,
    /// A random word, which tells processes apart that have the same number in different
    /// namespaces or on different hosts.
    word: u64,
    /// The inode of the namespace in which `pid` counts. 0 if unknown.
    namespace: u64,
}

impl ProcessIdentity {
    /// This process.
    pub(crate) fn current() -> Self {
        let namespace = std::fs::metadata("/proc/self/ns/pid").map_or(0, |file| file.ino());
        Self { pid: std::process::id(), word: word(), namespace }
    }

    /// A name that no other process of this host has, now or later.
    pub(crate) fn unique_name(&self) -> String {
        format!("{}/{:016x}/{:x}", self.pid, self.word, self.namespace)
    }

    pub(crate) fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.pid.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.word.to_le_bytes());
        bytes[12..].copy_from_slice(&self.namespace.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (pid, rest) = bytes.split_first_chunk()?;
        let (word, rest) = rest.split_first_chunk()?;
        Some(Self {
            pid: u32::from_le_bytes(*pid),
            word: u64::from_le_bytes(*word),
            namespace: u64::from_le_bytes(rest.try_into().ok()?),
        })
    }

    /// Watches `other`, which runs on this host. None where this process cannot: `other` is this
    /// process, or its number means another process here, or the kernel refuses. That says nothing
    /// about `other`, not even that it has ended.
    pub(crate) fn watch(&self, other: &Self) -> Option<ProcessWatch> {
        if !self.counts_with(other) || self.pid == other.pid {
            return None;
        }
        ProcessWatch::open(other.pid).ok()
    }

    /// Whether both numbers are of one namespace, if the processes are on one host.
    pub(crate) fn counts_with(&self, other: &Self) -> bool {
        self.namespace != 0 && self.namespace == other.namespace
    }
}

/// The random word of a process. Without random numbers the number and the namespace must do.
struct RandomWord(u64);

impl Default for RandomWord {
    fn default() -> Self {
        let word = noise::random().map(|bytes| bytes.first_chunk().copied().unwrap_or_default());
        Self(word.map_or(0, u64::from_le_bytes))
    }
}

/// The random word of this process.
fn word() -> u64 {
    static WORD: PerProcess<RandomWord> = PerProcess::new();
    WORD.get().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_written() {
        let this = ProcessIdentity::current();
        assert_eq!(ProcessIdentity::from_bytes(&this.to_bytes()), Some(this));
        assert_eq!(ProcessIdentity::current(), this);
        assert_eq!(ProcessIdentity::from_bytes(&this.to_bytes()[1..]), None);
    }

    #[test]
    fn only_other_processes_of_the_namespace_are_watched() {
        let this = ProcessIdentity::current();
        let first = ProcessIdentity { pid: 1, word: 1, ..this };
        assert!(this.watch(&this).is_none());
        assert!(this.watch(&first).is_some());
        for namespace in [0, this.namespace + 1] {
            assert!(this.watch(&ProcessIdentity { namespace, ..first }).is_none());
        }
        let unknown = ProcessIdentity { namespace: 0, ..this };
        assert!(unknown.watch(&ProcessIdentity { namespace: 0, ..first }).is_none());
    }
}
