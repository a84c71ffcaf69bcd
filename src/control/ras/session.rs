//! The commands that a client sends, one a line, and what is replied.

use std::time::Duration;

/// Most bytes of a line.
const MOST_BYTES: usize = 1024;
/// The protocol of NCCL that is spoken.
const PROTOCOL: u32 = 2;
/// How long other processes may take to answer, unless the client says otherwise. NCCL waits for
/// hosts too, and 5 seconds.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest that a client can ask for. The end of the process may have to wait for the answer.
const LONGEST: Duration = Duration::from_secs(5);

/// What to do for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Send this line.
    Line(String),
    /// Send an answer and close the connection.
    Answer(Question),
    /// Close the connection, since the line is too long.
    Close,
}

/// What a client wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) is_json: bool,
    pub(super) is_verbose: bool,
    /// How long other processes may take to answer.
    pub(super) timeout: Duration,
}

/// A connection of a client.
#[derive(Debug)]
pub(super) struct RasSession {
    received: Vec<u8>,
    question: Question,
}

impl Default for RasSession {
    fn default() -> Self {
        let question = Question { is_json: false, is_verbose: false, timeout: TIMEOUT };
        Self { received: Vec::new(), question }
    }
}

impl RasSession {
    /// Takes bytes of the client. Nothing follows an answer or the close of the connection.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Reply> {
        self.received.extend_from_slice(bytes);
        let mut replies = Vec::new();
        while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let reply = self.obey(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
            let is_last = !matches!(reply, Reply::Line(_));
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
        if self.received.len() >= MOST_BYTES {
            replies.push(Reply::Close);
        }
        replies
    }

    fn obey(&mut self, line: &str) -> Reply {
        let lower = line.to_ascii_lowercase();
        let argument = |command| lower.strip_prefix(command);
        if argument("client protocol ").is_some() {
            return Reply::Line(format!("SERVER PROTOCOL {PROTOCOL}"));
        }
        if let Some(seconds) = argument("timeout ") {
            return Reply::Line(self.set_timeout(seconds));
        }
        if let Some(format) = argument("set format ") {
            return Reply::Line(self.set_format(format));
        }
        match &*lower {
            "status" => Reply::Answer(self.question),
            "verbose status" => Reply::Answer(Question { is_verbose: true, ..self.question }),
            _ => Reply::Line(format!("ERROR: Unknown command {}", printable(line))),
        }
    }

    fn set_timeout(&mut self, text: &str) -> String {
        let seconds = text.parse::<f64>().ok().filter(|it| it.is_finite() && *it >= 0.0);
        let Some(seconds) = seconds else {
            return format!("ERROR: Invalid timeout value {}", printable(text));
        };
        // 0 stands for none.
        let limit = LONGEST.as_secs_f64();
        let seconds = if seconds == 0.0 { limit } else { seconds.min(limit) };
        self.question.timeout = Duration::from_secs_f64(seconds);
        "OK".into()
    }

    fn set_format(&mut self, text: &str) -> String {
        match text {
            "text" | "json" => self.question.is_json = text == "json",
            _ => return format!("ERROR: Invalid format {}", printable(text)),
        }
        "OK".into()
    }
}

/// Replaces control characters, which could change what a terminal shows.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Reply {
        Reply::Line(text.into())
    }

    #[test]
    fn a_reader_of_json_gets_what_it_asks_for() {
        let mut session = RasSession::default();
        assert_eq!(session.take(b"CLIENT PROTO"), []);
        assert_eq!(session.take(b"COL 2\nTIMEOUT 3\n"), [line("SERVER PROTOCOL 2"), line("OK")]);
        assert_eq!(session.take(b"set format JSON\r\n"), [line("OK")]);
        let question =
            Question { is_json: true, is_verbose: true, timeout: Duration::from_secs(3) };
        assert_eq!(session.take(b"Verbose Status\nstatus\n"), [Reply::Answer(question)]);
    }

    #[test]
    fn the_default_is_text() {
        let question = Question { is_json: false, is_verbose: false, timeout: TIMEOUT };
        assert_eq!(RasSession::default().take(b"STATUS\r\n"), [Reply::Answer(question)]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_changes_nothing() {
        let mut session = RasSession::default();
        for (command, reply) in [
            ("TIMEOUT -1", "ERROR: Invalid timeout value -1"),
            ("TIMEOUT nan", "ERROR: Invalid timeout value nan"),
            ("SET FORMAT xml", "ERROR: Invalid format xml"),
            ("MONITOR\u{1b}[2J", "ERROR: Unknown command MONITOR?[2J"),
        ] {
            assert_eq!(session.take(format!("{command}\n").as_bytes()), [line(reply)]);
        }
        assert_eq!(session.question, RasSession::default().question);
    }

    #[test]
    fn a_timeout_of_zero_and_a_huge_one_are_bounded() {
        for seconds in ["0", "1e300"] {
            let mut session = RasSession::default();
            session.take(format!("TIMEOUT {seconds}\n").as_bytes());
            assert_eq!(session.question.timeout, LONGEST);
        }
    }

    #[test]
    fn an_endless_line_ends_the_connection() {
        assert_eq!(RasSession::default().take(&[b'x'; MOST_BYTES]), [Reply::Close]);
    }
}
