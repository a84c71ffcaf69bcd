//! How far the run is, for a person who has redirected the table and looks at a terminal.

use std::io::{IsTerminal, Write};

/// A line on standard error that is written over and over. Where the table itself goes to a terminal, it shows the progress.
pub(super) struct Progress {
    shown: bool,
    rows: usize,
    done: usize,
}

impl Progress {
    /// For `rows` lines of the table; shown by one rank alone.
    pub(super) fn new(rows: usize, speaks: bool) -> Self {
        let shown = speaks && std::io::stderr().is_terminal() && !std::io::stdout().is_terminal();
        Self { shown, rows, done: 0 }
    }

    /// The next line of the table begins: `what`.
    pub(super) fn next(&mut self, what: &str) {
        self.done += 1;
        if self.shown {
            // Erases what was there; that a terminal is gone is no reason to stop.
            let (done, rows) = (self.done, self.rows);
            let _ = write!(std::io::stderr(), "\r\x1b[K{done}/{rows}  {what}");
        }
    }

    /// Takes the line away.
    pub(super) fn end(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
