//! The program `reduce_perf` of nccl-tests, over host memory.

fn main() -> std::process::ExitCode {
    maypole_bench::perf("reduce")
}
