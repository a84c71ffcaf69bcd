//! Hierarchies over groupings of all shapes are proved; the verifier rejects those with a fault.

mod concrete;

use maypole_algorithms::collective::generators;
use maypole_algorithms::hierarchy::{all_reduce, channels, named, schedule};
use maypole_algorithms::mutate::{SplitMix64, mutants};
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::verify::prove;
use maypole_algorithms::{Class, Collective, Operand, Schedule, Step, proof_suite};

#[test]
fn every_listed_hierarchy_is_proved() {
    let (mut proofs, mut steps) = (0, 0);
    for schedule in proof_suite::hierarchies() {
        let declared = schedule.class;
        let proved = prove(schedule).unwrap_or_else(|counterexample| panic!("{counterexample}"));
        assert!(proved.facts().class <= declared, "{proved:?}");
        proofs += 1;
        steps += proved.facts().steps;
    }
    println!("{proofs} hierarchies proved, {steps} steps executed");
    assert!(proofs >= 450, "{proofs} are too few");
}

/// Nodes of any sizes, ranks in any order, any generators, any number of rails and of copies.
#[test]
fn random_hierarchies_are_proved() {
    let mut random = RandomHierarchies::new(1);
    let (mut proofs, mut canonical) = (0, 0);
    while proofs < 600 {
        let Some(schedule) = random.hierarchy() else { continue };
        let declared = schedule.class;
        let proved = prove(schedule).unwrap_or_else(|counterexample| panic!("{counterexample}"));
        assert!(proved.facts().class <= declared, "{proved:?}");
        canonical += u32::from(declared == Class::Canonical);
        proofs += 1;
    }
    println!("{proofs} random hierarchies proved, {canonical} of them canonical");
}

#[test]
fn a_mutant_is_rejected_or_harmless() {
    let mut random = RandomHierarchies::new(2);
    let (mut made, mut accepted) = (0, 0);
    while made < 1000 {
        let Some(schedule) = random.hierarchy() else { continue };
        // As a table, since the executor below computes the same steps many times.
        let table = schedule.to_table();
        if table.0.iter().flatten().map(Vec::len).sum::<usize>() > 120 {
            continue;
        }
        let schedule = schedule.with_program(table);
        let proof = prove(schedule.clone()).unwrap_or_else(|c| panic!("{c}"));
        concrete::check(&schedule, Some(&proof), 1, 3)
            .unwrap_or_else(|what| panic!("{schedule:?}: {what}"));
        for mutant in mutants(&schedule, made, 10) {
            made += 1;
            if let Ok(proof) = prove(mutant.schedule.clone()) {
                accepted += 1;
                concrete::check(&mutant.schedule, Some(&proof), 7, 8)
                    .unwrap_or_else(|what| panic!("proved, but wrong: {mutant:?}: {what}"));
            }
        }
    }
    println!("{made} mutants, {accepted} of them accepted and harmless");
}

#[test]
fn aligned_nodes_of_canonical_components_are_canonical() {
    let class = |sizes: &[u32], rails, intra: &'static str, inter: &'static str| {
        let (intra, inter) = ([intra], [inter]);
        let grouping = Grouping::of_sizes(sizes);
        let schedule = all_reduce::schedule(&grouping, rails, &named(&intra), &named(&inter));
        let proved = prove(schedule.expect("it applies")).unwrap_or_else(|c| panic!("{c}"));
        let declared = proved.schedule().class;
        assert_eq!(proved.facts().class, declared, "{proved:?}");
        declared
    };
    assert_eq!(class(&[4, 4, 2], 2, "direct", "doubling"), Class::Canonical);
    assert_eq!(class(&[2, 2, 2], 1, "binomial", "twoshot"), Class::Canonical);
    assert_eq!(class(&[8, 8, 8, 8], 8, "direct", "oneshot"), Class::Canonical);
    assert_eq!(class(&[4, 4, 2], 2, "direct", "ring"), Class::Fast);
    assert_eq!(class(&[3, 3], 3, "direct", "doubling"), Class::Fast);
    assert_eq!(class(&[2, 4], 2, "direct", "doubling"), Class::Fast);
    assert_eq!(class(&[4, 4], 4, "chain", "doubling"), Class::Fast);
}

/// Rails share channels if no two of their components share a link.
#[test]
fn channels_are_few() {
    let eight = Grouping::of_sizes(&[8; 4]);
    let channels = |rails, names: &[&str]| {
        let schedule = all_reduce::schedule(&eight, rails, &named(names), &named(&["ring"]));
        schedule.expect("it applies").channels
    };
    assert_eq!(channels(8, &["direct"]), 2);
    assert_eq!(channels(5, &["direct"]), 2);
    assert_eq!(channels(5, &["chain"]), 10);
}

#[test]
fn a_step_among_a_hundred_thousand_ranks_takes_no_table() {
    let grouping = Grouping::of_sizes(&[8; 12_500]);
    let direct = named(&["direct"]);
    let schedule = all_reduce::schedule(&grouping, 8, &direct, &named(&["doubling"]));
    let schedule = schedule.expect("it applies");
    let rank = 77_777;
    let lanes = schedule.lanes(rank);
    let steps: Vec<Step> = (0..lanes).flat_map(|lane| schedule.lane(rank, lane)).collect();
    let sends =
        |step: &Step| step.outputs.iter().filter(|o| matches!(o, Operand::Peer { .. })).count();
    // Seven messages within the node in each inner phase, and at least one in each round between
    // nodes that has a partner.
    let sent: usize = steps.iter().map(sends).sum();
    assert!((14 + 10..14 + 2 * 14).contains(&sent), "{sent}");
}

/// Draws random hierarchies.
struct RandomHierarchies(SplitMix64);

impl RandomHierarchies {
    fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.0.below(limit as usize) as u32
    }

    fn grouping(&mut self) -> Grouping {
        let nodes = 1 + self.below(5);
        let even = self.below(3) == 0;
        let size = 1 + self.below(4);
        let sizes: Vec<_> =
            (0..nodes).map(|_| if even { size } else { 1 + self.below(5) }).collect();
        if self.below(2) == 0 {
            return Grouping::of_sizes(&sizes);
        }
        let mut labels: Vec<_> = (0..)
            .zip(&sizes)
            .flat_map(|(node, &size)| std::iter::repeat_n(node, size as usize))
            .collect();
        for i in (1..labels.len()).rev() {
            labels.swap(i, self.below(i as u32 + 1) as usize);
        }
        Grouping::new(labels)
    }

    /// A source with a random generator for each collective, always the same one for the same
    /// collective; sometimes with copies of it; sometimes with none, where another collective can
    /// be used instead.
    fn source(&mut self) -> impl Fn(Collective, u32) -> Option<Schedule> + use<> {
        let (draw, copies, without) = (self.below(1000), self.below(4), self.below(2) == 0);
        move |collective, nranks| {
            if without && matches!(collective, Collective::ReduceScatter | Collective::AllGather) {
                return None;
            }
            let all: Vec<_> = generators(collective).collect();
            let schedule = all[draw as usize % all.len()].schedule(collective, nranks);
            Some(channels::schedule(&schedule, copies))
        }
    }

    /// A random hierarchy, or None if there is none for what was drawn.
    fn hierarchy(&mut self) -> Option<Schedule> {
        let grouping = self.grouping();
        let collective = Collective::all(self.below(grouping.nranks()))[self.below(6) as usize];
        let rails = 1 + self.below(grouping.smallest());
        let (intra, inter) = (self.source(), self.source());
        let inter = |collective, nranks| match collective {
            // Between nodes no other collective can be used instead of these.
            Collective::ReduceScatter | Collective::AllGather => {
                generators(collective).next().map(|g| g.schedule(collective, nranks))
            }
            _ => inter(collective, nranks),
        };
        schedule(collective, &grouping, rails, &intra, &inter)
    }
}
