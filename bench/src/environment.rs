//! `maypole env`: every variable that the library reads, with its value, the source of the value
//! (the environment or a file) and its default. Then it lists variables that are set but have no
//! effect, and values that are not understood.

use maypole::config::{self, Config, Setting, SettingOrigin, Variable};

/// Prints the settings; with `all`, also the variables of NCCL that are known and have no effect.
pub(crate) fn run(all: bool) {
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
    for text in config::unreadable() {
        println!("\n{text}");
    }
}

/// One line for each variable in the table of settings.
fn rows(lookup: &dyn Fn(&str) -> Option<(String, SettingOrigin)>) -> String {
    let line = |Variable { name, default, .. }: &Variable| match lookup(name) {
        Some((value, origin)) => {
            format!("{name:<26}  {:<11}  {value}  (default: {default})\n", origin.to_string())
        }
        None => format!("{name:<26}  default      {default}\n"),
    };
    config::table().map(line).collect()
}

/// One line for each variable that is set but has no effect.
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

    /// The name, the source, and the rest of a line.
    fn columns(line: &str) -> (&str, &str, &str) {
        let (name, rest) = line.split_once(' ').expect("a name");
        let (source, rest) = rest.trim_start().split_once(' ').expect("a source");
        (name, source, rest.trim_start())
    }

    #[test]
    fn every_variable_of_the_table_has_a_line() {
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
    fn a_variable_without_effect_has_a_reason() {
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
