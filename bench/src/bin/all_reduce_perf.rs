//! The program `all_reduce_perf` of nccl-tests, over host memory.

fn main() -> std::process::ExitCode {
    maypole_bench::perf("all_reduce")
}
