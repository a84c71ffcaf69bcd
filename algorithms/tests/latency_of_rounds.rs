//! In the cost model, rooted schedules and all-to-all take as many message times as they have
//! rounds.

use maypole_algorithms::collective::generators;
use maypole_algorithms::cost::{LinkCost, MachineModel};
use maypole_algorithms::{Collective, Schedule};

/// The time of one tile of one byte on a machine where only messages take time.
fn time(schedule: &Schedule, latency: f64, byte: f64) -> u32 {
    let machine = MachineModel {
        step: 0.0,
        operand: 0.0,
        byte: 0.0,
        lanes_share_a_core: true,
        ranks_per_core: 1.0,
        link: LinkCost { latency, message: 0.0, byte },
        network: None,
    };
    machine.cost(schedule, 1, 1) as u32
}

fn rounds_of(collective: Collective, name: &str, nranks: u32) -> u32 {
    let generator = generators(collective).find(|g| g.name == name).expect("it is in the table");
    time(&generator.schedule(collective, nranks), 1.0, 0.0)
}

#[test]
fn circulant_rounds_move_little_more_than_the_vector() {
    for n in 2..66 {
        for (collective, slack) in
            [(Collective::Reduce { root: n / 3 }, 1), (Collective::Broadcast { root: n / 3 }, 2)]
        {
            let generator = generators(collective).find(|g| g.name == "circulant");
            let schedule = generator.expect("it is in the table").schedule(collective, n);
            // One byte per block. Ranks are not synchronised: those that run ahead of the rounds
            // make messages queue at the receivers of a broadcast, up to twice the rounds where
            // only ports delay them.
            let rounds = 5 * n.next_power_of_two().ilog2();
            assert!(time(&schedule, 0.0, 1.0) <= slack * rounds, "{collective}, {n} ranks");
            assert_eq!(schedule.parts, rounds / 5 * 4 + 1);
        }
    }
}

#[test]
fn rooted_collectives_and_all_to_all_take_their_rounds() {
    for n in 2..66u32 {
        let log = n.next_power_of_two().ilog2();
        for root in [0, n / 3, n - 1] {
            let broadcast = |name| rounds_of(Collective::Broadcast { root }, name, n);
            let reduce = |name| rounds_of(Collective::Reduce { root }, name, n);
            assert_eq!((broadcast("chain"), reduce("chain")), (n - 1, n - 1));
            // The deepest tree node has the most bits set, fewer than `log` except at powers of
            // two.
            let gather = rounds_of(Collective::Gather { root }, "binomial", n);
            let scatter = rounds_of(Collective::Scatter { root }, "binomial", n);
            assert_eq!([broadcast("binomial"), gather, scatter], [n.ilog2(); 3], "{n}");
            assert!((n.ilog2()..=log).contains(&reduce("binomial")), "{n}");
            assert!((n.ilog2()..=log).contains(&broadcast("tree")), "{n}");
            assert!((n.ilog2()..=log).contains(&reduce("tree")), "{n}");
            // With 4 log + 1 blocks; a rank does not wait for a round in which it receives nothing.
            assert!(broadcast("circulant") <= 5 * log, "{n}");
            assert!(reduce("circulant") <= 5 * log, "{n}");
        }
        assert_eq!(rounds_of(Collective::AllToAll, "bruck", n), n.ilog2(), "{n}");
    }
}
