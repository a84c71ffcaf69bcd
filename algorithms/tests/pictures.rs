//! The pictures in `docs/pictures/` show the schedules as they are now.
//!
//! `MAYPOLE_DRAW=1 cargo test -p maypole-algorithms --test pictures` draws them again.

use maypole_algorithms::collective::generators;
use maypole_algorithms::cost::{LinkCost, MachineModel, timeline};
use maypole_algorithms::{Collective, svg};

/// A machine similar to shared memory, with latencies that are visible in a picture.
const MACHINE: MachineModel = MachineModel {
    step: 0.1e-6,
    operand: 0.04e-6,
    byte: 0.0,
    lanes_share_a_core: false,
    ranks_per_core: 1.0,
    link: LinkCost { latency: 0.3e-6, message: 0.0, byte: 0.0 },
    network: None,
};

fn drawn(algorithm: &str, nranks: u32) -> String {
    let generator = generators(Collective::AllReduce).find(|g| g.name == algorithm);
    let schedule = generator.expect("it is in the table").schedule(Collective::AllReduce, nranks);
    svg::draw(&schedule, &timeline(&MACHINE, &schedule, 4096, 1))
}

#[test]
fn the_pictures_of_the_documentation_are_current() {
    for algorithm in ["ring", "twoshot"] {
        let path = format!("{}/../docs/pictures/{algorithm}-4.svg", env!("CARGO_MANIFEST_DIR"));
        let now = drawn(algorithm, 4);
        if std::env::var_os("MAYPOLE_DRAW").is_some() {
            std::fs::write(&path, &now).expect("the folder exists");
        }
        let kept = std::fs::read_to_string(&path).expect("the picture exists");
        assert!(
            kept == now,
            "{path} is out of date; the comment at the top of this test says how to draw it again"
        );
    }
}

#[test]
fn every_step_and_every_message_is_drawn() {
    let picture = drawn("ring", 5);
    assert_eq!(picture.matches("rx=\"2\"").count(), 5 * 9);
    assert_eq!(picture.matches("marker-end").count(), 5 * 8);
    assert!(picture.contains("all_reduce by ring") && picture.contains("5 ranks, class fast"));
}
