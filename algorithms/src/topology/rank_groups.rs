//! Which ranks of a host belong together: those whose processors share a socket, a NUMA node or a
//! third-level cache.

use super::cpu_set::CpuSet;
use super::machine::Machine;

/// A part of a machine that ranks may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedPart {
    /// A socket.
    Socket,
    /// A NUMA node.
    NumaNode,
    /// A third-level cache.
    L3,
}

/// The ranks of a host, grouped by a part of the machine that they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankGroups {
    /// By rank the number of its group, from 0 in the order of appearance.
    pub groups: Vec<u32>,
}

impl RankGroups {
    /// Groups ranks by the processors that each may run on. None if that does not divide them: if a
    /// rank may run on several parts, if a part is not known, or if all ranks share one part.
    pub fn new(machine: &Machine, ranks: &[CpuSet], part: SharedPart) -> Option<Self> {
        let parts: Vec<CpuSet> = match part {
            SharedPart::Socket => machine.sockets().into_iter().map(|(_, cpus)| cpus).collect(),
            SharedPart::NumaNode => machine.nodes.iter().map(|node| node.cpus.clone()).collect(),
            SharedPart::L3 => machine.l3_groups(),
        };
        let mut seen: Vec<usize> = Vec::new();
        let mut groups = Vec::new();
        for cpus in ranks {
            let part = parts.iter().position(|part| cpus.is_subset(part) && !cpus.is_empty())?;
            let group = seen.iter().position(|known| *known == part);
            groups.push(group.unwrap_or(seen.len()) as u32);
            if group.is_none() {
                seen.push(part);
            }
        }
        (seen.len() > 1).then_some(Self { groups })
    }

    /// How many groups there are.
    pub fn count(&self) -> u32 {
        self.groups.iter().max().map_or(0, |last| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LogicalCpu, NumaNode};
    use super::*;

    /// Two sockets, two NUMA nodes, four caches, eight cores.
    fn machine() -> Machine {
        let cpu = |number: u32| LogicalCpu {
            number,
            socket: number / 4,
            core: number % 4,
            node: Some(number / 4),
            l3: Some(number / 2 * 2),
        };
        let node = |number: u32| NumaNode {
            number: Some(number),
            cpus: (number * 4..number * 4 + 4).collect(),
            ..NumaNode::default()
        };
        Machine { nodes: vec![node(0), node(1)], cpus: (0..8).map(cpu).collect() }
    }

    #[test]
    fn bound_ranks_are_grouped_by_what_they_share() {
        let machine = machine();
        let groups = |part, lists: &[&str]| {
            let ranks: Vec<_> = lists.iter().map(|list| CpuSet::from_list(list).unwrap()).collect();
            RankGroups::new(&machine, &ranks, part).map(|it| it.groups)
        };
        let numa = SharedPart::NumaNode;
        assert_eq!(groups(numa, &["4", "5-6", "0-3", "7"]), Some(vec![0, 0, 1, 0]));
        assert_eq!(groups(SharedPart::Socket, &["0", "1", "4"]), Some(vec![0, 0, 1]));
        assert_eq!(groups(SharedPart::L3, &["0-1", "2", "3", "6"]), Some(vec![0, 1, 1, 2]));
        // One rank may run anywhere, all share a node, a rank has no processors.
        assert_eq!(groups(numa, &["0", "0-7"]), None);
        assert_eq!(groups(numa, &["0", "3"]), None);
        assert_eq!(groups(numa, &["0", ""]), None);
        assert_eq!(groups(SharedPart::L3, &["0-2", "4"]), None);
        assert_eq!(
            (machine.cores(), machine.l3_groups().len(), machine.sockets().len()),
            (8, 4, 2)
        );
        let unknown = Machine { cpus: Vec::new(), ..machine.clone() };
        let ranks = ["0", "4"].map(|list| CpuSet::from_list(list).unwrap());
        assert_eq!(RankGroups::new(&unknown, &ranks, SharedPart::L3), None);
        assert_eq!(RankGroups::new(&unknown, &ranks, numa).map(|it| it.count()), Some(2));
    }
}
