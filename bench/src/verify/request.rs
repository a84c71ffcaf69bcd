//! Which schedules to prove, from the command line.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use maypole_algorithms::collective::all;
use maypole_algorithms::hierarchy::{self, channels};
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Collective, Schedule, proof_suite};

use crate::status::Failure;

/// The arguments of `maypole verify`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
It proves right results, no data race, no deadlock, and the declared class of the bits. Rooted
collectives are proved from their first and their last rank.

Columns: collective, algorithm, class, ranks, proofs, executions, steps executed, seconds of
processor time. Exit status: 0 proved, 1 a counterexample (which is printed), 6 usage error.")]
pub(crate) struct VerifyArguments {
    /// The collective, such as all_reduce
    #[arg(value_name = "COLLECTIVE")]
    collective: Option<String>,
    /// Every schedule of the proof suite: all collectives at 2..64 ranks and at some larger
    /// numbers, and hierarchies
    #[arg(long)]
    all: bool,
    /// Numbers of ranks, both ends included [default: 2..64]; with --all, these instead of the
    /// suite
    #[arg(long, value_name = "N|N..M", value_parser = rank_range)]
    ranks: Option<RangeInclusive<u32>>,
    /// Only this algorithm
    #[arg(long, value_name = "NAME")]
    algorithm: Option<String>,
    /// The number of ranks of each node, instead of --ranks; includes hierarchies
    #[arg(long, value_name = "N+N+...", value_parser = node_sizes)]
    nodes: Option<Grouping>,
    /// Only hierarchies with this number of rails
    #[arg(long, value_name = "N")]
    rails: Option<u32>,
    /// N copies of each schedule side by side
    #[arg(long, value_name = "N")]
    channels: Option<u32>,
    /// Print the schedule by rank and lane. It must be one: give one N, and --algorithm if the
    /// collective has several
    #[arg(long)]
    print: bool,
    /// Draw the schedule: time runs down, ranks side by side (a rooted collective from rank 0)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The schedules to prove, and what to show of them.
#[derive(Debug)]
pub(super) struct ProofRequest {
    /// The schedules, each with the part of the proof suite that it belongs to. A row of the table
    /// is about one part.
    pub(super) schedules: Vec<(u8, Schedule)>,
    /// Whether to print the schedule.
    pub(super) print: bool,
    /// The file to draw the schedule to.
    pub(super) svg: Option<PathBuf>,
    /// The nodes, if the user gave them.
    pub(super) nodes: Option<Grouping>,
}

impl ProofRequest {
    /// The schedules that the arguments select.
    ///
    /// # Errors
    /// The arguments do not fit together, or select no schedule.
    pub(super) fn new(arguments: VerifyArguments) -> Result<Self, Failure> {
        if arguments.collective.is_some() == arguments.all {
            return Err(Failure::usage("either a collective or --all; see maypole verify --help"));
        }
        if arguments.rails.is_some() && arguments.nodes.is_none() {
            return Err(Failure::usage("--rails is for hierarchies, which need --nodes"));
        }
        let mut schedules = arguments.schedules()?;
        if let Some(copies) = arguments.channels {
            for (_, schedule) in &mut schedules {
                *schedule = channels::schedule(schedule, copies);
            }
        }
        let VerifyArguments { print, svg, nodes, .. } = arguments;
        Ok(Self { schedules, print, svg, nodes })
    }

    /// The one schedule to show, for each of its roots.
    ///
    /// # Errors
    /// The request has several schedules.
    pub(super) fn single(&self) -> Result<impl Iterator<Item = &Schedule>, Failure> {
        let schedules = || self.schedules.iter().map(|(_, schedule)| schedule);
        let key = |s: &Schedule| (s.name, s.collective.name(), s.nranks, s.detail.clone());
        let first = schedules().next().map(key);
        if schedules().any(|schedule| Some(key(schedule)) != first) {
            return Err(Failure::usage(
                "only one schedule can be shown: give a collective, --ranks N (or --nodes and \
                 --rails), and --algorithm if there are several",
            ));
        }
        Ok(schedules())
    }
}

impl VerifyArguments {
    fn schedules(&self) -> Result<Vec<(u8, Schedule)>, Failure> {
        let is_selected = |collective: &str, name: &str| {
            self.collective.as_ref().is_none_or(|wanted| wanted == collective)
                && self.algorithm.as_ref().is_none_or(|wanted| wanted == name)
        };
        let ranks = match (&self.nodes, &self.ranks) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage("--nodes gives the number of ranks; leave out --ranks"));
            }
            (Some(nodes), None) => nodes.nranks()..=nodes.nranks(),
            (None, ranks) => ranks.clone().unwrap_or(proof_suite::RANKS),
        };
        let mut schedules = Vec::new();
        for generator in all().filter(|g| is_selected(g.collective, g.name)) {
            for n in ranks.clone() {
                let of_generator = proof_suite::schedules_of(generator, n, &[0, n - 1]);
                schedules.extend(of_generator.into_iter().map(|schedule| (0, schedule)));
            }
        }
        if let Some(nodes) = &self.nodes {
            for hierarchy in hierarchy::all().filter(|h| is_selected(h.collective, h.name)) {
                let mut collectives = [0, nodes.nranks() - 1]
                    .map(|root| hierarchy.collective_with_root(root))
                    .to_vec();
                collectives.dedup();
                let rails = hierarchy.rails(nodes);
                let wanted = rails.filter(|rails| self.rails.is_none_or(|given| given == *rails));
                let of_hierarchy = wanted.flat_map(|rails| {
                    let schedule = |c: &Collective| hierarchy.schedule(*c, nodes, rails);
                    collectives.iter().filter_map(schedule).collect::<Vec<_>>()
                });
                schedules.extend(of_hierarchy.map(|schedule| (2, schedule)));
            }
        }
        if schedules.is_empty() {
            let flat = all().map(|g| format!("{} {}", g.collective, g.name));
            let known: Vec<_> = flat
                .chain(
                    hierarchy::all().map(|h| format!("{} {} (with --nodes)", h.collective, h.name)),
                )
                .collect();
            let known = known.join(", ");
            return Err(Failure::usage(format!("no such schedule; known are: {known}")));
        }
        if self.all && self.ranks.is_none() && self.nodes.is_none() && self.algorithm.is_none() {
            schedules.extend(proof_suite::large().map(|schedule| (1, schedule)));
            schedules.extend(proof_suite::hierarchies().map(|schedule| (2, schedule)));
        }
        Ok(schedules)
    }
}

/// Nodes with these numbers of ranks, such as `4+4+2`.
fn node_sizes(text: &str) -> Result<Grouping, String> {
    let sizes: Option<Vec<u32>> =
        text.split('+').map(|size| size.parse().ok().filter(|&size| size > 0)).collect();
    let sizes = sizes
        .ok_or_else(|| format!("'{text}' is not the number of ranks of each node, as in 4+4+2"))?;
    Ok(Grouping::of_sizes(&sizes))
}

/// A number of ranks, or a range of such numbers.
fn rank_range(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    match (first.parse(), last.trim_start_matches('=').parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err(format!("'{text}' is not a number of ranks, and no range of them as in 2..64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::parse_line;

    fn request(line: &str) -> Result<ProofRequest, Failure> {
        ProofRequest::new(parse_line("verify", line)?)
    }

    #[test]
    fn requests_are_parsed() {
        let one = request("all_reduce --ranks 3 --algorithm ring --print").unwrap();
        assert_eq!((one.schedules.len(), one.print), (1, true));
        let rooted = request("broadcast --ranks 3 --algorithm direct").unwrap();
        assert_eq!((rooted.schedules.len(), rooted.single().unwrap().count()), (2, 2));
        let every = request("--all --ranks 2..=5").unwrap();
        assert_eq!(every.schedules.len(), proof_suite::small(2..=5).count());
        let hierarchy =
            request("all_reduce --algorithm hierring --nodes 4+4+2 --rails 2 --print").unwrap();
        assert_eq!(hierarchy.single().unwrap().next().unwrap().nranks, 10);
        assert!(hierarchy.print && hierarchy.svg.is_none());
        let drawn = request("all_reduce --algorithm ring --ranks 4 --svg ring.svg").unwrap();
        assert_eq!(drawn.svg, Some(PathBuf::from("ring.svg")));
        let copies = request("all_reduce --algorithm ring --ranks 4 --channels 3").unwrap();
        assert_eq!(copies.schedules[0].1.channels, 3);
        let list = request("--all").unwrap();
        let listed = proof_suite::small(proof_suite::RANKS).count() + proof_suite::large().count();
        assert_eq!(list.schedules.len(), listed + proof_suite::hierarchies().count());
    }

    #[test]
    fn impossible_requests_are_refused() {
        for (line, text) in [
            ("", "either a collective or --all"),
            ("all_reduce --all", "either a collective or --all"),
            ("all_reduce --ranks 0", "'0' is not a number of ranks"),
            ("all_reduce --ranks 5..2", "'5..2' is not"),
            ("all_reduce --algorithm square", "known are: all_reduce ring"),
            ("all_reduce --fast", "--fast"),
            ("all_reduce --rails 2", "need --nodes"),
            ("all_reduce --nodes 4+0", "'4+0' is not the number"),
            ("all_reduce --nodes 2+2 --ranks 4", "leave out --ranks"),
            ("all_reduce --algorithm hierring --nodes 2+2 --rails 3", "no such schedule"),
        ] {
            let error = request(line).expect_err(line).text;
            assert!(error.contains(text), "{line}: {error}");
        }
        for line in ["all_reduce", "all_reduce --ranks 3", "all_reduce --algorithm ring"] {
            let error = request(line).unwrap().single().err().expect(line).text;
            assert!(error.contains("only one schedule"), "{line}: {error}");
        }
    }
}
