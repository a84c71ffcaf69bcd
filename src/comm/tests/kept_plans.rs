//! Tables of plans have limits, and calls whose plans were removed get new ones.

use maypole_algorithms::RedOp;
use maypole_algorithms::collective::all_reduce;
use maypole_algorithms::verify::prove;

use super::as_ranks;
use crate::config::Config;
use crate::plan::MAX_KEPT_PLANS;
use crate::{Call, Collective, DType};

#[test]
fn a_communicator_keeps_a_limited_number_of_plans_of_each_kind() {
    let ring = prove(all_reduce::ring::schedule(2)).expect("a proof");
    as_ranks(2, &Config::default(), move |comm| {
        let filter = crate::tune::AlgorithmFilter::select(Collective::AllReduce, "ring");
        let filter = filter.expect("a name");
        // The second round finds none of its plans in the table, which were used longest ago.
        for (round, counts) in (0..).zip([1400, 300usize]) {
            for count in 1..counts {
                let mine = vec![comm.rank() + round; count];
                let mut sum = vec![0; count];
                comm.all_reduce(&mine, &mut sum, RedOp::Sum).expect("a sum");
                assert_eq!(sum, vec![1 + 2 * round; count]);
                if count % 4 == 0 {
                    comm.collective_by(&ring, &mine, &mut sum, RedOp::Sum).expect("a sum");
                    assert_eq!(sum, vec![1 + 2 * round; count]);
                }
                if count % 4 == 1 {
                    let call = Call {
                        collective: Collective::AllReduce,
                        send: mine.as_ptr().cast(),
                        recv: sum.as_mut_ptr().cast(),
                        count,
                        dtype: DType::Uint32,
                        reduction: RedOp::Max.into(),
                    };
                    // SAFETY: both vectors hold `count` elements.
                    unsafe { comm.run_among(&call, &filter) }.expect("a maximum");
                    assert_eq!(sum, vec![1 + round; count]);
                }
                if count % 500 == 0 {
                    comm.barrier().expect("a barrier");
                }
                assert!(comm.plans.len() <= MAX_KEPT_PLANS, "{}", comm.plans.len());
            }
        }
        // The plan of the last call is found, also after many others.
        assert_eq!(comm.plans.len(), MAX_KEPT_PLANS - crate::plan::MAX_VECTOR_PLANS);
    });
}

#[test]
fn broadcasts_of_one_kind_from_all_roots_share_a_choice_and_a_proof() {
    const RANKS: u32 = 3;
    // More kinds than are kept, of which the last is used again.
    let counts = crate::plan::MAX_BROADCASTS + 2;
    as_ranks(RANKS, &Config::default(), move |comm| {
        for count in (1..counts).chain([counts - 1]) {
            for root in 0..RANKS {
                let mut data = vec![u32::MAX; count];
                if comm.rank() == root {
                    data.fill(root + count as u32);
                }
                comm.broadcast_in_place(&mut data, root).expect("a broadcast");
                assert_eq!(data, vec![root + count as u32; count]);
            }
            assert_eq!(comm.plans.broadcasts(), count.min(crate::plan::MAX_BROADCASTS));
        }
    });
}
