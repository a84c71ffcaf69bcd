//! Which network device each GPU and each NUMA node uses.

use super::distances::Distances;

/// The network devices that each GPU and each NUMA node of a machine uses, as indices of
/// [`Distances::networks`], the first choice first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkChoice {
    /// By GPU. Channels use them in turns.
    pub by_gpu: Vec<Vec<usize>>,
    /// By NUMA node, for ranks that use host memory. The ranks of a node use them in turns.
    pub by_node: Vec<Vec<usize>>,
}

impl NetworkChoice {
    /// Chooses as NCCL does: of the devices that are nearest to a GPU, those of the rails that fall
    /// to the GPU if the GPUs near these devices share the rails. If each GPU has one nearest
    /// device, it uses that one, so that equally numbered GPUs of all hosts are on the same rail.
    pub fn new(distances: &Distances, nodes: usize) -> Self {
        let by_gpu = (0..distances.gpus.len()).map(|gpu| devices_of_gpu(distances, gpu)).collect();
        let by_node = (0..nodes).map(|node| distances.networks_near_node(node)).collect();
        Self { by_gpu, by_node }
    }

    /// The device of the `rank`-th rank on a NUMA node. None without a device.
    pub fn of_rank(&self, node: usize, rank: usize) -> Option<usize> {
        let near = &self.by_node[node];
        near.get(rank % near.len().max(1)).copied()
    }
}

fn devices_of_gpu(distances: &Distances, gpu: usize) -> Vec<usize> {
    let near = distances.networks_near_gpu(gpu);
    let Some(&first) = near.first() else { return Vec::new() };
    let rails = rails(distances, &near);
    let sharing = distances.gpus_near_network(first).len().max(1);
    let per_gpu = rails.len().div_ceil(sharing);
    let dev = distances.gpus[gpu].dev as usize;
    let start = if rails.len().is_power_of_two() {
        mirrored(dev, rails.len())
    } else {
        dev * per_gpu % rails.len()
    };
    let mut devices = Vec::new();
    for number in start..start + per_gpu {
        devices.extend(&rails[number % rails.len()]);
    }
    devices
}

/// The devices by rail, in the order in which the rails appear; by plane within a rail.
fn rails(distances: &Distances, devices: &[usize]) -> Vec<Vec<usize>> {
    let mut rails: Vec<(u64, Vec<usize>)> = Vec::new();
    for &device in devices {
        let rail = distances.networks[device].rail;
        match rails.iter_mut().find(|(known, _)| *known == rail) {
            Some((_, members)) => members.push(device),
            None => rails.push((rail, vec![device])),
        }
    }
    for (_, members) in &mut rails {
        members.sort_by_key(|device| distances.networks[*device].plane);
    }
    rails.into_iter().map(|(_, members)| members).collect()
}

/// The low bits of `number` in reverse order: neighbours get devices far from each other.
fn mirrored(number: usize, of: usize) -> usize {
    let bits = of.trailing_zeros();
    (0..bits).filter(|bit| number >> bit & 1 == 1).map(|bit| 1 << (bits - 1 - bit)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::examples;
    use super::super::{Direction, GpuDirect, GpuDirectSettings, Machine, PathKind};
    use super::*;

    fn names(machine: &Machine) -> Vec<Vec<String>> {
        let distances = Distances::new(machine, GpuDirectSettings::default());
        let choice = NetworkChoice::new(&distances, machine.nodes.len());
        let name = |index: &usize| distances.networks[*index].name.clone();
        choice.by_gpu.iter().map(|devices| devices.iter().map(name).collect()).collect()
    }

    #[test]
    fn bits_are_mirrored() {
        assert_eq!((0..8).map(|n| mirrored(n, 8)).collect::<Vec<_>>(), [0, 4, 2, 6, 1, 5, 3, 7]);
        assert_eq!((0..4).map(|n| mirrored(n, 2)).collect::<Vec<_>>(), [0, 1, 0, 1]);
        assert_eq!(mirrored(5, 1), 0);
    }

    /// Two sockets with two switches each, two GPUs and two adapters below each switch, each GPU
    /// beside an adapter below a further switch: the GPU uses the adapter beside it.
    #[test]
    fn each_gpu_of_a_dgx_uses_the_adapter_beside_it() {
        let machine = examples::dgx();
        let expected: Vec<_> = (0..8).map(|gpu| vec![format!("mlx5_{gpu}")]).collect();
        assert_eq!(names(&machine), expected);
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        let kind = |gpu, network| distances.gpu_to_network(gpu, network).kind;
        assert_eq!(
            [kind(0, 0), kind(0, 1), kind(0, 2), kind(0, 4)],
            [PathKind::Pix, PathKind::Pxb, PathKind::Phb, PathKind::Sys]
        );
        assert_eq!(distances.between_gpus(0, 7).kind, PathKind::Nvl);
        assert_eq!(distances.between_gpus(3, 3).kind, PathKind::Loc);
        // 18 links of 20.6 GB/s; 16 lanes of 32 GT/s carry 48 GB/s, and the cable 50.
        assert!((distances.between_gpus(0, 7).bandwidth - 18.0 * 20.6).abs() < 1e-9);
        assert_eq!(distances.gpu_to_network(0, 0).bandwidth, 48.0);
        assert_eq!(distances.gpu_to_network(0, 4).bandwidth, 22.0);
        assert_eq!(distances.gpu_direct(0, 0, Direction::Send), GpuDirect::Used);
        assert!(matches!(
            distances.gpu_direct(0, 2, Direction::Receive),
            GpuDirect::TooFar { kind: PathKind::Phb, level: PathKind::P2c }
        ));
    }

    /// Without GPUDirect all paths go through the processor: the four adapters of a socket are
    /// equally near to its four GPUs, and NCCL gives GPU 0 the first, GPU 1 the third, and so on.
    #[test]
    fn without_gpu_direct_the_gpus_of_a_socket_share_its_adapters() {
        let mut machine = examples::dgx();
        examples::for_each_network(&mut machine, &mut |network| network.gdr = Some(false));
        let expected = [0, 2, 1, 3, 4, 6, 5, 7].map(|network| vec![format!("mlx5_{network}")]);
        assert_eq!(names(&machine), expected);
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        assert_eq!(distances.gpu_to_network(0, 0).kind, PathKind::Phb);
        assert_eq!(distances.gpu_direct(0, 0, Direction::Send), GpuDirect::NotByNetwork);
    }

    /// Two GPUs below a switch with one adapter share it; with four adapters each uses two.
    #[test]
    fn gpus_below_one_switch_share_its_adapters() {
        assert_eq!(names(&examples::one_switch(2, 1)), [["mlx5_0"], ["mlx5_0"]]);
        assert_eq!(names(&examples::one_switch(2, 2)), [["mlx5_0"], ["mlx5_1"]]);
        assert_eq!(
            names(&examples::one_switch(2, 4)),
            [["mlx5_0", "mlx5_1"], ["mlx5_2", "mlx5_3"]]
        );
        assert_eq!(
            names(&examples::one_switch(2, 3)),
            [["mlx5_0", "mlx5_1"], ["mlx5_2", "mlx5_0"]]
        );
        assert_eq!(
            names(&examples::one_switch(4, 2)),
            [["mlx5_0"], ["mlx5_1"], ["mlx5_0"], ["mlx5_1"]]
        );
        assert_eq!(names(&examples::one_switch(1, 0)), [Vec::<String>::new()]);
    }

    /// Two ports of one adapter are one rail: a GPU uses both.
    #[test]
    fn the_ports_of_an_adapter_are_one_rail() {
        let mut machine = examples::one_switch(2, 4);
        let mut number = 0;
        examples::for_each_network(&mut machine, &mut |network| {
            network.guid = Some(number / 2);
            network.plane = Some(1 - (number % 2) as u32);
            number += 1;
        });
        assert_eq!(names(&machine), [["mlx5_1", "mlx5_0"], ["mlx5_3", "mlx5_2"]]);
    }

    #[test]
    fn ranks_on_host_memory_use_the_adapters_of_their_socket_in_turns() {
        let machine = examples::dgx();
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        let choice = NetworkChoice::new(&distances, machine.nodes.len());
        assert_eq!(choice.by_node, [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!((choice.of_rank(1, 5), choice.of_rank(0, 2)), (Some(5), Some(2)));
        let none = NetworkChoice { by_gpu: vec![], by_node: vec![vec![]] };
        assert_eq!(none.of_rank(0, 3), None);
    }

    #[test]
    fn the_two_levels_of_one_switch_count_as_one() {
        let mut machine = examples::dgx();
        let kind = |machine: &Machine| {
            let distances = Distances::new(machine, GpuDirectSettings::default());
            distances.gpu_to_network(0, 1).kind
        };
        assert_eq!(kind(&machine), PathKind::Pxb);
        let mut set = |above, below| {
            let switch = &mut machine.nodes[0].devices[0];
            switch.ids.subsystem_vendor = Some(0x1000);
            switch.ids.subsystem_device = Some(above);
            for part in &mut switch.children {
                part.ids.subsystem_vendor = Some(0x1000);
                part.ids.subsystem_device = Some(below);
            }
            kind(&machine)
        };
        assert_eq!((set(0x0, 0x100b), set(0x100b, 0x100b)), (PathKind::Pix, PathKind::Pxb));
    }

    #[test]
    fn a_chip_to_chip_link_counts_as_near() {
        let mut machine = examples::on_processor();
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        assert_eq!(distances.gpu_to_network(0, 0).kind, PathKind::P2c);
        assert_eq!(distances.gpu_direct(0, 0, Direction::Receive), GpuDirect::Used);
        machine.nodes[0].devices[0].gpus[0].c2c = None;
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        assert_eq!(distances.gpu_to_network(0, 0).kind, PathKind::Phb);
    }

    #[test]
    fn a_path_may_go_through_one_further_gpu_by_nvlink() {
        let machine = examples::nvlink_chain();
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        let kinds: Vec<_> = (0..4).map(|gpu| distances.between_gpus(0, gpu).kind).collect();
        assert_eq!(kinds, [PathKind::Loc, PathKind::Nvl, PathKind::Nvb, PathKind::Phb]);
    }
}
