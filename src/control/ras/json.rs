//! An answer as JSON: the keys of NCCL, and what NCCL does not know under `maypole`.

use serde::Serialize;

use super::NCCL_VERSION;
use super::job::{Job, JobCommunicator, JobRank, MissingRank, Why};

/// Stands for no device of CUDA.
const NO_DEVICE: i32 = -1;

#[derive(Serialize)]
struct JobJson<'a> {
    nccl_version: &'a str,
    cuda_runtime_version: i32,
    cuda_driver_version: i32,
    timestamp: &'a str,
    communicators_count: usize,
    communicators: Vec<CommunicatorJson<'a>>,
    ras: RasJson,
}

#[derive(Serialize)]
struct RasJson {
    collection_time_sec: f64,
    timeouts_count: usize,
}

#[derive(Serialize)]
struct CommunicatorJson<'a> {
    hash: String,
    secondary_hash: String,
    size: u32,
    ranks_count: usize,
    missing_ranks_count: usize,
    ranks: Vec<RankJson<'a>>,
    missing_ranks: Vec<MissingJson<'a>>,
}

#[derive(Serialize)]
struct RankJson<'a> {
    rank: u32,
    host: &'a str,
    pid: u32,
    cuda_dev: i32,
    nvml_dev: i32,
    status: StatusJson,
    collective_counts: CountsJson,
    maypole: CallJson<'a>,
}

#[derive(Serialize)]
struct StatusJson {
    init_state: u8,
    async_error: u8,
    finalize_called: bool,
    destroy_flag: bool,
    abort_flag: bool,
}

/// In the order and with the names of NCCL.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CountsJson {
    broadcast: u64,
    reduce: u64,
    all_gather: u64,
    reduce_scatter: u64,
    all_reduce: u64,
    #[serde(rename = "AlltoAll")]
    all_to_all: u64,
    gather: u64,
    scatter: u64,
}

/// The present or last call, and why the communicator has ended.
#[derive(Serialize)]
struct CallJson<'a> {
    in_call: bool,
    call: &'a str,
    waits_for: Option<u32>,
    waited_sec: Option<f64>,
    ended: Option<&'a str>,
}

#[derive(Serialize)]
struct MissingJson<'a> {
    rank: u32,
    host: &'a str,
    pid: u32,
    cuda_dev: i32,
    nvml_dev: i32,
    status: MissingStatusJson,
    maypole: WhyJson,
}

#[derive(Serialize)]
struct MissingStatusJson {
    unresponsive: bool,
    considered_dead: bool,
}

#[derive(Serialize)]
struct WhyJson {
    why: &'static str,
}

/// The answer. `timestamp` is the local time, and `seconds` how long the processes took to answer.
pub(super) fn job_json(job: &Job, timestamp: &str, seconds: f64) -> String {
    let json = JobJson {
        nccl_version: NCCL_VERSION,
        cuda_runtime_version: NO_DEVICE,
        cuda_driver_version: NO_DEVICE,
        timestamp,
        communicators_count: job.communicators.len(),
        communicators: job.communicators.iter().map(|it| communicator(&job.host, it)).collect(),
        ras: RasJson {
            collection_time_sec: (seconds * 1000.0).round() / 1000.0,
            timeouts_count: job.timeouts,
        },
    };
    // Structures of numbers and texts always have a form.
    serde_json::to_string_pretty(&json).unwrap_or_default() + "\n"
}

fn communicator<'a>(host: &'a str, it: &'a JobCommunicator) -> CommunicatorJson<'a> {
    CommunicatorJson {
        hash: format!("{:#x}", it.key),
        // NCCL names the process of the bootstrap root here.
        secondary_hash: "0x0:0x0".into(),
        size: it.nranks,
        ranks_count: it.ranks.len(),
        missing_ranks_count: it.missing.len(),
        ranks: it.ranks.iter().map(|rank| rank_json(host, rank)).collect(),
        missing_ranks: it.missing.iter().map(missing_json).collect(),
    }
}

fn rank_json<'a>(host: &'a str, JobRank { pid, status }: &'a JobRank) -> RankJson<'a> {
    let [all_reduce, reduce_scatter, all_gather, broadcast, reduce, all_to_all, gather, scatter] =
        status.counts;
    RankJson {
        rank: status.rank,
        host,
        pid: *pid,
        cuda_dev: NO_DEVICE,
        nvml_dev: NO_DEVICE,
        status: StatusJson {
            // A communicator is listed when it has been made, and as long as it is used.
            init_state: 0,
            async_error: status.result.0,
            finalize_called: false,
            destroy_flag: false,
            abort_flag: status.result.1,
        },
        collective_counts: CountsJson {
            broadcast,
            reduce,
            all_gather,
            reduce_scatter,
            all_reduce,
            all_to_all,
            gather,
            scatter,
        },
        maypole: CallJson {
            in_call: status.in_call,
            call: &status.call,
            waits_for: status.waits_for,
            waited_sec: status.waited.map(|waited| waited.as_secs_f64()),
            ended: status.ended.as_deref(),
        },
    }
}

fn missing_json(MissingRank { process, why }: &MissingRank) -> MissingJson<'_> {
    MissingJson {
        rank: process.rank,
        host: &process.host,
        pid: process.pid,
        cuda_dev: NO_DEVICE,
        nvml_dev: NO_DEVICE,
        status: MissingStatusJson {
            unresponsive: *why != Why::Left,
            considered_dead: *why == Why::Dead,
        },
        maypole: WhyJson { why: why.text() },
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::{answered, process, status};
    use super::*;
    use crate::control::status::StatusAnswer;
    use serde_json::{Value, json};

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_keys_are_those_of_nccl_in_its_order() {
        let found = [answered(10, status(0)), process(11, StatusAnswer::Stopped)];
        let text = job_json(&Job::new("10.0.0.1".into(), &found, |_| true), "now", 0.0125);
        assert_eq!(
            parsed(&text),
            json!({
                "nccl_version": "2.32.3", "cuda_runtime_version": -1, "cuda_driver_version": -1,
                "timestamp": "now", "communicators_count": 1,
                "communicators": [{
                    "hash": "0xabc", "secondary_hash": "0x0:0x0", "size": 3,
                    "ranks_count": 1, "missing_ranks_count": 1,
                    "ranks": [{
                        "rank": 0, "host": "10.0.0.1", "pid": 10, "cuda_dev": -1, "nvml_dev": -1,
                        "status": {
                            "init_state": 0, "async_error": 0, "finalize_called": false,
                            "destroy_flag": false, "abort_flag": false
                        },
                        "collective_counts": {
                            "Broadcast": 1, "Reduce": 0, "AllGather": 1, "ReduceScatter": 0,
                            "AllReduce": 5, "AlltoAll": 0, "Gather": 0, "Scatter": 0
                        },
                        "maypole": {
                            "in_call": true, "call": "call 7, all_reduce of 3 int32 sum",
                            "waits_for": 2, "waited_sec": 1.5, "ended": null
                        }
                    }],
                    "missing_ranks": [{
                        "rank": 1, "host": "10.0.0.1", "pid": 11, "cuda_dev": -1, "nvml_dev": -1,
                        "status": { "unresponsive": true, "considered_dead": false },
                        "maypole": { "why": "is stopped by a signal or a debugger" }
                    }]
                }],
                "ras": { "collection_time_sec": 0.013, "timeouts_count": 1 }
            })
        );
        let place = |key: &str| text.find(&format!("\"{key}\"")).unwrap();
        let keys =
            ["nccl_version", "communicators", "hash", "ranks", "rank", "missing_ranks", "ras"];
        assert!(keys.map(place).is_sorted());
    }

    #[test]
    fn nothing_found_is_an_empty_list() {
        let json = parsed(&job_json(&Job::new("h".into(), &[], |_| true), "now", 0.0));
        assert_eq!((&json["communicators_count"], &json["communicators"]), (&json!(0), &json!([])));
    }
}
