//! Formats the lines below the table, as nccl-tests prints them.

use super::number::{bytes, general};
use super::{MemoryUse, TableSummary};
use crate::options::Options;

/// The footer.
pub(crate) fn footer(
    options: &Options,
    summary: &TableSummary,
    memory: Option<&MemoryUse>,
) -> String {
    let verdict = |passed| if passed { "OK" } else { "FAILED" };
    let program = options.operation.name();
    let memory = memory.map_or(String::new(), |MemoryUse { initialization, buffers, calls }| {
        // The label is that of nccl-tests, for programs that read it; the memory is the host's.
        format!(
            "# {:<20} : Initialization {} | User-Allocated {} | Collective {} | Total  {}\n",
            "GPU memory usage",
            bytes(*initialization),
            bytes(*buffers),
            bytes(*calls),
            bytes(initialization + buffers + calls)
        )
    });
    format!(
        "# {:<20} : {} {}\n# {:<20} : {} {}\n#\n\
         # Collective test concluded: {program}_perf\n{memory}#\n\n",
        "Out of bounds values",
        summary.wrong,
        verdict(summary.wrong == 0),
        "Avg bus bandwidth",
        general(summary.bandwidth()),
        summary.is_fast_enough(options).map_or("", verdict),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::TestVariables;

    #[test]
    fn the_footer_has_the_form_of_nccl_tests() {
        let text = footer(&Options::default(), &TableSummary::default(), None);
        let golden = "# Out of bounds values : 0 OK\n\
                      # Avg bus bandwidth    : 0 \n\
                      #\n\
                      # Collective test concluded: all_reduce_perf\n\
                      #\n\n";
        assert_eq!(text, golden);
    }

    #[test]
    fn failures_and_memory_are_shown() {
        let variables = TestVariables { min_bandwidth: Some(1.0), ..TestVariables::default() };
        let options = Options { variables, ..Options::default() };
        let text = footer(&options, &TableSummary { wrong: 3, ..TableSummary::default() }, None);
        assert!(
            text.starts_with(
                "# Out of bounds values : 3 FAILED\n# Avg bus bandwidth    : 0 FAILED\n"
            )
        );
        let memory = MemoryUse { initialization: 1024.0, buffers: 2048.0, calls: 0.0 };
        let text = footer(&Options::default(), &TableSummary::default(), Some(&memory));
        let end = "#\n# Collective test concluded: all_reduce_perf\n\
                   # GPU memory usage     : Initialization 1.00 KB | User-Allocated 2.00 KB | \
                   Collective 0.00 B | Total  3.00 KB\n#\n\n";
        assert!(text.ends_with(end), "{text}");
    }
}
