//! `alltoall_perf`, as nccl-tests has it.

fn main() -> std::process::ExitCode {
    maypole_bench::perf("alltoall")
}
