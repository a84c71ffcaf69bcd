//! Calls by a schedule of the caller.

use maypole_algorithms::collective::{all_gather, all_reduce};
use maypole_algorithms::verify::prove;
use maypole_algorithms::{Class, RedOp};

use super::as_ranks;
use crate::config::Config;
use crate::error::Error;

#[test]
fn a_schedule_of_the_caller_runs_whatever_the_tuner_would_choose() {
    let ring = prove(all_reduce::ring::schedule(3)).expect("a proof");
    let gather = prove(all_gather::ring::schedule(3)).expect("a proof");
    assert_eq!(ring.facts().class, Class::Fast);
    as_ranks(3, &Config::default(), move |comm| {
        for len in [0, 1, 7, 50_000] {
            for _ in 0..2 {
                let mine = vec![i64::from(comm.rank()) + 1; len];
                let mut sum = vec![0; len];
                comm.collective_by(&ring, &mine, &mut sum, RedOp::Sum).expect("a call");
                assert_eq!(sum, vec![6; len]);
                let mut all = vec![0; 3 * len];
                comm.collective_by(&gather, &mine, &mut all, RedOp::Sum).expect("a call");
                assert_eq!(all, [1, 2, 3].map(|i| vec![i; len]).concat());
                // Between them calls that the tuner chooses, on the same links.
                comm.all_reduce(&mine, &mut sum, RedOp::Max).expect("a call");
                assert_eq!(sum, vec![3; len]);
            }
        }
    });
}

#[test]
fn a_schedule_that_does_not_fit_is_refused_and_the_communicator_goes_on() {
    let two = prove(all_reduce::ring::schedule(2)).expect("a proof");
    let four = prove(all_reduce::ring::schedule(4)).expect("a proof");
    // A ring needs two slots on each link.
    let config = Config {
        slot_depth: Some(1),
        protocol: crate::config::ProtocolSetting::Slots,
        ..Config::default()
    };
    as_ranks(2, &config, move |comm| {
        let (send, mut recv, mut short) = ([1.0f32; 4], [0.0; 4], [0.0; 3]);
        let refusals = [
            comm.collective_by(&two, &send, &mut short, RedOp::Sum),
            comm.collective_by(&four, &send, &mut recv, RedOp::Sum),
            comm.collective_by(&two, &send, &mut recv, RedOp::Sum),
        ];
        let words = ["1 blocks to send", "among 2 ranks", "MAYPOLE_SLOT_DEPTH"];
        for (refusal, words) in refusals.into_iter().zip(words) {
            let error = refusal.expect_err(words);
            assert!(
                matches!(error, Error::InvalidArgument { .. }) && error.is_harmless(),
                "{error}"
            );
            assert!(error.to_string().contains(words), "{error}");
        }
        comm.all_reduce(&send, &mut recv, RedOp::Sum).expect("the communicator is whole");
        assert_eq!(recv, [2.0; 4]);
    });
}
