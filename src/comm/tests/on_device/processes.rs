//! Ranks as processes, which open each other's device memory.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::super::Random;
use super::super::case::Case;
use super::support::{Rank, configure, folder, simulator};
use crate::bootstrap::{Options, UniqueId};
use crate::call::Task;
use crate::comm::Communicator;
use crate::config::Config;
use maypole_algorithms::Collective;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn ranks_of_several_processes_meet_in_device_memory() {
    folder();
    for (nranks, devices) in [(2u32, 1u32), (3, 2)] {
        let id = UniqueId::create().expect("a unique id");
        let start = |rank: u32| {
            let mut child = Command::new("/proc/self/exe")
                .args(["--exact", "comm::tests::on_device::processes::rank", "--ignored"])
                .env("MAYPOLE_TEST_SESSION", format!("{rank} {nranks} {}", rank % devices))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a rank process");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin.write_all(&id.to_bytes()).expect("the rank reads its id");
            child
        };
        let children: Vec<Child> = (0..nranks).map(start).collect();
        let pids: Vec<u32> = children.iter().map(Child::id).collect();
        let (done, all) = mpsc::channel();
        for child in children {
            let done = done.clone();
            std::thread::spawn(move || {
                let output = child.wait_with_output().expect("a child");
                let said = [output.stdout, output.stderr].concat();
                let _ = done
                    .send((output.status.success(), String::from_utf8_lossy(&said).into_owned()));
            });
        }
        for _ in 0..nranks {
            let ended = all.recv_timeout(PATIENCE);
            if !matches!(ended, Ok((true, _))) {
                for pid in &pids {
                    // SAFETY: no memory is involved. The process is a child, whose number is not used again before it is waited for;
                    // one that has ended well by now is at worst missed.
                    unsafe { libc::kill(*pid as libc::pid_t, libc::SIGKILL) };
                }
            }
            let (well, said) = ended.unwrap_or_else(|_| panic!("{nranks} ranks: one hangs"));
            assert!(well && said.contains("1 passed"), "{nranks} ranks: {said}");
        }
    }
}

/// Not a test of its own: what a rank process does.
#[test]
#[ignore = "run by the test above, as a rank"]
fn rank() {
    let Ok(text) = std::env::var("MAYPOLE_TEST_SESSION") else { return };
    let words: Vec<u32> = text.split(' ').map(|word| word.parse().expect("a number")).collect();
    let [rank, nranks, device] = words[..] else { panic!("three numbers") };
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("an id");
    let id = UniqueId::from_bytes(bytes).expect("an id");
    let simulator = simulator();
    configure(100);
    let config = Config { gpu_slot_bytes: Some(1024), ..Config::default() };
    let options = Options { device: Some(device as i32), ..Options::default() };
    let comm = Communicator::init_with(&id, nranks, rank, &config, &options);
    let comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
    let mut rank = Rank::new(comm, &simulator.driver, device as i32);
    let mut random = Random(17);
    for round in 0..40 {
        let all = Collective::all(nranks - 1);
        let case = Case::random(&mut random, all[round % all.len()]);
        let task = Task::from(&case.call(rank.comm.rank()));
        let (schedule, choice) = rank.comm.tuner.choose(&task).expect("a choice");
        let result = case.run(&mut rank.comm, &schedule);
        result.unwrap_or_else(|why| panic!("round {round}, {case:?}, {choice}: {why}"));
        rank.comm.barrier().expect("a barrier");
    }
}
