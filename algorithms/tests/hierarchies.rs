//! Hierarchies are proved, over groupings of all shapes.

use maypole_algorithms::Schedule;
use maypole_algorithms::hierarchy::*;
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::verify::prove;

fn groupings() -> Vec<Grouping> {
    vec![
        Grouping::of_sizes(&[2, 2]),
        Grouping::of_sizes(&[4, 4, 2]),
        Grouping::of_sizes(&[1, 3, 2]),
        Grouping::of_sizes(&[1, 1]),
        Grouping::of_sizes(&[1, 1, 1, 1, 1]),
        Grouping::of_sizes(&[3]),
        Grouping::of_sizes(&[1, 7, 1, 1]),
        Grouping::of_sizes(&[9, 2]),
        Grouping::of_sizes(&[4, 4, 4, 4]),
        Grouping::of_sizes(&[2, 2, 2]),
        Grouping::new([0, 1, 0, 1]),
        Grouping::new([0, 1, 0, 1, 2, 0, 2, 2, 2, 1, 3]),
    ]
}

fn all(g: &Grouping) -> Vec<Schedule> {
    let n = g.nranks();
    let d = named(&["direct"]);
    let no = |c: maypole_algorithms::Collective, n: u32| match c {
        maypole_algorithms::Collective::ReduceScatter
        | maypole_algorithms::Collective::AllGather => None,
        _ => d(c, n),
    };
    let p = named(&["pat", "direct"]);
    let mut all = Vec::new();
    for rails in 1..=g.smallest() {
        for inter in ["ring", "doubling", "tree", "oneshot", "twoshot"] {
            all.extend(all_reduce::schedule(g, rails, &d, &named(&[inter])));
        }
        for root in [0, n / 2, n - 1] {
            all.extend(reduce::schedule(g, root, rails, &d, &d));
            all.extend(broadcast::schedule(g, root, rails, &d, &d));
            all.extend(broadcast::schedule(g, root, rails, &p, &d));
            all.extend(reduce::schedule(g, root, rails, &no, &d));
            all.extend(broadcast::schedule(g, root, rails, &no, &d));
        }
    }
    for a in [&d as Source<'_>, &no, &p] {
        for b in [&d as Source<'_>, &p] {
            all.extend(all_gather::schedule(g, a, b));
            all.extend(reduce_scatter::schedule(g, a, b));
            all.extend(all_to_all::schedule(g, a, b));
        }
    }
    let more: Vec<_> = all.iter().map(|s| channels::schedule(s, 3)).collect();
    all.extend(more);
    all
}

#[test]
fn small() {
    let (mut n, mut bad) = (0, 0);
    for g in groupings() {
        for s in all(&g) {
            n += 1;
            let declared = s.class;
            match prove(s) {
                Ok(proved) => {
                    if proved.facts().class != declared {
                        println!("better: {proved:?}");
                    }
                }
                Err(c) => {
                    bad += 1;
                    if bad < 20 {
                        println!("{c}");
                    }
                }
            }
        }
    }
    println!("{n} {bad}");
    assert_eq!(bad, 0);
}
