//! Text as JSON has it. What is written here is flat, so no more is needed.

/// `text` in quotes.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An object of these members, whose values are JSON already.
pub(crate) fn object(members: &[(&str, String)]) -> String {
    let members: Vec<_> =
        members.iter().map(|(name, value)| format!("{}: {value}", quote(name))).collect();
    format!("{{{}}}", members.join(", "))
}

/// An array of these, which are JSON already, one a line.
pub(crate) fn array(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<_> = items.into_iter().collect();
    if items.is_empty() { "[]".to_owned() } else { format!("[\n  {}\n]", items.join(",\n  ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_forbids_is_escaped() {
        assert_eq!(quote("a\"b\\c\n\u{1}é"), r#""a\"b\\c\n\u0001é""#);
        let one = object(&[("a", "1".into()), ("b", quote("x"))]);
        assert_eq!(one, r#"{"a": 1, "b": "x"}"#);
        assert_eq!(array([one.clone(), one.clone()]), format!("[\n  {one},\n  {one}\n]"));
        assert_eq!(array([]), "[]");
    }
}
