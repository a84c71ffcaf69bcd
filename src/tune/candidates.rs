//! The schedules among which the tuner chooses: those of all generators, and on several nodes the
//! hierarchies.

use maypole_algorithms::collective::{all, generators};
use maypole_algorithms::hierarchy::{self, FAMILY, channels, hierarchies};
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Collective, Schedule};

use crate::channels::MAX_OF_SCHEDULES;

/// Every schedule for `collective` among ranks of that `grouping`, in a fixed order: flat
/// schedules, then hierarchies over one rail and over all rails. Each is repeated with each number
/// of copies side by side that `copies` lists. Schedules that need too many channels are left out.
pub(crate) fn candidates(
    collective: Collective,
    grouping: &Grouping,
    copies: &[u32],
) -> Vec<Schedule> {
    let flat = generators(collective).map(|g| g.schedule(collective, grouping.nranks()));
    let nested = hierarchies(collective).flat_map(|hierarchy| {
        let rails = hierarchy.rails(grouping);
        let rails = [*rails.start(), *rails.end()].into_iter();
        let rails = rails.take(if hierarchy.rails(grouping).count() > 1 { 2 } else { 1 });
        rails.filter_map(|rails| hierarchy.schedule(collective, grouping, rails))
    });
    let mut schedules = Vec::new();
    for schedule in flat.chain(nested) {
        for &copies in copies {
            let all = copies * u32::from(schedule.channels);
            if all <= u32::from(MAX_OF_SCHEDULES) {
                schedules.push(channels::schedule(&schedule, copies));
            }
        }
    }
    schedules
}

/// The names of all algorithms, and the name that stands for all hierarchies.
pub(crate) fn names() -> Vec<&'static str> {
    let hierarchies = hierarchy::all().map(|h| h.name);
    let mut names: Vec<_> = all().map(|g| g.name).chain(hierarchies).chain([FAMILY]).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_need_several_nodes_and_copies_must_be_requested() {
        let count = |sizes: &[u32], copies: &[u32], test: &dyn Fn(&Schedule) -> bool| {
            let all = candidates(Collective::AllReduce, &Grouping::of_sizes(sizes), copies);
            all.iter().filter(|s| test(s)).count()
        };
        let nested = |s: &Schedule| s.name.starts_with(FAMILY);
        assert_eq!(count(&[8], &[1], &nested), 0);
        assert_eq!(count(&[1, 1, 1], &[1], &nested), 0);
        assert!(count(&[4, 4], &[1], &nested) > 8);
        let two = |s: &Schedule| s.detail.as_ref().is_some_and(|d| d.contains("2 side by side"));
        assert_eq!(count(&[8], &[1], &two), 0);
        assert!(count(&[8], &[1, 2], &two) > 4 && count(&[8], &[2], &two) > 4);
        assert!(count(&[4, 4], &[1, 2], &|s| s.channels > MAX_OF_SCHEDULES) == 0);
    }
}
