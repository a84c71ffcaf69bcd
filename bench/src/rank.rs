//! One rank of a benchmark: runs the sizes, measures, checks; rank 0 prints.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole::{Call, Communicator, DType, RedOp, Reduction, UniqueId};

use crate::buffers::Buffer;
use crate::data::Data;
use crate::launch::{Exchange, Place};
use crate::options::{Average, Options};
use crate::status;
use crate::table::{self, Measured, Participant};
use crate::watchdog::Watchdog;

/// The version of NCCL whose interface the library has.
const NCCL_VERSION: u32 = 23203;

/// Runs as `rank`; returns the exit status.
pub(crate) fn run(options: &Options, place: Place) -> Result<u8, Box<dyn Error>> {
    let Place { rank, nranks, mut exchange, .. } = place;
    let options = &Options { nranks, ..options.clone() };
    let watchdog = Watchdog::start(rank, 1, options.timeout);
    let id = if rank == 0 { UniqueId::create()?.to_bytes().to_vec() } else { Vec::new() };
    let id = exchange.all_gather(&id)?.swap_remove(0);
    let id = UniqueId::from_bytes(id.try_into().map_err(|_| "rank 0 gave no unique id")?)?;
    let comm = Communicator::init(&id, options.nranks, rank)?;
    Bench::new(options, comm, exchange, watchdog)?.sweep()
}

/// What is measured: one line of the table.
#[derive(Clone, Copy)]
struct Case {
    dtype: DType,
    op: Option<RedOp>,
    root: Option<u32>,
    /// Elements per block.
    count: usize,
}

struct Bench<'a> {
    options: &'a Options,
    comm: Communicator,
    exchange: Box<dyn Exchange>,
    watchdog: Arc<Watchdog>,
    send: Buffer,
    recv: Buffer,
    corrupt: bool,
    seed: u64,
}

impl<'a> Bench<'a> {
    fn new(
        options: &'a Options,
        comm: Communicator,
        exchange: Box<dyn Exchange>,
        watchdog: Arc<Watchdog>,
    ) -> Result<Self, Box<dyn Error>> {
        let most = options.sizes().max().unwrap_or(0);
        // Both placements need up to two such buffers in every rank.
        let needed = 2.0 * most as f64 * f64::from(options.nranks);
        let memory = physical_memory();
        if needed > memory {
            return Err(format!(
                "{} ranks with buffers of {most} bytes need more than this machine's {memory:e} bytes of memory",
                options.nranks
            )
            .into());
        }
        Ok(Self {
            options,
            comm,
            exchange,
            watchdog,
            send: Buffer::new(most, 0),
            recv: Buffer::new(most, 0),
            corrupt: std::env::var("MAYPOLE_BENCH_CORRUPT").is_ok_and(|v| v == "1"),
            seed: 0,
        })
    }

    fn sweep(mut self) -> Result<u8, Box<dyn Error>> {
        let options = self.options;
        let program = format!("{}_perf", options.operation.name);
        let participants = self.participants()?;
        self.print(&table::header(options, &program, NCCL_VERSION, &participants))?;
        let mut failures = 0;
        let mut busbw = Vec::new();
        for &dtype in &options.dtypes {
            self.shift(dtype);
            for op in options.reductions() {
                for root in options.roots() {
                    for bytes in options.sizes() {
                        let count = options.operation.count(bytes, dtype.size(), options.nranks);
                        let case = Case { dtype, op, root, count };
                        for measured in self.line(case)? {
                            busbw.push(measured.busbw);
                            failures += measured.wrong.unwrap_or(0);
                        }
                    }
                }
            }
        }
        self.print(&table::footer(&program, failures, &busbw))?;
        Ok(if failures == 0 { status::FINE } else { status::WRONG })
    }

    fn participants(&mut self) -> Result<Vec<Participant>, Box<dyn Error>> {
        let pid = std::process::id();
        let mine = format!("{pid} {}", maypole::logger::host_name());
        let all = self.exchange.all_gather(mine.as_bytes())?;
        all.into_iter()
            .map(|line| {
                let line = String::from_utf8(line)?;
                let (pid, host) = line.split_once(' ').ok_or("a rank gave no name")?;
                Ok(Participant { pid: pid.parse()?, host: host.to_owned() })
            })
            .collect()
    }

    /// Buffers that begin one element behind the start of a page, if asked for.
    fn shift(&mut self, dtype: DType) {
        if self.options.unaligned {
            let most = self.options.sizes().max().unwrap_or(0);
            self.send = Buffer::new(most, dtype.size());
            self.recv = Buffer::new(most, dtype.size());
        }
    }

    fn line(&mut self, case: Case) -> Result<[Measured; 2], Box<dyn Error>> {
        let Options { operation, nranks, .. } = *self.options;
        let bytes = operation.size_elements(case.count, nranks) * case.dtype.size();
        self.print(&table::preamble(bytes, case.count, case.dtype, case.op, case.root))?;
        let mut both = Vec::new();
        for in_place in [false, true] {
            let measured = self.placement(case, in_place, bytes)?;
            self.print(&table::columns(&measured))?;
            both.push(measured);
        }
        self.print("\n")?;
        Ok([both[0], both[1]])
    }

    fn placement(
        &mut self,
        case: Case,
        in_place: bool,
        bytes: usize,
    ) -> Result<Measured, Box<dyn Error>> {
        let seconds = self.time(case, in_place)?;
        let mut wrong = 0;
        for _ in 0..self.options.checks {
            wrong += self.check(case, in_place)?;
        }
        let all = self.numbers((seconds, wrong))?;
        let times = all.iter().map(|&(seconds, _)| seconds);
        let seconds = match self.options.average {
            Average::First => all[0].0,
            Average::Mean => times.sum::<f64>() / all.len() as f64,
            Average::Min => times.fold(f64::INFINITY, f64::min),
            Average::Max => times.fold(0.0, f64::max),
        };
        // A call of no bytes may take no time that a clock sees.
        let algbw = if bytes == 0 { 0.0 } else { bytes as f64 / seconds.max(1e-9) };
        Ok(Measured {
            seconds,
            algbw,
            busbw: algbw * self.options.operation.bus_factor(self.options.nranks),
            wrong: (self.options.checks > 0).then(|| all.iter().map(|&(_, wrong)| wrong).sum()),
        })
    }

    /// What each rank gave of two numbers.
    fn numbers(&mut self, mine: (f64, u64)) -> Result<Vec<(f64, u64)>, Box<dyn Error>> {
        let (a, b) = (mine.0.to_le_bytes(), mine.1.to_le_bytes());
        let all = self.exchange.all_gather(&[a, b].concat())?;
        let numbers = all.iter().map(|bytes| match bytes.as_chunks() {
            (&[a, b], []) => Ok((f64::from_le_bytes(a), u64::from_le_bytes(b))),
            _ => Err("ranks are out of step".into()),
        });
        numbers.collect()
    }

    /// Seconds per call on this rank.
    fn time(&mut self, case: Case, in_place: bool) -> Result<f64, Box<dyn Error>> {
        let data = self.data(case);
        let call = self.set_up(case, in_place, &data);
        for _ in 0..self.options.warmup {
            self.call(&call)?;
        }
        self.exchange.all_gather(&[])?;
        let calls = self.options.iterations * self.options.calls;
        let mut spent = Duration::ZERO;
        if self.options.barrier {
            for _ in 0..calls {
                let start = Instant::now();
                self.call(&call)?;
                spent += start.elapsed();
                self.exchange.all_gather(&[])?;
            }
        } else {
            let start = Instant::now();
            for _ in 0..calls {
                self.call(&call)?;
            }
            spent = start.elapsed();
        }
        Ok(spent.as_secs_f64() / calls as f64)
    }

    /// One call with fresh data; returns how much of the result is wrong on this rank.
    fn check(&mut self, case: Case, in_place: bool) -> Result<u64, Box<dyn Error>> {
        let Options { operation, nranks, .. } = *self.options;
        let Case { dtype, root, count, .. } = case;
        let (rank, element) = (self.comm.rank(), dtype.size());
        let data = self.data(case);
        let call = self.set_up(case, in_place, &data);
        // Nobody's call may see a peer that still prepares, or the data of the measurement would be as good.
        self.exchange.all_gather(&[])?;
        self.call(&call)?;
        if self.corrupt {
            self.recv.corrupt();
        }
        let at = if in_place { operation.in_place(rank, count).1 } else { 0 };
        let expected = operation.expected(&data, rank, root.unwrap_or(0), count);
        let mut wrong = self.recv.wrong(&expected, at, element) + self.recv.damage();
        if !in_place {
            let len = operation.send_elements(count, nranks);
            let source = data.contribution(rank, len);
            let sent = [crate::operation::Expected { source, start: 0, len }];
            wrong += self.send.wrong(&sent, 0, element) + self.send.damage();
        }
        Ok(wrong)
    }

    /// Prepares the buffers for a call, in place in the receive buffer alone.
    fn set_up(&mut self, case: Case, in_place: bool, data: &Data) -> Call {
        let Options { operation, nranks, .. } = *self.options;
        let Case { dtype, op, root, count } = case;
        let (rank, element) = (self.comm.rank(), dtype.size());
        let sent = operation.send_elements(count, nranks);
        let received = operation.recv_elements(count, nranks);
        let source = data.contribution(rank, sent);
        let (send, recv) = if in_place {
            let (send, recv) = operation.in_place(rank, count);
            self.recv.prepare(sent.max(received) * element);
            self.recv.fill(&source, send, sent, element);
            let base = self.recv.pointer();
            (base.wrapping_add(send * element).cast_const(), base.wrapping_add(recv * element))
        } else {
            self.send.prepare(sent * element);
            self.send.fill(&source, 0, sent, element);
            self.recv.prepare(received * element);
            (self.send.pointer().cast_const(), self.recv.pointer())
        };
        let op = op.unwrap_or(RedOp::Sum);
        let scalar = if op == RedOp::PreMulSum { data.scalar(rank) } else { 0 };
        Call {
            collective: operation.collective(root.unwrap_or(0)),
            send,
            recv,
            count,
            dtype,
            reduction: Reduction { op, scalar },
        }
    }

    fn call(&mut self, call: &Call) -> Result<(), maypole::Error> {
        // SAFETY: `set_up` made both buffers large enough for the call, and laid them out as in place demands.
        let result = unsafe { self.comm.run(call) };
        self.watchdog.step(0);
        result
    }

    /// The next set of data; the same on all ranks.
    fn data(&mut self, Case { dtype, op, .. }: Case) -> Data {
        self.seed += 1;
        Data { dtype, op, nranks: self.options.nranks, seed: self.seed }
    }

    fn print(&self, text: &str) -> std::io::Result<()> {
        if self.comm.rank() == 0 {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }
}

/// Bytes of memory of this machine.
fn physical_memory() -> f64 {
    // SAFETY: sysconf has no preconditions.
    let [pages, size] =
        [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    pages as f64 * size as f64
}
