//! `maypole compare`: measures all algorithms of a collective at the same sizes in one run, and
//! prints them beside the times that the cost model expects. It shows which algorithm is fastest at
//! which size, and what the canonical class costs.
//!
//! Each process has one communicator for each algorithm, restricted to it as NCCL_ALGO would. A
//! round measures all of them, one after the other, so that a change in the speed of the machine
//! affects all equally. A time is that of the slowest rank, and the table shows the median over the
//! rounds.

use maypole::config::Config;
use maypole::{Call, Communicator, DType, RedOp, UniqueId};
use maypole_algorithms::collective::{Generator, generators};
use maypole_algorithms::{Class, Collective};

use crate::call_timing::slowest_seconds_per_call;
use crate::launch::LaunchedRank;
use crate::options::size;
use crate::rank_threads::{RankThread, rank_threads};
use crate::status::Failure;

/// The element type of all calls.
const DTYPE: DType = DType::Float32;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
It measures float sums out of place, from rank 0 if there is a root. SIZE is that of the larger
buffer, as in nccl-tests. Columns: size, algorithm, class, how its messages travel, bytes of a tile,
microseconds expected and measured, and measured over the best of the same size. The last lines of
each size compare the best canonical algorithm with the best of all: both, and their ratio, as
measured and as expected.")]
pub(crate) struct Comparison {
    /// The collective, such as all_reduce
    #[arg(value_name = "COLLECTIVE", value_parser = collective)]
    collective: Collective,
    /// Number of processes, which are started on this host (also -np N)
    #[arg(long = "ranks", alias = "processes", value_name = "N", default_value = "2")]
    pub(crate) nranks: u32,
    /// Smallest size in bytes; K, M or G may follow
    #[arg(short = 'b', long = "minbytes", value_name = "SIZE", value_parser = size,
        default_value = "8")]
    min: usize,
    /// Largest size
    #[arg(short = 'e', long = "maxbytes", value_name = "SIZE", value_parser = size,
        default_value = "16M")]
    max: usize,
    /// Factor between one size and the next
    #[arg(short = 'f', long = "stepfactor", value_name = "N", default_value = "8")]
    factor: usize,
    /// Measure only these algorithms
    #[arg(long = "algorithm", value_name = "A,B,...", value_delimiter = ',')]
    algorithms: Option<Vec<String>>,
    /// Number of rounds, whose median is shown
    #[arg(long, value_name = "N", default_value = "9")]
    rounds: usize,
    /// How long one measurement should take
    #[arg(long, value_name = "N", default_value = "4")]
    milliseconds: f64,
}

fn collective(name: &str) -> Result<Collective, String> {
    let known = Collective::all(0).map(Collective::name).join(", ");
    Collective::from_name(name, 0)
        .ok_or_else(|| format!("'{name}' is not a collective; known are: {known}"))
}

impl Comparison {
    /// Checks that the options fit together.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(self) -> Result<Self, Failure> {
        if self.nranks == 0 || self.rounds == 0 || self.factor < 2 {
            return Err(Failure::usage(
                "--ranks and --rounds must be at least 1, and --stepfactor at least 2",
            ));
        }
        if self.generators().next().is_none() {
            let known: Vec<_> = generators(self.collective).map(|g| g.name).collect();
            let known = known.join(", ");
            return Err(Failure::usage(format!("no such algorithm; known are: {known}")));
        }
        Ok(self)
    }

    fn generators(&self) -> impl Iterator<Item = &'static Generator> {
        let names = self.algorithms.as_ref();
        generators(self.collective)
            .filter(move |g| names.is_none_or(|names| names.iter().any(|name| name == g.name)))
    }

    fn sizes(&self) -> impl Iterator<Item = usize> {
        let next = |size: &usize| size.checked_mul(self.factor);
        std::iter::successors(Some(self.min), next).take_while(|size| *size <= self.max)
    }

    /// Elements per block for a size in bytes, at least one.
    fn count(&self, size: usize) -> usize {
        let n = self.nranks;
        let blocks = self.collective.input_chunks(n, 1).max(self.collective.output_chunks(n, 1));
        (size / DTYPE.size() / blocks as usize).max(1)
    }

    /// Bytes of the send buffer and of the receive buffer for `count` elements per block.
    fn lengths(&self, count: usize) -> [usize; 2] {
        let (collective, n) = (self.collective, self.nranks);
        [collective.input_chunks(n, 1), collective.output_chunks(n, 1)]
            .map(|blocks| blocks as usize * count * DTYPE.size())
    }
}

/// An algorithm, with a communicator that uses no other.
struct ComparedAlgorithm {
    name: &'static str,
    class: Class,
    comm: Communicator,
}

/// The result of one algorithm at one size.
struct ComparisonRow {
    name: &'static str,
    class: Class,
    protocol: String,
    /// Bytes of a tile.
    tile: usize,
    /// Microseconds by the cost model.
    expected: f64,
    /// Microseconds measured.
    measured: f64,
}

/// Runs as one of the processes. Rank 0 prints.
pub(crate) fn run(comparison: &Comparison, launched: LaunchedRank) -> Result<(), Failure> {
    let LaunchedRank { rank, exchange, .. } = launched;
    let [thread] = <[RankThread; 1]>::try_from(rank_threads(exchange, 1))
        .map_err(|_| Failure::internal("one rank was asked for"))?;
    let mut algorithms = Vec::new();
    for generator in comparison.generators() {
        algorithms.push(connect(comparison, generator, rank, &thread)?);
    }
    if rank == 0 {
        println!("# {} ranks, {}", comparison.nranks, comparison.collective.name());
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
    for size in comparison.sizes() {
        let rows = measure(comparison, size, &mut algorithms, &thread)?;
        if rank == 0 {
            print(size, &rows);
        }
    }
    Ok(())
}

/// Makes the communicator of an algorithm.
fn connect(
    comparison: &Comparison,
    generator: &Generator,
    rank: u32,
    thread: &RankThread,
) -> Result<ComparedAlgorithm, Failure> {
    let only = format!("{}:{}", generator.collective, generator.name);
    let config = Config { algorithms: Some(only), ..Config::get().clone() };
    let id = if rank == 0 {
        UniqueId::create().map_err(maypole::Error::from)?.to_bytes().to_vec()
    } else {
        Vec::new()
    };
    let ids = thread.all_gather(&id)?;
    let id = ids[0].as_slice().try_into();
    let id = id.map_err(|_| Failure::internal("rank 0 sent no unique id"))?;
    let id = UniqueId::from_bytes(id).map_err(maypole::Error::from)?;
    let comm = Communicator::builder(&id).rank(rank, comparison.nranks).config(config).build()?;
    let class = generator.schedule(comparison.collective, comparison.nranks).class;
    Ok(ComparedAlgorithm { name: generator.name, class, comm })
}

/// Measures all algorithms at one size.
fn measure(
    comparison: &Comparison,
    size: usize,
    algorithms: &mut [ComparedAlgorithm],
    thread: &RankThread,
) -> Result<Vec<ComparisonRow>, Failure> {
    let count = comparison.count(size);
    let [send, recv] = comparison.lengths(count);
    let (send, mut recv) = (vec![1u8; send], vec![1u8; recv]);
    let call = Call {
        collective: comparison.collective,
        send: send.as_ptr(),
        recv: recv.as_mut_ptr(),
        count,
        dtype: DTYPE,
        reduction: RedOp::Sum.into(),
    };
    let time = |comm: &mut Communicator, calls: usize| {
        // SAFETY: both buffers are as long as the call requires, they live as long as this function
        // runs, and nothing else uses them.
        slowest_seconds_per_call(thread, calls, || Ok(unsafe { comm.run(&call) }?))
    };
    let mut rows = Vec::new();
    let mut repeats = Vec::new();
    for algorithm in &mut *algorithms {
        // The first call plans and proves. The second shows how many calls fill the time.
        time(&mut algorithm.comm, 1)?;
        let once = time(&mut algorithm.comm, 1)?;
        let seconds = comparison.milliseconds * 1e-3;
        repeats.push(((seconds / once.max(1e-9)) as usize).clamp(1, 10_000));
        let choice = algorithm.comm.explain(&call)?;
        rows.push(ComparisonRow {
            name: algorithm.name,
            class: algorithm.class,
            protocol: choice.protocol.to_string(),
            tile: choice.tile,
            expected: choice.predicted,
            measured: 0.0,
        });
    }
    let mut times = vec![Vec::new(); algorithms.len()];
    for _ in 0..comparison.rounds {
        for ((algorithm, &calls), times) in algorithms.iter_mut().zip(&repeats).zip(&mut times) {
            times.push(time(&mut algorithm.comm, calls)?);
        }
    }
    for (row, times) in rows.iter_mut().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        row.measured = times[times.len() / 2] * 1e6;
    }
    Ok(rows)
}

fn print(size: usize, rows: &[ComparisonRow]) {
    let best = rows.iter().map(|row| row.measured).fold(f64::INFINITY, f64::min);
    for ComparisonRow { name, class, protocol, tile, expected, measured } in rows {
        println!(
            "{size:>12} {name:>12} {class:>9} {protocol:>8} {tile:>8} {expected:>11.2} \
             {measured:>11.2} {:>8.2}",
            measured / best
        );
    }
    let fastest = |time: fn(&ComparisonRow) -> f64, canonical: bool| {
        rows.iter()
            .filter(|row| !canonical || row.class == Class::Canonical)
            .min_by(|a, b| time(a).total_cmp(&time(b)))
    };
    let line = |what: &str, time: fn(&ComparisonRow) -> f64| {
        if let (Some(canonical), Some(any)) = (fastest(time, true), fastest(time, false)) {
            let ratio = time(canonical) / time(any);
            println!(
                "# {size:>10} {what}: best canonical {} {:.2} us, best of all {} {:.2} us, \
                 ratio {ratio:.2}",
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
    use crate::grammar::parse_line;

    fn comparison(line: &str) -> Result<Comparison, Failure> {
        parse_line::<Comparison>("compare", line)?.check()
    }

    #[test]
    fn comparisons_are_parsed() {
        let one = comparison("all_gather -np 3 -b 1K -e 1M -f 4 --algorithm ring,direct").unwrap();
        assert_eq!((one.nranks, one.collective), (3, Collective::AllGather));
        assert_eq!(
            one.sizes().collect::<Vec<_>>(),
            [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
        );
        assert_eq!(one.count(1 << 10), 85);
        assert_eq!(one.lengths(85), [340, 1020]);
        assert!(one.generators().all(|g| ["ring", "direct"].contains(&g.name)));
        assert_eq!(comparison("all_gather --ranks 5").unwrap().nranks, 5);
    }

    #[test]
    fn impossible_comparisons_are_refused() {
        for (line, text) in [
            ("", "which collective?"),
            ("all_deduce", "known are: all_reduce"),
            ("all_reduce --algorithm square", "known are: ring"),
            ("all_reduce -np 0", "at least 1"),
            ("all_reduce -b x", "x"),
        ] {
            let error = comparison(line).expect_err(line).text;
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
