//! `maypole compare`: every algorithm of a collective at the same sizes, in one run, measured in turns, beside what the cost model
//! expects: which one wins where, and what the canonical class costs.
//!
//! Each process has one communicator per algorithm, restricted to it as NCCL_ALGO would. A round measures all of them once, one
//! after the other, so that a change in the machine's mood meets all alike; a time is that of the slowest rank, and the table shows
//! the median over the rounds.

use std::error::Error;
use std::ffi::OsString;
use std::time::Instant;

use lexopt::{Arg, Parser, ValueExt};
use maypole::config::Config;
use maypole::{Call, Communicator, DType, RedOp, UniqueId};
use maypole_algorithms::collective::{Generator, generators};
use maypole_algorithms::{Class, Collective};

use crate::launch::{LaunchExchange, LaunchedRank};
use crate::options::size;

/// The text of `maypole compare --help`.
pub(crate) const HELP: &str = "\
maypole compare COLLECTIVE [OPTIONS]

Measures all algorithms of a collective in turns among processes of this host, float sums out of place from rank 0 if
there is a root, and prints them beside the cost model's expectation.

  -np, --ranks N       processes (2)
  -b, --minbytes SIZE  smallest size; K, M or G may follow (8)
  -e, --maxbytes SIZE  largest size (16M)
  -f, --stepfactor N   from one size to the next (8)
  --algorithm A,B,...  only these
  --rounds N           rounds, of which the median is shown (9)
  --milliseconds N     what a measurement should take (4)

SIZE is that of the larger buffer, as in nccl-tests. Columns: size, algorithm, class, how its messages travel, bytes of a tile,
microseconds expected and measured, and measured over the best of the row's size. A last line for each size compares the best
canonical algorithm with the best of all: both, and their ratio, as measured and as expected.
";

/// What to compare.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    collective: Collective,
    /// -np: how many processes.
    pub(crate) nranks: u32,
    min: usize,
    max: usize,
    factor: usize,
    algorithms: Option<Vec<String>>,
    rounds: usize,
    seconds: f64,
}

impl Request {
    /// Parses what follows `maypole compare`; None if help is asked for.
    pub(crate) fn parse(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        // lexopt takes -np for -n -p.
        let args = args.into_iter().map(|arg| if arg == "-np" { "--ranks".into() } else { arg });
        let mut parser = Parser::from_args(args);
        let mut collective = None;
        let mut request = Self {
            collective: Collective::AllReduce,
            nranks: 2,
            min: 8,
            max: 16 << 20,
            factor: 8,
            algorithms: None,
            rounds: 9,
            seconds: 4e-3,
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => return Ok(None),
                Arg::Long("ranks") => request.nranks = parser.value()?.parse()?,
                Arg::Short('b') | Arg::Long("minbytes") => request.min = size(&mut parser)?,
                Arg::Short('e') | Arg::Long("maxbytes") => request.max = size(&mut parser)?,
                Arg::Short('f') | Arg::Long("stepfactor") => {
                    request.factor = parser.value()?.parse()?;
                }
                Arg::Long("algorithm") => {
                    let list = parser.value()?.string()?;
                    request.algorithms = Some(list.split(',').map(str::to_owned).collect());
                }
                Arg::Long("rounds") => request.rounds = parser.value()?.parse()?,
                Arg::Long("milliseconds") => {
                    request.seconds = parser.value()?.parse::<f64>()? * 1e-3;
                }
                Arg::Value(name) if collective.is_none() => {
                    let name = name.string()?;
                    let known = Collective::all(0).map(Collective::name).join(", ");
                    let named = Collective::from_name(&name, 0);
                    let unknown = || format!("'{name}' is not a collective; known are: {known}");
                    collective = Some(named.ok_or_else(unknown)?);
                }
                _ => return Err(arg.unexpected()),
            }
        }
        request.collective = collective.ok_or("which collective? See maypole compare --help")?;
        if request.nranks == 0 || request.rounds == 0 || request.factor < 2 {
            return Err("--ranks and --rounds start at 1, the factor at 2".into());
        }
        if request.generators().next().is_none() {
            let known: Vec<_> = generators(request.collective).map(|g| g.name).collect();
            return Err(format!("no such algorithm; known are: {}", known.join(", ")).into());
        }
        Ok(Some(request))
    }

    fn generators(&self) -> impl Iterator<Item = &'static Generator> {
        let wanted = self.algorithms.as_ref();
        generators(self.collective)
            .filter(move |g| wanted.is_none_or(|names| names.iter().any(|name| name == g.name)))
    }

    fn sizes(&self) -> impl Iterator<Item = usize> {
        let next = |size: &usize| size.checked_mul(self.factor);
        std::iter::successors(Some(self.min), next).take_while(|size| *size <= self.max)
    }

    /// Elements per block for a size, at least one.
    fn count(&self, size: usize) -> usize {
        let n = self.nranks;
        let blocks = self.collective.input_chunks(n, 1).max(self.collective.output_chunks(n, 1));
        (size / DTYPE.size() / blocks as usize).max(1)
    }

    /// Bytes of either buffer for that.
    fn lengths(&self, count: usize) -> [usize; 2] {
        let (collective, n) = (self.collective, self.nranks);
        [collective.input_chunks(n, 1), collective.output_chunks(n, 1)]
            .map(|blocks| blocks as usize * count * DTYPE.size())
    }
}

const DTYPE: DType = DType::Float32;

/// An algorithm with the communicator that uses it alone.
struct Contestant {
    name: &'static str,
    class: Class,
    comm: Communicator,
}

/// One algorithm at one size.
struct Row {
    name: &'static str,
    class: Class,
    protocol: String,
    tile: usize,
    /// Microseconds.
    expected: f64,
    measured: f64,
}

/// Runs as one of the processes; the first prints.
pub(crate) fn run(request: &Request, place: LaunchedRank) -> Result<(), Box<dyn Error>> {
    let LaunchedRank { rank, mut exchange, .. } = place;
    let mut contestants = Vec::new();
    for generator in request.generators() {
        contestants.push(enlist(request, generator, rank, &mut *exchange)?);
    }
    if rank == 0 {
        println!("# {} ranks, {}", request.nranks, request.collective.name());
        println!(
            "# {:>10} {:>12} {:>9} {:>8} {:>8} {:>11} {:>11} {:>8}",
            "size (B)",
            "algorithm",
            "class",
            "protocol",
            "tile (B)",
            "model (us)",
            "time (us)",
            "of best"
        );
    }
    for size in request.sizes() {
        let rows = measure(request, size, &mut contestants, &mut *exchange)?;
        if rank == 0 {
            print(size, &rows);
        }
    }
    Ok(())
}

fn enlist(
    request: &Request,
    generator: &Generator,
    rank: u32,
    exchange: &mut dyn LaunchExchange,
) -> Result<Contestant, Box<dyn Error>> {
    let only = format!("{}:{}", generator.collective, generator.name);
    let config = Config { algorithms: Some(only), ..Config::get().clone() };
    let id = if rank == 0 { UniqueId::create()?.to_bytes().to_vec() } else { Vec::new() };
    let id = exchange.all_gather(&id)?.swap_remove(0);
    let id = UniqueId::from_bytes(id.try_into().map_err(|_| "rank 0 gave no unique id")?)?;
    let comm =
        Communicator::builder(&id).rank(rank, request.nranks).config(config.clone()).build()?;
    let class = generator.schedule(request.collective, request.nranks).class;
    Ok(Contestant { name: generator.name, class, comm })
}

fn measure(
    request: &Request,
    size: usize,
    contestants: &mut [Contestant],
    exchange: &mut dyn LaunchExchange,
) -> Result<Vec<Row>, Box<dyn Error>> {
    let count = request.count(size);
    let [send, recv] = request.lengths(count);
    let (send, mut recv) = (vec![1u8; send], vec![1u8; recv]);
    let call = Call {
        collective: request.collective,
        send: send.as_ptr(),
        recv: recv.as_mut_ptr(),
        count,
        dtype: DTYPE,
        reduction: RedOp::Sum.into(),
    };
    let mut rows = Vec::new();
    let mut repeats = Vec::new();
    for contestant in &mut *contestants {
        // The first call plans and proves; the second shows how often to repeat.
        time(&mut contestant.comm, &call, 1, exchange)?;
        let once = time(&mut contestant.comm, &call, 1, exchange)?;
        repeats.push(((request.seconds / once.max(1e-9)) as usize).clamp(1, 10_000));
        let choice = contestant.comm.explain(&call)?;
        rows.push(Row {
            name: contestant.name,
            class: contestant.class,
            protocol: choice.protocol.to_string(),
            tile: choice.tile,
            expected: choice.predicted,
            measured: 0.0,
        });
    }
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..request.rounds {
        for ((contestant, &calls), times) in contestants.iter_mut().zip(&repeats).zip(&mut times) {
            times.push(time(&mut contestant.comm, &call, calls, exchange)?);
        }
    }
    for (row, times) in rows.iter_mut().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        row.measured = times[times.len() / 2] * 1e6;
    }
    Ok(rows)
}

/// Seconds per call of the slowest rank; the same on all ranks.
fn time(
    comm: &mut Communicator,
    call: &Call,
    calls: usize,
    exchange: &mut dyn LaunchExchange,
) -> Result<f64, Box<dyn Error>> {
    exchange.all_gather(&[])?;
    let start = Instant::now();
    for _ in 0..calls {
        // SAFETY: `measure` made both buffers as long as the call asks for, and nothing else touches them.
        unsafe { comm.run(call)? };
    }
    let seconds = start.elapsed().as_secs_f64() / calls as f64;
    let all = exchange.all_gather(&seconds.to_le_bytes())?;
    let times = all.iter().filter_map(|bytes| Some(f64::from_le_bytes(*bytes.first_chunk()?)));
    Ok(times.fold(0.0, f64::max))
}

fn print(size: usize, rows: &[Row]) {
    let best = rows.iter().map(|row| row.measured).fold(f64::INFINITY, f64::min);
    for Row { name, class, protocol, tile, expected, measured } in rows {
        println!(
            "{size:>12} {name:>12} {class:>9} {protocol:>8} {tile:>8} {expected:>11.2} {measured:>11.2} {:>8.2}",
            measured / best
        );
    }
    let by = |time: fn(&Row) -> f64, canonical: bool| {
        rows.iter()
            .filter(|row| !canonical || row.class == Class::Canonical)
            .min_by(|a, b| time(a).total_cmp(&time(b)))
    };
    let line = |what: &str, time: fn(&Row) -> f64| {
        if let (Some(canonical), Some(any)) = (by(time, true), by(time, false)) {
            let ratio = time(canonical) / time(any);
            println!(
                "# {size:>10} {what}: best canonical {} {:.2} us, best of all {} {:.2} us, ratio {ratio:.2}",
                canonical.name,
                time(canonical),
                any.name,
                time(any)
            );
        }
    };
    line("measured", |row| row.measured);
    line("expected", |row| row.expected);
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
        let request = request("all_gather -np 3 -b 1K -e 1M -f 4 --algorithm ring,direct").unwrap();
        assert_eq!((request.nranks, request.collective), (3, Collective::AllGather));
        assert_eq!(
            request.sizes().collect::<Vec<_>>(),
            [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
        );
        assert_eq!(request.count(1 << 10), 85);
        assert_eq!(request.lengths(85), [340, 1020]);
        assert!(request.generators().all(|g| ["ring", "direct"].contains(&g.name)));
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        for (line, text) in [
            ("", "which collective?"),
            ("all_deduce", "known are: all_reduce"),
            ("all_reduce --algorithm square", "known are: ring"),
            ("all_reduce -np 0", "start at 1"),
            ("all_reduce -b x", "x"),
        ] {
            let error = request(line).expect_err(line);
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
