//! `maypole ps`: the live communicators of this host, their ranks, and what each rank does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use maypole::internal::status::{CommunicatorStatus, ProcessStatus, StatusAnswer, query};
use serde::Serialize;

use crate::status::{self, Failure};

/// How long to wait for the answers of all processes together.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A process, as JSON.
#[derive(Serialize)]
struct ProcessJson<'a> {
    pid: u32,
    uid: u32,
    command: &'a str,
    state: &'static str,
    communicators: Vec<RankJson<'a>>,
    not_listed: u32,
}

/// A rank of a communicator, as JSON.
#[derive(Serialize)]
struct RankJson<'a> {
    communicator: String,
    rank: u32,
    nranks: u32,
    calls: u64,
    in_call: bool,
    call: &'a str,
    waits_for: Option<u32>,
    waited_seconds: Option<f64>,
    ended: Option<&'a str>,
}

/// Prints the list. Returns the exit status.
///
/// # Errors
/// The kernel's list of sockets cannot be read.
pub(crate) fn run(json: bool) -> Result<u8, Failure> {
    let found = query(TIMEOUT)
        .map_err(|error| Failure::system(format!("cannot read /proc/net/unix: {error}")))?;
    print!("{}", if json { as_json(&found)? } else { as_text(&found) });
    Ok(status::FINE)
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
                "is stopped by a signal or a debugger and cannot answer".into()
            }
            StatusAnswer::Silent => format!("did not answer within {} s", TIMEOUT.as_secs()),
        };
        let _ = writeln!(text, "pid {pid} of user {uid} ({command}) {what}");
    }
    if text.is_empty() {
        text.push_str("no communicators that you may see\n");
    }
    text
}

/// What a rank does.
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

fn as_json(found: &[ProcessStatus]) -> Result<String, Failure> {
    let processes: Vec<_> = found.iter().map(process_json).collect();
    let text = serde_json::to_string_pretty(&processes);
    Ok(text.map_err(|error| Failure::internal(error.to_string()))? + "\n")
}

fn process_json(status: &ProcessStatus) -> ProcessJson<'_> {
    let ProcessStatus { pid, uid, command, answer } = status;
    let (state, communicators, not_listed) = match answer {
        StatusAnswer::Communicators(all, more) => {
            ("answered", all.iter().map(rank_json).collect(), *more)
        }
        StatusAnswer::Stopped => ("stopped", Vec::new(), 0),
        StatusAnswer::Silent => ("silent", Vec::new(), 0),
    };
    ProcessJson { pid: *pid, uid: *uid, command, state, communicators, not_listed }
}

fn rank_json(it: &CommunicatorStatus) -> RankJson<'_> {
    RankJson {
        communicator: format!("{:016x}", it.key),
        rank: it.rank,
        nranks: it.nranks,
        calls: it.sequence,
        in_call: it.in_call,
        call: &it.call,
        waits_for: it.waits_for,
        waited_seconds: it.waited.map(|waited| waited.as_secs_f64()),
        ended: it.ended.as_deref(),
    }
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
            result: (0, false),
            counts: [7, 0, 0, 0, 0, 0, 0, 0],
            dead: None,
            here: Vec::new(),
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
    fn ranks_of_one_communicator_are_listed_together_in_order() {
        assert_eq!(
            as_text(&found()),
            "communicator 0000000000000abc: 3 ranks, 2 of them seen here\n\
             \x20 rank 0     pid 12       train            after call 7, all_reduce of 3 int32 \
             sum\n\
             \x20 rank 1     pid 10       train            in call 7, all_reduce of 3 int32 sum, \
             waits 3.2 s for rank 0\n\
             pid 11 of user 5 (train) is stopped by a signal or a debugger and cannot answer\n\
             pid 12 of user 5 (train) has 2 more communicators\n"
        );
        assert_eq!(as_text(&[]), "no communicators that you may see\n");
    }

    #[test]
    fn json_has_all_fields() {
        let all: serde_json::Value = serde_json::from_str(&as_json(&found()).unwrap()).unwrap();
        assert_eq!(
            all[1],
            serde_json::json!({
                "pid": 11, "uid": 5, "command": "train", "state": "stopped",
                "communicators": [], "not_listed": 0
            })
        );
        assert_eq!(
            all[0]["communicators"][0],
            serde_json::json!({
                "communicator": "0000000000000abc", "rank": 1, "nranks": 3, "calls": 7,
                "in_call": true, "call": "call 7, all_reduce of 3 int32 sum",
                "waits_for": 0, "waited_seconds": 3.25, "ended": null
            })
        );
        assert_eq!(as_json(&[]).unwrap(), "[]\n");
    }
}
