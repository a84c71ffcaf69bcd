//! The hierarchies in the list of schedules to prove: some hundreds, of all kinds.

use crate::hierarchy::{all, channels, named, schedule};

use crate::schedule::Schedule;
use crate::topology::Grouping;
use crate::types::Collective;

/// Hierarchies over groupings of 3 to 64 ranks. Every named hierarchy: over nodes of equal and
/// unequal sizes, of one rank and of many; with ranks consecutive on a node and spread over nodes;
/// on one rail and on several; with different roots. Also some of three levels, and some of copies
/// side by side. The list is always the same.
pub fn hierarchies() -> impl Iterator<Item = Schedule> {
    named_hierarchies().chain(three_levels()).chain(side_by_side())
}

fn groupings() -> Vec<Grouping> {
    let sizes: [&[u32]; 10] = [
        &[2, 1],
        &[2, 2],
        &[3, 3],
        &[4, 4, 2],
        &[1, 5, 2, 1],
        &[2, 2, 2, 2, 2, 2, 2],
        &[4, 4, 4, 4],
        &[3, 8, 5],
        &[8, 8, 8, 8],
        &[8, 8, 8, 8, 8, 8, 8, 8],
    ];
    let mut groupings: Vec<_> = sizes.into_iter().map(Grouping::of_sizes).collect();
    groupings.extend([
        // Round robin, and an order as a job scheduler may leave it.
        Grouping::new((0..12).map(|rank| rank % 3)),
        Grouping::new([0, 1, 0, 2, 1, 1, 3, 0, 2, 0, 1]),
        // Many nodes.
        Grouping::new((0..48).map(|rank| rank / 2)),
        Grouping::new((0..40).map(|rank: u32| if rank < 20 { rank / 2 } else { rank })),
    ]);
    groupings
}

/// Each named hierarchy over each grouping, with varying numbers of rails and roots.
fn named_hierarchies() -> impl Iterator<Item = Schedule> {
    groupings().into_iter().zip(0u32..).flat_map(|(grouping, i)| {
        all().zip(0u32..).filter_map(move |(hierarchy, j)| {
            let rails = hierarchy.rails(&grouping);
            let rails = rails.start() + (i + j) % (rails.end() - rails.start() + 1);
            let collective = hierarchy.collective_with_root((7 * i + 5 * j) % grouping.nranks());
            hierarchy.schedule(collective, &grouping, rails)
        })
    })
}

/// Hierarchies of three levels: ranks in nodes of two, nodes in racks.
fn three_levels() -> impl Iterator<Item = Schedule> {
    let racks =
        [Grouping::of_sizes(&[2, 2]), Grouping::of_sizes(&[3, 3, 1]), Grouping::of_sizes(&[4, 4])];
    racks.into_iter().flat_map(|racks| {
        let nodes = Grouping::new((0..2 * racks.nranks()).map(|rank| rank / 2));
        Collective::all(1).into_iter().filter_map(move |collective| {
            let direct = named(&["direct"]);
            let far = named(&["ring", "binomial", "direct"]);
            let between = |c: Collective, n| {
                let is_all = n == racks.nranks();
                is_all.then(|| schedule(c, &racks, 1, &direct, &far)).flatten()
            };
            schedule(collective, &nodes, 2, &direct, &between)
        })
    })
}

/// Two copies of a hierarchy, and hierarchies with five copies as component, which have more lanes
/// than one step can wait for.
fn side_by_side() -> impl Iterator<Item = Schedule> {
    let nodes = Grouping::of_sizes(&[3, 3]);
    let uneven = Grouping::of_sizes(&[2, 3]);
    Collective::all(4).into_iter().flat_map(move |collective| {
        let direct = named(&["direct", "ring"]);
        let wide = |c, n| Some(channels::schedule(&direct(c, n)?, 5));
        [
            schedule(collective, &nodes, 2, &direct, &direct).map(|s| channels::schedule(&s, 2)),
            schedule(collective, &nodes, 3, &wide, &direct),
            schedule(collective, &uneven, 2, &direct, &wide),
        ]
        .into_iter()
        .flatten()
    })
}
