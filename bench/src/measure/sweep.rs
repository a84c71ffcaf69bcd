//! A rank's way through the table: it measures each row out of place and in place, and checks the
//! results. Rank 0 prints the rows.

use super::check::MeasuredCase;
use super::progress::TableProgress;
use super::rank::RankBench;
use super::resources;
use super::timing::LoopTiming;
use crate::operation::work::RankWork;
use crate::report::iterations::Iterations;
use crate::report::json::ResultFile;
use crate::report::{Measurement, MemoryUse, TableRow, TableSummary, footer, header, plot, table};
use crate::status::{self, Failure};

impl RankBench<'_> {
    /// Measures and prints the whole table, as often as the options say. Returns the exit status.
    pub(super) fn sweep(mut self) -> Result<u8, Failure> {
        let options = self.options();
        let ranks = self.run.listed_ranks();
        let json = if self.prints { ResultFile::create(options, &ranks)? } else { None };
        if let Some(json) = &json {
            self.print(&json.announcement())?;
        }
        self.print(&header::header(options, &ranks, self.run.reduced))?;
        let mut rows = Vec::new();
        let outcome = self.cycles(&mut rows, json.as_ref());
        if let (Some(json), Err(failure)) = (&json, &outcome) {
            // The first failure is reported, even if the file cannot be written either.
            let _ = json.write(&rows, None, Some(&failure.text));
        }
        outcome
    }

    /// Measures the table as often as the options say, and prints the footer.
    fn cycles(
        &mut self,
        rows: &mut Vec<TableRow>,
        json: Option<&ResultFile>,
    ) -> Result<u8, Failure> {
        let options = self.options();
        let mut summary = TableSummary::default();
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
                // Without end: the memory for the rows must not grow without end.
                rows.drain(..rows.len() / 2);
            }
        }
        let memory = if options.memory { Some(self.memory()?) } else { None };
        self.print(&footer::footer(options, &summary, memory.as_ref()))?;
        if let Some(path) = options.plot.as_ref().filter(|_| self.prints) {
            let picture = plot::svg(options.operation.name(), self.group.nranks, rows);
            let picture = picture.map_err(|error| Failure::internal(error.to_string()))?;
            std::fs::write(path, picture)
                .map_err(|error| Failure::system(format!("--plot {}: {error}", path.display())))?;
        }
        // Groups may have different bandwidths. The group that is shown decides for all.
        let passed = self.thread.numbers(&[f64::from(u8::from(summary.passed(options)))])?;
        Ok(if passed[0] == [1.0] { status::FINE } else { status::WRONG })
    }

    /// Measures and prints the whole table once.
    fn table(&mut self, rows: &mut Vec<TableRow>) -> Result<(), Failure> {
        let options = self.options();
        if let Some(why) = options.operation.refuses(self.group.nranks) {
            return self.print(&format!("# {why}\n"));
        }
        let (ops, roots) = (options.reductions(), options.roots(self.group.smallest));
        let row_count = options.dtypes.len() * ops.len() * roots.len() * options.sizes().count();
        let mut progress = TableProgress::new(row_count, self.prints);
        for &dtype in &options.dtypes {
            self.shift_buffers(dtype);
            for &op in &ops {
                for &root in &roots {
                    for bytes in options.sizes() {
                        let work = self.work(MeasuredCase { dtype, op, root, bytes })?;
                        progress.next_row(format!("{bytes} bytes of {dtype}"));
                        rows.push(self.row(&work)?);
                    }
                }
            }
        }
        progress.end();
        Ok(())
    }

    /// Measures and prints one row.
    fn row(&mut self, work: &RankWork) -> Result<TableRow, Failure> {
        let options = self.options();
        let mut row = TableRow::new(work);
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

    /// Measures and checks one row out of place or in place.
    fn placement(&mut self, work: &RankWork, in_place: bool) -> Result<Measurement, Failure> {
        let options = self.options();
        let data = self.next_data(work);
        let calls = self.set_up(work, in_place, &data);
        let timing = self.time(&calls)?;
        let peak = if options.resources { resources::peak_memory() as f64 } else { 0.0 };
        let mut wrong = 0;
        for _ in 0..options.checks {
            wrong += self.check(work, in_place)?;
        }
        let LoopTiming { seconds, cpu, process, iterations } = timing;
        let all = self.thread.numbers(&[seconds, cpu, wrong as f64, process, peak])?;
        let each = |which: usize| all.iter().map(move |numbers| numbers[which]);
        let seconds = options.average.of(each(0));
        let element = work.dtype.size();
        let counted =
            options.operation.counted_elements(work.size_elements(), work.nranks) * element;
        // A call of 0 bytes may take less time than the clock can measure.
        let algbw = if counted == 0 { 0.0 } else { counted as f64 / seconds.max(1e-9) };
        Ok(Measurement {
            seconds,
            cpu_seconds: options.average.of(each(1)),
            algbw,
            busbw: algbw * options.operation.bus_factor(work.nranks),
            wrong: (options.checks > 0).then(|| each(2).sum::<f64>() as u64),
            process_seconds: each(3).sum(),
            peak_bytes: each(4).fold(0.0, f64::max) as u64,
            iterations: if options.times_iterations() {
                Some(Iterations::new(&self.thread.numbers(&iterations)?, options.skip))
            } else {
                None
            },
        })
    }

    /// The memory that all processes use.
    fn memory(&self) -> Result<MemoryUse, Failure> {
        let first = self.thread.index == 0;
        let now = if first { resources::memory() } else { 0 } as f64;
        let before = if first { self.run.memory_before } else { 0 } as f64;
        let buffers = (self.send.touched() + self.recv.touched()) as f64;
        let all = self.thread.numbers(&[before, buffers, now])?;
        let sum = |which: usize| all.iter().map(|numbers| numbers[which]).sum::<f64>();
        Ok(MemoryUse { program: sum(0), buffers: sum(1), all: sum(2) })
    }
}
