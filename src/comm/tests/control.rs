//! Exchanges over the control tree.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use maypole_algorithms::RedOp;

use super::as_ranks;
use crate::config::Config;
use crate::error::Error;

#[test]
fn exchanges_over_the_control_tree_work_between_calls_and_end_by_an_abort() {
    let met = Barrier::new(7);
    let results = as_ranks(7, &Config::default(), move |comm| {
        let deadline = || Instant::now() + Duration::from_secs(50);
        for round in 0..20u8 {
            let mine = vec![round + comm.rank() as u8; usize::from(round) * 100];
            let all = comm.host.control.all_gather(&mine, deadline()).expect("an exchange");
            for (rank, theirs) in all.iter().enumerate() {
                assert_eq!(*theirs, vec![round + rank as u8; usize::from(round) * 100]);
            }
            let mut sum = [0u32];
            comm.all_reduce(&[1], &mut sum, RedOp::Sum).expect("a call");
        }
        met.wait();
        if comm.rank() == 3 {
            comm.abort_handle().abort();
        }
        comm.host.control.all_gather(&[], deadline()).expect_err("rank 3 does not come")
    });
    assert!(results.iter().all(|e| *e == Error::Aborted { by: 3 }), "{results:?}");
}

#[test]
fn an_exchange_after_its_deadline_fails_on_all_ranks() {
    let is_over = Barrier::new(2);
    let errors = as_ranks(5, &Config::default(), move |comm| {
        let patience = Duration::from_millis(if comm.rank() == 4 { 200 } else { 50_000 });
        if comm.rank() == 2 {
            is_over.wait();
        }
        let exchange = || comm.host.control.all_gather(&[], Instant::now() + patience);
        // Rank 2 may complete the exchange of the others before they hear of the timeout. Then the
        // next one fails.
        let error = match exchange() {
            Err(error) => error,
            Ok(_) => exchange().unwrap_err(),
        };
        if comm.rank() == 4 {
            is_over.wait();
        }
        error
    });
    let first = &errors[0];
    assert!(matches!(first, Error::Timeout { rank: 4, .. }), "{first}");
    assert!(errors.iter().all(|e| e.to_string() == first.to_string()), "{errors:?}");
}
