//! Memory that the library allocates is read in place by other processes, and is otherwise as safe
//! as any memory.

use crate::ranks::Job;
use maypole::memory::SharedBuffer;
use maypole::{Communicator, Error, RedOp, SlotTraffic, Transfer};

/// The test that a rank process runs.
const ENTRY: &str = "memory::rank";

/// Not a test: the program of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some((scene, mut comm)) = crate::ranks::enter() else { return };
    match scene.as_str() {
        "counts" => lends_its_memory(&mut comm),
        "first" => maps_on_first_use(&mut comm),
        "reuse" => reuses_addresses(&mut comm),
        "until_failure" => calls_until_failure(&mut comm),
        "abort" => aborts_a_loan(&mut comm),
        "killed" => lends_and_is_killed(&mut comm),
        "short" => short_of_descriptors(&mut comm),
        other => panic!("no scene {other}"),
    }
}

const BYTES: usize = 1 << 20;

/// Allocates a buffer on all ranks; returns when each rank has mapped the buffers of all.
fn shared_buffer(comm: &mut Communicator, bytes: usize) -> SharedBuffer {
    let buffer = SharedBuffer::new(bytes).expect("memory");
    // Lower ranks connect when they register theirs, so the second time all are connected.
    for _ in 0..2 {
        assert!(comm.register(buffer.as_ptr(), bytes).expect("peers"));
        comm.barrier().expect("all ranks");
    }
    buffer
}

/// The bytes and messages that a call copies and lends.
fn slot_traffic(
    comm: &mut Communicator,
    call: impl FnOnce(&mut Communicator) -> Result<(), Error>,
) -> SlotTraffic {
    let before = comm.slot_traffic();
    call(comm).unwrap_or_else(|e| panic!("{e}"));
    let now = comm.slot_traffic();
    SlotTraffic {
        copied: now.copied - before.copied,
        copied_bytes: now.copied_bytes - before.copied_bytes,
        lent: now.lent - before.lent,
        lent_bytes: now.lent_bytes - before.lent_bytes,
    }
}

fn byte(rank: u32, at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).wrapping_add(rank * 97).to_be_bytes()[0]
}

/// Sends `from` to the next rank and receives from the one before.
fn ring(comm: &mut Communicator, from: &[u8], to: &mut [u8]) -> Result<(), Error> {
    let (rank, n) = (comm.rank(), comm.nranks());
    let transfers = [
        Transfer::Send { data: from.as_ptr(), bytes: from.len(), peer: (rank + 1) % n },
        Transfer::Receive { data: to.as_mut_ptr(), bytes: to.len(), peer: (rank + n - 1) % n },
    ];
    // SAFETY: both slices are borrowed for the call.
    unsafe { comm.exchange(&transfers) }
}

/// Checks how many bytes are lent and how many copied.
fn lends_its_memory(comm: &mut Communicator) {
    let (rank, n) = (comm.rank(), comm.nranks());
    let before = (rank + n - 1) % n;
    let mut send = shared_buffer(comm, BYTES);
    let mut recv = shared_buffer(comm, BYTES);
    send.iter_mut().enumerate().for_each(|(at, b)| *b = byte(rank, at));
    // The whole buffer, and parts at odd offsets.
    for part in [0..BYTES, 1..BYTES, 4095..BYTES - 3, 77..200_000] {
        recv.fill(0);
        let (from, to) = (&send[part.clone()], &mut recv[..part.len()]);
        let sent = slot_traffic(comm, |comm| ring(comm, from, to));
        assert_eq!((sent.lent_bytes, sent.copied), (part.len() as u64, 0), "{part:?}");
        assert!(to.iter().zip(part).all(|(b, at)| *b == byte(before, at)));
    }
    // From ordinary memory to the library's, and the other way round: the sender's memory decides.
    let ordinary = send.to_vec();
    let sent = slot_traffic(comm, |comm| ring(comm, &ordinary, &mut recv));
    assert_eq!((sent.lent, sent.copied_bytes), (0, BYTES as u64));
    assert!(!comm.register(ordinary.as_ptr(), BYTES).expect("it changes nothing"));
    let mut received = vec![0; BYTES];
    let sent = slot_traffic(comm, |comm| ring(comm, &send, &mut received));
    assert_eq!((sent.lent_bytes, sent.copied), (BYTES as u64, 0));
    assert!(received.iter().enumerate().all(|(at, b)| *b == byte(before, at)));

    // Collectives, out of place and in place.
    let block = BYTES / n as usize;
    let mut all = shared_buffer(comm, block * n as usize);
    let sent = slot_traffic(comm, |comm| comm.all_gather(&send[..block], &mut all));
    assert_eq!(sent.copied, 0, "{sent:?}");
    assert!(sent.lent_bytes >= block as u64);
    for from in 0..n {
        let part = &all[from as usize * block..][..block];
        assert!(part.iter().enumerate().all(|(at, b)| *b == byte(from, at)));
    }
    let mut numbers = shared_buffer(comm, BYTES);
    let mut sums = shared_buffer(comm, BYTES);
    let value = |rank: u32, at: usize| (rank * 1000) as i32 + at as i32;
    let total = |at: usize| (0..n).map(|r| value(r, at)).sum::<i32>();
    let numbers = numbers.elements_mut::<i32>();
    numbers.iter_mut().enumerate().for_each(|(at, x)| *x = value(rank, at));
    let sent = slot_traffic(comm, |comm| comm.all_reduce(numbers, sums.elements_mut(), RedOp::Sum));
    assert_eq!(sent.copied, 0, "{sent:?}");
    assert!(sums.elements::<i32>().iter().enumerate().all(|(at, s)| *s == total(at)));
    let sent = slot_traffic(comm, |comm| comm.all_reduce_in_place(numbers, RedOp::Sum));
    assert_eq!(sent.copied, 0, "{sent:?}");
    assert!(numbers.iter().enumerate().all(|(at, s)| *s == total(at)));
    println!("say:done");
}

#[test]
fn memory_of_the_library_is_lent_and_other_memory_is_copied() {
    for nranks in [2, 3, 4] {
        Job::start(ENTRY, nranks, "counts", &[]).all_say("done");
    }
    // Over TCP all memory is lent.
    let tcp = [("NCCL_SHM_DISABLE", "1"), ("NCCL_P2P_DISABLE", "1")];
    Job::start(ENTRY, 2, "first", &tcp).all_say("1");
}

/// Memory that is not registered is mapped on its first use, and right from the start; says whether
/// it ever was.
fn maps_on_first_use(comm: &mut Communicator) {
    let (rank, n) = (comm.rank(), comm.nranks());
    let send = {
        let mut send = SharedBuffer::new(BYTES).expect("memory");
        send.iter_mut().enumerate().for_each(|(at, b)| *b = byte(rank, at));
        send
    };
    let mut recv = vec![0; BYTES];
    let mut lent = 0;
    // A thread of the peer maps it, at a time that this rank does not know.
    for _ in 0..2000 {
        recv.fill(0);
        let sent = slot_traffic(comm, |comm| ring(comm, &send, &mut recv));
        assert_eq!(sent.lent_bytes + sent.copied_bytes, BYTES as u64);
        assert!(recv.iter().enumerate().all(|(at, b)| *b == byte((rank + n - 1) % n, at)));
        lent = sent.lent_bytes;
        let mut all = [0];
        let mine = [u32::from(lent == BYTES as u64)];
        comm.all_reduce(&mine, &mut all, RedOp::Min).expect("all ranks");
        if all == [1] || std::env::var("NCCL_SHM_DISABLE").is_ok() {
            break;
        }
    }
    println!("say:{}", u32::from(lent > 0));
}

#[test]
fn memory_that_is_not_registered_is_mapped_on_its_first_use() {
    Job::start(ENTRY, 3, "first", &[]).all_say("1");
}

/// Frees and allocates buffers, likely at addresses of earlier ones. No mapping or descriptor
/// stays.
fn reuses_addresses(comm: &mut Communicator) {
    let (rank, n) = (comm.rank(), comm.nranks());
    let kept = shared_buffer(comm, 1 << 16);
    for round in 0..150u32 {
        let bytes = [40_000, 300_000, 70_000][round as usize % 3];
        let mut send = if round % 5 == 0 {
            SharedBuffer::new(bytes).expect("memory")
        } else {
            shared_buffer(comm, bytes)
        };
        send.iter_mut().enumerate().for_each(|(at, b)| *b = byte(rank + round, at));
        let mut recv = shared_buffer(comm, bytes);
        ring(comm, &send, &mut recv).unwrap_or_else(|e| panic!("{e}"));
        let from = (rank + n - 1) % n + round;
        assert!(recv.iter().enumerate().all(|(at, b)| *b == byte(from, at)), "round {round}");
    }
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let mappings = maps.lines().filter(|line| line.contains("memfd:maypole")).count();
    assert!(mappings < 60, "{mappings} mappings are left");
    let files = std::fs::read_dir("/proc/self/fd").expect("descriptors").count();
    assert!(files < 60, "{files} descriptors are left");
    drop(kept);
    println!("say:done");
}

#[test]
fn freed_memory_is_given_back_and_never_mistaken_for_later_memory() {
    Job::start(ENTRY, 3, "reuse", &[]).all_say("done");
}

/// Calls until a call fails; says the error.
fn calls_until_failure(comm: &mut Communicator) {
    let send = shared_buffer(comm, BYTES);
    let mut recv = shared_buffer(comm, BYTES);
    println!("say:started");
    let n = comm.nranks() as usize;
    loop {
        let sum = comm.all_reduce(send.elements::<f32>(), recv.elements_mut(), RedOp::Sum);
        let (block, all) = (BYTES / n / 64 * 64, BYTES / n / 64 * 64 * n);
        let result = sum
            .and_then(|()| comm.all_gather(&send[..block], &mut recv[..all]))
            .and_then(|()| ring(comm, &send, &mut recv));
        if let Err(error) = result {
            println!("say:{error}");
            return;
        }
    }
}

#[test]
fn all_others_name_a_killed_rank_that_lends_or_reads() {
    for (nranks, victim, pause) in [(2, 1, 5), (2, 0, 9), (4, 2, 0), (4, 0, 14)] {
        let mut job = Job::start(ENTRY, nranks, "until_failure", &[]);
        job.all_say("started");
        std::thread::sleep(std::time::Duration::from_millis(pause));
        job.signal(victim, libc::SIGKILL);
        for rank in (0..nranks as usize).filter(|r| *r != victim) {
            let said = job.hear(rank);
            assert!(said.contains(&format!("process of rank {victim} died")), "{rank}: {said}");
        }
    }
}

/// Rank 0 lends to rank 1, which is stopped and does not receive, and aborts. Afterwards rank 0 may
/// write and free its memory.
fn aborts_a_loan(comm: &mut Communicator) {
    let mut memory = shared_buffer(comm, BYTES);
    memory.fill(1);
    comm.barrier().expect("both ranks");
    if comm.rank() == 0 {
        let abort = comm.abort_handle();
        println!("say:ready");
        let aborts = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            abort.abort();
        });
        let error = comm.send(&memory[..], 1).expect_err("nobody receives it");
        let slot_traffic = comm.slot_traffic();
        memory.fill(9);
        drop(memory);
        aborts.join().expect("a thread");
        println!("say:{} {error}", slot_traffic.lent > 0);
    } else {
        println!("say:ready");
        std::thread::sleep(std::time::Duration::from_millis(100));
        // This process is stopped until rank 0 is done, or it is late.
        std::thread::sleep(std::time::Duration::from_millis(400));
        let mut received = vec![0; BYTES];
        let error = comm.recv(&mut received[..], 0).expect_err("the communicator is aborted");
        println!("say:{error}");
    }
}

#[test]
fn an_abort_ends_a_loan_to_a_process_that_is_stopped() {
    let mut job = Job::start(ENTRY, 2, "abort", &[]);
    job.all_say("ready");
    job.signal(1, libc::SIGSTOP);
    let said = job.hear(0);
    assert!(said.starts_with("true ") && said.contains("abort"), "{said}");
    job.signal(1, libc::SIGCONT);
    let said = job.hear(1);
    assert!(said.contains("abort") || said.contains("rank 0"), "{said}");
}

/// Rank 0 lends a message and is killed; rank 1 receives it afterwards.
fn lends_and_is_killed(comm: &mut Communicator) {
    let mut memory = shared_buffer(comm, 40_000);
    memory.iter_mut().enumerate().for_each(|(at, b)| *b = byte(7, at));
    comm.barrier().expect("both ranks");
    println!("say:ready");
    if comm.rank() == 0 {
        let _ = comm.send(&memory[..], 1);
        unreachable!("it was killed");
    }
    let mut line = String::new();
    // A while, so that rank 0 is dead: standard input does not end before the job ends.
    let mut received = vec![0; 40_000];
    while std::path::Path::new(&format!("/proc/{}/stat", std::os::unix::process::parent_id()))
        .exists()
    {
        std::thread::sleep(std::time::Duration::from_millis(300));
        line.push('.');
        if line.len() > 2 {
            break;
        }
    }
    match comm.recv(&mut received[..], 0) {
        Ok(()) => {
            assert!(received.iter().enumerate().all(|(at, b)| *b == byte(7, at)), "damaged");
            let error = comm.recv(&mut received[..], 0).expect_err("rank 0 is dead");
            println!("say:{error}");
        }
        Err(error) => println!("say:{error}"),
    }
}

#[test]
fn a_message_that_a_killed_process_lent_is_whole_or_an_error() {
    let mut job = Job::start(ENTRY, 2, "killed", &[]);
    job.all_say("ready");
    std::thread::sleep(std::time::Duration::from_millis(100));
    job.signal(0, libc::SIGKILL);
    let said = job.hear(1);
    assert!(said.contains("rank 0 died"), "{said}");
}

/// If descriptors run short, memory is ordinary, and all calls work.
fn short_of_descriptors(comm: &mut Communicator) {
    let (rank, n) = (comm.rank(), comm.nranks());
    let limit = libc::rlimit { rlim_cur: 200, rlim_max: 200 };
    // SAFETY: `limit` is alive.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    let mut buffers = Vec::new();
    loop {
        let buffer = SharedBuffer::new(40_000).expect("memory");
        if !buffer.is_shared() {
            break;
        }
        buffers.push(buffer);
        assert!(buffers.len() < 100);
    }
    // The library leaves enough descriptors to the program.
    let more: Vec<_> =
        (0..20).map(|_| std::fs::File::open("/dev/null").expect("a descriptor")).collect();
    let mut send = SharedBuffer::new(40_000).expect("memory");
    assert!(!comm.register(send.as_ptr(), 40_000).expect("it changes nothing"));
    send.iter_mut().enumerate().for_each(|(at, b)| *b = byte(rank, at));
    let recv = buffers.last_mut().expect("a buffer");
    let sent = slot_traffic(comm, |comm| ring(comm, &send, recv));
    assert_eq!((sent.lent, sent.copied_bytes), (0, 40_000));
    assert!(recv.iter().enumerate().all(|(at, b)| *b == byte((rank + n - 1) % n, at)));
    drop((more, buffers));
    assert!(SharedBuffer::new(1).expect("memory").is_shared());
    println!("say:done");
}

#[test]
fn memory_is_ordinary_if_descriptors_run_short() {
    Job::start(ENTRY, 2, "short", &[]).all_say("done");
}

/// A child process does not have the memory, and does not free it.
#[test]
fn a_fork_is_harmless() {
    let mut buffer = SharedBuffer::new(100_000).expect("memory");
    buffer.fill(5);
    // SAFETY: the child drops the buffer, which locks nothing and frees nothing there, and ends.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            drop(buffer);
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!(status, 0, "the child failed");
    }
    assert!(buffer.iter().all(|byte| *byte == 5));
    buffer.fill(6);
}
