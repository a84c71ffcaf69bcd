//! The cost of a schedule: the schedule itself is executed in a model of time; there is no separate
//! formula.
//!
//! # The model
//!
//! * A step keeps its lane busy for [`MachineModel::step`] seconds, plus [`MachineModel::operand`]
//!   for every operand, plus [`MachineModel::byte`] for every byte that it reads or writes (each
//!   operand is as long as a tile of a chunk), plus [`LinkCost::message`] for every message that it
//!   receives or sends.
//! * A step starts when the step before it in its lane has ended, the steps of `after` have ended,
//!   and its messages have arrived. The lanes of a rank run side by side
//!   ([`MachineModel::lanes_share_a_core`] false: a GPU) or one at a time, in the order in which
//!   they became ready (true: the host engine). Where there are more ranks than cores, the time of
//!   a core is shared evenly.
//! * A message leaves when its step ends. Its first byte travels for [`LinkCost::latency`] seconds.
//!   Its bytes leave by the sender's port and enter by the receiver's, each at [`LinkCost::byte`]
//!   seconds per byte, and enter while they leave. So a message of `m` bytes that no other one
//!   delays arrives `latency + m byte` after its step.
//! * A port carries one message at a time, in the order of arrival at the port, in each direction
//!   separately (full duplex). **Inside a node** every rank has its own port. **Between nodes** all
//!   ranks of a node share the one port of the node, and their messages queue there. A message
//!   between nodes does not pass the ports of the ranks.
//! * Links have as many credits as needed; nothing is lost, delayed or sent again.
//!
//! Without a [`NetworkModel`] all ranks are on one node. If moreover a byte on a link costs nothing
//! (shared memory, where the steps themselves move the bytes), ports are never busy and are not
//! modelled.

mod run;
mod timeline;

pub use timeline::{MessageSpan, StepSpan, Timeline};

use crate::flat::{FlatSchedule, NONE};
use crate::schedule::Schedule;
use crate::topology::Grouping;
use run::ModelRun;

/// What a message costs between two ranks, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkCost {
    /// From the end of a step to the arrival of its message's first byte.
    pub latency: f64,
    /// Time that the sending step and the receiving step each spend on a message.
    pub message: f64,
    /// Time that a byte keeps a port busy.
    pub byte: f64,
}

/// The network between nodes: which ranks share a node, and what messages between nodes cost.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkModel {
    /// The nodes, with as many ranks as the schedules that are costed.
    pub grouping: Grouping,
    /// The cost of messages between ranks of different nodes.
    pub link: LinkCost,
}

/// The parameters of the model: what operations of a machine cost, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineModel {
    /// Fixed cost of a step.
    pub step: f64,
    /// Cost of every operand of a step.
    pub operand: f64,
    /// Cost of reading or writing a byte.
    pub byte: f64,
    /// All lanes of a rank run on one core.
    pub lanes_share_a_core: bool,
    /// Ranks per core, at least 1.
    pub ranks_per_core: f64,
    /// The cost of messages between ranks of one node.
    pub link: LinkCost,
    /// The network between nodes; None if all ranks are on one node.
    pub network: Option<NetworkModel>,
}

/// How many tiles are executed; more tiles are extrapolated from the last two.
const TILES: u32 = 4;

impl MachineModel {
    /// One host with a core for each rank and messages in slots of shared memory; rounded from
    /// measurements on a machine with two cores. It is meant for comparing algorithms; it does not
    /// predict the microseconds of another machine.
    pub const SHARED_MEMORY: Self = Self {
        step: 0.10e-6,
        operand: 0.04e-6,
        byte: 0.04e-9,
        lanes_share_a_core: true,
        ranks_per_core: 1.0,
        link: LinkCost { latency: 0.15e-6, message: 0.0, byte: 0.0 },
        network: None,
    };

    /// Seconds from the common start of all ranks to the end of the last one, for chunks of `tiles`
    /// tiles of `bytes` bytes.
    pub fn cost(&self, schedule: &Schedule, bytes: usize, tiles: u64) -> f64 {
        self.cost_flat(&FlatSchedule::new(schedule), bytes, tiles)
    }

    /// The same for a flat schedule, which can be costed several times.
    ///
    /// # Panics
    /// If the network's grouping has another number of ranks.
    pub fn cost_flat(&self, schedule: &FlatSchedule, bytes: usize, tiles: u64) -> f64 {
        let executed = tiles.min(TILES.into()) as u32;
        let ends = ModelRun::new(self, schedule, bytes, executed).finish(None);
        match ends[..] {
            [.., before, last] if tiles > executed.into() => {
                last + (tiles - u64::from(executed)) as f64 * (last - before)
            }
            _ => ends.last().copied().unwrap_or(0.0),
        }
    }
}

/// The execution that [`MachineModel::cost`] costs, with the time of every step and message:
/// `tiles` tiles of `bytes` bytes per chunk. It needs memory for every step of every tile.
pub fn timeline(machine: &MachineModel, schedule: &Schedule, bytes: usize, tiles: u32) -> Timeline {
    let flat = FlatSchedule::new(schedule);
    let index = |lane: u32| flat.lanes.get(lane as usize).map_or(NONE, |lane| lane.index);
    let mut messages = Vec::with_capacity(tiles as usize * flat.messages as usize);
    for tile in 0..tiles {
        for link in &flat.links {
            let lanes = (index(link.feeder), index(link.drainer));
            messages.extend((0..link.sent).map(|ordinal| MessageSpan {
                from: link.source,
                to: link.destination,
                channel: link.channel,
                lanes: if ordinal < link.received { lanes } else { (lanes.0, NONE) },
                tile,
                depart: f64::NAN,
                arrive: f64::NAN,
            }));
        }
    }
    let mut timeline = Timeline { steps: Vec::new(), messages };
    ModelRun::new(machine, &flat, bytes, tiles).finish(Some(&mut timeline));
    // A message that is not sent, or that no step receives, has no arrow.
    timeline.messages.retain(|span| !span.depart.is_nan() && span.lanes.1 != NONE);
    timeline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::all_reduce::{one_shot, recursive_doubling, ring};
    use crate::collective::{all_gather, all_reduce, all_to_all, reduce_scatter};
    use crate::proof_suite::uneven_example;
    use crate::schedule::operand::{input, output, peer, scratch};
    use crate::schedule::{Step, StepTable};
    use crate::types::Collective;

    const LATENCY: LinkCost = LinkCost { latency: 1.0, message: 0.0, byte: 0.0 };

    const LATENCY_ONLY: MachineModel = MachineModel {
        step: 0.0,
        operand: 0.0,
        byte: 0.0,
        lanes_share_a_core: true,
        ranks_per_core: 1.0,
        link: LATENCY,
        network: None,
    };

    /// A machine whose links cost `inside` within nodes and `between` between them; steps cost
    /// nothing.
    fn nodes(sizes: &[u32], inside: LinkCost, between: LinkCost) -> MachineModel {
        let network = NetworkModel { grouping: Grouping::of_sizes(sizes), link: between };
        MachineModel { link: inside, network: Some(network), ..LATENCY_ONLY }
    }

    #[test]
    fn latency_terms_are_those_of_the_literature() {
        for n in 2..20u32 {
            let steps = |s| LATENCY_ONLY.cost(&s, 8, 1);
            assert_eq!(steps(ring::schedule(n)), f64::from(2 * (n - 1)));
            assert_eq!(steps(one_shot::schedule(n)), 1.0);
            assert_eq!(steps(recursive_doubling::schedule(n)), f64::from(n).log2().ceil());
        }
    }

    #[test]
    fn rings_take_one_message_time_per_rank_and_bidirectional_ones_half() {
        for n in 2..40u32 {
            let steps = |s| LATENCY_ONLY.cost(&s, 8, 1);
            let (once, both) = (f64::from(n - 1), f64::from((n - 1).div_ceil(2)));
            assert_eq!(steps(reduce_scatter::ring::schedule(n)), once);
            assert_eq!(steps(all_gather::ring::schedule(n)), once);
            assert_eq!(steps(reduce_scatter::biring::schedule(n)), both);
            assert_eq!(steps(all_gather::biring::schedule(n)), both);
            assert_eq!(steps(all_reduce::biring::schedule(n)), 2.0 * both);
        }
    }

    #[test]
    fn algorithms_in_rounds_take_one_message_time_per_round() {
        for n in (2..70u32).chain([100, 128, 129]) {
            let steps = |s| LATENCY_ONLY.cost(&s, 8, 1);
            let rounds = f64::from(n).log2().ceil();
            assert_eq!(steps(reduce_scatter::halving::schedule(n)), rounds, "{n}");
            assert_eq!(steps(all_gather::doubling::schedule(n)), rounds, "{n}");
            assert_eq!(steps(all_reduce::halving::schedule(n)), 2.0 * rounds, "{n}");
            // Except at powers of two, no chain of messages has to pass all rounds.
            let [scatter, gather] =
                [reduce_scatter::circulant::schedule(n), all_gather::circulant::schedule(n)]
                    .map(steps);
            let reduce = steps(all_reduce::circulant::schedule(n));
            assert!(scatter <= rounds && gather <= rounds && reduce <= 2.0 * rounds, "{n}");
            if n.is_power_of_two() {
                assert_eq!((scatter, gather, reduce), (rounds, rounds, 2.0 * rounds), "{n}");
            }
        }
    }

    #[test]
    fn parallel_trees_take_one_message_time_per_level_until_levels_share_a_lane() {
        let steps = |s| LATENCY_ONLY.cost(&s, 8, 1);
        for n in 2..=64u32 {
            // No chain is longer than the number of bits that are set in an offset.
            let depth = f64::from((1..n).map(u32::count_ones).max().unwrap_or(0));
            assert_eq!(steps(reduce_scatter::pat::schedule(n)), depth, "{n}");
            assert_eq!(steps(all_gather::pat::schedule(n)), depth, "{n}");
        }
        for n in [128, 256, 512] {
            assert_eq!(steps(reduce_scatter::pat::schedule(n)), f64::from(4 + n / 32));
            assert_eq!(steps(all_gather::pat::schedule(n)), f64::from(4 + n / 32));
        }
    }

    #[test]
    fn byte_terms_are_those_of_the_literature() {
        let link = LinkCost { latency: 100.0, byte: 1.0, ..LATENCY };
        let machine = MachineModel { link, ..LATENCY_ONLY };
        for n in 2..20u32 {
            let rounds = f64::from(n - 1);
            // 2 (n-1) (a + m/n b), a + (n-1) m b, and a + (n-1) m b for blocks of m.
            assert_eq!(machine.cost(&ring::schedule(n), 8, 1), 2.0 * rounds * 108.0);
            assert_eq!(machine.cost(&one_shot::schedule(n), 8, 1), 100.0 + rounds * 8.0);
            let direct = all_gather::direct::schedule(n);
            assert_eq!(machine.cost(&direct, 8, 1), 100.0 + rounds * 8.0);
        }
    }

    #[test]
    fn long_runs_grow_by_the_steady_tile() {
        let machine = MachineModel { byte: 1e-9, step: 1e-7, ..LATENCY_ONLY };
        let schedule = ring::schedule(4);
        let cost = |tiles| machine.cost(&schedule, 1 << 16, tiles);
        let exact = timeline(&machine, &schedule, 1 << 16, 50).end();
        assert!((cost(50) / exact - 1.0).abs() < 0.02, "{} against {exact}", cost(50));
    }

    #[test]
    fn a_hierarchy_pays_each_level_its_own_latency() {
        let link = |latency| LinkCost { latency, ..LATENCY };
        // To the leaders inside the groups, between the leaders, back inside the groups.
        let schedule = uneven_example();
        let cost = nodes(&[3, 2, 2], link(1.0), link(50.0)).cost(&schedule, 8, 1);
        assert_eq!(cost, 1.0 + 50.0 + 1.0);
        // Each rank on a node of its own: every hop is between nodes.
        let cost = nodes(&[1; 7], link(1.0), link(50.0)).cost(&schedule, 8, 1);
        assert_eq!(cost, 3.0 * 50.0);
        // A ring through two nodes waits for the slow link in every round.
        let cost = nodes(&[4, 4], link(1.0), link(50.0)).cost(&ring::schedule(8), 8, 1);
        assert!(cost > 100.0 && cost < 14.0 * 50.0, "{cost}");
    }

    #[test]
    fn the_ranks_of_a_node_share_its_port() {
        let slow = LinkCost { latency: 10.0, byte: 1.0, ..LATENCY };
        let free = LinkCost::default();
        for k in 1..9u32 {
            // Rank r of one node exchanges with rank r of the other: a port carries k messages each
            // way.
            let schedule = exchange_of_pairs(k);
            let cost = nodes(&[k, k], free, slow).cost(&schedule, 8, 1);
            assert_eq!(cost, 10.0 + f64::from(8 * k));
            // With every rank on its own node, every rank has its own port.
            let cost = nodes(&vec![1; 2 * k as usize], free, slow).cost(&schedule, 8, 1);
            assert_eq!(cost, 18.0);
            // The ranks' own ports inside a node are not shared either.
            let one = MachineModel { link: slow, ..LATENCY_ONLY };
            assert_eq!(one.cost(&schedule, 8, 1), 18.0);
            // All-to-all on two nodes of k: k^2 messages leave each of them.
            let cost = nodes(&[k, k], free, slow).cost(&all_to_all::direct::schedule(2 * k), 8, 1);
            assert_eq!(cost, 10.0 + f64::from(8 * k * k));
        }
    }

    #[test]
    fn messages_cost_their_sender_and_their_receiver() {
        let cost_of = |message| LinkCost { message, ..LinkCost::default() };
        let cost = |sizes: &[u32]| {
            nodes(sizes, cost_of(1.0), cost_of(10.0)).cost(&exchange_of_pairs(1), 8, 1)
        };
        // Each rank sends one message and receives one, on one core.
        assert_eq!((cost(&[2]), cost(&[1, 1])), (2.0, 20.0));
    }

    #[test]
    fn lanes_take_turns_on_a_core_or_run_side_by_side() {
        let step = |i| Step::new([input(0)], [scratch(i)]);
        let lanes = vec![vec![step(0), step(1)], vec![step(2)], vec![step(3).after(1, 0)]];
        let table = StepTable(vec![lanes]);
        let schedule = Schedule::new("lanes", Collective::AllReduce, 1, 1, table).with_scratch(4);
        let machine = MachineModel { step: 1.0, ..LATENCY_ONLY };
        assert_eq!(machine.cost(&schedule, 8, 1), 4.0);
        let machine = MachineModel { lanes_share_a_core: false, ..machine };
        assert_eq!(machine.cost(&schedule, 8, 1), 2.0);
    }

    #[test]
    fn a_timeline_has_every_step_and_every_message() {
        let machine = MachineModel { step: 1.0, ..LATENCY_ONLY };
        let timeline = timeline(&machine, &ring::schedule(4), 8, 2);
        assert_eq!((timeline.steps.len(), timeline.messages.len()), (2 * 4 * 7, 2 * 4 * 6));
        assert_eq!(timeline.end(), machine.cost(&ring::schedule(4), 8, 2));
        for flight in &timeline.messages {
            let sent = |s: &&StepSpan| s.rank == flight.from && s.end == flight.depart;
            assert!(timeline.steps.iter().any(|s| sent(&s)), "{flight:?}");
            assert_eq!(flight.arrive, flight.depart + 1.0);
            let received = |s: &StepSpan| s.rank == flight.to && s.start >= flight.arrive;
            assert!(timeline.steps.iter().any(received), "{flight:?}");
        }
    }

    #[test]
    fn steps_that_wait_forever_are_left_out() {
        let lost = Step::new([peer(1, 0)], [output(0)]);
        let table =
            StepTable(vec![vec![vec![lost]], vec![vec![Step::new([input(0)], [output(0)])]]]);
        let schedule = Schedule::new("lost", Collective::AllReduce, 2, 1, table);
        assert_eq!(timeline(&LATENCY_ONLY, &schedule, 8, 1).steps.len(), 1);
    }

    /// Rank `r` below `k` and rank `r + k` exchange their blocks.
    fn exchange_of_pairs(k: u32) -> Schedule {
        let rank = |r: u32| {
            let partner = if r < k { r + k } else { r - k };
            vec![
                vec![Step::new([input(0)], [peer(partner, 0)])],
                vec![Step::new([peer(partner, 0)], [output(partner)])],
            ]
        };
        Schedule::new(
            "pairs",
            Collective::AllGather,
            2 * k,
            1,
            StepTable((0..2 * k).map(rank).collect()),
        )
    }
}
