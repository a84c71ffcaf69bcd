//! Formats the lines above the table, as nccl-tests prints them.

use std::fmt::Write as _;

use super::{DEVICE_ADDRESS, DEVICE_NAME, ListedRank, NCCL_VERSION};
use crate::launch;
use crate::options::{BufferMemory, Options, SizeStep};

/// The header. `reduced` says that the largest size is smaller than the options ask for.
pub(crate) fn header(options: &Options, ranks: &[ListedRank], reduced: bool) -> String {
    let mut text = parameters(options);
    for (rank, ListedRank { group, pid, host, device }) in ranks.iter().enumerate() {
        let _ = writeln!(
            text,
            "#  Rank {rank:2} Group {group:2} Pid {pid:6} on {host:>10} device {device:2} \
             [{DEVICE_ADDRESS}] {DEVICE_NAME}"
        );
    }
    if reduced {
        let most = options.max_bytes;
        let _ = writeln!(text, "#\n# Reducing maxBytes to {most} due to memory limitation");
    }
    text.push_str("#\n");
    text.push_str(&titles(options));
    text
}

/// The lines with the options.
fn parameters(options: &Options) -> String {
    let (step, unit) = match options.step() {
        SizeStep::Bytes(bytes) => (bytes, "bytes"),
        SizeStep::Factor(factor) => (factor, "factor"),
    };
    let Options { threads, gpus, min_bytes, max_bytes, .. } = options;
    let Options { warmup, iterations, calls, checks, unaligned, .. } = options;
    let program = options.operation.name();
    let library = env!("CARGO_PKG_VERSION");
    let mpi = launch::mpi().map_or_else(String::new, |mpi| format!("# Built with {mpi}\n"));
    let mut text = format!(
        "# nccl-tests version maypole-{library} nccl-headers={NCCL_VERSION} \
         nccl-library={NCCL_VERSION}\n\
         {mpi}# Collective test starting: {program}_perf\n\
         # nThread {threads} nGpus {gpus} minBytes {min_bytes} maxBytes {max_bytes} \
         step: {step}({unit}) warmup iters: {warmup} iters: {iterations} agg iters: {calls} \
         validation: {checks} graph: 0 unalign: {unaligned}\n"
    );
    text.push_str(match options.blocking {
        0 => "",
        1 => "# Blocking Enabled: wait and barrier after each inner iteration (-m) \n",
        2 => "# Blocking Enabled: wait after each inner iteration (-m), no barrier \n",
        _ => {
            "# Blocking Enabled: wait and barrier after each outer iteration (-n); time excludes \
             barrier \n"
        }
    });
    if options.buffers == BufferMemory::Library {
        text.push_str("# Buffers: memory of the library (ncclMemAlloc) \n");
    }
    if options.fresh {
        text.push_str("# Fresh: buffers written anew before each call \n");
    }
    if options.per_iteration {
        // nccl-tests writes "CUDA event timing".
        text.push_str("# Per-Iteration Report: host clock timing; i_* uses max over process rows");
        if options.skip > 0 {
            let _ = write!(text, "; summary skips first {} iterations", options.skip);
        }
        text.push_str(" \n");
    }
    if options.parallel_init {
        text.push_str("# Parallel Init Enabled: threads call into NcclInitRank concurrently \n");
    }
    text.push_str("#\n# Using devices\n");
    text
}

/// The three lines with the titles of the columns.
fn titles(options: &Options) -> String {
    let left = |size, count, dtype, op, root| {
        format!("# {size:>10}  {count:>12}  {dtype:>8}  {op:>6}  {root:>6}")
    };
    let time = if options.cpu_time { "cputime" } else { "time" };
    let mut side = ["", ""].map(str::to_owned);
    let mut add = |width: usize, name: &str, unit: &str| {
        for (line, word) in side.iter_mut().zip([name, unit]) {
            let _ = write!(line, "  {word:>width$}");
        }
    };
    add(7, time, "(us)");
    add(6, "algbw", "(GB/s)");
    add(6, "busbw", "(GB/s)");
    add(6, "#wrong", "");
    if options.per_iteration {
        [("i_min", "(us)"), ("i_max", "(us)"), ("i_p99", "(us)"), ("i_cv%", "(%)")]
            .into_iter()
            .for_each(|(name, unit)| add(7, name, unit));
    }
    if options.percentiles {
        add(7, "p50", "(us)");
        add(7, "p99", "(us)");
    }
    let mut ends = ["", ""].map(str::to_owned);
    let mut add = |width: usize, name: &str, unit: &str| {
        for (line, word) in ends.iter_mut().zip([name, unit]) {
            let _ = write!(line, "  {word:>width$}");
        }
    };
    if options.roof {
        add(7, "roof", "(us)");
        add(6, "roof%", "(%)");
    }
    if options.resources {
        add(7, "cpu", "(s)");
        add(7, "peak", "(MB)");
    }
    let stamps = if options.timestamps { ["timestamp", "%Y-%m-%d %H:%M:%S"] } else { ["", ""] };
    let width = if options.timestamps { 19 } else { 0 };
    let line = |left: String, which: usize| {
        let (side, end, stamp) = (&side[which], &ends[which], stamps[which]);
        format!("{left}{side}{side}{end} {stamp:>width$}\n")
    };
    let placements = if options.per_iteration {
        "              out-of-place (+ per-iteration)                        \
         \x20       in-place (+ per-iteration)"
    } else {
        "           out-of-place                       in-place          "
    };
    format!(
        "{}{placements}\n{}{}",
        left("", "", "", "", ""),
        line(left("size", "count", "type", "redop", "root"), 0),
        line(left("(B)", "(elements)", "", "", ""), 1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(options: &Options) -> Vec<String> {
        let one = ListedRank { group: 0, pid: 17, host: "node".to_owned(), device: 0 };
        let text = header(options, &[one], false);
        let all = text.lines().map(str::to_owned);
        all.filter(|line| !line.starts_with("# Built with ")).collect()
    }

    #[test]
    fn the_header_names_the_mpi_of_the_build() {
        let text = header(&Options::default(), &[], false);
        let second = text.lines().nth(1).expect("a second line");
        match launch::mpi() {
            Some(mpi) => assert_eq!(second, format!("# Built with {mpi}")),
            None => assert!(second.starts_with("# Collective test starting"), "{second}"),
        }
    }

    #[test]
    fn the_titles_stand_above_the_columns() {
        let options = Options { step_factor: Some(2), ..Options::default() };
        assert_eq!(
            lines(&options)[1..],
            [
                "# Collective test starting: all_reduce_perf",
                "# nThread 1 nGpus 1 minBytes 33554432 maxBytes 33554432 step: 2(factor) \
                 warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0 unalign: 0",
                "#",
                "# Using devices",
                "#  Rank  0 Group  0 Pid     17 on       node device  0 [0000:00:00] host memory",
                "#",
                "#                                                              out-of-place  \
                 \x20                    in-place          ",
                "#       size         count      type   redop    root     time   algbw   busbw  \
                 #wrong     time   algbw   busbw  #wrong ",
                "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)  \
                 \x20          (us)  (GB/s)  (GB/s)         ",
            ]
        );
    }

    #[test]
    fn a_reduced_largest_size_is_reported() {
        let text = header(&Options { max_bytes: 99, ..Options::default() }, &[], true);
        assert!(text.contains("\n#\n# Reducing maxBytes to 99 due to memory limitation\n#\n"));
    }

    #[test]
    fn options_change_the_titles() {
        let options = Options { cpu_time: true, timestamps: true, ..Options::default() };
        let all = lines(&options);
        assert!(
            all[8].ends_with("  #wrong  cputime   algbw   busbw  #wrong           timestamp"),
            "{}",
            all[8]
        );
        assert!(all[9].ends_with("  (GB/s)           %Y-%m-%d %H:%M:%S"), "{}", all[9]);
        let options = Options { per_iteration: true, blocking: 2, ..Options::default() };
        let all = lines(&options);
        assert_eq!(
            all[3..5],
            [
                "# Blocking Enabled: wait after each inner iteration (-m), no barrier ",
                "# Per-Iteration Report: host clock timing; i_* uses max over process rows ",
            ]
        );
        let placements = format!(
            "{}              out-of-place (+ per-iteration){}in-place (+ per-iteration)",
            " ".repeat(50),
            " ".repeat(32)
        );
        assert_eq!(all[9][2..], placements);
        assert!(all[10].ends_with("#wrong    i_min    i_max    i_p99    i_cv% "), "{}", all[10]);
        let options =
            Options { roof: true, resources: true, percentiles: true, ..Options::default() };
        let all = lines(&options);
        assert!(
            all[8].ends_with("      p50      p99     roof   roof%      cpu     peak "),
            "{}",
            all[8]
        );
    }
}
