//! The rules of the command line that all subcommands share: clap's grammar with two additions for
//! nccl-tests and mpirun, and errors of one line.
//!
//! The additions: `-np` is an option of two letters, long names may be abbreviated, and an option
//! may be given again, or have a value that begins with a dash. The last value of an option counts.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A subcommand that follows these rules.
pub(crate) fn adapt(command: Command) -> Command {
    let command = command.args_override_self(true).infer_long_args(true);
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

/// The option with this long name as `words` have it: by its letter, or by its name. The last one
/// counts, as its value does.
fn typed<'a>(words: &'a [OsString], command: Option<&Command>, long: &'a str) -> &'a str {
    let name = long.trim_start_matches('-');
    let argument = command.and_then(|command| {
        command.get_arguments().find(|argument| argument.get_long() == Some(name))
    });
    let letter = argument.and_then(clap::Arg::get_short);
    // What `words_for_clap` makes of `-np`.
    let aliases = argument.and_then(clap::Arg::get_all_aliases).unwrap_or_default();
    let is_processes = name == "processes" || aliases.contains(&"processes");
    let found = words.iter().rev().filter_map(|word| word.to_str()).find_map(|word| {
        if word == "-np" {
            return is_processes.then_some(word);
        }
        match word.strip_prefix("--") {
            Some(rest) => {
                let typed = rest.split('=').next().unwrap_or(rest);
                (!typed.is_empty() && name.starts_with(typed)).then(|| &word[..typed.len() + 2])
            }
            None => {
                let is_it = word.starts_with('-') && word.chars().nth(1) == letter;
                (is_it && letter.is_some()).then(|| &word[..2])
            }
        }
    });
    found.unwrap_or(long)
}

/// An error of clap in one line, about `words` after the name of the subcommand `subcommand`, whose
/// help the user should read.
pub(crate) fn explain(
    error: &clap::Error,
    subcommand: &str,
    command: Option<&Command>,
    words: &[OsString],
) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(all)) => all.join(" "),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    // `--iters <N>` without the name of the value.
    let name = argument.split(' ').next().unwrap_or_default();
    let name = if name.starts_with("--") { typed(words, command, name) } else { name };
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
    let typed: Vec<_> = line.split_whitespace().map(OsString::from).collect();
    let words = std::iter::once(OsString::from(subcommand)).chain(words_for_clap(&typed));
    let command = adapt(A::augment_args(Command::new(subcommand)));
    let matches = command.clone().try_get_matches_from(words);
    let parsed = matches.and_then(|matches| A::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let text = explain(&error, subcommand, Some(&command), &typed);
        crate::status::Failure::usage(text)
    })
}
