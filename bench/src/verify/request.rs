//! What is to be proved, from the command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};
use maypole_algorithms::collective::all;
use maypole_algorithms::hierarchy::{self, channels};
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Collective, Schedule, proof_suite};

/// The schedules to prove, and what to show of them.
#[derive(Default)]
pub(super) struct Request {
    /// Each with the part of the list that it is from: a row of the table is of one part.
    pub(super) schedules: Vec<(u8, Schedule)>,
    pub(super) print: bool,
    /// Where to draw it.
    pub(super) svg: Option<PathBuf>,
    /// The nodes, where they are given.
    pub(super) nodes: Option<Grouping>,
}

/// The command line as it stands.
#[derive(Default)]
struct Line {
    collective: Option<String>,
    every: bool,
    algorithm: Option<String>,
    ranks: Option<RangeInclusive<u32>>,
    nodes: Option<Grouping>,
    rails: Option<u32>,
    channels: Option<u32>,
    print: bool,
    svg: Option<PathBuf>,
}

impl Request {
    /// None if help is asked for.
    pub(super) fn parse(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        let mut parser = Parser::from_args(args);
        let mut line = Line::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => return Ok(None),
                Arg::Long("all") => line.every = true,
                Arg::Long("ranks") => line.ranks = Some(range(&parser.value()?.string()?)?),
                Arg::Long("algorithm") => line.algorithm = Some(parser.value()?.string()?),
                Arg::Long("nodes") => line.nodes = Some(nodes(&parser.value()?.string()?)?),
                Arg::Long("rails") => line.rails = Some(parser.value()?.parse()?),
                Arg::Long("channels") => line.channels = Some(parser.value()?.parse()?),
                Arg::Long("print") => line.print = true,
                Arg::Long("svg") => line.svg = Some(parser.value()?.into()),
                Arg::Value(name) if line.collective.is_none() => {
                    line.collective = Some(name.string()?);
                }
                _ => return Err(arg.unexpected()),
            }
        }
        if line.collective.is_some() == line.every {
            return Err("either a collective or --all; see maypole verify --help".into());
        }
        if line.rails.is_some() && line.nodes.is_none() {
            return Err("--rails is for hierarchies, which need --nodes".into());
        }
        let mut schedules = line.schedules()?;
        if let Some(copies) = line.channels {
            for (_, schedule) in &mut schedules {
                *schedule = channels::schedule(schedule, copies);
            }
        }
        let Line { print, svg, nodes, .. } = line;
        Ok(Some(Self { schedules, print, svg, nodes }))
    }
    /// The schedule to show, from each of its roots.
    pub(super) fn single(&self) -> Result<impl Iterator<Item = &Schedule>, lexopt::Error> {
        let schedules = || self.schedules.iter().map(|(_, schedule)| schedule);
        let key = |s: &Schedule| (s.name, s.collective.name(), s.nranks, s.detail.clone());
        let first = schedules().next().map(key);
        if schedules().any(|schedule| Some(key(schedule)) != first) {
            return Err("only one schedule can be shown: a collective, --ranks N (or --nodes and --rails), and --algorithm if there are several".into());
        }
        Ok(schedules())
    }
}

impl Line {
    fn schedules(&self) -> Result<Vec<(u8, Schedule)>, lexopt::Error> {
        let named = |collective: &str, name: &str| {
            self.collective.as_ref().is_none_or(|wanted| wanted == collective)
                && self.algorithm.as_ref().is_none_or(|wanted| wanted == name)
        };
        let ranks = match (&self.nodes, &self.ranks) {
            (Some(_), Some(_)) => return Err("--nodes tells the ranks; leave out --ranks".into()),
            (Some(nodes), None) => nodes.nranks()..=nodes.nranks(),
            (None, ranks) => ranks.clone().unwrap_or(proof_suite::RANKS),
        };
        let mut schedules = Vec::new();
        for generator in all().filter(|g| named(g.collective, g.name)) {
            for n in ranks.clone() {
                let of = proof_suite::schedules_of(generator, n, &[0, n - 1]);
                schedules.extend(of.into_iter().map(|schedule| (0, schedule)));
            }
        }
        if let Some(nodes) = &self.nodes {
            for hierarchy in hierarchy::all().filter(|h| named(h.collective, h.name)) {
                let mut collectives = [0, nodes.nranks() - 1]
                    .map(|root| hierarchy.collective_with_root(root))
                    .to_vec();
                collectives.dedup();
                let rails = hierarchy.rails(nodes);
                let wanted = rails.filter(|rails| self.rails.is_none_or(|given| given == *rails));
                let of = wanted.flat_map(|rails| {
                    let schedule = |c: &Collective| hierarchy.schedule(*c, nodes, rails);
                    collectives.iter().filter_map(schedule).collect::<Vec<_>>()
                });
                schedules.extend(of.map(|schedule| (2, schedule)));
            }
        }
        if schedules.is_empty() {
            let flat = all().map(|g| format!("{} {}", g.collective, g.name));
            let known: Vec<_> = flat
                .chain(
                    hierarchy::all().map(|h| format!("{} {} (with --nodes)", h.collective, h.name)),
                )
                .collect();
            return Err(format!("no such schedule; known are: {}", known.join(", ")).into());
        }
        if self.every && self.ranks.is_none() && self.nodes.is_none() && self.algorithm.is_none() {
            schedules.extend(proof_suite::large().map(|schedule| (1, schedule)));
            schedules.extend(proof_suite::hierarchies().map(|schedule| (2, schedule)));
        }
        Ok(schedules)
    }
}

/// Nodes of those sizes: `4+4+2`.
fn nodes(text: &str) -> Result<Grouping, lexopt::Error> {
    let sizes: Option<Vec<u32>> =
        text.split('+').map(|size| size.parse().ok().filter(|&size| size > 0)).collect();
    match sizes {
        Some(sizes) => Ok(Grouping::of_sizes(&sizes)),
        None => Err(format!("'{text}' is not the ranks of each node, such as 4+4+2").into()),
    }
}

fn range(text: &str) -> Result<RangeInclusive<u32>, lexopt::Error> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    match (first.parse(), last.trim_start_matches('=').parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(first..=last),
        _ => {
            Err(format!("'{text}' is not a number of ranks, nor a range of them such as 2..64")
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Request, String> {
        match Request::parse(line.split_whitespace().map(OsString::from)) {
            Ok(request) => request.ok_or_else(|| "help".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn requests_are_understood() {
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
    fn requests_that_make_no_sense_are_refused() {
        for (line, text) in [
            ("", "either a collective or --all"),
            ("all_reduce --all", "either a collective or --all"),
            ("all_reduce --ranks 0", "'0' is not a number of ranks"),
            ("all_reduce --ranks 5..2", "'5..2' is not"),
            ("all_reduce --algorithm square", "known are: all_reduce ring"),
            ("all_reduce --fast", "--fast"),
            ("all_reduce --rails 2", "need --nodes"),
            ("all_reduce --nodes 4+0", "'4+0' is not the ranks"),
            ("all_reduce --nodes 2+2 --ranks 4", "leave out --ranks"),
            ("all_reduce --algorithm hierring --nodes 2+2 --rails 3", "no such schedule"),
        ] {
            let error = request(line).err().expect(line);
            assert!(error.contains(text), "{line}: {error}");
        }
        for line in ["all_reduce", "all_reduce --ranks 3", "all_reduce --algorithm ring"] {
            let error = request(line).unwrap().single().err().expect(line).to_string();
            assert!(error.contains("only one schedule"), "{line}: {error}");
        }
    }
}
