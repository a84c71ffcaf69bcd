//! A rank's card: what all ranks need to know of it at init.

use crate::device::setup::device_info::DeviceInfo;
use crate::process::ProcessIdentity;

/// Where a rank runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// The host's name, for people.
    pub(super) name: String,
    /// What ranks share that can pass memory to each other: the running kernel and its network namespace.
    identity: String,
    /// How many cores the rank may keep busy: those it is bound to, or what a quota leaves of them.
    cores: u32,
    /// Which cores the rank is bound to: a bit each, as the kernel has them. Empty where that is unknown.
    bound: Vec<u8>,
}

/// What a rank tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RankInfo {
    pub(super) host: Host,
    pub(super) process: ProcessIdentity,
    /// Where the rank's endpoint is reached.
    pub(super) address: Vec<u8>,
    /// Where the rank can be met again, see [`RejoinListener`](crate::bootstrap::RejoinListener).
    pub(super) meeting: Vec<u8>,
    /// What the user says of which node the rank is on; empty if that is by its host.
    pub(super) node: String,
    /// Settings that must agree.
    pub(super) settings: String,
    /// Of a rank on a CUDA device.
    pub(super) device: Option<DeviceInfo>,
}

impl Host {
    /// This process' host.
    pub(super) fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
        let boot = read("/proc/sys/kernel/random/boot_id");
        let cores = std::thread::available_parallelism().map_or(1, |c| c.get() as u32);
        Self {
            name: read("/proc/sys/kernel/hostname"),
            identity: format!("{boot} {}", network.display()),
            cores,
            bound: bound(),
        }
    }

    /// How many cores ranks of one host have together: each of them may be bound to another one.
    pub(super) fn cores<'a>(ranks: impl Iterator<Item = &'a Self>) -> usize {
        let (mut union, mut most, mut quota) = (Vec::new(), 1, u32::MAX);
        for Self { cores, bound, .. } in ranks {
            union.resize(bound.len().max(union.len()), 0);
            union.iter_mut().zip(bound).for_each(|(all, own)| *all |= own);
            most = most.max(*cores);
            if *cores < ones(bound) {
                quota = quota.min(*cores);
            }
        }
        ones(&union).max(most).min(quota).max(1) as usize
    }

    /// What is equal where memory can be passed.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether memory can be passed between the two.
    pub(super) fn same_machine(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// The cores that this thread may run on.
fn bound() -> Vec<u8> {
    // SAFETY: an all-zero set is a valid one, and the kernel writes no more than its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) == 0).then_some(set)
    };
    let Some(set) = set else { return Vec::new() };
    let one = |byte: usize, bit| {
        // SAFETY: the number is below that of the bits of a set.
        u8::from(unsafe { libc::CPU_ISSET(8 * byte + bit, &set) }) << bit
    };
    let mut bytes: Vec<u8> =
        (0..size_of_val(&set)).map(|byte| (0..8).map(|bit| one(byte, bit)).sum()).collect();
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
    bytes
}

fn ones(bits: &[u8]) -> u32 {
    bits.iter().map(|byte| byte.count_ones()).sum()
}

impl RankInfo {
    /// Fields as a 16-bit length and that many bytes each.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let cores = self.host.cores.to_le_bytes();
        let process = self.process.to_bytes();
        let device = self.device.as_ref().map_or(Vec::new(), DeviceInfo::to_bytes);
        let fields: [&[u8]; 10] = [
            self.host.name.as_bytes(),
            self.host.identity.as_bytes(),
            &cores,
            &self.host.bound,
            &process,
            &self.address,
            &self.meeting,
            self.node.as_bytes(),
            self.settings.as_bytes(),
            &device,
        ];
        let mut bytes = Vec::new();
        for field in fields {
            let field = &field[..field.len().min(u16::MAX as usize)];
            bytes.extend((field.len() as u16).to_le_bytes());
            bytes.extend(field);
        }
        bytes
    }

    /// What is equal on one node: by the user's words, or by the host, which are never the same.
    pub(super) fn node(&self) -> (bool, &str) {
        match &self.node[..] {
            "" => (false, self.host.identity()),
            node => (true, node),
        }
    }

    /// None if `bytes` is no card.
    pub(super) fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut field = || {
            let (len, rest) = bytes.split_first_chunk()?;
            let (field, rest) = rest.split_at_checked(u16::from_le_bytes(*len) as usize)?;
            bytes = rest;
            Some(field.to_vec())
        };
        let name = String::from_utf8(field()?).ok()?;
        let identity = String::from_utf8(field()?).ok()?;
        let cores = u32::from_le_bytes(field()?.try_into().ok()?).max(1);
        let bound = field()?;
        let process = ProcessIdentity::from_bytes(&field()?)?;
        let address = field()?;
        let meeting = field()?;
        let node = String::from_utf8(field()?).ok()?;
        let settings = String::from_utf8(field()?).ok()?;
        let device = match field()? {
            none if none.is_empty() => None,
            some => Some(DeviceInfo::from_bytes(&some)?),
        };
        let host = Host { name, identity, cores, bound };
        bytes.is_empty().then_some(Self { host, process, address, meeting, node, settings, device })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maypole_transport::conformance::fuzz::rounds;

    #[test]
    fn a_card_survives_the_wire_and_a_damaged_one_is_refused() {
        let card = RankInfo {
            host: Host::here(),
            process: ProcessIdentity::current(),
            address: vec![1, 2, 3],
            meeting: vec![4],
            node: "n".to_owned(),
            settings: "a=b".to_owned(),
            device: None,
        };
        let bytes = card.to_bytes();
        assert_eq!(RankInfo::from_bytes(&bytes), Some(card));
        for len in 0..bytes.len() {
            assert_eq!(RankInfo::from_bytes(&bytes[..len]), None);
        }
        assert_eq!(RankInfo::from_bytes(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn ranks_bound_to_cores_of_their_own_are_not_crowded() {
        let here = Host::here();
        let host = |cores, bound: &[u8]| Host { cores, bound: bound.to_vec(), ..here.clone() };
        let cores = |hosts: &[Host]| Host::cores(hosts.iter());
        assert_eq!(cores(&[host(1, &[1]), host(1, &[2])]), 2);
        assert_eq!(cores(&[host(1, &[1]), host(1, &[1])]), 1);
        assert_eq!(cores(&[host(1, &[1]), host(1, &[0, 0x80])]), 2);
        assert_eq!(cores(&[host(4, &[15]), host(4, &[15])]), 4);
        // Two of four cores' worth of time.
        assert_eq!(cores(&[host(2, &[15]), host(2, &[15])]), 2);
        // What a rank is bound to is unknown.
        assert_eq!(cores(&[host(8, &[]), host(8, &[])]), 8);
        assert_eq!(ones(&here.bound).min(here.cores), here.cores);
    }

    #[test]
    fn fuzz_cards() {
        let valid = RankInfo {
            host: Host::here(),
            process: ProcessIdentity::current(),
            address: vec![7; 61],
            meeting: vec![9; 40],
            node: String::new(),
            settings: "NCCL_ALGO=ring".to_owned(),
            device: DeviceInfo::from_bytes(&[5; 28 + 73 + 32].map(|_| 1)),
        };
        assert!(valid.device.is_some());
        let valid = valid.to_bytes();
        rounds(|random| {
            let bytes = random.damaged(&valid, &[0xc3; 50]);
            let Some(card) = RankInfo::from_bytes(&bytes) else { return };
            // What was read is in the bytes, no more, and is read again.
            let again = card.to_bytes();
            assert!(again.len() == bytes.len());
            assert_eq!(RankInfo::from_bytes(&again), Some(card));
        });
    }
}
