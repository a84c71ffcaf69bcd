//! How fast the library is. Not a test: `cargo test --release -p maypole-fake-verbs --lib speed --
//! --ignored --nocapture` prints the figures.

use std::hint::black_box;
use std::time::Instant;

use super::processes::start_peer;
use super::*;

/// The shortest time of several rounds, per repetition, in microseconds.
fn fastest(repetitions: u32, mut what: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..repetitions {
            what();
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(repetitions));
    }
    best
}

/// RDMA writes of three sizes, one at a time, with their completions.
fn writes(what: &str, a: &End, to: Card) {
    for length in [8, 64 << 10, 1 << 20] {
        let time = fastest(50, || {
            let mut write = rdma(IBV_WR_RDMA_WRITE, 1, to);
            assert_eq!(a.post(&mut write, &mut [a.part(0, length)]), 0);
            assert_eq!(a.completion().status, IBV_WC_SUCCESS);
        });
        println!(
            "{what}: {length} bytes in {time:.2} us, {:.1} GB/s",
            f64::from(length) / time / 1e3
        );
    }
}

#[test]
#[ignore = "it measures"]
fn speed_of_writes() {
    let name = "tests::speed::speed_of_writes";
    if !is_child(name) {
        let mut command = child(name, TWO);
        command.arg("--ignored").env("MAYPOLE_FAKE_VERBS", format!("{}", std::process::id()));
        assert!(command.status().expect("the test starts again").success());
        return;
    }
    let (mut a, mut b) = connected(SHAPE);
    a.memory.fill(1);
    b.memory.fill(2);
    let time = fastest(50, || {
        b.memory.copy_from_slice(black_box(&a.memory));
        black_box(&b.memory);
    });
    println!("memcpy: {SIZE} bytes in {time:.2} us, {:.1} GB/s", SIZE as f64 / time / 1e3);
    writes("write within a process", &a, b.card());
    let immediate = fastest(50, || {
        b.receive(1, &mut []);
        let mut write = rdma(IBV_WR_RDMA_WRITE_WITH_IMM, 1, b.card());
        a.post(&mut write, &mut [a.part(0, 8)]);
        a.completion();
        b.completion();
    });
    println!("write with immediate of 8 bytes, and its receive, in one thread: {immediate:.2} us");
    let a = End::new(0, SHAPE);
    let (mut peer, card) = start_peer(&a);
    writes("write to another process", &a, card);
    peer.kill().expect("it is a child");
    peer.wait().expect("it is a child");
}
