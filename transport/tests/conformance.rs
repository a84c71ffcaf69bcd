//! The conformance suite over the links of ranks that are threads of one process.

use maypole_transport::conformance;
use maypole_transport::endpoint::Endpoint;

#[test]
fn local() {
    conformance::run(Endpoint::new);
}

#[test]
fn shm_within_one_process() {
    conformance::run(Endpoint::new_apart);
}
