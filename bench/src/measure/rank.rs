//! A rank's way through the table: every line is measured out of place and in place, and checked. The first rank of all prints.

use std::io::Write;

use maypole::Communicator;

use super::check::Case;
use super::groups::Group;
use super::progress::Progress;
use super::timing::Timing;
use super::{Team, resources};
use crate::buffers::Buffer;
use crate::operation::steps::Steps;
use crate::operation::work::Work;
use crate::options::Options;
use crate::rank_threads::Member;
use crate::report::iterations::Iterations;
use crate::report::json::Json;
use crate::report::{Measured, Memory, Row, Summary, footer, header, plot, table};
use crate::status::{self, Failure};

/// One rank.
pub(super) struct Bench<'a> {
    pub(super) team: &'a Team,
    pub(super) member: &'a Member,
    pub(super) group: Group,
    pub(super) send: Buffer,
    pub(super) recv: Buffer,
    pub(super) seed: u64,
    comm: Communicator,
    /// True in one rank of all: it prints.
    speaks: bool,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        team: &'a Team,
        member: &'a Member,
        comm: Communicator,
        group: Group,
    ) -> Result<Self, Failure> {
        let most = team.options.max_bytes;
        Ok(Self {
            team,
            member,
            group,
            send: Buffer::new(most, 0, team.options.buffers),
            recv: Buffer::new(most, 0, team.options.buffers),
            seed: 0,
            comm,
            speaks: group.leader == 0 && group.rank == 0,
        })
    }

    pub(super) fn options(&self) -> &'a Options {
        &self.team.options
    }

    /// Measures and prints the whole table, as often as wanted; returns the exit status.
    pub(super) fn sweep(mut self) -> Result<u8, Failure> {
        let options = self.options();
        let participants = self.team.participants();
        let json = if self.speaks { Json::create(options, &participants)? } else { None };
        if let Some(json) = &json {
            self.print(&json.announcement())?;
        }
        self.print(&header::header(options, &participants, self.team.reduced))?;
        let mut rows = Vec::new();
        let outcome = self.cycles(&mut rows, json.as_ref());
        if let (Some(json), Err(failure)) = (&json, &outcome) {
            // That the file cannot be written either is not what is to be told.
            let _ = json.write(&rows, None, Some(&failure.text));
        }
        outcome
    }

    fn cycles(&mut self, rows: &mut Vec<Row>, json: Option<&Json>) -> Result<u8, Failure> {
        let options = self.options();
        let mut summary = Summary::default();
        let mut cycle = 0;
        while options.cycles == 0 || cycle < options.cycles {
            cycle += 1;
            let begin = rows.len();
            self.table(rows)?;
            rows[begin..].iter().for_each(|row| summary.add(row));
            if let Some(json) = json {
                json.write(rows, Some(&summary), None)?;
            }
            if options.cycles == 0 && rows.len() > 1 << 16 {
                // For ever: what is kept must not grow for ever.
                rows.drain(..rows.len() / 2);
            }
        }
        let memory = if options.memory { Some(self.memory()?) } else { None };
        self.print(&footer::footer(options, &summary, memory.as_ref()))?;
        if let Some(path) = options.plot.as_ref().filter(|_| self.speaks) {
            let picture = plot::svg(options.operation.name(), self.group.nranks, rows);
            std::fs::write(path, picture)
                .map_err(|error| Failure::system(format!("--plot {}: {error}", path.display())))?;
        }
        // Groups may have different bandwidths: the one that is shown decides for all.
        let fine = self.member.numbers(&[f64::from(u8::from(summary.fine(options)))])?;
        Ok(if fine[0] == [1.0] { status::FINE } else { status::WRONG })
    }

    fn table(&mut self, rows: &mut Vec<Row>) -> Result<(), Failure> {
        let options = self.options();
        if let Some(why) = options.operation.refuses(self.group.nranks) {
            return self.print(&format!("# {why}\n"));
        }
        let (ops, roots) = (options.reductions(), options.roots(self.group.smallest));
        let lines = options.dtypes.len() * ops.len() * roots.len() * options.sizes().count();
        let mut progress = Progress::new(lines, self.speaks);
        for &dtype in &options.dtypes {
            self.shift(dtype);
            for &op in &ops {
                for &root in &roots {
                    for bytes in options.sizes() {
                        let work = self.work(Case { dtype, op, root, bytes })?;
                        progress.next(&format!("{bytes} bytes of {dtype}"));
                        rows.push(self.line(&work)?);
                    }
                }
            }
        }
        progress.end();
        Ok(())
    }

    fn line(&mut self, work: &Work) -> Result<Row, Failure> {
        let options = self.options();
        let mut row = Row::new(work);
        self.print(&table::preamble(&row))?;
        row.out_of_place = Some(self.placement(work, false)?);
        if options.roof {
            row.roof = Some(self.roof(work)?);
        }
        self.print(&table::columns(options, row.out_of_place.as_ref()))?;
        if options.operation.has_in_place() {
            row.in_place = Some(self.placement(work, true)?);
        }
        self.print(&table::columns(options, row.in_place.as_ref()))?;
        self.print(&table::ending(options, &row))?;
        if options.variables.summary && work.traffic.is_some() {
            self.print(&table::traffic(&row, work))?;
        }
        Ok(row)
    }

    fn placement(&mut self, work: &Work, in_place: bool) -> Result<Measured, Failure> {
        let options = self.options();
        let data = self.data(work);
        let steps = self.set_up(work, in_place, &data);
        let timing = self.time(&steps)?;
        let peak = if options.resources { resources::peak_memory() as f64 } else { 0.0 };
        let mut wrong = 0;
        for _ in 0..options.checks {
            wrong += self.check(work, in_place)?;
        }
        let Timing { seconds, cpu, process, iterations } = timing;
        let all = self.member.numbers(&[seconds, cpu, wrong as f64, process, peak])?;
        let each = |which: usize| all.iter().map(move |numbers| numbers[which]);
        let seconds = options.average.of(each(0));
        let element = work.dtype.size();
        let counted =
            options.operation.counted_elements(work.size_elements(), work.nranks) * element;
        // A call of no bytes may take no time that a clock sees.
        let algbw = if counted == 0 { 0.0 } else { counted as f64 / seconds.max(1e-9) };
        Ok(Measured {
            seconds,
            cpu_seconds: options.average.of(each(1)),
            algbw,
            busbw: algbw * options.operation.bus_factor(work.nranks),
            wrong: (options.checks > 0).then(|| each(2).sum::<f64>() as u64),
            process_seconds: each(3).sum(),
            peak_bytes: each(4).fold(0.0, f64::max) as u64,
            iterations: if options.times_iterations() {
                Some(Iterations::new(&self.member.numbers(&iterations)?, options.skip))
            } else {
                None
            },
        })
    }

    /// Runs the calls once.
    #[inline]
    pub(super) fn call(&mut self, steps: &Steps) -> Result<(), Failure> {
        // SAFETY: `set_up` made both buffers large enough for the work, and laid them out as in place demands.
        let result = unsafe { steps.run(&mut self.comm) };
        self.team.watchdog.step(self.member.index);
        Ok(result?)
    }

    /// Writes the buffers anew, as they are, so that they lie in this processor's caches and in no other's.
    pub(super) fn rewrite(&mut self) {
        self.send.rewrite();
        self.recv.rewrite();
    }

    /// What memory all processes use.
    fn memory(&self) -> Result<Memory, Failure> {
        let first = self.member.index == 0;
        let now = if first { resources::memory() } else { 0 } as f64;
        let before = if first { self.team.before } else { 0 } as f64;
        let buffers = (self.send.touched() + self.recv.touched()) as f64;
        let all = self.member.numbers(&[before, buffers, now])?;
        let sum = |which: usize| all.iter().map(|numbers| numbers[which]).sum::<f64>();
        Ok(Memory { program: sum(0), buffers: sum(1), all: sum(2) })
    }

    pub(super) fn print(&self, text: &str) -> Result<(), Failure> {
        if self.speaks {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
                Failure::system(format!("the table cannot be written: {error}"))
            })?;
        }
        Ok(())
    }
}
