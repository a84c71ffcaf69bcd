//! What is to be proved, from the command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;

use lexopt::{Arg, Parser, ValueExt};
use maypole_algorithms::Schedule;
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::listed;

/// The schedules to prove, and what to show of them.
pub(super) struct Request {
    /// Each with the part of the list that it is from: a row of the table is of one part.
    pub(super) schedules: Vec<(u8, Schedule)>,
    pub(super) print: bool,
}

impl Request {
    /// None if help is asked for.
    pub(super) fn parse(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        let mut parser = Parser::from_args(args);
        let (mut collective, mut every, mut algorithm, mut print) = (None, false, None, false);
        let mut ranks = None;
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => return Ok(None),
                Arg::Long("all") => every = true,
                Arg::Long("ranks") => ranks = Some(range(&parser.value()?.string()?)?),
                Arg::Long("algorithm") => algorithm = Some(parser.value()?.string()?),
                Arg::Long("print") => print = true,
                Arg::Value(name) if collective.is_none() => collective = Some(name.string()?),
                _ => return Err(arg.unexpected()),
            }
        }
        if collective.is_some() == every {
            return Err("either a collective or --all; see maypole verify --help".into());
        }
        let wanted = |g: &&Generator| {
            collective.as_ref().is_none_or(|name| name == g.collective)
                && algorithm.as_ref().is_none_or(|name| name == g.name)
        };
        if !all().any(|g| wanted(&g)) {
            let known: Vec<_> = all().map(|g| format!("{} {}", g.collective, g.name)).collect();
            return Err(format!("no such schedule; known are: {}", known.join(", ")).into());
        }
        let whole_list = every && ranks.is_none() && algorithm.is_none();
        let ranks = ranks.unwrap_or(listed::RANKS);
        let mut schedules = Vec::new();
        for generator in all().filter(wanted) {
            for n in ranks.clone() {
                let of = listed::of(generator, n, &[0, n - 1]);
                schedules.extend(of.into_iter().map(|schedule| (0, schedule)));
            }
        }
        if whole_list {
            schedules.extend(listed::large().map(|schedule| (1, schedule)));
        }
        Ok(Some(Self { schedules, print }))
    }

    /// The schedule to show, from each of its roots.
    pub(super) fn single(&self) -> Result<impl Iterator<Item = &Schedule>, lexopt::Error> {
        let schedules = || self.schedules.iter().map(|(_, schedule)| schedule);
        let key = |s: &Schedule| (s.name, s.collective.name(), s.nranks);
        let first = schedules().next().map(key);
        if schedules().any(|schedule| Some(key(schedule)) != first) {
            return Err("only one schedule can be shown: a collective, --ranks N, and --algorithm if there are several".into());
        }
        Ok(schedules())
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
        assert_eq!(every.schedules.len(), listed::small(2..=5).count());
        let list = request("--all").unwrap();
        let listed = listed::small(listed::RANKS).count() + listed::large().count();
        assert!(list.schedules.len() >= listed);
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
