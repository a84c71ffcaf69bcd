//! The command line of `maypole`: its subcommands and options, and errors of one line.
//!
//! The grammar is clap's. Two things of nccl-tests and mpirun need help: `-np` is an option of two
//! letters, and the value of an option may begin with a dash or be given again later, where the
//! last value counts.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::compare::Comparison;
use crate::launch;
use crate::options::Options;
use crate::status::Failure;
use crate::verify::VerifyArguments;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "maypole", about = "Benchmarks, proofs and diagnosis for Maypole")]
struct CommandLine {
    #[command(subcommand)]
    command: MaypoleCommand,
}

/// A subcommand with its options.
#[derive(Debug, Subcommand)]
pub(crate) enum MaypoleCommand {
    /// Measure a collective over host memory, with nccl-tests' options and output
    Bench(Box<Options>),
    /// Measure all algorithms of a collective in turns, beside the times that the cost model
    /// expects
    Compare(Comparison),
    /// Prove the schedules of a collective
    Verify(VerifyArguments),
    /// Look at this machine: what will fail or be slow, why, and what to change
    #[command(after_help = "\
It looks at the machine, or the container, as the library will find it: cores, caches, memory,
limits, network, devices, kernel. It connects to addresses of this host only. The exit status is 0
if nothing will fail or be slow, and 1 otherwise.")]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the live communicators of this host and what each rank does
    #[command(after_help = "\
For each rank it shows the process, the present or last call, the rank that it waits for, and the
seconds since that wait began. It shows your own processes; root sees those of all users. A stopped
process cannot answer and is listed as stopped. Processes of other network namespaces (most
containers) are not visible: run the command there.")]
    Ps {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the environment variables that the library reads, their values and where these come
    /// from
    #[command(after_help = "\
Each line shows the name of a variable, the source of its value (the environment, a file, or the
default) and the value. The files are the one that NCCL_CONF_FILE names, else ~/.nccl.conf, and then
/etc/nccl.conf. Variables that are set but have no effect follow, with the reason, and then values
that are not understood. docs/environment.md says what each variable does.")]
    Env {
        /// Also list the variables of NCCL that are known and have no effect
        #[arg(long)]
        all: bool,
    },
    /// Print a script that completes this command's words in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// To run this command.
    Run(MaypoleCommand),
    /// To print this text: help or the version.
    Print(String),
}

/// Parses the words after the program's name.
///
/// # Errors
/// What is not understood, in one line.
pub(crate) fn parse(words: &[OsString]) -> Result<Invocation, Failure> {
    // clap would read -np as -n p.
    let words =
        words.iter().map(|w| if w == "-np" { OsString::from("--processes") } else { w.clone() });
    let words: Vec<_> = std::iter::once(OsString::from("maypole")).chain(words).collect();
    let parsed = grammar()
        .try_get_matches_from(&words)
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    match parsed {
        Ok(line) => Ok(Invocation::Run(line.command)),
        Err(error) if !error.use_stderr() => Ok(Invocation::Print(error.to_string())),
        Err(error) => {
            let subcommand = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
            Err(Failure::usage(explain(&error, subcommand)))
        }
    }
}

/// The script that completes the command's words in a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar(), "maypole", &mut script);
    script
}

fn grammar() -> clap::Command {
    let mpi = launch::mpi().map_or("without MPI".to_owned(), |mpi| format!("with {mpi}"));
    CommandLine::command()
        .version(format!("{}, {mpi}", env!("CARGO_PKG_VERSION")))
        .arg_required_else_help(false)
        .max_term_width(100)
        .mut_subcommands(|command| {
            let command = command.args_override_self(true);
            command.mut_args(|argument| match argument.is_positional() {
                true => argument,
                false if argument.get_action().takes_values() => argument.allow_hyphen_values(true),
                false => argument,
            })
        })
}

/// An error of clap in one line.
fn explain(error: &clap::Error, subcommand: &str) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(all)) => all.join(" "),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    // `--iters <N>` without the name of the value.
    let name = argument.split(' ').next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::MissingSubcommand => "which command? See maypole --help".to_owned(),
        ErrorKind::InvalidSubcommand => {
            let word = context(ContextKind::InvalidSubcommand);
            format!("'{word}' is not a command; see maypole --help")
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            format!("'{name}' is not an option; see maypole {subcommand} --help")
        }
        ErrorKind::UnknownArgument => {
            format!("'{argument}' is one word too many; see maypole {subcommand} --help")
        }
        ErrorKind::MissingRequiredArgument => {
            let name = name.trim_matches(['<', '>']).to_lowercase();
            format!("which {name}? See maypole {subcommand} --help")
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{name} needs a value"),
        ErrorKind::InvalidValue => {
            let known = context(ContextKind::ValidValue).replace(' ', " or ");
            format!("{name}: '{value}' is not {known}")
        }
        ErrorKind::ValueValidation => {
            let source = std::error::Error::source(error).map(ToString::to_string);
            let why = source.unwrap_or_default();
            match (why.contains(&value), name.starts_with('<')) {
                (true, true) => why,
                (true, false) => format!("{name}: {why}"),
                (false, _) => format!("{name} \"{value}\": {why}"),
            }
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        }
    }
}

/// The options of a benchmark, from one line without `maypole bench`.
#[cfg(test)]
pub(crate) fn parse_bench(line: &str) -> Result<Options, Failure> {
    match parse_line(&format!("bench {line}"))? {
        MaypoleCommand::Bench(options) => options.complete(&|_| None),
        other => panic!("{other:?}"),
    }
}

/// The command of one line, without `maypole`.
#[cfg(test)]
pub(crate) fn parse_line(line: &str) -> Result<MaypoleCommand, Failure> {
    let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
    match parse(&words)? {
        Invocation::Run(command) => Ok(command),
        Invocation::Print(text) => panic!("{text}"),
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::status;

    #[test]
    fn the_grammar_is_consistent() {
        grammar().debug_assert();
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh] {
            let script = String::from_utf8(completions(shell)).expect("text");
            assert!(script.contains("--stepfactor") && script.contains("doctor"), "{script}");
        }
    }

    #[test]
    fn help_and_version_are_printed() {
        for (words, part) in [
            (&["--help"][..], "compare"),
            (&["-h"], "compare"),
            (&["help"], "compare"),
            (&["--version"], "with"),
            (&["-V"], "with"),
            (&["bench", "--help"], "NCCL_TESTS_SPLIT_MASK"),
            (&["verify", "-h"], "--rails"),
        ] {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            match parse(&words) {
                Ok(Invocation::Print(text)) => assert!(text.contains(part), "{text}"),
                other => panic!("{words:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn no_line_of_help_is_longer_than_100_columns() {
        for command in ["bench", "compare", "verify", "doctor", "ps", "env", "completions"] {
            let words = [command, "--help"].map(OsString::from);
            let Ok(Invocation::Print(text)) = parse(&words) else { panic!("{command}") };
            let long = text.lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "{command}");
        }
    }

    #[test]
    fn errors_of_the_command_itself_are_one_line() {
        for (line, text) in [
            ("", "which command? See maypole --help"),
            ("dance", "'dance' is not a command; see maypole --help"),
            ("doctor --all", "'--all' is not an option; see maypole doctor --help"),
            ("ps now", "'now' is one word too many; see maypole ps --help"),
            ("completions", "which shell? See maypole completions --help"),
        ] {
            let failure = parse_line(line).expect_err(line);
            assert_eq!((failure.text.as_str(), failure.status), (text, status::USAGE));
        }
    }

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = parse_bench(
            "all_reduce -np 4 -t 2 -g 3 -b 8 -e 1.5K -f 2 -n 5 -w 0 -N 0 -p 1 -c 2 -d half -o max \
             -r 1 -z 1 -m 3 -u 1 -a 3 -T 9 -C 1 -S 1 -J x.json -M 1 -G 0 -R 0 -x 0 -D 0 -V 16 -y 0",
        );
        let long = parse_bench(
            "--processes 4 --nthreads=2 --ngpus 3 --minbytes=8 --maxbytes 1.5k --stepfactor 2 \
             --iters 5 --warmup_iters 0 --run_cycles 0 --parallel_init 1 --check 2 --datatype half \
             --op max --root 1 --blocking 1 --agg_iters 3 --unalign 1 --average 3 --timeout 9 \
             --report_cputime 1 --report_timestamps 1 --output_file x.json --memory_report 1 \
             --cudagraph 0 --local_register 0 --cta_policy 0 --device_implementation 0 \
             --device_cta_count 16 --stream_null 0 all_reduce",
        );
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        let short = short.unwrap();
        assert_eq!((short.processes, short.iterations, short.max_bytes), (Some(4), 5, 1536));
        assert_eq!((short.ranks_per_process(), short.cycles, short.timeout), (6, 0, 9));
        assert_eq!(short.sizes().collect::<Vec<_>>(), [8, 16, 32, 64, 128, 256, 512, 1024]);
    }

    #[test]
    fn iterations_and_processes_are_different_options() {
        let options = parse_bench("all_reduce -n7 -np 3").unwrap();
        assert_eq!((options.iterations, options.processes), (7, Some(3)));
    }

    #[test]
    fn the_last_value_of_an_option_counts() {
        let options = parse_bench("all_reduce -n 7 -n=8 -b 8 -e 16 -f 4 -i 8").unwrap();
        assert_eq!(options.iterations, 8);
        assert_eq!(options.sizes().collect::<Vec<_>>(), [8, 16]);
        let options = parse_bench("all_reduce -b 8 -e 64 -i 8 -f 4").unwrap();
        assert_eq!(options.sizes().collect::<Vec<_>>(), [8, 32]);
    }

    #[test]
    fn defaults_are_those_of_nccl_tests() {
        let options = parse_bench("all_reduce_perf").unwrap();
        assert_eq!(options.sizes().collect::<Vec<_>>(), [32 << 20]);
        assert_eq!((options.iterations, options.warmup, options.checks), (20, 1, 1));
        assert_eq!((options.cycles, options.timeout, options.ranks_per_process()), (1, 0, 1));
        assert_eq!((options.dtypes, options.ops), (vec![DType::Float32], vec![RedOp::Sum]));
    }

    #[test]
    fn all_selects_all_types_operations_and_roots() {
        let options = parse_bench("broadcast -np 3 -d all -o all -r all").unwrap();
        assert_eq!((options.dtypes.len(), options.ops.len(), options.root), (12, 6, None));
        assert_eq!(options.reductions(), [None]);
    }

    #[test]
    fn sizes_may_begin_at_zero_and_end_between_steps() {
        let sizes = |line| parse_bench(line).unwrap().sizes().collect::<Vec<_>>();
        assert_eq!(sizes("all_reduce -b 0 -e 20 -f 2"), [0, 8, 16]);
        assert_eq!(sizes("all_reduce -b 0 -e 0 -f 2"), [0]);
        assert_eq!(sizes("all_reduce -b 1K -e 3K -i 1K"), [1024, 2048, 3072]);
    }

    #[test]
    fn errors_of_a_benchmark_name_what_is_wrong() {
        for (line, text) in [
            ("", "which collective"),
            ("bisection", "'bisection' is not a collective"),
            ("all_reduce --frobnicate", "'--frobnicate' is not an option"),
            ("all_reduce -q", "'-q' is not an option"),
            ("all_reduce -g 0", "at least one rank"),
            ("all_reduce -n x", "--iters \"x\": "),
            ("all_reduce -n", "--iters needs a value"),
            ("all_reduce -z 4", "4 is not supported"),
            ("all_reduce -d floaty", "'floaty' is not a data type"),
            ("all_reduce -o mean", "'mean' is not a"),
            ("all_reduce -b 2M -e 1M", "-b is larger than -e"),
            ("all_reduce -b 1 -e 2 -f 1", "never reaches"),
            ("all_reduce -b 1x", "'1x' is not a size"),
            ("all_reduce -b -1", "'-1' is not a size"),
            ("all_reduce -np 0", "at least one process"),
            ("all_reduce --memory mine", "malloc or maypole"),
            ("all_reduce -K 3", "-K is about single iterations"),
            ("all_reduce -I 1 -K 20", "-K leaves no iteration"),
            ("all_reduce more", "more"),
        ] {
            let error = parse_bench(line).expect_err(line);
            assert!(error.text.contains(text), "{line}: {error}");
            assert_eq!((error.status, error.text.lines().count()), (status::USAGE, 1), "{line}");
        }
    }

    #[test]
    fn options_that_need_a_gpu_are_refused() {
        for line in ["-G 1", "-R 2", "-x 1", "-D 1", "-V 8", "-y 1", "--cudagraph 3"] {
            let error = parse_bench(&format!("all_reduce {line}")).expect_err(line);
            assert!(error.text.starts_with(&format!("{line}: ")), "{error}");
            assert_eq!(error.status, status::UNSUPPORTED, "{line}");
        }
    }
}
