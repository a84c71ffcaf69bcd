//! `maypole ps`: the live communicators of this host, their ranks, and what each is doing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use maypole::internal::status::{CommunicatorStatus, ProcessStatus, StatusAnswer, query};

use crate::json::{array, object, quote};
use crate::status;

const HELP: &str = "\
maypole ps [--json]

Lists the communicators of this host's processes: for each rank its process, the call it is in or was in last, for whom it waits
and how long since that wait began. Shows your own processes; root sees everyone's. A process that is stopped cannot answer and is
listed as such. Processes of other network namespaces (most containers) are not seen: run it there.
";

/// For all answers together.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints the list; returns the exit status.
pub(crate) fn run(args: &[OsString]) -> Result<u8, lexopt::Error> {
    let json = match args {
        [] => false,
        [word] if word == "--json" => true,
        [word] if word == "--help" || word == "-h" => {
            print!("{HELP}");
            return Ok(status::FINE);
        }
        _ => return Err("ps takes --json and nothing else".into()),
    };
    Ok(match query(PATIENCE) {
        Ok(found) => {
            print!("{}", if json { as_json(&found) } else { as_text(&found) });
            status::FINE
        }
        Err(error) => {
            eprintln!("maypole: cannot read /proc/net/unix: {error}");
            status::SYSTEM
        }
    })
}

fn as_text(found: &[ProcessStatus]) -> String {
    let mut text = String::new();
    let mut by_key: BTreeMap<u64, Vec<(&ProcessStatus, &CommunicatorStatus)>> = BTreeMap::new();
    for process in found {
        if let StatusAnswer::Communicators(all, _) = &process.answer {
            all.iter().for_each(|it| by_key.entry(it.key).or_default().push((process, it)));
        }
    }
    for (key, mut ranks) in by_key {
        ranks.sort_by_key(|(_, it)| it.rank);
        let (nranks, here) = (ranks[0].1.nranks, ranks.len());
        let _ = writeln!(text, "communicator {key:016x}: {nranks} ranks, {here} of them seen here");
        for (process, it) in ranks {
            let ProcessStatus { pid, command, .. } = process;
            let _ =
                writeln!(text, "  rank {:<5} pid {pid:<8} {command:<16} {}", it.rank, state(it));
        }
    }
    for ProcessStatus { pid, uid, command, answer } in found {
        let what = match answer {
            StatusAnswer::Communicators(_, 0) => continue,
            StatusAnswer::Communicators(_, more) => format!("has {more} more communicators"),
            StatusAnswer::Stopped => {
                "is stopped, by a signal or a debugger, and cannot say what it does".into()
            }
            StatusAnswer::Silent => format!("did not answer within {} s", PATIENCE.as_secs()),
        };
        let _ = writeln!(text, "pid {pid} of user {uid} ({command}) {what}");
    }
    if text.is_empty() {
        text.push_str("no communicators that you may see\n");
    }
    text
}

fn state(it: &CommunicatorStatus) -> String {
    if let Some(why) = &it.ended {
        return format!("over: {why}");
    }
    if !it.in_call {
        return match it.sequence {
            0 => "no call yet".to_owned(),
            _ => format!("after {}", it.call),
        };
    }
    let mut text = format!("in {}", it.call);
    if let Some(waited) = it.waited {
        let _ = write!(text, ", waits {:.1} s", waited.as_secs_f64());
    }
    if let Some(peer) = it.waits_for {
        let waits = if it.waited.is_none() { ", waits" } else { "" };
        let _ = write!(text, "{waits} for rank {peer}");
    }
    text
}

fn as_json(found: &[ProcessStatus]) -> String {
    let number = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
    let communicator = |it: &CommunicatorStatus| {
        object(&[
            ("communicator", quote(&format!("{:016x}", it.key))),
            ("rank", it.rank.to_string()),
            ("nranks", it.nranks.to_string()),
            ("calls", it.sequence.to_string()),
            ("in_call", it.in_call.to_string()),
            ("call", quote(&it.call)),
            ("waits_for", number(it.waits_for.map(|rank| rank.to_string()))),
            ("waited_seconds", number(it.waited.map(|it| it.as_secs_f64().to_string()))),
            ("ended", number(it.ended.as_deref().map(quote))),
        ])
    };
    let process = |ProcessStatus { pid, uid, command, answer }: &ProcessStatus| {
        let (state, all, more) = match answer {
            StatusAnswer::Communicators(all, more) => {
                ("answered", all.iter().map(communicator).collect(), *more)
            }
            StatusAnswer::Stopped => ("stopped", Vec::new(), 0),
            StatusAnswer::Silent => ("silent", Vec::new(), 0),
        };
        object(&[
            ("pid", pid.to_string()),
            ("uid", uid.to_string()),
            ("command", quote(command)),
            ("state", quote(state)),
            ("communicators", format!("[{}]", all.join(", "))),
            ("not_listed", more.to_string()),
        ])
    };
    array(found.iter().map(process)) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<ProcessStatus> {
        let one = CommunicatorStatus {
            key: 0xabc,
            rank: 1,
            nranks: 3,
            sequence: 7,
            in_call: true,
            call: "call 7, all_reduce of 3 int32 sum".into(),
            waits_for: Some(0),
            waited: Some(Duration::from_millis(3250)),
            ended: None,
        };
        let other = CommunicatorStatus {
            rank: 0,
            in_call: false,
            waits_for: None,
            waited: None,
            ..one.clone()
        };
        let process = |pid, answer| ProcessStatus { pid, uid: 5, command: "train".into(), answer };
        vec![
            process(10, StatusAnswer::Communicators(vec![one], 0)),
            process(11, StatusAnswer::Stopped),
            process(12, StatusAnswer::Communicators(vec![other], 2)),
        ]
    }

    #[test]
    fn ranks_of_a_communicator_stand_together_in_order() {
        assert_eq!(
            as_text(&found()),
            "communicator 0000000000000abc: 3 ranks, 2 of them seen here\n\
             \x20 rank 0     pid 12       train            after call 7, all_reduce of 3 int32 sum\n\
             \x20 rank 1     pid 10       train            in call 7, all_reduce of 3 int32 sum, waits 3.2 s for rank 0\n\
             pid 11 of user 5 (train) is stopped, by a signal or a debugger, and cannot say what it does\n\
             pid 12 of user 5 (train) has 2 more communicators\n"
        );
        assert_eq!(as_text(&[]), "no communicators that you may see\n");
    }

    #[test]
    fn json_has_all_of_it() {
        let text = as_json(&found());
        assert!(text.contains(r#""pid": 11, "uid": 5, "command": "train", "state": "stopped""#));
        assert!(text.contains(r#""waits_for": 0, "waited_seconds": 3.25, "ended": null"#));
        assert_eq!(as_json(&[]), "[]\n");
    }
}
