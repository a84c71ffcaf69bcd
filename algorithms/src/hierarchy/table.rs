//! The table of named hierarchies, from which the tuner and `NCCL_ALGO` choose.

use std::ops::RangeInclusive;

use super::components::named;
use super::schedule;
use crate::schedule::Schedule;
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// The first letters of all names of hierarchies. The name of the component between nodes follows,
/// then that of the component within nodes unless it is `direct`: `hierring`, `hierringbinomial`.
pub const FAMILY: &str = "hier";

/// A named way to compose schedules for one kind of collective.
#[derive(Clone, Copy, Debug)]
pub struct Hierarchy {
    /// The name, as NCCL_ALGO and `maypole verify` take it.
    pub name: &'static str,
    /// The collective's name, see [`Collective::name`].
    pub collective: &'static str,
    /// The generators within nodes: for each collective that is needed, the first that exists is
    /// used.
    pub intra: &'static [&'static str],
    /// The generators between nodes, chosen in the same way.
    pub inter: &'static [&'static str],
}

impl Hierarchy {
    const fn new(
        collective: &'static str,
        name: &'static str,
        inter: &'static [&'static str],
        intra: &'static [&'static str],
    ) -> Self {
        Self { name, collective, intra, inter }
    }

    /// The collective that it composes schedules for, with `root` where the collective has a root.
    pub fn collective_with_root(&self, root: Rank) -> Collective {
        Collective::from_name(self.collective, root)
            .expect("the table names collectives that exist")
    }

    /// The numbers of rails that it can have over `grouping`.
    pub fn rails(&self, grouping: &Grouping) -> RangeInclusive<u32> {
        let most = grouping.smallest();
        match self.collective_with_root(0) {
            Collective::AllReduce | Collective::Reduce { .. } | Collective::Broadcast { .. } => {
                1..=most
            }
            _ => most..=most,
        }
    }

    /// The schedule over `grouping` with `rails` rails; a root is taken from `collective`. None
    /// where the hierarchy does not apply: there is only one node, or one rank on each; the number
    /// of rails is not in [`Hierarchy::rails`]; the nodes of an all-to-all differ in size; pieces
    /// would be too small.
    ///
    /// # Panics
    /// If `collective` is not the collective of this hierarchy.
    pub fn schedule(
        &self,
        collective: Collective,
        grouping: &Grouping,
        rails: u32,
    ) -> Option<Schedule> {
        assert_eq!(collective.name(), self.collective, "the hierarchy is for another collective");
        let flat = grouping.nodes() == 1 || grouping.nodes() == grouping.nranks();
        if flat || !self.rails(grouping).contains(&rails) {
            return None;
        }
        let (intra, inter) = (named(self.intra), named(self.inter));
        let mut schedule = schedule(collective, grouping, rails, &intra, &inter)?;
        schedule.name = self.name;
        Some(schedule)
    }
}

const DIRECT: &[&str] = &["direct"];
const BINOMIAL: &[&str] = &["binomial"];
const CHAIN: &[&str] = &["chain"];
const CIRCULANT: &[&str] = &["circulant"];
const DOUBLING: &[&str] = &["doubling"];
const RING: &[&str] = &["ring"];
const TREE: &[&str] = &["tree"];
/// For nodes whose ranks form a ring: a switch without multicast, or the sockets of a board.
const RINGS: &[&str] = &["ring", "chain"];
/// For nodes of many ranks.
const HALVES: &[&str] = &["halving", "doubling", "binomial"];

/// All hierarchies, by collective.
const ALL: &[Hierarchy] = &[
    Hierarchy::new("all_reduce", "hierring", RING, DIRECT),
    Hierarchy::new("all_reduce", "hierhalving", &["halving"], DIRECT),
    Hierarchy::new("all_reduce", "hierdoubling", DOUBLING, DIRECT),
    Hierarchy::new("all_reduce", "hiertree", TREE, DIRECT),
    Hierarchy::new("all_reduce", "hiertwoshot", &["twoshot"], DIRECT),
    Hierarchy::new("all_reduce", "hieroneshot", &["oneshot"], DIRECT),
    Hierarchy::new("all_reduce", "hierringring", RING, RINGS),
    Hierarchy::new("all_reduce", "hierringhalving", RING, HALVES),
    Hierarchy::new("all_reduce", "hiertreechain", TREE, CHAIN),
    Hierarchy::new("all_reduce", "hierdoublingbinomial", DOUBLING, BINOMIAL),
    Hierarchy::new("reduce_scatter", "hierring", RING, DIRECT),
    Hierarchy::new("reduce_scatter", "hierhalving", &["halving"], DIRECT),
    Hierarchy::new("reduce_scatter", "hierdirect", DIRECT, DIRECT),
    Hierarchy::new("reduce_scatter", "hierringring", RING, RINGS),
    Hierarchy::new("reduce_scatter", "hierhalvinghalving", &["halving"], HALVES),
    Hierarchy::new("all_gather", "hierring", RING, DIRECT),
    Hierarchy::new("all_gather", "hierpat", &["pat"], DIRECT),
    Hierarchy::new("all_gather", "hierdoubling", DOUBLING, DIRECT),
    Hierarchy::new("all_gather", "hierdirect", DIRECT, DIRECT),
    Hierarchy::new("all_gather", "hierringring", RING, RINGS),
    Hierarchy::new("all_gather", "hierpatbinomial", &["pat"], BINOMIAL),
    Hierarchy::new("broadcast", "hierbinomial", BINOMIAL, DIRECT),
    Hierarchy::new("broadcast", "hierchain", CHAIN, DIRECT),
    Hierarchy::new("broadcast", "hiertree", TREE, DIRECT),
    Hierarchy::new("broadcast", "hiercirculant", CIRCULANT, DIRECT),
    Hierarchy::new("broadcast", "hierdirect", DIRECT, DIRECT),
    Hierarchy::new("broadcast", "hierbinomialbinomial", BINOMIAL, BINOMIAL),
    Hierarchy::new("reduce", "hierbinomial", BINOMIAL, DIRECT),
    Hierarchy::new("reduce", "hierchain", CHAIN, DIRECT),
    Hierarchy::new("reduce", "hiertree", TREE, DIRECT),
    Hierarchy::new("reduce", "hiercirculant", CIRCULANT, DIRECT),
    Hierarchy::new("reduce", "hierdirect", DIRECT, DIRECT),
    Hierarchy::new("reduce", "hierbinomialbinomial", BINOMIAL, BINOMIAL),
    Hierarchy::new("alltoall", "hierdirect", DIRECT, DIRECT),
];

/// All named hierarchies, by collective.
pub fn all() -> impl Iterator<Item = &'static Hierarchy> {
    ALL.iter()
}

/// The hierarchies for `collective`, in the order of the table.
pub fn hierarchies(collective: Collective) -> impl Iterator<Item = &'static Hierarchy> {
    all().filter(move |h| h.collective == collective.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::generators;

    #[test]
    fn names_are_alphanumeric_and_name_the_components() {
        for h in all() {
            let intra = if h.intra == DIRECT { "" } else { h.intra[0] };
            assert_eq!(h.name, format!("{FAMILY}{}{intra}", h.inter[0]));
            assert!(h.name.chars().all(|c| c.is_ascii_alphanumeric()));
            let same =
                hierarchies(h.collective_with_root(0)).filter(|other| other.name == h.name).count();
            assert_eq!(same, 1, "{}", h.name);
            assert!(generators(h.collective_with_root(0)).all(|g| !g.name.starts_with(FAMILY)));
        }
    }

    #[test]
    fn it_applies_where_there_are_nodes_of_several_ranks() {
        let rails = |h: &Hierarchy, sizes: &[u32]| {
            let grouping = Grouping::of_sizes(sizes);
            let some = |r: &u32| h.schedule(h.collective_with_root(1), &grouping, *r).is_some();
            (0..6).filter(some).collect::<Vec<_>>()
        };
        for h in all() {
            assert!(rails(h, &[4]).is_empty() && rails(h, &[1, 1, 1]).is_empty(), "{h:?}");
            match h.collective {
                "alltoall" => assert!(rails(h, &[3, 2]).is_empty() && rails(h, &[2, 2]) == [2]),
                "all_gather" | "reduce_scatter" => assert_eq!(rails(h, &[3, 2]), [2]),
                _ => assert_eq!(rails(h, &[3, 2]), [1, 2], "{h:?}"),
            }
        }
    }
}
