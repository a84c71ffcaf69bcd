//! The conformance suite over the links of ranks that are threads of one process.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use maypole_transport::LinkError;
use maypole_transport::conformance::{self, TestEnd};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::fault::{FaultInjector, FaultRecipe};
use maypole_transport::tcp::TcpConfig;
use maypole_transport::verbs::VerbsConfig;

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
    Endpoint::with_links(
        config,
        &EnabledLinks { local: false, shm: false, verbs: None, tcp: Some(tcp) },
    )
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
        Endpoint::with_links(
            config,
            &EnabledLinks { local: false, shm: false, verbs: None, tcp: Some(tcp) },
        )
    });
}

fn verbs(config: EndpointConfig, verbs: VerbsConfig) -> Result<Endpoint, LinkError> {
    let tcp = TcpConfig { addresses: vec![Ipv4Addr::LOCALHOST.into()], streams: 1 };
    let verbs = Some(VerbsConfig { library: library(), ..verbs });
    Endpoint::with_links(config, &EnabledLinks { local: false, shm: false, verbs, tcp: Some(tcp) })
}

/// The library that `MAYPOLE_VERBS_LIBRARY` names, or the library for tests if it was built.
fn library() -> Option<PathBuf> {
    let beside = || {
        let program = std::env::current_exe().ok()?;
        let folders = program.ancestors().skip(1).take(2);
        let mut files = folders.map(|folder| folder.join("libmaypole_fake_verbs.so"));
        files.find(|file| file.exists())
    };
    std::env::var_os("MAYPOLE_VERBS_LIBRARY").map(PathBuf::from).or_else(beside)
}

/// Whether this host has an RDMA device, or `MAYPOLE_VERBS_LIBRARY` names a library that has one.
fn has_rdma() -> bool {
    let layout = conformance::LAYOUTS[0];
    let secret = maypole_transport::noise::Key::random().unwrap();
    let config = EndpointConfig { rank: 0, nranks: 2, secret, layout };
    let has = verbs(config, VerbsConfig::default()).unwrap().rdma_port().is_some();
    if !has {
        eprintln!("skipped: there is no RDMA device");
    }
    has
}

#[test]
fn verbs_with_one_queue_pair() {
    if has_rdma() {
        conformance::run(|config| verbs(config, VerbsConfig::default()));
    }
}

#[test]
fn verbs_with_payload_out_of_order_over_two_queue_pairs() {
    if has_rdma() {
        conformance::run(|config| {
            let queue_pairs = 2;
            let (adaptive_routing, adaptive_from) = (Some(true), 64);
            let settings =
                VerbsConfig { queue_pairs, adaptive_routing, adaptive_from, ..Default::default() };
            verbs(config, settings)
        });
    }
}

#[test]
fn verbs_with_faults() {
    if has_rdma() {
        conformance::run_over(|config| verbs(config, VerbsConfig::default()), with_delays);
    }
}
