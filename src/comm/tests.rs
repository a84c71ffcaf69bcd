//! Ranks as threads: every collective against a scalar evaluation of the tree that was proved of its schedule.

use std::sync::mpsc;
use std::time::Duration;

use maypole_algorithms::collective::all_reduce::uneven_example;
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::interpret::Algebra;
use maypole_algorithms::verify::Proved;

use super::*;
use crate::plan::geometry::Geometry;
use crate::reduce::scalar;

/// Runs `f` as each of `nranks` ranks, in threads; fails if that takes a minute.
fn as_ranks<T: Send + 'static>(
    nranks: u32,
    config: &Config,
    f: impl Fn(&mut Communicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let id = UniqueId::create().expect("a unique id");
    let f = Arc::new(f);
    let (done, all) = mpsc::channel();
    for rank in 0..nranks {
        let (f, done, config) = (Arc::clone(&f), done.clone(), config.clone());
        std::thread::spawn(move || {
            let options = Options::default();
            let comm = Communicator::init_with(&id, nranks, rank, &config, &options);
            let mut comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
            let result = f(&mut comm);
            done.send((rank, result)).expect("the test waits");
        });
    }
    drop(done);
    let mut results: Vec<(u32, T)> = (0..nranks)
        .map(|_| all.recv_timeout(Duration::from_secs(60)).expect("a rank failed or hangs"))
        .collect();
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}

/// A small generator of pseudo-random numbers (splitmix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The bits of element `index` of `rank`'s send buffer: floats of similar magnitude, so that sums round.
fn element(dtype: DType, seed: u64, rank: u32, index: usize) -> u64 {
    let bits = Random(seed ^ u64::from(rank) << 40 ^ index as u64).next();
    let mask = u64::MAX >> (64 - 8 * dtype.size());
    let (exponent, fraction) = match dtype {
        DType::Float16 => (5, 10),
        DType::Bfloat16 => (8, 7),
        DType::Float32 => (8, 23),
        DType::Float64 => (11, 52),
        DType::Float8E4M3 => (4, 3),
        DType::Float8E5M2 => (5, 2),
        _ => return bits & mask,
    };
    let middle = (1u64 << (exponent - 1)) - 2 + (bits >> 60 & 3);
    let sign = bits >> 59 & 1;
    sign << (exponent + fraction) | middle << fraction | bits & ((1 << fraction) - 1)
}

struct Numbers {
    dtype: DType,
    op: RedOp,
    nranks: u32,
}

impl Algebra for Numbers {
    type Value = u64;

    fn contribute(&mut self, value: u64) -> u64 {
        value
    }

    fn combine(&mut self, left: u64, right: u64) -> u64 {
        scalar::combine(self.dtype, self.op, left, right)
    }

    fn finish(&mut self, value: u64) -> u64 {
        scalar::finish(self.dtype, self.op, self.nranks, value)
    }
}

/// One random call, the same on all ranks but for the rank's own scalar.
#[derive(Clone, Copy, Debug)]
struct Case {
    generator: &'static str,
    collective: Collective,
    dtype: DType,
    op: RedOp,
    count: usize,
    in_place: bool,
    /// Bytes by which the buffers are off alignment.
    skew: usize,
    seed: u64,
}

const GUARD: usize = 192;
const FILL: u8 = 0xa5;

impl Case {
    fn random(random: &mut Random, generator: &Generator, nranks: u32) -> Self {
        let root = random.below(u64::from(nranks)) as u32;
        let sizes = [0, 1, 2, 3, 7, 13, 64, 100, 447, 449, 1000, 1793, 5000, 20_011];
        let collective = generator.of(root);
        let in_place = random.below(2) == 1 && collective != Collective::AllToAll;
        Self {
            generator: generator.name,
            collective,
            dtype: random.pick(&DType::ALL),
            op: random.pick(&RedOp::ALL),
            count: random.pick(&sizes),
            in_place,
            skew: random.pick(&[0, 0, 1, 3, 8, 33]),
            seed: random.next(),
        }
    }

    fn reduction(&self, rank: u32) -> Reduction {
        let scalar = element(self.dtype, !self.seed, rank, 0);
        if self.op == RedOp::PreMulSum { Reduction { op: self.op, scalar } } else { self.op.into() }
    }

    fn run(&self, comm: &mut Communicator) -> Result<(), String> {
        let (rank, nranks, size) = (comm.rank(), comm.nranks(), self.dtype.size());
        let blocks = |chunks: u32| chunks as usize * self.count * size;
        let send_len = blocks(self.collective.input_chunks(nranks, 1));
        let recv_len = blocks(self.collective.output_chunks(nranks, 1));
        let mut input = Vec::with_capacity(send_len);
        for i in 0..send_len / size {
            input.extend(&element(self.dtype, self.seed, rank, i).to_le_bytes()[..size]);
        }
        let mut send = Guarded::new(send_len, self.skew);
        let mut recv = Guarded::new(recv_len, self.skew ^ 4);
        let large = send_len.max(recv_len);
        let mut both = Guarded::new(large, self.skew);
        let block = rank as usize * self.count * size;
        let (send_at, recv_at) = match self.collective {
            Collective::AllGather => (block, 0),
            Collective::ReduceScatter => (0, block),
            Collective::Gather { root } if root == rank => (block, 0),
            Collective::Scatter { root } if root == rank => (0, block),
            _ => (0, 0),
        };
        let (from, to) = if self.in_place {
            both.bytes()[send_at..send_at + send_len].copy_from_slice(&input);
            let base = both.bytes().as_mut_ptr();
            // SAFETY: both places lie within the buffer.
            unsafe { (base.add(send_at).cast_const(), base.add(recv_at)) }
        } else {
            send.bytes().copy_from_slice(&input);
            (send.bytes().as_ptr(), recv.bytes().as_mut_ptr())
        };
        let call = Call {
            collective: self.collective,
            send: from,
            recv: to,
            count: self.count,
            dtype: self.dtype,
            reduction: self.reduction(rank),
        };
        // SAFETY: the buffers are as long as the collective asks for.
        unsafe { comm.run(&call) }.map_err(|e| e.to_string())?;
        if self.count == 0 {
            return Ok(());
        }
        let result = if self.in_place {
            both.bytes()[recv_at..recv_at + recv_len].to_vec()
        } else {
            recv.bytes().to_vec()
        };
        if !self.in_place && send.bytes() != input {
            return Err("the send buffer was changed".to_owned());
        }
        if ![&send, &recv, &both].iter().all(|b| b.is_unhurt()) {
            return Err("memory beside a buffer was written".to_owned());
        }
        self.check(comm, &call, &result)
    }

    /// Compares bit for bit with a scalar evaluation of the proved tree of each element's chunk.
    fn check(&self, comm: &Communicator, call: &Call, result: &[u8]) -> Result<(), String> {
        let (rank, nranks, size) = (comm.rank(), comm.nranks(), self.dtype.size());
        let proved: &Proved = comm
            .proofs
            .get(&(self.collective, self.generator))
            .ok_or_else(|| format!("another algorithm ran: {:?}", comm.proofs.keys()))?;
        let schedule = proved.schedule();
        let geometry = Geometry::new(schedule, call, usize::MAX);
        let mut numbers = Numbers { dtype: self.dtype, op: self.op, nranks };
        for chunk in 0..schedule.output_chunks() {
            // A rank that gets nothing has no tree.
            let Some(tree) = proved.tree(rank, chunk) else { continue };
            let out = geometry.extent(chunk);
            for i in 0..out.len {
                let expected = tree.evaluate(&mut numbers, |from, input| {
                    let at = geometry.extent(input).start + i;
                    let value = element(self.dtype, self.seed, from, at);
                    if !self.collective.reduces() {
                        return value;
                    }
                    scalar::contribute(self.dtype, self.reduction(from), nranks, value)
                });
                let at = (out.start + i) * size;
                let mut bits = [0; 8];
                bits[..size].copy_from_slice(&result[at..at + size]);
                let got = u64::from_le_bytes(bits);
                if got != expected {
                    return Err(format!(
                        "element {}: {got:#x} instead of {expected:#x}",
                        out.start + i
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Bytes between two walls that must stay as they are.
struct Guarded {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(len: usize, skew: usize) -> Self {
        let memory = vec![FILL; len + 2 * GUARD + 64];
        let start = GUARD + skew + memory.as_ptr().align_offset(64) % 64;
        Self { memory, start: start.min(2 * GUARD), len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    fn is_unhurt(&self) -> bool {
        let (before, rest) = self.memory.split_at(self.start);
        before.iter().chain(&rest[self.len..]).all(|b| *b == FILL)
    }
}

/// Plans `schedule` for the case's kind of call, whatever the tuner would choose.
fn plan(comm: &mut Communicator, schedule: Schedule, case: &Case, protocol: Protocol) {
    let choice = Choice {
        algorithm: schedule.name,
        protocol,
        tile: comm.tuner.slot_bytes,
        predicted: 0.0,
        others: Vec::new(),
    };
    let call = Call {
        collective: case.collective,
        send: std::ptr::null(),
        recv: std::ptr::null_mut(),
        count: case.count,
        dtype: case.dtype,
        reduction: case.reduction(comm.rank()),
    };
    comm.plan(schedule, &choice, &call).expect("a plan");
}

#[test]
fn a_schedule_written_by_hand_runs_like_any_other() {
    let config = Config { slot_bytes: Some(512), ..Config::default() };
    for protocol in [Protocol::Line, Protocol::Slots] {
        let results = as_ranks(uneven_example::schedule().nranks, &config, move |comm| {
            let mut random = Random(5);
            (0..40).try_for_each(|i| {
                let case = Case {
                    generator: uneven_example::schedule().name,
                    // Another kind of call each time, so that each gets a plan of its own.
                    count: 1 + i * if protocol == Protocol::Line { 5 } else { 131 },
                    ..Case::random(&mut random, all().next().expect("a generator"), comm.nranks())
                };
                plan(comm, uneven_example::schedule(), &case, protocol);
                case.run(comm).map_err(|why| format!("{case:?}: {why}"))
            })
        });
        for result in results {
            result.unwrap_or_else(|why| panic!("{protocol}: {why}"));
        }
    }
}

fn run_cases(generator: &'static Generator, nranks: u32, config: &Config, cases: u64) {
    let only = format!("{}:{}", generator.collective, generator.name);
    let config = Config { algorithms: Some(only), ..config.clone() };
    let results = as_ranks(nranks, &config, move |comm| {
        // The same cases on all ranks.
        let seed = generator.name.bytes().fold(u64::from(nranks), |s, b| s * 31 + u64::from(b));
        let mut random = Random(seed);
        (0..cases).try_for_each(|_| {
            let case = Case::random(&mut random, generator, comm.nranks());
            case.run(comm).map_err(|why| format!("rank {}: {case:?}: {why}", comm.rank()))
        })
    });
    for result in results {
        result.unwrap_or_else(|why| panic!("{}, {nranks} ranks: {why}", generator.name));
    }
}

#[test]
fn every_algorithm_gives_the_bits_of_its_proved_tree() {
    for generator in all() {
        for nranks in [1, 2, 3, 4, 5, 8, 11] {
            run_cases(generator, nranks, &Config::default(), 25);
        }
    }
}

#[test]
fn the_same_over_memory_shared_by_descriptors() {
    let config = Config { p2p_disable: true, ..Config::default() };
    for generator in all() {
        for nranks in [2, 3, 6] {
            run_cases(generator, nranks, &config, 15);
        }
    }
}

#[test]
fn the_same_over_tcp() {
    for (nranks, sockets_per_thread) in [(2, 1), (3, 4), (6, 1)] {
        let config = over_tcp(sockets_per_thread);
        for generator in all() {
            run_cases(generator, nranks, &config, 15);
        }
    }
}

fn over_tcp(sockets_per_thread: u32) -> Config {
    Config { shm_disable: true, p2p_disable: true, sockets_per_thread, ..Config::default() }
}

#[test]
fn lines_are_never_chosen_over_tcp() {
    let config = Config { protocol: config::Protocol::Line, ..over_tcp(1) };
    let chosen = as_ranks(2, &config, |comm| {
        let mut recv = [0.0f32];
        comm.all_reduce(&[1.0], &mut recv, RedOp::Sum).expect("an all-reduce");
        let call = Call {
            collective: Collective::AllReduce,
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count: 1,
            dtype: DType::Float32,
            reduction: RedOp::Sum.into(),
        };
        (recv[0], comm.explain(&call).expect("a choice").protocol)
    });
    assert_eq!(chosen, [(2.0, Protocol::Slots); 2]);
}

#[test]
fn an_abort_ends_a_wait_over_tcp() {
    assert_eq!(abort_ends_a_wait(&over_tcp(2)), [true, true]);
}

#[test]
fn many_small_tiles_and_the_fewest_slots() {
    for generator in all() {
        for (nranks, apart) in [(2, true), (3, false), (7, true), (7, false)] {
            let case = Case::random(&mut Random(0), generator, nranks);
            let credit = generator.schedule(case.collective, nranks).credit;
            let config = Config {
                slot_bytes: Some(256),
                slot_depth: Some(credit),
                protocol: config::Protocol::Slots,
                p2p_disable: apart,
                ..Config::default()
            };
            run_cases(generator, nranks, &config, 10);
        }
    }
}

/// A recipe of faults that a right program does not notice, but for the time they take.
fn lateness(seed: u64) -> Option<Recipe> {
    Recipe::parse(&format!("seed={seed},delay=0.05:100us,backpressure=0.1"))
}

#[test]
fn late_messages_and_spurious_back_pressure_change_no_bit() {
    for generator in all() {
        for (seed, nranks, apart) in [(1, 2, false), (2, 4, true), (3, 5, false), (4, 7, true)] {
            let config = Config {
                slot_bytes: Some(4096),
                fault: lateness(seed),
                p2p_disable: apart,
                ..Config::default()
            };
            run_cases(generator, nranks, &config, 8);
            run_cases(generator, nranks, &Config { fault: lateness(seed), ..over_tcp(1) }, 4);
        }
    }
}

#[test]
fn damaged_tags_end_in_an_error_on_all_ranks_and_never_in_a_wrong_result() {
    for (seed, nranks, apart) in [(1, 2, false), (2, 2, true), (3, 3, false), (4, 5, true)] {
        let recipe = Recipe::parse(&format!("seed={seed},delay=0.02:50us,corrupt=0.01"));
        let config = Config {
            slot_bytes: Some(4096),
            fault: recipe,
            p2p_disable: apart,
            ..Config::default()
        };
        let results = as_ranks(nranks, &config, |comm| {
            let (rank, n) = (comm.rank(), comm.nranks());
            for call in 0..5_000u32 {
                let count = [1, 300, 5000][call as usize % 3];
                let send: Vec<u32> = (0..count).map(|i| i * 5 + rank * call).collect();
                let mut recv = vec![0; send.len()];
                match comm.all_reduce(&send, &mut recv, RedOp::Sum) {
                    Ok(()) => {
                        let right = (0..count).map(|i| n * i * 5 + call * n * (n - 1) / 2);
                        assert!(recv.into_iter().eq(right), "call {call} is wrong");
                    }
                    Err(error) => return Some((call, error)),
                }
            }
            None
        });
        assert!(results.iter().all(Option::is_some), "seed {seed}: {results:?}");
        let noticed = |r: &Option<_>| matches!(r, Some((_, Error::Mismatch { .. })));
        assert!(results.iter().any(noticed), "seed {seed}: {results:?}");
        // A rank may be done with a call that fails on another, but not with the next one.
        let calls = results.iter().flatten().map(|r| r.0);
        let (first, last) = (calls.clone().min(), calls.max());
        assert!(last <= first.map(|f| f + 1), "seed {seed}: {results:?}");
    }
}

#[test]
fn a_rank_that_aborts_in_the_middle_of_a_call_is_named_by_all() {
    // Not in the first call, during which a slow rank may not have met the others yet.
    for message in [5, 6, 11, 40] {
        for apart in [false, true] {
            let recipe = Recipe::parse(&format!("delay=0.05:50us,abort=1:{message}"));
            let config = Config { fault: recipe, p2p_disable: apart, ..Config::default() };
            let results = as_ranks(4, &config, |comm| {
                let (send, mut recv) = ([1; 1000], [0; 1000]);
                let error = loop {
                    if let Err(error) = comm.all_reduce(&send, &mut recv, RedOp::Sum) {
                        break error;
                    }
                };
                // What is left does not inherit the abort.
                let left = (comm.rank() != 1).then(|| comm.shrink(&[1]).expect("the others"));
                (error, left.map(|mut left| (0..50).map(|_| sum_of(&mut left, 1)).max()))
            });
            for (rank, (error, left)) in results.into_iter().enumerate() {
                assert_eq!(error, Error::Aborted { by: 1 }, "rank {rank}, message {message}");
                assert_eq!(left, (rank != 1).then_some(Some(3)));
            }
        }
    }
}

#[test]
fn every_type_and_operation() {
    let config = Config { algorithms: Some("oneshot".to_owned()), ..Config::default() };
    let results = as_ranks(3, &config, |comm| {
        let mut failures = Vec::new();
        for dtype in DType::ALL {
            for op in RedOp::ALL {
                for count in [1, 9, 900] {
                    for in_place in [false, true] {
                        let case = Case {
                            generator: "oneshot",
                            collective: Collective::AllReduce,
                            dtype,
                            op,
                            count,
                            in_place,
                            skew: 0,
                            seed: count as u64,
                        };
                        failures.extend(case.run(comm).err().map(|why| format!("{case:?}: {why}")));
                    }
                }
            }
        }
        failures
    });
    let failures = results.concat();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn canonical_algorithms_give_the_same_bits_whatever_is_chosen() {
    let sum = |algorithm: &str, protocol| {
        let config =
            Config { algorithms: Some(algorithm.to_owned()), protocol, ..Config::default() };
        as_ranks(6, &config, |comm| {
            let value = |i| f32::from_bits(element(DType::Float32, 7, comm.rank(), i) as u32);
            let send: Vec<f32> = (0..300).map(value).collect();
            let mut recv = vec![0.0f32; 300];
            comm.all_reduce(&send, &mut recv, RedOp::Sum).expect("an all-reduce");
            recv.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let reference = sum("oneshot", config::Protocol::Auto);
    for algorithm in ["oneshot", "twoshot", "doubling"] {
        for protocol in [config::Protocol::Line, config::Protocol::Slots] {
            assert_eq!(sum(algorithm, protocol), reference, "{algorithm}");
        }
    }
    assert!(reference.iter().all(|r| *r == reference[0]), "ranks differ");
}

#[test]
fn a_class_that_the_user_insists_on_excludes_algorithms_of_another() {
    let config =
        Config { algorithms: Some("ring".to_owned()), bits: Bits::Canonical, ..Config::default() };
    let errors = as_ranks(2, &config, |comm| {
        let mut recv = [0];
        comm.all_reduce(&[1], &mut recv, RedOp::Sum).map_err(|e| e.to_string())
    });
    for error in errors {
        assert!(error.expect_err("ring is fast").contains("NCCL_ALGO"));
    }
}

#[test]
fn ranks_in_different_calls_are_told() {
    let errors = as_ranks(2, &Config::default(), |comm| {
        let (send, mut recv) = (vec![1i32; 8], vec![0i32; 8]);
        let count = 4 + 4 * comm.rank() as usize;
        comm.all_reduce(&send[..count], &mut recv[..count], RedOp::Sum).map_err(|e| e.to_string())
    });
    assert!(errors.iter().all(Result::is_err), "{errors:?}");
    assert!(errors.iter().any(|e| e.as_ref().is_err_and(|e| e.contains("rank"))), "{errors:?}");
}

#[test]
fn ranks_whose_settings_differ_are_told_both_ranks_and_both_settings() {
    let ring = Config { algorithms: Some("ring".to_owned()), ..Config::default() };
    let small = Config { slot_bytes: Some(4096), ..Config::default() };
    for (odd, theirs, ours) in [
        (ring, "NCCL_ALGO=ring", "NCCL_ALGO= "),
        (small, "MAYPOLE_SLOT_BYTES=4096", "MAYPOLE_SLOT_BYTES=65536"),
    ] {
        for odd_rank in [0, 2] {
            let id = UniqueId::create().expect("a unique id");
            let (done, all) = mpsc::channel();
            for rank in 0..4 {
                let config = if rank == odd_rank { odd.clone() } else { Config::default() };
                let done = done.clone();
                std::thread::spawn(move || {
                    let comm = Communicator::init_with(&id, 4, rank, &config, &Options::default());
                    done.send((rank, comm.map(drop))).expect("the test waits");
                });
            }
            for _ in 0..4 {
                let (rank, result) =
                    all.recv_timeout(Duration::from_secs(60)).expect("a rank hangs");
                let error = result.expect_err("settings differ");
                assert!(matches!(error, Error::InvalidUsage { .. }), "{error}");
                let text = error.to_string();
                // A rank names the first one that differs from it.
                let other = match (rank == odd_rank, odd_rank) {
                    (false, _) => odd_rank,
                    (true, 0) => 1,
                    (true, _) => 0,
                };
                let (here, there) = if rank == odd_rank { (theirs, ours) } else { (ours, theirs) };
                assert!(text.contains(&format!("rank {rank} and rank {other} differ")), "{text}");
                let (_, settings) = text.split_once("here ").expect("both settings");
                let (first, second) = settings.split_once("there ").expect("both settings");
                assert!(first.contains(here) && second.contains(there), "{text}");
            }
        }
    }
}

#[test]
fn an_abort_ends_a_wait() {
    assert_eq!(abort_ends_a_wait(&Config::default()), [true, true]);
}

fn abort_ends_a_wait(config: &Config) -> Vec<bool> {
    as_ranks(2, config, |comm| {
        let mut recv = [0u8; 1];
        // Opens the links, so that there is a peer to tell.
        comm.all_reduce(&[1], &mut recv, RedOp::Sum).expect("a first call");
        if comm.rank() == 1 {
            // The other rank may still be in the first call.
            std::thread::sleep(Duration::from_millis(50));
            comm.abort_handle().abort();
            return true;
        }
        comm.all_reduce(&[1], &mut recv, RedOp::Sum).is_err() && comm.async_error().is_some()
    })
}

#[test]
fn transfers_in_any_order_arrive_whole() {
    for (apart, slot_bytes, fault) in [
        (false, None, None),
        (true, None, None),
        (true, Some(256), None),
        (false, Some(256), None),
        (true, Some(256), lateness(1)),
        (false, None, lateness(2)),
        (false, Some(256), lateness(3)),
    ] {
        let config = Config { p2p_disable: apart, slot_bytes, fault, ..Config::default() };
        let results = as_ranks(5, &config, |comm| {
            let (rank, n) = (comm.rank(), comm.nranks());
            for round in 0..20u64 {
                // What goes from a to b as its k-th message: length and content follow from all three.
                let len = |a: u32, b: u32, k: u64| {
                    let spread =
                        [0, 1, 255, 256, 5000][(u64::from(a * 7 + b * 3) + k + round) as usize % 5];
                    spread as usize + usize::from(a == b)
                };
                let byte = |a: u32, b: u32, k: u64, i: usize| {
                    (a as usize * 31 + b as usize * 17 + k as usize * 5 + i) as u8
                };
                let fill =
                    |a, b, k| (0..len(a, b, k)).map(|i| byte(a, b, k, i)).collect::<Vec<u8>>();
                let pairs: Vec<(u32, u64)> = (0..n).flat_map(|p| [(p, 0), (p, 1)]).collect();
                let sent: Vec<Vec<u8>> = pairs.iter().map(|&(p, k)| fill(rank, p, k)).collect();
                let mut received: Vec<Vec<u8>> =
                    pairs.iter().map(|&(p, k)| vec![0xee; len(p, rank, k)]).collect();
                let mut list = Vec::new();
                for ((&(peer, k), data), space) in pairs.iter().zip(&sent).zip(&mut received) {
                    let (data, bytes) = (data.as_ptr(), data.len());
                    list.push((k, Transfer::Send { data, bytes, peer }));
                    let (data, bytes) = (space.as_mut_ptr(), space.len());
                    list.push((k, Transfer::Receive { data, bytes, peer }));
                }
                // Any order that keeps a pair's own.
                let mut random = Random(round << 8 | u64::from(rank));
                let mut keyed: Vec<_> =
                    list.into_iter().map(|(k, t)| ((k, random.next()), t)).collect();
                keyed.sort_by_key(|t| t.0);
                let list: Vec<Transfer> = keyed.into_iter().map(|t| t.1).collect();
                // SAFETY: each transfer has a vector of its length to itself.
                unsafe { comm.exchange(&list) }.map_err(|e| e.to_string())?;
                for (&(peer, k), got) in pairs.iter().zip(&received) {
                    if *got != fill(peer, rank, k) {
                        return Err(format!("round {round}: message {k} from {peer} is wrong"));
                    }
                }
            }
            Ok(())
        });
        for result in results {
            result.unwrap_or_else(|why| panic!("apart {apart}, slots {slot_bytes:?}: {why}"));
        }
    }
}

#[test]
fn transfers_without_a_partner_are_told() {
    let results = as_ranks(2, &Config::default(), |comm| {
        let mut space = [0u8; 8];
        let own = Transfer::Send { data: space.as_ptr(), bytes: 8, peer: comm.rank() };
        let nobody = Transfer::Send { data: space.as_ptr(), bytes: 8, peer: 2 };
        // SAFETY: the array outlives the calls.
        let harmless = unsafe { [comm.exchange(&[own]), comm.exchange(&[nobody])] };
        let bytes = 4 + 4 * comm.rank() as usize;
        let (data, peer) = (space.as_mut_ptr(), 1 - comm.rank());
        let transfer = if peer == 0 {
            Transfer::Send { data, bytes, peer }
        } else {
            Transfer::Receive { data, bytes, peer }
        };
        // SAFETY: as above.
        let unequal = unsafe { comm.exchange(&[transfer]) };
        (harmless.map(|h| h.is_err()), unequal.map_err(|e| e.to_string()))
    });
    assert!(results.iter().all(|r| r.0 == [true, true]));
    assert!(results[0].1.as_ref().is_err_and(|e| e.contains("rank 1")), "{results:?}");
}

/// The sum of the ranks' numbers in their former communicator.
fn sum_of(comm: &mut Communicator, number: u32) -> u32 {
    let mut sum = [0];
    comm.all_reduce(&[number], &mut sum, RedOp::Sum).expect("a sum");
    sum[0]
}

#[test]
fn a_communicator_parts_by_color_in_the_order_of_the_keys() {
    let results = as_ranks(7, &Config::default(), |comm| {
        let rank = comm.rank();
        let color = (rank != 3).then_some(rank % 2);
        let part = comm.split(color, -(rank as i32)).expect("a split");
        let all = sum_of(comm, rank);
        (all, part.map(|mut part| (part.rank(), part.nranks(), sum_of(&mut part, rank))))
    });
    assert_eq!(results.iter().map(|r| r.0).collect::<Vec<_>>(), [21; 7]);
    let parts: Vec<_> = results.into_iter().map(|r| r.1).collect();
    let (even, odd) = (|at| Some((at, 4, 12)), |at| Some((at, 2, 6)));
    assert_eq!(parts, [even(3), odd(1), even(2), None, even(1), odd(0), even(0)]);
}

#[test]
fn what_is_left_of_a_broken_communicator_goes_on() {
    let results = as_ranks(5, &Config::default(), |comm| {
        let rank = comm.rank();
        sum_of(comm, rank);
        if rank == 1 || rank == 4 {
            comm.abort_handle().abort();
            return None;
        }
        let mut sum = [0];
        comm.all_reduce(&[rank], &mut sum, RedOp::Sum).expect_err("it was aborted");
        assert!(comm.split(Some(0), 0).is_err() && comm.shrink(&[]).is_err());
        assert!(comm.shrink(&[rank]).is_err() && comm.shrink(&[5]).is_err());
        let mut left = comm.shrink(&[1, 4]).expect("a smaller communicator");
        let mut again = left.shrink(&[0]).ok();
        Some((left.rank(), sum_of(&mut left, rank), again.as_mut().map(|a| sum_of(a, rank))))
    });
    assert_eq!(
        results,
        [Some((0, 5, None)), None, Some((1, 5, Some(5))), Some((2, 5, Some(5))), None]
    );
}

#[test]
fn ranks_exchange_over_the_control_tree_between_calls_and_an_abort_ends_that() {
    let results = as_ranks(7, &Config::default(), |comm| {
        let deadline = || Instant::now() + Duration::from_secs(50);
        for round in 0..20u8 {
            let mine = vec![round + comm.rank() as u8; usize::from(round) * 100];
            let all = comm.watch.all_gather(&mine, deadline()).expect("an exchange");
            for (rank, theirs) in all.iter().enumerate() {
                assert_eq!(*theirs, vec![round + rank as u8; usize::from(round) * 100]);
            }
            let mut sum = [0u32];
            comm.all_reduce(&[1], &mut sum, RedOp::Sum).expect("a call");
        }
        if comm.rank() == 3 {
            comm.abort_handle().abort();
        }
        comm.watch.all_gather(&[], deadline()).expect_err("rank 3 does not come")
    });
    assert!(results.iter().all(|e| *e == Error::Aborted { by: 3 }), "{results:?}");
}

#[test]
fn an_exchange_that_is_late_fails_on_all_ranks_alike() {
    let errors = as_ranks(5, &Config::default(), |comm| {
        if comm.rank() == 4 {
            return comm
                .watch
                .all_gather(&[], Instant::now() + Duration::from_millis(200))
                .unwrap_err();
        }
        if comm.rank() == 2 {
            std::thread::sleep(Duration::from_millis(700));
        }
        comm.watch.all_gather(&[], Instant::now() + Duration::from_secs(50)).unwrap_err()
    });
    let first = &errors[0];
    assert!(matches!(first, Error::Timeout { rank: 4, .. }), "{first}");
    assert!(errors.iter().all(|e| e.to_string() == first.to_string()), "{errors:?}");
}

#[test]
fn nothing_is_lent_any_more_after_an_error() {
    for round in 0..20u64 {
        let results = as_ranks(3, &Config::default(), move |comm| {
            let rank = comm.rank();
            let mut sum = [0];
            comm.all_reduce(&[1], &mut sum, RedOp::Sum).expect("a first call");
            if rank == 2 {
                std::thread::sleep(Duration::from_micros(round * 150));
                comm.abort_handle().abort();
                return true;
            }
            let (mut send, mut recv) = (vec![1u64; 1 << 20], vec![0u64; 1 << 20]);
            let failed = comm.all_reduce(&send, &mut recv, RedOp::Sum).is_err();
            send.fill(7);
            failed && comm.links.unreleased.is_empty()
        });
        assert_eq!(results, [true; 3]);
    }
}
