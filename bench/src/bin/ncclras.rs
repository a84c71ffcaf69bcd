//! The program `ncclras` of NCCL.

fn main() -> std::process::ExitCode {
    maypole_bench::ncclras()
}
