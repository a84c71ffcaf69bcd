//! `maypole env`: every variable the library reads, with its value and where that comes from.

use maypole::config::{self, Config, Variable};

/// Prints the table.
pub(crate) fn print() {
    print!("{}", render(&lookup));
    let (_, malformed) = Config::read(lookup);
    for value in malformed {
        println!("warning: {value}");
    }
}

fn lookup(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn render(lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let line = |Variable { name, default, .. }: &Variable| {
        // As the library has it: an empty value is no value.
        match lookup(name).filter(|value| !value.is_empty()) {
            Some(value) => format!("{name:<24}  environment  {value}\n"),
            None => format!("{name:<24}  default      {default}\n"),
        }
    };
    config::table().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_has_a_line_with_its_source() {
        let text = render(&|name| match name {
            "NCCL_ALGO" => Some("ring".to_owned()),
            "NCCL_DEBUG" => Some(String::new()),
            _ => None,
        });
        assert_eq!(text.lines().count(), config::table().count());
        assert!(text.contains("NCCL_ALGO                 environment  ring\n"));
        assert!(text.contains("NCCL_DEBUG                default      "));
    }
}
