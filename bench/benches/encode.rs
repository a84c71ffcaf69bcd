//! Benchmarks the encoding of a rank's program for the GPU: words per second, by schedule and
//! ranks.
//!
//! `cargo bench -p maypole-bench --bench encode`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use maypole_algorithms::Schedule;
use maypole_algorithms::collective::all_gather::pat;
use maypole_algorithms::collective::all_reduce::{double_tree, one_shot, ring};
use maypole_cuda::encode::{ChunkExtent, ProgramBinding, encode, ports};

/// Schedules with many steps in a few lanes, with lanes that depend on each other, with the widest
/// fold, and with groups of any size.
fn schedules() -> [Schedule; 5] {
    [
        ring::schedule(8),
        ring::schedule(256),
        double_tree::schedule(256),
        one_shot::schedule(8),
        pat::schedule(61),
    ]
}

fn encodes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    for schedule in schedules() {
        let rank = schedule.nranks / 2;
        let (sending, receiving) = ports(&schedule, rank);
        let extents = |chunks: u32| -> Vec<ChunkExtent> {
            (0..u64::from(chunks))
                .map(|i| ChunkExtent { offset: i * 1000, elements: 1000 })
                .collect()
        };
        let (inputs, outputs) =
            (extents(schedule.input_chunks()), extents(schedule.output_chunks()));
        let binding = ProgramBinding {
            inputs: &inputs,
            outputs: &outputs,
            tile: 250,
            tiles: 4,
            tag: 0,
            sending: &sending,
            receiving: &receiving,
        };
        let program = || encode(&schedule, rank, black_box(&binding)).expect("the binding fits");
        let name = format!("{} {}", schedule.collective, schedule.name);
        group.throughput(Throughput::Elements(program().len() as u64));
        group.bench_function(BenchmarkId::new(name, schedule.nranks), |b| b.iter(program));
    }
}

criterion_group!(benches, encodes);
criterion_main!(benches);
