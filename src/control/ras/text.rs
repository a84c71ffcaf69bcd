//! An answer as text, in the form of NCCL.

use std::fmt::Write as _;

use super::NCCL_VERSION;
use super::job::{Job, JobCommunicator, JobRank, Why};

/// The collectives by the code of their signatures, in the words of NCCL.
const COLLECTIVES: [&str; 8] = [
    "AllReduce",
    "ReduceScatter",
    "AllGather",
    "Broadcast",
    "Reduce",
    "AlltoAll",
    "Gather",
    "Scatter",
];
/// More ranks than these are counted and not listed, unless the client asks for more.
const MOST_LISTED: usize = 10;

/// The answer. `seconds` is how long the processes took to answer.
pub(super) fn job_text(job: &Job, is_verbose: bool, seconds: f64) -> String {
    let mut text = format!("NCCL version {NCCL_VERSION} by Maypole, for host memory\n\n");
    let _ = write!(
        text,
        "Job summary\n===========\n\n\
         \x20 Nodes  Processes         GPUs  Processes     GPUs\n\
         (total)   per node  per process    (total)  (total)\n\
         {:7}  {:9}  {:11}  {:9}  {:7}\n\n\
         Communicators... ({seconds:.3}s)\n=============\n\n",
        1, job.processes, 0, job.processes, 0
    );
    table(&mut text, &job.communicators);
    text.push_str("\nErrors\n======\n\n");
    dead_processes(&mut text, job);
    for (number, it) in job.communicators.iter().enumerate() {
        let name = format!("#{number}-0 ({:016x})", it.key);
        missing_ranks(&mut text, &name, it, is_verbose);
        failures(&mut text, &name, it, is_verbose);
    }
    text.push_str("Warnings\n========\n\n");
    if job.timeouts > 0 {
        let what = count(job.timeouts, "process", "processes");
        let _ = writeln!(text, "TIMEOUT\n  {what} did not answer\n");
    }
    for (number, it) in job.communicators.iter().enumerate() {
        let name = format!("#{number}-0 ({:016x})", it.key);
        different_counts(&mut text, &name, it, is_verbose);
        waits(&mut text, &name, it, is_verbose);
    }
    text
}

fn table(text: &mut String, communicators: &[JobCommunicator]) {
    if communicators.is_empty() {
        text.push_str("No communicator data collected!\n");
        return;
    }
    text.push_str(
        "Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors\n\
         \x20   #  in group  per comm  per node  per comm  in group\n",
    );
    for (number, it) in communicators.iter().enumerate() {
        let (here, nranks) = (it.ranks.len(), it.nranks);
        let (status, errors) = (status(it), errors(it));
        let _ = writeln!(
            text,
            "{number:5}  {:8}  {:8}  {here:8}  {nranks:8}  {here:8}  {status:>8}  {errors:>6}",
            1, 1
        );
    }
}

fn status(it: &JobCommunicator) -> &'static str {
    if it.ranks.iter().any(|rank| rank.status.result.1) { "ABORT" } else { "RUNNING" }
}

fn errors(it: &JobCommunicator) -> String {
    let mut errors = Vec::new();
    if it.missing.iter().any(|rank| rank.why != Why::Left) {
        errors.push("INCOMPLETE");
    }
    if it.ranks.iter().any(|rank| rank.status.result.0 != 0) {
        errors.push("ERROR");
    }
    if has_different_counts(it) || it.missing.iter().any(|rank| rank.why == Why::Left) {
        errors.push("MISMATCH");
    }
    if errors.is_empty() { "OK".into() } else { errors.join(",") }
}

fn dead_processes(text: &mut String, job: &Job) {
    let missing = job.communicators.iter().flat_map(|it| &it.missing);
    let dead = missing.filter(|rank| rank.why == Why::Dead).map(|rank| &rank.process);
    let mut dead: Vec<_> = dead.map(|process| (&*process.host, process.pid)).collect();
    dead.sort_unstable();
    dead.dedup();
    if dead.is_empty() {
        return;
    }
    let what = if dead.len() == 1 { "process is" } else { "processes are" };
    let _ = writeln!(text, "DEAD\n  {} job {what} considered dead", dead.len());
    for (host, pid) in dead {
        let _ = writeln!(text, "  Process {pid} on node {host}");
    }
    text.push('\n');
}

fn missing_ranks(text: &mut String, name: &str, it: &JobCommunicator, is_verbose: bool) {
    if it.missing.is_empty() {
        return;
    }
    let what = count(it.missing.len(), "rank", "ranks");
    let _ = writeln!(text, "{name} INCOMPLETE\n  Missing communicator data from {what}");
    if is_verbose || it.missing.len() <= MOST_LISTED {
        for rank in &it.missing {
            let (process, why) = (&rank.process, rank.why.text());
            let _ = writeln!(
                text,
                "  Rank {} -- process {} on node {}: {why}",
                process.rank, process.pid, process.host
            );
        }
    }
    text.push('\n');
}

fn failures(text: &mut String, name: &str, it: &JobCommunicator, is_verbose: bool) {
    let failed = it.ranks.iter().filter_map(|rank| Some((rank, rank.status.ended.as_deref()?)));
    let lines = failed.map(|(rank, why)| rank_line(rank, &format!("reported {why}"))).collect();
    section(text, &format!("{name} ERROR"), lines, is_verbose);
}

fn different_counts(text: &mut String, name: &str, it: &JobCommunicator, is_verbose: bool) {
    let mut lines = Vec::new();
    for (code, collective) in COLLECTIVES.iter().enumerate() {
        let counts: Vec<u64> = it.ranks.iter().map(|rank| rank.status.counts[code]).collect();
        if counts.windows(2).any(|pair| pair[0] != pair[1]) {
            lines.push(format!(
                "  Communicator ranks have different {collective} operation counts\n"
            ));
            let launched = |rank: &JobRank| match rank.status.counts[code] {
                0 => rank_line(rank, "has not launched any operations"),
                count => rank_line(rank, &format!("has launched up to operation {count}")),
            };
            lines.extend(it.ranks.iter().map(launched));
        }
    }
    section(text, &format!("{name} MISMATCH"), lines, is_verbose);
}

fn has_different_counts(it: &JobCommunicator) -> bool {
    it.ranks.windows(2).any(|pair| pair[0].status.counts != pair[1].status.counts)
}

fn waits(text: &mut String, name: &str, it: &JobCommunicator, is_verbose: bool) {
    let lines = it.ranks.iter().filter_map(|rank| {
        let status = &rank.status;
        let (peer, waited) = (status.waits_for?, status.waited?);
        let waits =
            format!("waits {:.1} s for rank {peer} in {}", waited.as_secs_f64(), status.call);
        Some(rank_line(rank, &waits))
    });
    section(text, &format!("{name} WAIT"), lines.collect(), is_verbose);
}

fn rank_line(rank: &JobRank, what: &str) -> String {
    format!("  Rank {} {what} -- process {}\n", rank.status.rank, rank.pid)
}

/// A title and lines, if there are any.
fn section(text: &mut String, title: &str, lines: Vec<String>, is_verbose: bool) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "{title}");
    let listed = if is_verbose { lines.len() } else { lines.len().min(MOST_LISTED) };
    lines[..listed].iter().for_each(|line| text.push_str(line));
    if listed < lines.len() {
        let _ = writeln!(text, "  and {} more lines", lines.len() - listed);
    }
    text.push('\n');
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::{answered, process, status};
    use super::*;
    use crate::control::status::{CommunicatorStatus, ProcessStatus, StatusAnswer};

    fn text(found: &[ProcessStatus]) -> String {
        job_text(&Job::new("h".into(), found, |_| false), false, 0.25)
    }

    fn idle(rank: u32) -> CommunicatorStatus {
        CommunicatorStatus { waits_for: None, waited: None, in_call: false, ..status(rank) }
    }

    #[test]
    fn a_healthy_job_looks_as_in_nccl() {
        assert_eq!(
            text(&[answered(10, idle(0)), answered(11, idle(1))]),
            "NCCL version 2.32.3 by Maypole, for host memory\n\nJob summary\n===========\n\n\
             \x20 Nodes  Processes         GPUs  Processes     GPUs\n\
             (total)   per node  per process    (total)  (total)\n\
             \x20     1          2            0          2        0\n\n\
             Communicators... (0.250s)\n=============\n\n\
             Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors\n\
             \x20   #  in group  per comm  per node  per comm  in group\n\
             \x20   0         1         1         2         3         2   RUNNING      OK\n\n\
             Errors\n======\n\nWarnings\n========\n\n"
        );
        assert!(text(&[]).contains("No communicator data collected!\n"));
    }

    #[test]
    fn a_dead_rank_is_named_with_its_process() {
        let ended = CommunicatorStatus {
            ended: Some("rank 1 died".into()),
            result: (6, false),
            ..status(0)
        };
        let text = text(&[answered(10, ended)]);
        for part in [
            "INCOMPLETE,ERROR\n",
            "DEAD\n  1 job process is considered dead\n  Process 11 on node h\n\n",
            "#0-0 (0000000000000abc) INCOMPLETE\n  Missing communicator data from 1 rank\n\
             \x20 Rank 1 -- process 11 on node h: its process has ended\n\n",
            "#0-0 (0000000000000abc) ERROR\n  Rank 0 reported rank 1 died -- process 10\n\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn waits_and_different_counts_are_warnings() {
        let behind = CommunicatorStatus { counts: [0, 0, 1, 1, 0, 0, 0, 0], ..idle(1) };
        let text = text(&[
            answered(10, status(0)),
            answered(11, behind),
            process(12, StatusAnswer::Silent),
        ]);
        for part in [
            "MISMATCH\n\nErrors\n======\n\nWarnings\n",
            "TIMEOUT\n  1 process did not answer\n\n",
            "#0-0 (0000000000000abc) MISMATCH\n\
             \x20 Communicator ranks have different AllReduce operation counts\n\
             \x20 Rank 0 has launched up to operation 5 -- process 10\n\
             \x20 Rank 1 has not launched any operations -- process 11\n\n",
            "#0-0 (0000000000000abc) WAIT\n  Rank 0 waits 1.5 s for rank 2 in call 7, all_reduce \
             of 3 int32 sum -- process 10\n\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
