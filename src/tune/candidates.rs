//! The schedules among which a call may choose: those of all generators, and on several nodes hierarchies.

use maypole_algorithms::collective::{all, generators};
use maypole_algorithms::hierarchy::{self, named};
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Collective, Schedule};

use super::MOST_CHANNELS;

/// Every schedule that there is for `collective` among ranks of that `grouping`, in a fixed order. Those that need more channels
/// than there are are left out.
pub(crate) fn candidates(collective: Collective, grouping: &Grouping) -> Vec<Schedule> {
    let flat = generators(collective).map(|g| g.schedule(collective, grouping.nranks()));
    let mut schedules: Vec<Schedule> = flat.collect();
    if grouping.nodes() > 1 {
        schedules.extend(hierarchies(collective, grouping));
    }
    schedules.retain(|schedule| schedule.channels <= MOST_CHANNELS);
    schedules
}

/// The names of all algorithms.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = all().map(|g| g.name).chain(["hier"]).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Hierarchies of direct exchange within the nodes and of every algorithm between them, over one rail and over as many as the smallest
/// node has ranks.
fn hierarchies(collective: Collective, grouping: &Grouping) -> Vec<Schedule> {
    let within = named(&["direct"]);
    let most = grouping.smallest();
    let rails = [1, most].into_iter().take(if most > 1 { 2 } else { 1 });
    let mut schedules = Vec::new();
    for rails in rails {
        for across in generators(collective).map(|g| [g.name]) {
            let between = named(&across);
            schedules.extend(match collective {
                Collective::AllReduce => {
                    hierarchy::all_reduce::schedule(grouping, rails, &within, &between)
                }
                _ => None,
            });
        }
    }
    schedules
}
