//! Hierarchies are proved, over groupings of all shapes.

use maypole_algorithms::hierarchy::{all_reduce, named};
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::verify::prove;

#[test]
fn small() {
    let groupings = [
        Grouping::of_sizes(&[2, 2]),
        Grouping::of_sizes(&[4, 4, 2]),
        Grouping::of_sizes(&[1, 3, 2]),
        Grouping::of_sizes(&[1, 1]),
        Grouping::of_sizes(&[3]),
        Grouping::of_sizes(&[4, 4, 4, 4]),
        Grouping::new([0, 1, 0, 1]),
    ];
    for g in groupings {
        for rails in 1..=g.smallest() {
            for inter in ["ring", "doubling", "tree", "oneshot", "twoshot"] {
                let s = all_reduce::schedule(&g, rails, &named(&["direct"]), &named(&[inter]))
                    .expect("all are there");
                match prove(s) {
                    Ok(proved) => assert!(proved.facts().class <= proved.schedule().class),
                    Err(c) => panic!("{c}"),
                }
            }
        }
    }
}
