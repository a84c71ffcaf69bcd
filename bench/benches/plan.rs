//! Benchmark of the look-up of a plan among those that a communicator keeps, for a call that
//! repeats the last one and for other calls.
//!
//! `cargo bench -p maypole-bench --bench plan`
//!
//! A communicator of one rank keeps its plans as a communicator of many ranks does.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use maypole::{Call, Collective, Communicator, DType, RedOp, UniqueId};

/// The most plans that are kept.
const MAX_PLANS: usize = 1000;

fn plan(criterion: &mut Criterion) {
    let id = UniqueId::create().expect("a root on this host");
    let mut communicator = Communicator::new(&id, 0, 1).expect("a communicator of one rank");
    let (send, mut recv) = (vec![1.0_f32; MAX_PLANS], vec![0.0_f32; MAX_PLANS]);
    let recv = recv.as_mut_ptr();
    let call = |count| Call {
        collective: Collective::AllReduce,
        send: send.as_ptr().cast(),
        recv: recv.cast(),
        count,
        dtype: DType::Float32,
        reduction: RedOp::Sum.into(),
    };
    let mut group = criterion.benchmark_group("plan");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    let mut known = 0;
    for kept in [1, 10, MAX_PLANS] {
        for count in known + 1..=kept {
            // SAFETY: both vectors hold `count` elements, and nothing else uses them.
            unsafe { communicator.run(&call(count)) }.expect("the call");
        }
        known = kept;
        assert!(communicator.finds_plan(&call(kept)) && !communicator.finds_plan(&call(kept + 1)));
        group.bench_function(BenchmarkId::new("the last call again", kept), |b| {
            let call = call(kept);
            b.iter(|| communicator.finds_plan(black_box(&call)));
        });
        if kept > 1 {
            let mut count = 0;
            group.bench_function(BenchmarkId::new("another call each time", kept), |b| {
                b.iter(|| {
                    count = count % kept + 1;
                    communicator.finds_plan(black_box(&call(count)))
                });
            });
        }
    }
}

criterion_group!(benches, plan);
criterion_main!(benches);
