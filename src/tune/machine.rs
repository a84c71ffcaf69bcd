//! The constants of the machine for the cost model.

use maypole_algorithms::cost::{LinkCost, MachineModel, NetworkModel};
use maypole_algorithms::{Operand, Rank, Schedule};

use super::{Protocol, Tuner};

/// The cost of a message over TCP: a system call and a copy at either end.
const TCP: LinkCost = LinkCost { latency: 10e-6, message: 3e-6, byte: 0.3e-9 };

impl Tuner {
    /// The model of the machine, from measurements over shared memory and TCP; see
    /// `docs/tuning.md`.
    pub(super) fn machine(&self, protocol: Protocol) -> MachineModel {
        // The scheduler wakes a rank that shares its core with others; a rank with a core of its
        // own sees the message by polling.
        let wakeup = if self.ranks_per_core > 1.0 { 3e-6 } else { 0.0 };
        let awaited = |link: LinkCost| LinkCost { latency: link.latency + wakeup, ..link };
        let shared = |latency| awaited(LinkCost { latency, message: 0.0, byte: 0.0 });
        let (latency, step, operand, byte) = match protocol {
            Protocol::Ll => (0.08e-6, 0.01e-6, 0.01e-6, 0.2e-9),
            Protocol::Slots => (0.15e-6, 0.10e-6, 0.04e-6, 0.04e-9),
        };
        let several = self.grouping.nodes() > 1;
        let grouping = self.grouping.clone();
        MachineModel {
            step,
            operand,
            byte,
            lanes_share_a_core: self.device.is_none(),
            ranks_per_core: self.ranks_per_core,
            link: if self.tcp_within_nodes { awaited(TCP) } else { shared(latency) },
            network: several.then(|| NetworkModel { grouping, link: awaited(TCP) }),
        }
    }
}

/// The seconds that `rank` needs for its own steps, for one tile of `bytes` bytes per chunk. No
/// schedule is faster than its busiest rank.
pub(super) fn busy_seconds(
    machine: &MachineModel,
    schedule: &Schedule,
    rank: Rank,
    bytes: usize,
) -> f64 {
    let network = machine.network.as_ref().map(|network| network.link.message);
    let message = network.unwrap_or(machine.link.message).min(machine.link.message);
    let operand = machine.operand + bytes as f64 * machine.byte;
    let mut seconds = 0.0;
    for lane in 0..schedule.lanes(rank) {
        for step in schedule.lane(rank, lane) {
            let operands = step.inputs.iter().chain(&step.outputs);
            let peers = operands.filter(|o| matches!(o, Operand::Peer { .. })).count();
            let operands = step.inputs.len() + step.outputs.len();
            seconds += machine.step + operands as f64 * operand + peers as f64 * message;
        }
    }
    machine.ranks_per_core * seconds
}
