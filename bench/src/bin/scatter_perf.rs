//! The program `scatter_perf` of nccl-tests, over host memory.

fn main() -> std::process::ExitCode {
    maypole_bench::perf("scatter")
}
