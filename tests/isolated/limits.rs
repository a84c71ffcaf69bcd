//! Tests of exhausted resources: a rank reports what it lacks, and the others get the error and do
//! not wait. A resource that is not necessary causes no error.

use std::io::Read;

use crate::ranks::{Job, OVER_TCP};
use maypole::{Call, Collective, Communicator, DType, RedOp, UniqueId};

/// The test that a rank process runs.
const ENTRY: &str = "limits::rank";

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Ok(scene) = std::env::var("MAYPOLE_TEST_SCENE") else { return };
    let words: Vec<&str> = scene.split(' ').collect();
    let (rank, nranks) = (words[1].parse().expect("a rank"), words[2].parse().expect("a count"));
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("128 bytes");
    let id = UniqueId::from_bytes(bytes).expect("an id");
    match words[0].split_once('=') {
        // The number of descriptors that rank 1 may still open, during init or after it.
        Some((when, spare)) => {
            let spare = spare.parse().expect("a count");
            if rank == 1 && when == "init" {
                spare_descriptors(spare);
            }
            let error = match Communicator::new(&id, rank, nranks) {
                Err(error) => Some(error),
                Ok(comm) => {
                    if rank == 1 && when == "call" {
                        spare_descriptors(spare);
                    }
                    sums(comm).err()
                }
            };
            println!("say:{}", error.map_or(String::from("done"), |error| error.to_string()));
        }
        None if ["copy", "slots"].contains(&words[0]) => {
            let comm = Communicator::new(&id, rank, nranks).expect("nothing needed is missing");
            let error = without_memory(comm, words[0]).expect_err("there is no memory");
            println!("say:{:?} {error}", error.code());
        }
        None => {
            match words[0] {
                "unlocked" => limit(libc::RLIMIT_MEMLOCK, 0),
                "short" if rank > 0 => limit(libc::RLIMIT_FSIZE, 1 << 16),
                "forbidden" if rank == 1 => forbid_memfd_create(),
                _ => {}
            }
            let comm = Communicator::new(&id, rank, nranks).expect("nothing needed is missing");
            sums(comm).expect("calls go on");
            println!("say:done");
        }
    }
}

/// The bytes of the buffer, or of each slot, for which rank 1 has no memory: more than the C
/// library reserves at once.
const TOO_MANY_BYTES: usize = 96 << 20;

/// An all-to-all in place, which sends from a copy, or a message to rank 1. Rank 1 may not have so
/// much more memory.
fn without_memory(mut comm: Communicator, scene: &str) -> Result<(), maypole::Error> {
    let mut data = vec![0u8; TOO_MANY_BYTES];
    // All links are made, and used.
    comm.all_reduce_in_place(&mut data[..100_000], RedOp::Sum)?;
    comm.barrier()?;
    if comm.rank() == 1 {
        let status = std::fs::read_to_string("/proc/self/status").expect("a file of /proc");
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a line");
        let kib = size.split_whitespace().next().and_then(|text| text.parse::<u64>().ok());
        limit(libc::RLIMIT_AS, (kib.expect("a number") << 10) + (TOO_MANY_BYTES as u64) / 3);
    }
    if scene == "slots" {
        match comm.rank() {
            0 => comm.send(&data, 1)?,
            _ => comm.recv(&mut data, 0)?,
        }
        return comm.barrier();
    }
    let call = Call {
        collective: Collective::AllToAll,
        send: data.as_ptr(),
        recv: data.as_mut_ptr(),
        count: data.len() / comm.nranks() as usize,
        dtype: DType::Uint8,
        reduction: RedOp::Sum.into(),
    };
    // SAFETY: the buffer holds `count` elements for each rank, and nothing else uses it.
    unsafe { comm.run(&call) }
}

/// From now on `memfd_create` fails in this process, as under the filters of some containers.
fn forbid_memfd_create() {
    let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let ret = libc::BPF_RET | libc::BPF_K;
    let line = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut lines = [
        line(load_number, 0, 0, 0),
        line(if_equal, 0, 1, libc::SYS_memfd_create as u32),
        line(ret, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(ret, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    // SAFETY: the program and its lines are alive; without new privileges no right is needed. All
    // threads get the filter.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let filter = libc::SECCOMP_SET_MODE_FILTER;
        let all_threads = libc::SECCOMP_FILTER_FLAG_TSYNC;
        assert_eq!(libc::syscall(libc::SYS_seccomp, filter, all_threads, &raw const program), 0);
    }
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::memfd_create(c"forbidden".as_ptr(), 0) }, -1);
}

fn sums(mut comm: Communicator) -> Result<(), maypole::Error> {
    for count in [1, 5000, 200_000] {
        let mut data = vec![1u32; count];
        comm.all_reduce_in_place(&mut data, RedOp::Sum)?;
        assert!(data.iter().all(|sum| *sum == comm.nranks()));
    }
    Ok(())
}

fn spare_descriptors(spare: u64) {
    let open = std::fs::read_dir("/proc/self/fd").expect("a folder of /proc").map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.to_string_lossy().parse::<u64>().expect("a descriptor")
    });
    let highest = open.max().expect("standard input");
    // The limit applies to the numbers of descriptors, so the lower numbers are used up first.
    loop {
        // SAFETY: the call has no preconditions; the copy stays open until the process ends.
        let copy = unsafe { libc::dup(0) };
        assert!(copy >= 0, "the limit is not there yet");
        if copy as u64 > highest {
            return limit(libc::RLIMIT_NOFILE, copy as u64 + 1 + spare);
        }
    }
}

fn limit(resource: libc::__rlimit_resource_t, soft: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: soft };
    // SAFETY: `limit` is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

/// Rank 1 has no descriptors left, and the other two get its error. Returns the text of each rank.
fn exhausted(when: &str, spare: u32, environment: &[(&str, &str)]) -> [String; 3] {
    let environment = [&[("MAYPOLE_INIT_TIMEOUT", "20")], environment].concat();
    let mut job = Job::start(ENTRY, 3, &format!("{when}={spare}"), &environment);
    let said = [0, 1, 2].map(|rank| job.hear(rank));
    println!("{when}, {spare} to spare: {said:?}");
    said
}

/// Without any descriptor the rank cannot report it, and the others name it at their timeout;
/// otherwise at once.
#[test]
fn a_rank_without_descriptors_says_so_and_ends_the_others() {
    let _alone = crate::alone();
    for (when, environment) in [("init", &[][..]), ("init", &OVER_TCP[..]), ("call", &[][..])] {
        let mut failures = 0;
        for spare in [1, 2, 3, 4, 5, 7, 8, 9, 40] {
            let said = exhausted(when, spare, environment);
            if said[1] == "done" {
                assert!(said.iter().all(|said| said == "done"), "{when}, {spare}: {said:?}");
                continue;
            }
            failures += 1;
            assert!(
                said[1].contains("descriptor") || said[1].contains("open files"),
                "{when}, {spare}: {said:?}"
            );
            for other in [&said[0], &said[2]] {
                assert!(other.contains("rank 1"), "{when}, {spare}: {said:?}");
            }
        }
        assert!(when == "call" || failures > 0, "nothing was exhausted");
    }
}

#[test]
fn memory_need_not_be_locked_and_a_full_disk_for_the_log_is_harmless() {
    let _alone = crate::alone();
    let environment = [("NCCL_DEBUG", "TRACE"), ("NCCL_DEBUG_FILE", "/dev/full")];
    let mut job = Job::start(ENTRY, 3, "unlocked", &environment);
    job.all_say("done");
    (0..3).for_each(|rank| job.ends_well(rank));
}

/// Ranks that cannot make memory for other processes use TCP.
#[test]
fn shared_memory_is_not_necessary() {
    let _alone = crate::alone();
    for scene in ["short", "forbidden"] {
        let mut job = Job::start(ENTRY, 3, scene, &[]);
        job.all_say("done");
        (0..3).for_each(|rank| job.ends_well(rank));
    }
}

/// A call for which a rank has no memory is an error on all ranks, and ends no process: memory for
/// a copy of the buffer, and for messages over TCP.
#[test]
fn a_call_without_memory_is_an_error() {
    let _alone = crate::alone();
    let slots = [("MAYPOLE_SLOT_BYTES", "100663296"), ("MAYPOLE_SLOT_DEPTH", "64")];
    for (scene, settings) in [("copy", Vec::new()), ("slots", [OVER_TCP, slots].concat())] {
        let mut job = Job::start(ENTRY, 2, scene, &settings);
        let said = [0, 1].map(|rank| job.hear(rank));
        if said.iter().any(String::is_empty) {
            panic!("{said:?} {} {}", job.errors_until(0, "stack"), job.errors_until(1, "stack"));
        }
        assert!(said[1].starts_with("SystemError") && said[1].contains("malloc"), "{said:?}");
        assert!(said[0].contains("rank 1") && said[0].contains("malloc"), "{said:?}");
    }
}
