//! `maypole env`: every variable the library reads, with its value, where that comes from (the environment or a file) and its default;
//! then what is set and changes nothing, and what is set and not understood.

use std::ffi::OsString;

use maypole::config::{self, Config, Setting, SettingOrigin, Variable};

use crate::status;

const HELP: &str = "\
maypole env [--all]

Prints every variable that the library reads, in columns: its name, where its value comes from (the environment, a file, or the default),
and the value. Files are the one that NCCL_CONF_FILE names, else ~/.nccl.conf, and then /etc/nccl.conf. What is set without having an
effect follows, with the reason, and what is set to something that is not understood.

  --all   lists as well which variables of NCCL are known and have no effect

docs/environment.md says what each does and which values it takes.
";

/// Runs `maypole env` with these arguments.
pub(crate) fn run(arguments: &[OsString]) -> Result<u8, lexopt::Error> {
    let all = match arguments {
        [] => false,
        [one] if one == "--all" => true,
        [one] if one == "--help" || one == "-h" => {
            print!("{HELP}");
            return Ok(status::FINE);
        }
        _ => return Err("env takes --all and nothing else".into()),
    };
    print!("{}", rows(&config::lookup));
    print!("{}", without_effect(&config::settings()));
    if all {
        println!("\nof NCCL's variables, these have no effect here:");
        for (beginning, why) in config::ineffective() {
            println!("{:<26}  {why}", format!("{beginning}*"));
        }
    }
    let (_, malformed) = Config::read(|name| config::lookup(name).map(|(value, _)| value));
    if !malformed.is_empty() {
        println!("\nnot understood:");
    }
    for value in malformed {
        println!("{value}");
    }
    Ok(status::FINE)
}

/// A line for each row of the table.
fn rows(lookup: &dyn Fn(&str) -> Option<(String, SettingOrigin)>) -> String {
    let line = |Variable { name, default, .. }: &Variable| match lookup(name) {
        Some((value, origin)) => {
            format!("{name:<26}  {:<11}  {value}  (default: {default})\n", origin.to_string())
        }
        None => format!("{name:<26}  default      {default}\n"),
    };
    config::table().map(line).collect()
}

fn without_effect(settings: &[Setting]) -> String {
    let line = |Setting { name, value, origin, ineffective }: &Setting| {
        let why = (*ineffective)?;
        Some(format!("{name:<26}  {:<11}  {value}: {why}\n", origin.to_string()))
    };
    let lines: String = settings.iter().filter_map(line).collect();
    if lines.is_empty() { lines } else { format!("\nset, but without effect:\n{lines}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, source, and value with what follows it.
    fn columns(line: &str) -> (&str, &str, &str) {
        let (name, rest) = line.split_once(' ').expect("a name");
        let (source, rest) = rest.trim_start().split_once(' ').expect("a source");
        (name, source, rest.trim_start())
    }

    #[test]
    fn the_lines_are_the_table() {
        for source in
            [None, Some(SettingOrigin::Environment), Some(SettingOrigin::File("/f".into()))]
        {
            let text = rows(&|name| Some((format!("x of {name}"), source.clone()?)));
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), config::table().count());
            for (line, Variable { name, default, .. }) in lines.iter().zip(config::table()) {
                let expected = match &source {
                    None => (*name, "default", (*default).to_owned()),
                    Some(origin) => {
                        let word = if *origin == SettingOrigin::Environment {
                            "environment"
                        } else {
                            "/f"
                        };
                        (*name, word, format!("x of {name}  (default: {default})"))
                    }
                };
                assert_eq!(columns(line), (expected.0, expected.1, &*expected.2));
            }
        }
    }

    #[test]
    fn what_has_no_effect_says_why() {
        let setting = |name: &str, ineffective| Setting {
            name: name.to_owned(),
            value: "1".to_owned(),
            origin: SettingOrigin::Environment,
            ineffective,
        };
        let text = without_effect(&[setting("NCCL_ALGO", None), setting("NCCL_IB_X", Some("no"))]);
        assert_eq!(
            text,
            "\nset, but without effect:\nNCCL_IB_X                   environment  1: no\n"
        );
        assert_eq!(without_effect(&[setting("NCCL_ALGO", None)]), "");
    }
}
