//! The command line of `maypole`: its subcommands, their help, and the completions for shells.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::compare::Comparison;
use crate::grammar::{adapt, explain, words_for_clap};
use crate::launch;
use crate::options::Options;
use crate::status::Failure;
use crate::topo::TopoArguments;
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
    /// Show how processors, network devices and GPUs of this machine are connected
    #[command(after_help = "\
It prints the tree of the PCI devices below the NUMA nodes, the kinds of the paths between GPUs and
network devices in NCCL's names (PIX: one PCI switch, PXB: several, PHB: a processor, SYS: between
NUMA nodes), and which network device each GPU and NUMA node uses. The source is /sys, or the file
that NCCL_TOPO_FILE names. NVLinks are known only from such a file. docs/topology.md explains it.")]
    Topo(TopoArguments),
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
    let name = std::iter::once(OsString::from("maypole"));
    let for_clap = name.chain(words_for_clap(words));
    let grammar = grammar();
    let parsed = grammar
        .clone()
        .try_get_matches_from(for_clap)
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    match parsed {
        Ok(line) => Ok(Invocation::Run(line.command)),
        Err(error) if !error.use_stderr() => Ok(Invocation::Print(error.to_string())),
        Err(error) => {
            let subcommand = words.first().and_then(|word| word.to_str()).unwrap_or_default();
            let command = grammar.find_subcommand(subcommand);
            Err(Failure::usage(explain(&error, subcommand, command, words)))
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
        .mut_subcommands(adapt)
}

#[cfg(test)]
mod tests {
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
        for command in ["bench", "compare", "verify", "doctor", "topo", "ps", "env", "completions"]
        {
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
            ("topo here", "'here' is one word too many; see maypole topo --help"),
            ("ps now", "'now' is one word too many; see maypole ps --help"),
            ("completions", "which shell? See maypole completions --help"),
        ] {
            let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
            let failure = parse(&words).expect_err(line);
            assert_eq!((failure.text.as_str(), failure.status), (text, status::USAGE));
        }
    }
}
