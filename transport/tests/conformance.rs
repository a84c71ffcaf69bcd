//! The conformance suite over the links of ranks that are threads of one process.

use std::net::{Ipv4Addr, Ipv6Addr};

use maypole_transport::LinkError;
use maypole_transport::conformance;
use maypole_transport::endpoint::{Endpoint, EndpointConfig, Media};
use maypole_transport::tcp::TcpConfig;

#[test]
fn local() {
    conformance::run(Endpoint::new);
}

#[test]
fn shm_within_one_process() {
    conformance::run(Endpoint::new_apart);
}

fn tcp<const STREAMS: u32>(config: EndpointConfig) -> Result<Endpoint, LinkError> {
    let tcp = TcpConfig { addresses: vec![Ipv4Addr::LOCALHOST.into()], streams: STREAMS };
    Endpoint::with(config, &Media { local: false, shm: false, tcp: Some(tcp) })
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
        Endpoint::with(config, &Media { local: false, shm: false, tcp: Some(tcp) })
    });
}
