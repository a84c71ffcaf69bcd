//! Prints a schedule as text.

use std::fmt::Write as _;

use maypole_algorithms::Schedule;

/// The schedule by rank and lane, with one line for each step.
pub(super) fn listing(schedule: &Schedule) -> String {
    let Schedule { scratch, credit, channels, class, nranks, .. } = *schedule;
    let count =
        |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut text = format!(
        "{schedule:?}: {}, {}, {}, {class}\n",
        count(scratch, "scratch chunk"),
        count(credit, "credit"),
        count(channels.into(), "channel"),
    );
    for rank in 0..nranks {
        for lane in 0..schedule.lanes(rank) {
            let _ = writeln!(text, "rank {rank} lane {lane}");
            for (index, step) in schedule.lane(rank, lane).enumerate() {
                let _ = writeln!(text, "  {index:3}  {step}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use maypole_algorithms::collective::all;

    #[test]
    fn a_listing_has_every_step() {
        for generator in all() {
            let schedule = generator.schedule(generator.collective_with_root(2), 3);
            let steps: u32 = (0..3)
                .flat_map(|rank| (0..schedule.lanes(rank)).map(move |lane| (rank, lane)))
                .map(|(rank, lane)| schedule.steps(rank, lane))
                .sum();
            let lines = listing(&schedule).lines().filter(|line| line.contains("->")).count();
            assert_eq!(lines, steps as usize);
        }
    }
}
