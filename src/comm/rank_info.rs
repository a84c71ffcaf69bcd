//! What a rank tells all other ranks when a communicator is set up.

use maypole_transport::host::HostId;

use crate::device::setup::device_info::DeviceInfo;
use crate::process::ProcessIdentity;

/// The host on which a rank runs, and its share of the cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RankHost {
    /// The host's name, for messages.
    pub(super) name: String,
    /// Equal for ranks that seem to be on one host, before anything is proven.
    seeming: HostId,
    /// Equal for ranks that are proven to be on one host. It is not told, but found out.
    proven: HostId,
    /// The number of cores that the rank may keep busy: those it is bound to, or what a quota
    /// leaves of them.
    cores: u32,
    /// The cores that the rank is bound to, one bit each, as the kernel numbers them. Empty if that
    /// is unknown.
    bound: Vec<u8>,
}

/// What a rank tells all other ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RankInfo {
    pub(super) host: RankHost,
    pub(super) process: ProcessIdentity,
    /// The address of the rank's endpoint.
    pub(super) address: Vec<u8>,
    /// The address of the rank's [`RejoinListener`](crate::bootstrap::RejoinListener).
    pub(super) rejoin_address: Vec<u8>,
    /// The node that the user assigned the rank to; empty if its host decides that.
    pub(super) node: String,
    /// The settings that must agree.
    pub(super) settings: String,
    /// What a rank on a CUDA device adds.
    pub(super) device: Option<DeviceInfo>,
}

impl RankHost {
    /// The host of this process.
    pub(super) fn current() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |c| c.get() as u32);
        Self {
            name: crate::logger::host_name().to_owned(),
            seeming: HostId::current(),
            proven: UNPROVEN,
            cores,
            bound: bound_cores(),
        }
    }

    /// The number of cores that ranks of one host have together: each may be bound to other cores.
    pub(super) fn cores<'a>(ranks: impl Iterator<Item = &'a Self>) -> usize {
        let (mut union, mut most, mut quota) = (Vec::new(), 1, u32::MAX);
        for Self { cores, bound, .. } in ranks {
            union.resize(bound.len().max(union.len()), 0);
            union.iter_mut().zip(bound).for_each(|(all, own)| *all |= own);
            most = most.max(*cores);
            if *cores < count_ones(bound) {
                quota = quota.min(*cores);
            }
        }
        count_ones(&union).max(most).min(quota).max(1) as usize
    }

    /// Sets what was proven.
    pub(super) fn set_proven(&mut self, host: HostId) {
        self.proven = host;
    }

    /// Whether ranks of the two are proven to be on one host: they share memory, and see each
    /// other's processes.
    pub(super) fn same_machine(&self, other: &Self) -> bool {
        self.proven == other.proven && self.proven != UNPROVEN
    }

    /// Whether ranks of the two, which are on one host, may be bound to a core in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let unknown = self.bound.is_empty() || other.bound.is_empty();
        unknown || self.bound.iter().zip(&other.bound).any(|(own, theirs)| own & theirs != 0)
    }

    /// Whether ranks of the two may share cores, as far as is known.
    pub(super) fn may_share_cores(&self, other: &Self) -> bool {
        self.seeming == other.seeming
    }
}

/// A host of which nothing is proven yet.
const UNPROVEN: HostId = HostId::from_bytes([0xff; 16]);

/// The cores that this thread may run on.
fn bound_cores() -> Vec<u8> {
    // SAFETY: all zeros are a valid set, and the kernel writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) == 0).then_some(set)
    };
    let Some(set) = set else { return Vec::new() };
    let one = |byte: usize, bit| {
        // SAFETY: the number is less than the number of bits of a set.
        u8::from(unsafe { libc::CPU_ISSET(8 * byte + bit, &set) }) << bit
    };
    let mut bytes: Vec<u8> =
        (0..size_of_val(&set)).map(|byte| (0..8).map(|bit| one(byte, bit)).sum()).collect();
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
    bytes
}

fn count_ones(bits: &[u8]) -> u32 {
    bits.iter().map(|byte| byte.count_ones()).sum()
}

impl RankInfo {
    /// Encodes each field as a 16-bit length and that many bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let cores = self.host.cores.to_le_bytes();
        let process = self.process.to_bytes();
        let device = self.device.as_ref().map_or(Vec::new(), DeviceInfo::to_bytes);
        let fields: [&[u8]; 10] = [
            self.host.name.as_bytes(),
            self.host.seeming.bytes(),
            &cores,
            &self.host.bound,
            &process,
            &self.address,
            &self.rejoin_address,
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

    /// Equal for ranks on one node. The flag tells the user's node names from identities of hosts.
    pub(super) fn node(&self) -> (bool, &[u8]) {
        match &self.node[..] {
            "" => (false, self.host.proven.bytes()),
            node => (true, node.as_bytes()),
        }
    }

    /// Decodes what [`to_bytes`](Self::to_bytes) wrote; None if it did not.
    pub(super) fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut field = || {
            let (len, rest) = bytes.split_first_chunk()?;
            let (field, rest) = rest.split_at_checked(u16::from_le_bytes(*len) as usize)?;
            bytes = rest;
            Some(field.to_vec())
        };
        let name = String::from_utf8(field()?).ok()?;
        let seeming = HostId::from_bytes(field()?.try_into().ok()?);
        let cores = u32::from_le_bytes(field()?.try_into().ok()?).max(1);
        let bound = field()?;
        let process = ProcessIdentity::from_bytes(&field()?)?;
        let address = field()?;
        let rejoin_address = field()?;
        let node = String::from_utf8(field()?).ok()?;
        let settings = String::from_utf8(field()?).ok()?;
        let device = match field()? {
            none if none.is_empty() => None,
            some => Some(DeviceInfo::from_bytes(&some)?),
        };
        let host = RankHost { name, seeming, proven: UNPROVEN, cores, bound };
        bytes.is_empty().then_some(Self {
            host,
            process,
            address,
            rejoin_address,
            node,
            settings,
            device,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maypole_transport::conformance::fuzz::rounds;

    #[test]
    fn rank_info_is_read_as_written_and_refused_if_damaged() {
        let info = RankInfo {
            host: RankHost::current(),
            process: ProcessIdentity::current(),
            address: vec![1, 2, 3],
            rejoin_address: vec![4],
            node: "n".to_owned(),
            settings: "a=b".to_owned(),
            device: None,
        };
        let bytes = info.to_bytes();
        assert_eq!(RankInfo::from_bytes(&bytes), Some(info));
        for len in 0..bytes.len() {
            assert_eq!(RankInfo::from_bytes(&bytes[..len]), None);
        }
        assert_eq!(RankInfo::from_bytes(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn ranks_that_are_bound_to_different_cores_add_them_up() {
        let here = RankHost::current();
        let host = |cores, bound: &[u8]| RankHost { cores, bound: bound.to_vec(), ..here.clone() };
        let cores = |hosts: &[RankHost]| RankHost::cores(hosts.iter());
        assert_eq!(cores(&[host(1, &[1]), host(1, &[2])]), 2);
        assert_eq!(cores(&[host(1, &[1]), host(1, &[1])]), 1);
        assert_eq!(cores(&[host(1, &[1]), host(1, &[0, 0x80])]), 2);
        assert_eq!(cores(&[host(4, &[15]), host(4, &[15])]), 4);
        // A quota of two of the four cores.
        assert_eq!(cores(&[host(2, &[15]), host(2, &[15])]), 2);
        // The bound cores are unknown.
        assert_eq!(cores(&[host(8, &[]), host(8, &[])]), 8);
        assert_eq!(count_ones(&here.bound).min(here.cores), here.cores);
        let overlap = |own: &[u8], theirs: &[u8]| host(1, own).overlaps(&host(1, theirs));
        assert!(overlap(&[6], &[12]) && overlap(&[0, 1], &[1, 1]));
        assert!(!overlap(&[1], &[2]) && !overlap(&[0, 1], &[1]));
        assert!(overlap(&[], &[1]) && overlap(&[1], &[]), "an unknown core may be any");
    }

    #[test]
    fn fuzz_rank_info() {
        let valid = RankInfo {
            host: RankHost::current(),
            process: ProcessIdentity::current(),
            address: vec![7; 61],
            rejoin_address: vec![9; 40],
            node: String::new(),
            settings: "NCCL_ALGO=ring".to_owned(),
            device: DeviceInfo::from_bytes(&[5; 28 + 73 + 32].map(|_| 1)),
        };
        assert!(valid.device.is_some());
        let valid = valid.to_bytes();
        rounds(|random| {
            let bytes = random.damaged(&valid, &[0xc3; 50]);
            let Some(info) = RankInfo::from_bytes(&bytes) else { return };
            // What was read encodes to as many bytes, which read the same.
            let again = info.to_bytes();
            assert!(again.len() == bytes.len());
            assert_eq!(RankInfo::from_bytes(&again), Some(info));
        });
    }
}
