//! The rules of the command line that all subcommands share: clap's grammar with two additions for
//! nccl-tests and mpirun, and errors of one line.
//!
//! The additions: `-np` is an option of two letters, and an option may be given again, or have a
//! value that begins with a dash. The last value of an option counts.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A subcommand that follows these rules.
pub(crate) fn adapt(command: Command) -> Command {
    let command = command.args_override_self(true);
    command.mut_args(|argument| match argument.is_positional() {
        true => argument,
        false if argument.get_action().takes_values() => argument.allow_hyphen_values(true),
        false => argument,
    })
}

/// The words as clap must see them: it would read `-np` as `-n p`.
pub(crate) fn words_for_clap(words: &[OsString]) -> impl Iterator<Item = OsString> {
    words.iter().map(|word| match word == "-np" {
        true => OsString::from("--processes"),
        false => word.clone(),
    })
}

/// An error of clap in one line. `subcommand` is the one whose help the user should read.
pub(crate) fn explain(error: &clap::Error, subcommand: &str) -> String {
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

/// The arguments of a subcommand, from one line.
#[cfg(test)]
pub(crate) fn parse_line<A: clap::Args>(
    subcommand: &'static str,
    line: &str,
) -> Result<A, crate::status::Failure> {
    let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
    let words = std::iter::once(OsString::from(subcommand)).chain(words_for_clap(&words));
    let matches = adapt(A::augment_args(Command::new(subcommand))).try_get_matches_from(words);
    let parsed = matches.and_then(|matches| A::from_arg_matches(&matches));
    parsed.map_err(|error| crate::status::Failure::usage(explain(&error, subcommand)))
}
