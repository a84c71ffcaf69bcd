//! Tests of ranks that end while messages of theirs are still on the way: what a send has accepted
//! arrives, or its receiver gets an error that says what is missing.

use maypole::Communicator;

use crate::ranks::{self, Job};

/// The test that a rank process runs.
const ENTRY: &str = "ends::rank";

/// Over TCP, with links that take more than the sockets.
const LARGE_LINKS: [(&str, &str); 5] = [
    ("NCCL_SHM_DISABLE", "1"),
    ("NCCL_P2P_DISABLE", "1"),
    ("MAYPOLE_SLOT_BYTES", "4194304"),
    ("MAYPOLE_SLOT_DEPTH", "8"),
    // A send copies what it sends, and does not wait for the receiver.
    ("MAYPOLE_LEND_FROM", "1073741824"),
];
const BYTES: usize = 24 << 20;

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some((scene, mut comm)) = ranks::enter() else { return };
    match scene.as_str() {
        "vanish" | "killed" => return vanish(&mut comm, scene == "killed"),
        "lose" => return lose(&mut comm),
        _ => {}
    }
    // The link is made.
    send_or_receive(&mut comm, 8).unwrap();
    // SAFETY: the signal stops this process until the test continues it.
    unsafe { libc::raise(libc::SIGSTOP) };
    let result = send_or_receive(&mut comm, BYTES);
    println!("say:{}", result.err().unwrap_or_else(|| "right".into()));
    if comm.rank() == 1 {
        return;
    }
    match scene.as_str() {
        // SAFETY: the handlers of this process may run now.
        "exit" => unsafe { libc::exit(0) },
        "destroy" => drop(comm),
        other => panic!("no scene {other}"),
    }
    println!("say:destroyed");
}

/// Rank 0 ends without a farewell when its part of a call is over. The others look for what it sent
/// only after they have been told that it died.
fn vanish(comm: &mut Communicator, killed: bool) {
    // All links are made.
    comm.barrier().unwrap();
    send_or_receive(comm, 8).unwrap();
    let mut data = [0_u8; 100];
    if comm.rank() == 0 {
        comm.broadcast(&[7; 100], &mut data, 0).unwrap();
        comm.send(&[9_u8; 1000], 1).unwrap();
        // SAFETY: the process ends, or is killed.
        unsafe {
            if killed {
                libc::raise(libc::SIGKILL);
            }
            libc::_exit(0)
        };
    }
    while comm.async_error().is_none() {
        std::thread::yield_now();
    }
    let told = comm.async_error().map(|error| error.to_string());
    comm.broadcast(&[0; 100], &mut data, 0).unwrap();
    assert_eq!(data, [7; 100]);
    let next = 3 - comm.rank();
    if comm.rank() == 1 {
        let mut received = [0_u8; 1000];
        comm.recv(&mut received, 0).unwrap();
        assert_eq!(received, [9; 1000]);
        // The dead rank has no part in this.
        comm.send(&received, next).unwrap();
        comm.recv(&mut received, next).unwrap();
    } else {
        let mut received = [0_u8; 1000];
        comm.recv(&mut received, next).unwrap();
        comm.send(&received, next).unwrap();
    }
    println!("say:{}", told.unwrap_or_default());
    let error = comm.barrier().unwrap_err().to_string();
    println!("say:{error}");
}

/// Rank 0 is killed when its part of a call is over. The others look for what it sent only after
/// they have been told of that, and get it, or an error.
fn lose(comm: &mut Communicator) {
    comm.barrier().unwrap();
    let mut data = [0_u8; 100];
    if comm.rank() == 0 {
        comm.broadcast(&[7; 100], &mut data, 0).unwrap();
        // SAFETY: the process is killed.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    while comm.async_error().is_none() {
        std::thread::yield_now();
    }
    let result = comm.broadcast(&[0; 100], &mut data, 0);
    assert!(result.is_err() || data == [7; 100], "other bytes, and no error");
    println!("say:{}", result.err().map_or_else(|| "right".into(), |error| error.to_string()));
}

/// Rank 0 sends, rank 1 receives and checks.
fn send_or_receive(comm: &mut Communicator, bytes: usize) -> Result<(), String> {
    let data: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
    match comm.rank() {
        0 => return comm.send(&data, 1).map_err(|error| error.to_string()),
        1 => {}
        _ => return Ok(()),
    }
    let mut received = vec![0; bytes];
    comm.recv(&mut received, 0).map_err(|error| error.to_string())?;
    if received == data { Ok(()) } else { Err("other bytes".into()) }
}

/// A job of two ranks that have stopped themselves.
fn stopped(scene: &str, settings: &[(&str, &str)]) -> Job {
    let job = Job::start(ENTRY, 2, scene, settings);
    for pid in job.pids() {
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
        };
        while state() != Some('T') {
            assert!(!matches!(state(), None | Some('Z')), "a rank has ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    job
}

#[test]
fn what_was_sent_over_tcp_arrives_although_the_sender_exits_or_destroys() {
    for scene in ["exit", "destroy"] {
        let mut job = stopped(scene, &LARGE_LINKS);
        job.signal(0, libc::SIGCONT);
        assert_eq!(job.hear(0), "right");
        job.signal(1, libc::SIGCONT);
        assert_eq!(job.hear(1), "right", "{scene}");
        job.ends_well(0);
        job.ends_well(1);
    }
}

#[test]
fn a_receiver_is_told_who_left_with_data_unsent_and_how_much() {
    let settings = [&LARGE_LINKS[..], &[("MAYPOLE_FLUSH_TIMEOUT", "1")]].concat();
    let mut job = stopped("destroy", &settings);
    job.signal(0, libc::SIGCONT);
    assert_eq!(job.hear(0), "right");
    assert_eq!(job.hear(0), "destroyed");
    job.signal(1, libc::SIGCONT);
    let said = job.hear(1);
    assert!(said.contains("rank 0 left with data unsent: "), "{said}");
    assert!(said.contains(" bytes did not reach rank 1 within"), "{said}");
}

/// Over TCP the kernel of a process that was killed may discard what it sent. Then the receivers
/// are told that it died, and nothing else.
#[test]
fn a_killed_rank_is_named_where_the_kernel_discards_what_it_sent_over_tcp() {
    let settings = [&LARGE_LINKS[..2], &[("MAYPOLE_REPORT", "600")]].concat();
    let mut job = Job::start(ENTRY, 3, "lose", &settings);
    for rank in [1, 2] {
        let said = job.hear(rank);
        let is_right = said == "right" || said.contains("the process of rank 0 died");
        assert!(is_right, "rank {rank}: {said} {}", job.errors_until(rank, "stack"));
    }
}

/// Not over TCP: see above.
#[test]
fn what_a_rank_sent_before_it_died_counts_and_then_it_is_named() {
    for scene in ["vanish", "killed"] {
        // However slow a rank is, the death does not end its waits for ranks that live.
        let mut job = Job::start(ENTRY, 3, scene, &[("MAYPOLE_REPORT", "600")]);
        for rank in [1, 2] {
            for _ in 0..2 {
                let said = job.hear(rank);
                if !said.contains("the process of rank 0 died") {
                    panic!("rank {rank}, {scene}: {said} {}", job.errors_until(rank, "stack"));
                }
            }
        }
    }
}
