//! Tests ranks on devices that cannot reach each other's memory, and ranks on host memory together
//! with ranks on devices, on the simulated GPU: in one process and in several, on one host and on
//! two.
//!
//! A test starts the processes of a job, copies of this binary; the ranks of a process are threads
//! of it.

use std::thread;

use maypole::device::CudaStreamHandle;
use maypole::{Call, Collective, Communicator, DType, Error, RedOp, Transfer, UniqueId};
use maypole::{DeviceCall, StreamCalls, launch_calls};

use crate::mixed_memory::{
    Memory, Outcome, Plan, input, join, make_calls, raw, reference, simulated_gpu,
};
use crate::ranks::{Invitation, Job, invitation};

/// The test that a rank process runs.
const ENTRY: &str = "proxy::rank";

/// Elements per block: less than a cache line, several tiles, and in between.
const COUNTS: &[usize] = &[1, 777, 40_001];

/// Runs the ranks of `plan` on the simulated GPU with these settings.
fn start(plan: &str, scene: &str, environment: &[(&str, &str)]) -> Job {
    let mut all = vec![("LD_LIBRARY_PATH", simulated_gpu()), ("MAYPOLE_TEST_PLAN", plan)];
    // There are many kernels and threads for a small machine, so no rank may spin while it waits.
    all.extend([("SIMCUDA_FILL", "0"), ("MAYPOLE_SPIN", "10")]);
    all.extend(environment);
    Job::start(ENTRY, Plan::parse(plan).processes(), scene, &all)
}

/// Not a test: the code that a process of a job runs.
#[test]
#[ignore = "run by the other tests, as ranks"]
fn rank() {
    let Some(Invitation { scene, id, rank: process, .. }) = invitation() else { return };
    let plan = Plan::parse(&std::env::var("MAYPOLE_TEST_PLAN").expect("a plan"));
    let (nranks, scene) = (plan.nranks(), &*scene);
    if scene == "one" {
        return one_thread(&id, &plan.of(process));
    }
    thread::scope(|scope| {
        let ranks = plan.of(process).into_iter().map(|(rank, device)| {
            scope.spawn(move || {
                let memory = Memory::open(device);
                let comm = join(&id, nranks, rank, device);
                let said = play(scene, comm, &memory, device.is_some());
                (format!("{rank}:{said}"), memory)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        // Their memory is freed when all have finished.
        let (said, _memory): (Vec<String>, Vec<Memory>) =
            ranks.into_iter().map(|r| r.join().expect("a rank")).unzip();
        println!("say:{}", said.join(" "));
    });
}

/// This thread queues the calls of all ranks of the process, one rank after the other, and waits
/// for none of them.
fn one_thread(id: &UniqueId, ranks: &[(u32, Option<i32>)]) {
    let nranks = ranks.len() as u32;
    let mut comms: Vec<(Communicator, Memory)> = thread::scope(|scope| {
        let join = |&(rank, device): &(u32, Option<i32>)| {
            scope.spawn(move || (join(id, nranks, rank, device), Memory::open(device)))
        };
        let threads: Vec<_> = ranks.iter().rev().map(join).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    });
    for number in 0..5 {
        let count = 3000;
        let hold = |(comm, memory): &(Communicator, Memory)| {
            let send = memory.hold(&input(comm.rank(), number, DType::Int32, count));
            (send, memory.hold(&vec![0; 4 * count]))
        };
        let mut buffers: Vec<_> = comms.iter().map(hold).collect();
        let parts = comms.iter_mut().zip(&mut buffers).map(|((comm, memory), (send, recv))| {
            let calls = vec![DeviceCall::Collective(all_reduce(send.at(), recv.at(), count))];
            StreamCalls { comm, calls, stream: CudaStreamHandle(raw(memory.stream())) }
        });
        // SAFETY: the buffers and the streams are kept to the end.
        unsafe { launch_calls(parts.collect()) }.expect("all ranks");
        for ((_, memory), (_, recv)) in comms.iter().zip(&buffers) {
            assert_eq!(total(&memory.read(recv)), expected(nranks, count, number));
        }
    }
    let (comms, _memory): (Vec<Communicator>, Vec<Memory>) = comms.into_iter().unzip();
    drop(comms);
    println!("say:0:done");
}

fn play(scene: &str, mut comm: Communicator, memory: &Memory, on_device: bool) -> String {
    match scene {
        "calls" | "direct" | "proxied" => match make_calls(&mut comm, memory, COUNTS) {
            Ok(outcome) => {
                // No rank ends before all have looked for threads.
                let found = proxy_threads();
                comm.barrier().expect("a barrier");
                match scene {
                    "direct" => assert_eq!(found, 0, "all ranks reach each other"),
                    "proxied" => assert!(found > 0, "no rank reaches another"),
                    _ => {}
                }
                words(&outcome)
            }
            Err(error) => panic!("{error}"),
        },
        "replay" => replay(&mut comm, memory),
        "refused" => refused(&mut comm, memory, on_device),
        "die" => ends(&mut comm, memory, |comm| {
            if comm.rank() == 1 {
                // SAFETY: the call takes no pointers.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
        }),
        "abort" => ends(&mut comm, memory, |comm| {
            if comm.rank() == 1 {
                comm.abort_handle().abort();
            }
        }),
        "differ" => {
            let count = 100 + comm.rank() as usize;
            error_text(sum(&mut comm, memory, count, 1).map(drop))
        }
        "leave" => leave(comm, memory),
        "split" => split(&mut comm, memory),
        other => panic!("no scene {other}"),
    }
}

fn words(outcome: &Outcome) -> String {
    let words: Vec<String> = outcome.iter().map(|word| format!("{word:x}")).collect();
    words.join(",")
}

fn error_text(result: Result<(), Error>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "no error".to_owned()).replace(' ', "_")
}

/// An all-reduce of `count` integers; the sum of the result.
fn sum(comm: &mut Communicator, memory: &Memory, count: usize, number: u32) -> Result<u64, Error> {
    let mut send = memory.hold(&input(comm.rank(), number, DType::Int32, count));
    let mut recv = memory.hold(&vec![0; 4 * count]);
    let call = all_reduce(send.at(), recv.at(), count);
    // SAFETY: both buffers hold `count` integers and live until the call returns.
    unsafe { comm.run(&call)? };
    Ok(total(&memory.read(&recv)))
}

fn all_reduce(send: *const u8, recv: *mut u8, count: usize) -> Call {
    let (collective, dtype, reduction) = (Collective::AllReduce, DType::Int32, RedOp::Sum.into());
    Call { collective, send, recv, count, dtype, reduction }
}

fn total(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().expect("four")));
    words.map(u64::from).sum()
}

fn expected(nranks: u32, count: usize, number: u32) -> u64 {
    (0..nranks).map(|rank| total(&input(rank, number, DType::Int32, count))).sum()
}

/// Captures an all-reduce and an exchange with both neighbours once, and replays them with
/// different contents.
fn replay(comm: &mut Communicator, memory: &Memory) -> String {
    let (rank, nranks) = (comm.rank(), comm.nranks());
    let (next, before) = ((rank + 1) % nranks, (rank + nranks - 1) % nranks);
    let count = 30_001;
    let mut send = memory.hold(&vec![0; 4 * count]);
    let mut recv = memory.hold(&vec![0; 4 * count]);
    let mut passed = memory.hold(&vec![0; 4 * count]);
    let bytes = 4 * count;
    let transfers = [
        Transfer::Send { data: send.at().cast_const(), bytes, peer: next },
        Transfer::Receive { data: passed.at(), bytes, peer: before },
    ];
    let call = all_reduce(send.at(), recv.at(), count);
    let stream = memory.stream();
    stream.begin_capture().expect("to capture");
    let calls = vec![DeviceCall::Collective(call), DeviceCall::Transfers(&transfers)];
    let part = StreamCalls { comm, calls, stream: CudaStreamHandle(raw(stream)) };
    // SAFETY: the buffers outlive the graph's replays, and the stream the call.
    unsafe { launch_calls(vec![part]) }.expect("a capture");
    let graph = stream.end_capture().expect("a graph");
    for number in 0..20 {
        memory.write(&mut send, &input(rank, number, DType::Int32, count));
        // SAFETY: the buffers are alive, and nothing else uses them.
        unsafe { graph.launch(stream) }.expect("a replay");
        stream.synchronize().expect("a replay");
        assert_eq!(total(&memory.read(&recv)), expected(nranks, count, number));
        assert!(memory.read(&passed) == input(before, number, DType::Int32, count));
        // A call in between that is not captured.
        if number % 7 == 3 {
            assert_eq!(
                sum(comm, memory, 100, number).expect("a call"),
                expected(nranks, 100, number)
            );
        }
    }
    assert_eq!(comm.async_error(), None);
    "done".to_owned()
}

/// Ranks on host memory do not replay, so calls with them cannot be captured: they are refused
/// without an effect.
fn refused(comm: &mut Communicator, memory: &Memory, on_device: bool) -> String {
    let mut said = "host".to_owned();
    if on_device {
        let mut send = memory.hold(&[0; 400]);
        let mut recv = memory.hold(&[0; 400]);
        let call = all_reduce(send.at(), recv.at(), 100);
        let stream = memory.stream();
        stream.begin_capture().expect("to capture");
        let calls = vec![DeviceCall::Collective(call)];
        let part = StreamCalls { comm: &mut *comm, calls, stream: CudaStreamHandle(raw(stream)) };
        // SAFETY: nothing is captured, and the buffers are alive.
        let result = unsafe { launch_calls(vec![part]) };
        drop(stream.end_capture());
        said = error_text(result);
    }
    assert_eq!(sum(comm, memory, 100, 1).expect("a call"), expected(comm.nranks(), 100, 1));
    said
}

/// Makes calls until one fails, with an event in between.
fn ends(comm: &mut Communicator, memory: &Memory, happens: impl Fn(&Communicator)) -> String {
    let mut number = 0;
    let error = loop {
        if number == 5 {
            happens(comm);
        }
        match sum(comm, memory, 5000, number) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(number >= 4, "{error}");
    assert!(sum(comm, memory, 5000, 1).is_err(), "what is broken stays so");
    error_text(Err(error))
}

/// Rank 0 sends to all ranks and leaves at once. The others are late, forward the data, and do not
/// need rank 0 any more.
fn leave(mut comm: Communicator, memory: &Memory) -> String {
    let count = 1000;
    let collective = Collective::Broadcast { root: 0 };
    let mut send = memory.hold(&input(0, 3, DType::Int32, count));
    let mut recv = memory.hold(&vec![0; 4 * count]);
    assert!(sum(&mut comm, memory, 100, 1).is_ok());
    if comm.rank() > 0 {
        thread::sleep(std::time::Duration::from_millis(30 * u64::from(comm.rank())));
    }
    let call = Call { collective, ..all_reduce(send.at(), recv.at(), count) };
    // SAFETY: both buffers hold `count` integers and live until the call returns.
    unsafe { comm.run(&call) }.unwrap_or_else(|error| panic!("{error}"));
    drop(comm);
    assert!(memory.read(&recv) == input(0, 3, DType::Int32, count));
    "done".to_owned()
}

/// The even ranks and the odd ones, each among themselves, then the first two without the last.
fn split(comm: &mut Communicator, memory: &Memory) -> String {
    let mine = |comm: &mut Communicator| {
        let sum = sum(comm, memory, 2000, 1).expect("a call");
        assert_eq!(sum, expected(comm.nranks(), 2000, 1));
    };
    mine(comm);
    let part = comm.split(Some(comm.rank() % 2), 0).expect("a part");
    mine(&mut part.expect("every rank is in one"));
    if comm.rank() < 2 {
        mine(&mut comm.shrink(&[2]).expect("the rest"));
    }
    "done".to_owned()
}

/// The output of each rank, in order.
fn said(lines: Vec<String>) -> Vec<String> {
    let all = lines.iter().flat_map(|line| line.split(' '));
    let mut ranks: Vec<(u32, String)> = all
        .map(|word| {
            let (rank, said) = word.split_once(':').expect("a rank and what it says");
            (rank.parse().expect("a rank"), said.to_owned())
        })
        .collect();
    ranks.sort_by_key(|rank| rank.0);
    ranks.into_iter().map(|rank| rank.1).collect()
}

/// The number of proxies in this process.
fn proxy_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    // A thread may end meanwhile.
    let names = tasks.flatten().flat_map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.filter(|name| name.trim() == "maypole-proxy").count()
}

/// The bits of all results are those of a run on host memory.
fn same_bits(plan: &str, environment: &[(&str, &str)]) {
    same_bits_in("calls", plan, environment);
}

/// As [`same_bits`], and the messages go as the scene says: "direct" between kernels, or "proxied".
pub(crate) fn same_bits_in(scene: &str, plan: &str, environment: &[(&str, &str)]) {
    let expected: Vec<String> =
        reference(Plan::parse(plan).nranks(), COUNTS).iter().map(words).collect();
    let found = said(start(plan, scene, environment).all_well());
    assert_eq!(found.len(), expected.len());
    for (rank, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let call = found.split(',').zip(expected.split(',')).position(|(a, b)| a != b);
        assert_eq!(call, None, "{plan}: rank {rank} has other bits first in this call");
        assert_eq!(found.len(), expected.len());
    }
}

pub(crate) const APART: (&str, &str) = ("SIMCUDA_PEERS", "0");

#[test]
fn devices_without_peer_access_in_one_process() {
    same_bits("0,1", &[APART]);
    same_bits("0,1,0", &[APART]);
}

#[test]
fn devices_without_peer_access_in_two_processes() {
    same_bits("0;1", &[APART]);
}

#[test]
fn several_devices_in_each_of_several_processes() {
    same_bits("0,1;0,1", &[]);
    same_bits("0,1,1;1,0;0", &[]);
    same_bits("0,1;1,0,h", &[APART]);
}

#[test]
fn devices_over_tcp_on_one_host() {
    same_bits("0;1", &[APART, ("NCCL_SHM_DISABLE", "1")]);
}

#[test]
fn host_and_device_ranks_in_one_process() {
    same_bits("0,h", &[]);
    same_bits("h,0,1", &[]);
}

#[test]
fn host_and_device_ranks_in_several_processes() {
    same_bits("0;h", &[]);
    same_bits("h,0;1,h", &[APART]);
    same_bits("0,1,h;1,0;h", &[APART]);
}

#[test]
fn late_messages_and_spurious_back_pressure() {
    let faults = ("MAYPOLE_FAULT", "seed=11,delay=0.05:200us,backpressure=0.1");
    same_bits("0,h", &[faults]);
    same_bits("0;1", &[APART, faults]);
}

#[test]
fn kernels_and_operations_that_are_late() {
    let jitter = [("SIMCUDA_JITTER_US", "200"), ("SIMCUDA_CALL_JITTER_US", "50")];
    same_bits("0,1,h", &[APART, jitter[0], jitter[1]]);
}

#[test]
fn captured_calls_replay_over_the_proxy() {
    for plan in ["0,1", "0;1"] {
        for said in said(start(plan, "replay", &[APART]).all_well()) {
            assert_eq!(said, "done");
        }
    }
}

#[test]
fn one_thread_drives_ranks_that_have_to_meet() {
    // Within a process, by shared memory, and over TCP; with the ranks in reverse order.
    let shm = ("NCCL_P2P_DISABLE", "1");
    for environment in [&[APART][..], &[shm], &[shm, ("NCCL_SHM_DISABLE", "1")]] {
        assert_eq!(start("0,1", "one", environment).all_well(), ["0:done"]);
    }
}

#[test]
fn a_capture_with_ranks_of_the_host_is_refused_without_effect() {
    let said = said(start("0;h", "refused", &[]).all_well());
    assert!(said[0].contains("captur") && said[0].contains("rank_1"), "{}", said[0]);
    assert_eq!(said[1], "host");
}

#[test]
fn a_dead_rank_is_the_error_of_all_others() {
    for (plan, environment) in [("0;1;0", vec![APART]), ("h;0;0", vec![]), ("0;h;0", vec![])] {
        let mut job = start(plan, "die", &environment);
        assert_eq!(job.hear(1), "");
        for rank in [0, 2] {
            let said = job.hear(rank);
            assert!(said.contains("process_of_rank_1_died"), "{plan}: {said}");
            job.ends_well(rank);
        }
    }
}

#[test]
fn an_abort_ends_all() {
    for (plan, environment) in [("0,1,0", vec![APART]), ("h;0;1", vec![APART])] {
        for said in said(start(plan, "abort", &environment).all_well()) {
            assert!(said.contains("aborted_by_rank_1"), "{plan}: {said}");
        }
    }
}

#[test]
fn different_calls_are_told_on_both_sides() {
    for (plan, environment) in [("0;1", vec![APART]), ("0;h", vec![]), ("h,0", vec![])] {
        for said in said(start(plan, "differ", &environment).all_well()) {
            assert!(said.contains("the_ranks_are_in_different_calls"), "{plan}: {said}");
            assert!(said.contains("100") && said.contains("101"), "{plan}: {said}");
        }
    }
}

#[test]
fn parts_are_made_of_ranks_of_all_kinds() {
    for plan in ["0;h;1", "0,1,h", "h;0,0"] {
        for said in said(start(plan, "split", &[APART]).all_well()) {
            assert_eq!(said, "done");
        }
    }
}

#[test]
fn a_rank_that_has_done_its_part_may_leave() {
    for plan in ["0;1;h", "h;0;1"] {
        for said in said(start(plan, "leave", &[APART]).all_well()) {
            assert_eq!(said, "done");
        }
    }
}
