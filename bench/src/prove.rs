//! `maypole verify`: proves schedules on demand, all cores at once, and prints what was proved.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lexopt::{Arg, Parser, ValueExt};
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::verify::{Counterexample, Facts, prove};
use maypole_algorithms::{Class, Collective, Schedule};

use crate::status;

/// The text of `maypole verify --help`.
pub(crate) const HELP: &str = "\
maypole verify COLLECTIVE|--all [OPTIONS]

Proves the schedules of a collective: right results, no race, no deadlock, the declared bits. Rooted collectives are proved
from their first and their last rank.

  --all                   all collectives
  --ranks N | N..M        numbers of ranks, both ends included (2..64)
  --algorithm NAME        only this one
  --print                 print the one schedule by rank and lane; needs a single N, and --algorithm if there are several

Columns: collective, algorithm, class, ranks, proofs, executions, steps executed, seconds of processor time.
Exit status: 0 proved, 1 a counterexample (printed), 6 usage.
";

struct Request {
    generators: Vec<&'static Generator>,
    ranks: RangeInclusive<u32>,
    print: bool,
}

/// Runs `maypole verify` with what follows it.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> Result<u8, lexopt::Error> {
    let Some(request) = parse(args)? else {
        print!("{HELP}");
        return Ok(status::FINE);
    };
    if request.print {
        let [generator] = request.generators[..] else {
            return Err("--print needs --algorithm, or a collective with just one".into());
        };
        for collective in collectives(generator, *request.ranks.start()) {
            print!("{}", listing(&generator.schedule(collective, *request.ranks.start())));
        }
    }
    Ok(prove_all(&request))
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Request>, lexopt::Error> {
    let mut parser = Parser::from_args(args);
    let (mut collective, mut every, mut algorithm, mut print) = (None, false, None, false);
    let mut ranks = 2..=64;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Long("all") => every = true,
            Arg::Long("ranks") => ranks = range(&parser.value()?.string()?)?,
            Arg::Long("algorithm") => algorithm = Some(parser.value()?.string()?),
            Arg::Long("print") => print = true,
            Arg::Value(name) if collective.is_none() => collective = Some(name.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    if collective.is_some() == every {
        return Err("either a collective or --all; see maypole verify --help".into());
    }
    if print && ranks.start() != ranks.end() {
        return Err("--print needs one number of ranks: --ranks N".into());
    }
    let wanted = |g: &&Generator| {
        collective.as_ref().is_none_or(|name| name == g.collective)
            && algorithm.as_ref().is_none_or(|name| name == g.name)
    };
    let generators: Vec<_> = all().filter(wanted).collect();
    if generators.is_empty() {
        let known: Vec<_> = all().map(|g| format!("{} {}", g.collective, g.name)).collect();
        return Err(format!("no such schedule; known are: {}", known.join(", ")).into());
    }
    Ok(Some(Request { generators, ranks, print }))
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

/// What `generator` is to be proved for at `nranks`.
fn collectives(generator: &Generator, nranks: u32) -> Vec<Collective> {
    let mut roots = vec![generator.of(0), generator.of(nranks - 1)];
    roots.dedup();
    roots
}

/// The sum over a generator's proofs.
struct Total {
    class: Class,
    proofs: u32,
    executions: u64,
    steps: u64,
    seconds: f64,
}

impl Default for Total {
    fn default() -> Self {
        // The best; every proof may lower it.
        Self { class: Class::Canonical, proofs: 0, executions: 0, steps: 0, seconds: 0.0 }
    }
}

impl Total {
    fn add(&mut self, facts: &Facts, seconds: f64) {
        self.class = self.class.max(facts.class);
        self.proofs += 1;
        self.executions += u64::from(facts.executions);
        self.steps += facts.steps;
        self.seconds += seconds;
    }

    fn line(&self, collective: &str, algorithm: &str, ranks: &RangeInclusive<u32>) -> String {
        let Self { class, proofs, executions, steps, seconds } = self;
        let ranks = format!("{}..{}", ranks.start(), ranks.end());
        format!(
            "{collective:<14}  {algorithm:<10}  {class:<9}  {ranks:>9}  {proofs:>6}  {executions:>10}  {steps:>12}  {seconds:>8.2}"
        )
    }
}

/// Proves everything asked for and prints the table; returns the exit status.
fn prove_all(request: &Request) -> u8 {
    let mut tasks = Vec::new();
    for (index, generator) in request.generators.iter().enumerate() {
        for nranks in request.ranks.clone() {
            let of = collectives(generator, nranks).into_iter();
            tasks.extend(of.map(|collective| (index, collective, nranks)));
        }
    }
    // The longest first, so that no core is left with one at the end.
    tasks.sort_by_key(|&(_, _, nranks)| std::cmp::Reverse(nranks));
    let next = AtomicUsize::new(0);
    let totals = Mutex::new(BTreeMap::<usize, Total>::new());
    let refuted = Mutex::new(None::<Box<Counterexample>>);
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(tasks.len()) {
            scope.spawn(|| {
                // Relaxed: only the number counts, what it stands for was there before the thread.
                while let Some(&(index, collective, nranks)) =
                    tasks.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let start = Instant::now();
                    match prove(request.generators[index].schedule(collective, nranks)) {
                        Ok(proved) => {
                            let seconds = start.elapsed().as_secs_f64();
                            let mut totals = totals.lock().expect("no thread panicked");
                            totals.entry(index).or_default().add(proved.facts(), seconds);
                        }
                        Err(counterexample) => {
                            *refuted.lock().expect("no thread panicked") = Some(counterexample);
                            next.store(tasks.len(), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(counterexample) = refuted.into_inner().expect("no thread panicked") {
        eprintln!("maypole: not proved: {counterexample}");
        return status::DISPROVED;
    }
    println!(
        "{:<14}  {:<10}  {:<9}  {:>9}  {:>6}  {:>10}  {:>12}  {:>8}",
        "collective", "algorithm", "class", "ranks", "proofs", "executions", "steps", "seconds"
    );
    let mut sum = Total::default();
    for (index, total) in totals.into_inner().expect("no thread panicked") {
        let generator = request.generators[index];
        println!("{}", total.line(generator.collective, generator.name, &request.ranks));
        sum.proofs += total.proofs;
        sum.executions += total.executions;
        sum.steps += total.steps;
    }
    println!(
        "proved: {} schedules, {} executions, {} steps, {:.2} s",
        sum.proofs,
        sum.executions,
        sum.steps,
        start.elapsed().as_secs_f64()
    );
    status::FINE
}

/// A schedule by rank and lane.
fn listing(schedule: &Schedule) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "{schedule:?}: {} scratch chunks, credit {}, {}\n",
        schedule.scratch, schedule.credit, schedule.class
    );
    for rank in 0..schedule.nranks {
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

    fn request(line: &str) -> Result<Request, String> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(request) => request.ok_or_else(|| "help".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn requests_are_understood() {
        let one = request("all_reduce --ranks 3 --algorithm ring --print").unwrap();
        assert_eq!((one.generators.len(), one.ranks, one.print), (1, 3..=3, true));
        let every = request("--all --ranks 2..=5").unwrap();
        assert_eq!((every.generators.len(), every.ranks), (all().count(), 2..=5));
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        for (line, text) in [
            ("", "either a collective or --all"),
            ("all_reduce --all", "either a collective or --all"),
            ("all_reduce --print", "one number of ranks"),
            ("all_reduce --ranks 0", "'0' is not a number of ranks"),
            ("all_reduce --ranks 5..2", "'5..2' is not"),
            ("all_reduce --algorithm square", "known are: all_reduce ring"),
            ("all_reduce --fast", "--fast"),
        ] {
            let error = request(line).err().expect(line);
            assert!(error.contains(text), "{line}: {error}");
        }
    }

    #[test]
    fn every_generator_has_collectives() {
        for generator in all() {
            assert!(!collectives(generator, 3).is_empty());
        }
    }

    #[test]
    fn a_listing_has_every_step() {
        let generator = all().next().unwrap();
        let schedule = generator.schedule(collectives(generator, 3)[0], 3);
        let steps: u32 = (0..3)
            .flat_map(|rank| (0..schedule.lanes(rank)).map(move |lane| (rank, lane)))
            .map(|(rank, lane)| schedule.steps(rank, lane))
            .sum();
        let lines = listing(&schedule).lines().filter(|line| line.contains("->")).count();
        assert_eq!(lines, steps as usize);
    }
}
