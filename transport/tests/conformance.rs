//! The conformance suite over the links of ranks that are threads of one process.

use std::net::{Ipv4Addr, Ipv6Addr};

use maypole_transport::LinkError;
use maypole_transport::conformance::{self, TestEnd};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::fault::{FaultInjector, FaultRecipe};
use maypole_transport::tcp::TcpConfig;

#[test]
fn local() {
    conformance::run(Endpoint::new);
}

#[test]
fn shm_within_one_process() {
    conformance::run(Endpoint::new_without_local);
}

/// Both directions of the link under test with delays and spurious back-pressure.
fn late(mut side: TestEnd) -> TestEnd {
    let (rank, endpoint) = (side.endpoint.rank(), side.endpoint.clone());
    let recipe = FaultRecipe::parse("seed=5,delay=0.2:200us,backpressure=0.1").unwrap();
    let faults = FaultInjector::new(recipe, endpoint, || unreachable!("no abort in the recipe"));
    (side.out, side.inc) = faults.wrap(1 - rank, 0, (side.out, side.inc));
    side
}

#[test]
fn local_with_faults() {
    conformance::run_over(Endpoint::new, late);
}

#[test]
fn shm_with_faults() {
    conformance::run_over(Endpoint::new_without_local, late);
}

#[test]
fn tcp_with_faults() {
    conformance::run_over(tcp::<2>, late);
}

fn tcp<const STREAMS: u32>(config: EndpointConfig) -> Result<Endpoint, LinkError> {
    let tcp = TcpConfig { addresses: vec![Ipv4Addr::LOCALHOST.into()], streams: STREAMS };
    Endpoint::with_links(config, &EnabledLinks { local: false, shm: false, tcp: Some(tcp) })
}

#[test]
fn tcp_over_one_stream() {
    conformance::run(tcp::<1>);
}

#[test]
fn tcp_over_four_streams() {
    conformance::run(tcp::<4>);
}

/// Where the host has IPv6.
#[test]
fn tcp_over_ipv6() {
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("skipped: this host has no IPv6 loopback");
        return;
    }
    conformance::run(|config| {
        let tcp = TcpConfig { addresses: vec![Ipv6Addr::LOCALHOST.into()], streams: 1 };
        Endpoint::with_links(config, &EnabledLinks { local: false, shm: false, tcp: Some(tcp) })
    });
}
