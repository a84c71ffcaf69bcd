//! Shows on the terminal how many rows are done, while the table itself goes to a file.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line on standard error that is rewritten. If the table goes to a terminal, it shows the
/// progress itself, and this line is hidden.
pub(super) struct TableProgress {
    bar: ProgressBar,
}

impl TableProgress {
    /// For `rows` rows of the table; shown by the one rank that prints.
    pub(super) fn new(rows: usize, prints: bool) -> Self {
        let shown = prints && !std::io::stdout().is_terminal();
        // Each row is shown, as the next one may take long. Standard error that is no terminal
        // shows nothing.
        let target = match shown {
            true => ProgressDrawTarget::stderr_with_hz(u8::MAX),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{pos}/{len}  {msg}");
        let bar = ProgressBar::with_draw_target(Some(rows as u64), target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar }
    }

    /// Shows that the next row begins.
    pub(super) fn next_row(&mut self, description: String) {
        self.bar.set_message(description);
        self.bar.inc(1);
    }

    /// Removes the line.
    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}
