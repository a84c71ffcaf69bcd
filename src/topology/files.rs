//! Reads the kernel's small files below a root folder.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// More bytes than a topology file may have.
const MOST_BYTES: u64 = (4 << 20) + 1;

/// A folder: the root, or one below it.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A folder below this one.
    pub(super) fn below(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// The real folder behind symbolic links. None if there is none.
    pub(super) fn real(&self) -> Option<Self> {
        self.0.canonicalize().ok().map(Self)
    }

    /// The text of a file without blanks at its ends. None if it is missing, empty or unreadable.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(name)).ok()?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The number in a file. None if there is none, or if it is below zero.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.text(name)?.parse().ok()
    }

    /// The hexadecimal number in a file, as `0x10de`.
    pub(super) fn hexadecimal(&self, name: &str) -> Option<u32> {
        u32::from_str_radix(self.text(name)?.strip_prefix("0x")?, 16).ok()
    }

    /// The names of what is in it, sorted. Empty if it is missing.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The numbers at the ends of names such as `node0`, sorted.
    pub(super) fn numbered(&self, beginning: &str) -> Vec<u32> {
        let names = self.names().into_iter();
        let mut numbers: Vec<u32> =
            names.filter_map(|name| name.strip_prefix(beginning)?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// The text of a topology file, or why it cannot be read. A file that is too long is cut at a
/// length that its reader refuses.
pub(super) fn text_of_file(path: &Path) -> Result<String, String> {
    let read = || {
        // To open a pipe would wait for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        let mut text = String::new();
        fs::File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error: std::io::Error| error.to_string())
}
