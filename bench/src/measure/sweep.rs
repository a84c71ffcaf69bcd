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
    /// Measures and prints the whole table. Returns the exit status.
    pub(super) fn sweep(mut self) -> Result<u8, Failure> {
        let options = self.options();
        let ranks = self.run.listed_ranks();
        let json = if self.prints { ResultFile::create(options, &ranks)? } else { None };
        if let Some(json) = &json {
            self.print(&json.announcement())?;
        }
        self.print(&header::header(options, &ranks, self.run.reduced))?;
        let mut rows = Vec::new();
        let outcome = self.table_and_footer(&mut rows, json.as_ref());
        if let (Some(json), Err(failure)) = (&json, &outcome) {
            // The first failure is reported, even if the file cannot be written either.
            let _ = json.write(&rows, None, Some(&failure.text));
        }
        outcome
    }

    /// Measures the table, and prints the footer.
    fn table_and_footer(
        &mut self,
        rows: &mut Vec<TableRow>,
        json: Option<&ResultFile>,
    ) -> Result<u8, Failure> {
        let options = self.options();
        let mut summary = TableSummary::default();
        self.table(rows, &mut summary, json)?;
        if let Some(json) = json {
            json.write(rows, Some(&summary), None)?;
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

    /// Measures and prints the rows of all types, operations and roots. Each of these is measured
    /// as often as the options say before the next one, as by nccl-tests.
    fn table(
        &mut self,
        rows: &mut Vec<TableRow>,
        summary: &mut TableSummary,
        json: Option<&ResultFile>,
    ) -> Result<(), Failure> {
        let options = self.options();
        if let Some(why) = options.operation.refuses(self.group.nranks) {
            return self.print(&format!("# {why}\n"));
        }
        let (ops, roots) = (options.reductions(), options.roots(self.group.smallest));
        let row_count = options.dtypes.len() * ops.len() * roots.len() * options.sizes().count();
        let cycles = options.cycles.max(1) as usize;
        let mut progress = TableProgress::new(row_count * cycles, self.prints);
        for &dtype in &options.dtypes {
            self.shift_buffers(dtype)?;
            for &op in &ops {
                for &root in &roots {
                    let mut cycle = 0;
                    while options.cycles == 0 || cycle < options.cycles {
                        cycle += 1;
                        for bytes in options.sizes() {
                            let work = self.work(MeasuredCase { dtype, op, root, bytes })?;
                            progress.next_row(format!("{bytes} bytes of {dtype}"));
                            let row = self.row(&work)?;
                            summary.add(&row);
                            rows.push(row);
                        }
                        if let Some(json) = json {
                            json.write(rows, Some(summary), None)?;
                        }
                        if options.cycles == 0 && rows.len() > 1 << 16 {
                            // Without end: the memory for the rows must not grow without end.
                            rows.drain(..rows.len() / 2);
                        }
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
        let out_of_place = self.placement(work, false)?;
        if options.roof {
            row.roof = Some(self.roof(work)?);
        }
        self.print(&table::columns(options, &out_of_place))?;
        row.out_of_place = Some(out_of_place);
        let in_place = self.placement(work, true)?;
        self.print(&table::columns(options, &in_place))?;
        row.in_place = Some(in_place);
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
        let checks =
            if in_place && !options.operation.checks_in_place() { 0 } else { options.checks };
        for _ in 0..checks {
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
            wrong: (checks > 0).then(|| each(2).sum::<f64>() as u64),
            process_seconds: each(3).sum(),
            peak_bytes: each(4).fold(0.0, f64::max) as u64,
            iterations: if options.times_iterations() {
                let per_process = options.ranks_per_process() as usize;
                let all = self.thread.numbers(&iterations)?;
                Some(Iterations::new(&all, per_process, options.skip))
            } else {
                None
            },
        })
    }

    /// The memory that the processes use: of each kind, that of the process with the most.
    fn memory(&self) -> Result<MemoryUse, Failure> {
        let first = self.thread.index == 0;
        let process = |bytes: u64| if first { bytes as f64 } else { 0.0 };
        let allocated = (self.send.capacity() + self.recv.capacity()) as f64;
        let touched = (self.send.touched() + self.recv.touched()) as f64;
        let start = process(self.memory_at_start);
        let [before, now] = [self.run.memory_before, resources::memory()].map(process);
        let all = self.thread.numbers(&[start - before, now - start, allocated, touched])?;
        let processes = all.chunks(self.options().ranks_per_process() as usize);
        let sums = processes.map(|ranks| {
            let sum = |which: usize| ranks.iter().map(|numbers| numbers[which]).sum::<f64>();
            // What the calls have added, but for the buffers.
            [sum(0), sum(2), sum(1) - sum(3)]
        });
        let most = sums.fold([0.0; 3], |most: [f64; 3], sums| {
            [0, 1, 2].map(|which| most[which].max(sums[which]))
        });
        let [initialization, buffers, calls] = most;
        Ok(MemoryUse { initialization, buffers, calls })
    }
}
