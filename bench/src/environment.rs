//! `maypole env`: every variable the library reads, with its value and where that comes from: the environment or a file.

use maypole::config::{self, Config, Origin, Variable};

/// Prints the table.
pub(crate) fn print() {
    print!("{}", render(&config::lookup));
    let (_, malformed) = Config::read(|name| config::lookup(name).map(|(value, _)| value));
    for value in malformed {
        println!("warning: {value}");
    }
}

fn render(lookup: &dyn Fn(&str) -> Option<(String, Origin)>) -> String {
    let line = |Variable { name, default, .. }: &Variable| match lookup(name) {
        Some((value, origin)) => format!("{name:<26}  {:<11}  {value}\n", origin.to_string()),
        None => format!("{name:<26}  default      {default}\n"),
    };
    config::table().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_has_a_line_with_its_source() {
        let text = render(&|name| match name {
            "NCCL_ALGO" => Some(("ring".to_owned(), Origin::Environment)),
            "NCCL_NET" => Some(("Socket".to_owned(), Origin::File("/f".into()))),
            _ => None,
        });
        assert_eq!(text.lines().count(), config::table().count());
        assert!(text.contains("NCCL_ALGO                   environment  ring\n"));
        assert!(text.contains("NCCL_NET                    /f           Socket\n"));
        assert!(text.contains("NCCL_DEBUG                  default      "));
    }
}
