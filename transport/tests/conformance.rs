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

/// Both directions of the link under test, with delays and needless back-pressure.
fn with_delays(mut end: TestEnd) -> TestEnd {
    let (rank, endpoint) = (end.endpoint.rank(), end.endpoint.clone());
    let recipe = FaultRecipe::parse("seed=5,delay=0.2:200us,backpressure=0.1").unwrap();
    let injector = FaultInjector::new(recipe, endpoint, || unreachable!("no abort in the recipe"));
    (end.out, end.inc) = injector.wrap(1 - rank, 0, (end.out, end.inc));
    end
}

#[test]
fn local_with_faults() {
    conformance::run_over(Endpoint::new, with_delays);
}

#[test]
fn shm_with_faults() {
    conformance::run_over(Endpoint::new_without_local, with_delays);
}

#[test]
fn tcp_with_faults() {
    conformance::run_over(tcp::<2>, with_delays);
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

/// Does nothing on a host without IPv6.
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
