//! Tests of two hosts: network namespaces connected by a virtual cable, with ranks in each. They
//! need root and the `ip` command, and print that where they are skipped.
//!
//! The test binary starts itself: rank 0 makes the unique id and prints it, and the others read it.

use maypole_transport::sync::{AtomicU32, Ordering};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::mixed_memory::{Memory, join, make_calls, reference, simulated_gpu};
use maypole::{Communicator, RedOp, UniqueId};

/// The test that a rank process runs.
const ENTRY: &str = "hosts::rank";

const RANKS: u32 = 4;
/// Elements per block of the calls on devices.
const COUNTS: &[usize] = &[3, 20_001];

/// What is particular about the ranks of a job.
enum Setting {
    Plain,
    OnDevices,
    /// They see this folder as `/proc`.
    WithProc(PathBuf),
}

/// The namespaces of a test and the ends of their cable. They are removed when the test ends.
struct Hosts([String; 2], [String; 2]);

impl Hosts {
    /// Makes the namespaces, or returns why that is not possible.
    fn new() -> Result<Self, String> {
        // SAFETY: the call has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Err("network namespaces need root".to_owned());
        }
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
        let names = [format!("maypole-a-{id}"), format!("maypole-b-{id}")];
        let hosts = Self(names, [format!("mpa{id}"), format!("mpb{id}")]);
        let ([a, b], cable) = (&hosts.0, &hosts.1);
        for command in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {} netns {a} type veth peer name {} netns {b}", cable[0], cable[1]),
            format!("-n {a} address add 10.77.0.1/24 dev {}", cable[0]),
            format!("-n {b} address add 10.77.0.2/24 dev {}", cable[1]),
            format!("-n {a} link set {} up", cable[0]),
            format!("-n {b} link set {} up", cable[1]),
            format!("-n {a} link set lo up"),
            format!("-n {b} link set lo up"),
        ] {
            let output = Command::new("ip").args(command.split(' ')).output();
            match output {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    return Err(format!("ip {command}: {why}"));
                }
                Err(error) => return Err(format!("ip: {error}")),
            }
        }
        Ok(hosts)
    }

    /// Starts rank `rank`, on host memory or a device of the simulated GPU, or where a folder takes
    /// the place of `/proc`.
    fn start(&self, rank: u32, setting: &Setting) -> Child {
        let (host, cable) = (&self.0[rank as usize % 2], &self.1[rank as usize % 2]);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host]);
        match setting {
            Setting::Plain => {}
            Setting::OnDevices => {
                command.env("LD_LIBRARY_PATH", simulated_gpu()).env("MAYPOLE_TEST_DEVICE", "0");
            }
            Setting::WithProc(proc) => {
                let script = "mount --bind \"$0\" /proc && exec \"$@\"";
                command.args(["unshare", "--mount", "sh", "-c", script]).arg(proc);
            }
        }
        command
            .arg(std::env::current_exe().expect("the test binary"))
            .args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"])
            .env("MAYPOLE_TEST_RANK", rank.to_string())
            .env("NCCL_SOCKET_IFNAME", format!("={cable}"))
            .env("MAYPOLE_INIT_TIMEOUT", "30")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a rank process")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other test, as a rank"]
fn rank() {
    let Ok(rank) = std::env::var("MAYPOLE_TEST_RANK") else { return };
    let rank: u32 = rank.parse().expect("a rank");
    let id = if rank == 0 {
        let id = UniqueId::create().expect("a unique id");
        let hex: String = id.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        println!("say:{hex}");
        id
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).expect("a line");
        let byte = |i: usize| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).expect("hex");
        UniqueId::from_bytes(std::array::from_fn(byte)).expect("an id")
    };
    if let Ok(device) = std::env::var("MAYPOLE_TEST_DEVICE") {
        let device = Some(device.parse().expect("a device"));
        let mut comm = join(&id, RANKS, rank, device);
        let outcome = make_calls(&mut comm, &Memory::open(device), COUNTS).expect("all calls");
        return println!("say:{outcome:x?}");
    }
    let mut comm = Communicator::new(&id, rank, RANKS).unwrap_or_else(|e| panic!("init: {e}"));
    for count in [1, 1000, 300_001] {
        let send: Vec<i32> = (0..count).map(|i| i + rank as i32).collect();
        let mut recv = vec![0; send.len()];
        comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("{e}"));
        assert!(recv.iter().zip(0..).all(|(sum, i)| *sum == 4 * i + 6));
    }
    println!("say:done");
}

fn hear(from: &mut impl BufRead) -> String {
    for line in from.lines() {
        if let Some((_, said)) = line.expect("text").split_once("say:") {
            return said.to_owned();
        }
    }
    String::new()
}

/// The texts of the ranks of a job. None where namespaces are not possible.
fn on_two_hosts(setting: &Setting) -> Option<Vec<String>> {
    let hosts = match Hosts::new() {
        Ok(hosts) => hosts,
        Err(why) => {
            println!("SKIPPED: {why}");
            return None;
        }
    };
    let mut children: Vec<Child> = (0..RANKS).map(|rank| hosts.start(rank, setting)).collect();
    let mut voices: Vec<_> = children
        .iter_mut()
        .map(|child| BufReader::new(child.stdout.take().expect("a pipe")))
        .collect();
    let id = hear(&mut voices[0]);
    for child in &mut children[1..] {
        let stdin = child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{id}").expect("the rank reads its id");
    }
    // Every wait of the ranks ends: at the timeout of init, or by the death of a rank that gives
    // up.
    let said = voices.iter_mut().map(hear).collect();
    for child in &mut children {
        assert!(child.wait().expect("a child").success());
    }
    Some(said)
}

#[test]
fn ranks_on_two_hosts_sum_over_tcp() {
    let said = on_two_hosts(&Setting::Plain);
    assert!(said.is_none_or(|said| said.iter().all(|word| word == "done")), "a rank failed");
}

/// As machines that were resumed from one snapshot: all that the kernel says of itself and of the
/// namespace is the same.
#[test]
fn two_hosts_that_look_alike_use_tcp_between_them() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["sys/kernel/random/boot_id", "sys/kernel/hostname", "self/ns/net", "self/ns/pid"] {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, "the same").expect("a file");
    }
    let said = on_two_hosts(&Setting::WithProc(folder.path().to_owned()));
    assert!(said.is_none_or(|said| said.iter().all(|word| word == "done")), "a rank failed");
}

/// Two ranks on each host: those of one host access each other's device memory, those of different
/// hosts use the proxy.
#[test]
fn devices_on_two_hosts_have_the_bits_of_host_memory() {
    let Some(said) = on_two_hosts(&Setting::OnDevices) else { return };
    let expected = reference(RANKS, COUNTS);
    for (rank, (said, expected)) in said.iter().zip(expected).enumerate() {
        assert_eq!(*said, format!("{expected:x?}"), "rank {rank}");
    }
}
