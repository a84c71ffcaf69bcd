//! The conformance suite over the links of ranks that are threads of one process.

use maypole_transport::conformance::{self, Side};
use maypole_transport::endpoint::Endpoint;
use maypole_transport::fault::{Faults, Recipe};

#[test]
fn local() {
    conformance::run(Endpoint::new);
}

#[test]
fn shm_within_one_process() {
    conformance::run(Endpoint::new_apart);
}

/// Both directions of the link under test with delays and spurious back-pressure.
fn late(mut side: Side) -> Side {
    let (rank, endpoint) = (side.endpoint.rank(), side.endpoint.clone());
    let recipe = Recipe::parse("seed=5,delay=0.2:200us,backpressure=0.1").unwrap();
    let faults = Faults::new(recipe, endpoint, || unreachable!("no abort in the recipe"));
    (side.out, side.inc) = faults.wrap(1 - rank, 0, (side.out, side.inc));
    side
}

#[test]
fn local_with_faults() {
    conformance::run_over(Endpoint::new, late);
}

#[test]
fn shm_with_faults() {
    conformance::run_over(Endpoint::new_apart, late);
}
