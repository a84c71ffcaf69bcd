//! Writes `docs/environment.md` from the table of environment variables.

use std::fmt::Write as _;

use super::foreign::ineffective;
use super::table::table;

/// The columns at which the text of the page is wrapped.
const WIDTH: usize = 100;

/// The page `docs/environment.md`.
pub fn document() -> String {
    let mut page = String::from("# Environment variables\n\n");
    push_wrapped(
        &mut page,
        "",
        "The variables are read once, at the first use of the library. A variable that is not set \
         in the environment may be set in the file that `NCCL_CONF_FILE` names, else in \
         `~/.nccl.conf`, else in `/etc/nccl.conf` (lines `NAME=value`, comments after `#`). If a \
         value is not understood, a warning is printed and the default is used. An empty value \
         means that the variable is not set. Integers may be decimal, `0x` hexadecimal or `0` \
         octal. This page is generated from `src/config/table.rs` \
         and `src/config/verbs.rs`.",
    );
    for row in table() {
        let _ = write!(page, "\n## {}\n\n", row.name);
        push_wrapped(&mut page, "", row.effect);
        page.push('\n');
        push_wrapped(&mut page, "* ", &format!("Values: {}", row.form));
        push_wrapped(&mut page, "* ", &format!("Default: {}", row.default));
    }
    page.push_str("\n# Variables of NCCL that have no effect\n\n");
    push_wrapped(
        &mut page,
        "",
        "Variables whose names begin as follows, and that are not listed above, have no effect. If \
         one is set, the log names it under `NCCL_DEBUG=INFO`.",
    );
    page.push('\n');
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (beginning, reason) in ineffective() {
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, beginnings)) => beginnings.push(beginning),
            None => reasons.push((reason, vec![beginning])),
        }
    }
    for (reason, beginnings) in reasons {
        push_wrapped(&mut page, "* ", &format!("{}: {reason}", beginnings.join(", ")));
    }
    page
}

/// Appends the words of `text` in lines of at most [`WIDTH`] columns. The first line begins with
/// `mark`, the others with as many blanks.
fn push_wrapped(page: &mut String, mark: &str, text: &str) {
    let mut line = mark.to_owned();
    let mut words = 0;
    for word in text.split_whitespace() {
        if words > 0 && line.len() + 1 + word.len() > WIDTH {
            page.push_str(&line);
            page.push('\n');
            line = " ".repeat(mark.len());
            words = 0;
        }
        if words > 0 {
            line.push(' ');
        }
        line.push_str(word);
        words += 1;
    }
    page.push_str(&line);
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_the_rendered_table() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/environment.md");
        if std::env::var_os("MAYPOLE_REGENERATE_DOCS").is_some() {
            std::fs::write(page, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(page).unwrap(), document());
    }
}
