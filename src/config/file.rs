//! Settings from files, as NCCL reads them: lines `NAME=value` and comments after `#`.
//!
//! The environment takes precedence over the file of the user, which is `NCCL_CONF_FILE` or
//! `~/.nccl.conf`, and that over `/etc/nccl.conf`.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::process::LazyValue;

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingOrigin {
    /// The variable is not set.
    Default,
    /// The environment.
    Environment,
    /// A file.
    File(PathBuf),
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The file for all users of the system.
const SYSTEM_FILE: &str = "/etc/nccl.conf";

/// The settings files of a process.
#[derive(Default)]
struct SettingsFiles {
    /// The values in each file, by precedence.
    values: Vec<(PathBuf, HashMap<String, String>)>,
    /// The files that exist and cannot be read, in words.
    unreadable: Vec<String>,
}

/// The files of this process, as they were when a setting was first looked up. What makes it must
/// not log: the logger looks settings up itself, and would wait for this.
static FILES: LazyValue<SettingsFiles> = LazyValue::new(|| {
    let mut files = SettingsFiles::default();
    for path in paths(|name| std::env::var_os(name).map(PathBuf::from)) {
        match read(&path) {
            Ok(Some(text)) => files.values.push((path, parse(&text))),
            Ok(None) => {}
            Err(text) => files.unreadable.push(text),
        }
    }
    files
});

/// The value of a variable and its source. An empty value counts as not set.
pub fn lookup(name: &str) -> Option<(String, SettingOrigin)> {
    let value = std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        return Some((value, SettingOrigin::Environment));
    }
    let found = FILES.values.iter().find_map(|(path, values)| Some((path, values.get(name)?)));
    found.map(|(path, value)| (value.clone(), SettingOrigin::File(path.clone())))
}

/// The settings files that exist and cannot be read, in words.
pub fn unreadable() -> &'static [String] {
    &FILES.unreadable
}

/// The names that a file sets.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FILES.values.iter().flat_map(|(_, values)| values.keys().map(String::as_str))
}

/// The paths of the files, by precedence.
fn paths(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let named = variable("NCCL_CONF_FILE").filter(|path| !path.as_os_str().is_empty());
    let users = named.or_else(|| variable("HOME").map(|home| home.join(".nccl.conf")));
    users.into_iter().chain([PathBuf::from(SYSTEM_FILE)]).collect()
}

/// The text of a file; None if it does not exist.
///
/// # Errors
/// Why it cannot be read, in words.
fn read(path: &Path) -> Result<Option<String>, String> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
        Err(error) => Err(format!(
            "the settings file {} cannot be read and is ignored: {error}",
            path.display()
        )),
    }
}

/// The settings in the text of a file. If several lines set one name, the first one counts.
fn parse(text: &str) -> HashMap<String, String> {
    let mut values = HashMap::new();
    for line in text.lines() {
        let line = line.split_once('#').map_or(line, |(line, _)| line);
        let Some((name, value)) = line.split_once('=') else { continue };
        let (name, value) = (name.trim(), value.trim());
        if !name.is_empty() && !value.is_empty() {
            values.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_names_and_values() {
        let values = parse(
            "# all\nNCCL_DEBUG=WARN\n NCCL_ALGO = ring,tree # both\nnothing\n=x\nEMPTY=\n\
             NCCL_DEBUG=INFO\n",
        );
        assert_eq!(values.len(), 2);
        assert_eq!(
            (values["NCCL_DEBUG"].as_str(), values["NCCL_ALGO"].as_str()),
            ("WARN", "ring,tree")
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = read(folder.path()).expect_err("a folder is no file");
        assert!(error.contains(folder.path().to_str().expect("text")), "{error}");
        assert_eq!(read(&folder.path().join("absent")), Ok(None));
    }

    #[test]
    fn the_file_of_the_user_takes_precedence() {
        let at = |set: &'static str, value: &'static str| {
            paths(move |name| (name == set).then(|| PathBuf::from(value)))
        };
        let system = PathBuf::from(SYSTEM_FILE);
        assert_eq!(at("NCCL_CONF_FILE", "/x"), [PathBuf::from("/x"), system.clone()]);
        assert_eq!(at("HOME", "/home/u"), [PathBuf::from("/home/u/.nccl.conf"), system.clone()]);
        assert_eq!(at("NCCL_CONF_FILE", ""), [system]);
    }
}
