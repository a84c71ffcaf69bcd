//! The `maypole` command.

fn main() -> std::process::ExitCode {
    maypole_bench::maypole()
}
