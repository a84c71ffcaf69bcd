//! Exchanges between all ranks what they must know of each other, and checks what must agree.

use std::sync::Arc;
use std::time::Instant;

use maypole_algorithms::topology::Grouping;
use maypole_reduce::Isa;
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::host::HostId;
use maypole_transport::inbox::InboxLayout;
use maypole_transport::tcp::TcpConfig;
use maypole_transport::verbs::{GidPreference, VerbsConfig};

use super::rank_info::{RankHost, RankInfo};
use crate::bootstrap::{self, AbortSignal, Joined, Options, RejoinListener};
use crate::config::{self, AddressFamily, Config, NodeLabels};
use crate::device::memory::inbox::PeerInbox;
use crate::device::setup::rank_setup::{PeerDevice, RankSetup};
use crate::error::Error;
use crate::process::ProcessIdentity;
use crate::tune::AlgorithmFilter;
use crate::window;

/// The channels between two ranks: those of schedules, one for sends and receives, and one for
/// windows.
const CHANNELS: u16 = window::CHANNEL + 1;

/// The device of a rank, and the inboxes that its kernels reach.
type DeviceSetup = (RankSetup, Vec<Option<PeerInbox>>);

/// What a rank knows of all ranks before the first call.
pub(super) struct CommunicatorSetup {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) rejoin_listener: RejoinListener,
    /// What each rank said of itself.
    pub(super) ranks: Vec<RankInfo>,
    /// The address of each rank's endpoint.
    pub(super) addresses: Vec<Vec<u8>>,
    /// Some two ranks use TCP between them.
    pub(super) any_tcp: bool,
    /// Some two ranks of one node use TCP between them.
    pub(super) tcp_within_nodes: bool,
    pub(super) grouping: Grouping,
    pub(super) algorithms: AlgorithmFilter,
    /// For a rank on a CUDA device: the device, and the inboxes that its kernels reach and whose
    /// owners reach its own.
    pub(super) device: Option<DeviceSetup>,
    /// Some rank is on a CUDA device, and some two ranks do not reach each other's memory by
    /// kernels: these need the proxy.
    pub(super) needs_proxy: bool,
}

/// Opens this rank's listeners, tells all ranks of them, and learns the same of the others.
pub(super) fn exchange_setup(
    joined: &mut Joined,
    config: &Config,
    layout: InboxLayout,
    options: &Options,
) -> Result<CommunicatorSetup, Error> {
    let algorithms = AlgorithmFilter::parse(config.algorithms.as_deref().unwrap_or(""))?;
    let (rank, nranks, secret) = (joined.rank, joined.nranks, joined.derive("links"));
    let endpoint = open_endpoint(config, EndpointConfig { rank, nranks, secret, layout })?;
    let endpoint = Arc::new(endpoint);
    let rejoin_listener = RejoinListener::open()?;
    let own_device =
        options.device.map(|ordinal| RankSetup::new(config, ordinal, nranks)).transpose()?;
    let own = RankInfo {
        host: RankHost::current(),
        node: config.host_id.clone().unwrap_or_default(),
        process: ProcessIdentity::current(),
        address: endpoint.address(),
        rejoin_address: rejoin_listener.address(),
        settings: shortened(settings(config, layout), nranks),
        device: own_device.as_ref().map(|own_device| own_device.info.clone()),
    };
    let deadline = crate::clock::after(options.timeout);
    let mut ranks = exchange_rank_info(joined, &own, deadline)?;
    let mut addresses: Vec<Vec<u8>> = ranks.iter().map(|info| info.address.clone()).collect();
    let hosts = prove_hosts(joined, &endpoint, &mut addresses, options, deadline)?;
    ranks.iter_mut().zip(hosts).for_each(|(info, host)| info.host.set_proven(host));
    let (device, needs_proxy) = reachable_inboxes(joined, config, &ranks, own_device, deadline)?;
    let any_tcp = endpoint.survey(&addresses)?;
    let grouping = grouping(config, &ranks);
    let mut tcp_within_nodes = false;
    for node in 0..grouping.nodes() {
        let on_node = grouping.ranks_of(node).iter();
        let on_node: Vec<&[u8]> = on_node.map(|r| &addresses[*r as usize][..]).collect();
        tcp_within_nodes |= Endpoint::any_pair_over_tcp(&on_node)?;
    }
    Ok(CommunicatorSetup {
        endpoint,
        rejoin_listener,
        ranks,
        addresses,
        any_tcp,
        tcp_within_nodes,
        grouping,
        algorithms,
        device,
        needs_proxy,
    })
}

/// Finds out which ranks share a host, and writes that to their addresses.
fn prove_hosts(
    joined: &mut Joined,
    endpoint: &Endpoint,
    addresses: &mut [Vec<u8>],
    options: &Options,
    deadline: Instant,
) -> Result<Vec<HostId>, Error> {
    let proofs = if Endpoint::hosts_need_proof(addresses)? {
        let is_aborted = || options.abort.as_ref().is_some_and(AbortSignal::is_raised);
        let lower = endpoint.prove_host(addresses, deadline, &is_aborted)?;
        let all = joined.control.all_gather(&lower.to_le_bytes(), deadline)?;
        let rank = |bytes: &Vec<u8>| Some(u32::from_le_bytes(bytes.as_slice().try_into().ok()?));
        // What cannot be read proves nothing.
        all.iter().map(|bytes| rank(bytes).unwrap_or(u32::MAX)).collect()
    } else {
        Endpoint::hosts_by_process(addresses)?
    };
    Ok(endpoint.set_hosts(addresses, &proofs)?)
}

/// Finds the ranks whose inboxes the kernels of this rank reach, and whether any two ranks do not
/// reach each other. If some rank is on a device all ranks take part, and all find the same: an
/// inbox counts as reached only if both ranks reach each other's.
fn reachable_inboxes(
    joined: &mut Joined,
    config: &Config,
    ranks: &[RankInfo],
    own_device: Option<RankSetup>,
    deadline: Instant,
) -> Result<(Option<DeviceSetup>, bool), Error> {
    if ranks.iter().all(|info| info.device.is_none()) {
        return Ok((None, false));
    }
    let me = joined.rank as usize;
    let other = |info: &'_ RankInfo| PeerDevice {
        info: None,
        same_process: info.process == ranks[me].process,
        same_host: info.host.same_machine(&ranks[me].host),
    };
    let others: Vec<PeerDevice<'_>> =
        ranks.iter().map(|info| PeerDevice { info: info.device.as_ref(), ..other(info) }).collect();
    let between_devices = !config.p2p_disable;
    let mut reached = match &own_device {
        Some(own_device) => own_device.open_inboxes(joined.rank, &others, between_devices),
        None => ranks.iter().map(|_| None).collect(),
    };
    let all = tried_inboxes(joined, own_device.as_ref(), &reached, deadline)?;
    let mutual = |a: usize, b: usize| all[a].get(b) == Some(&1) && all[b].get(a) == Some(&1);
    let mut pairs = (0..ranks.len()).flat_map(|a| (0..a).map(move |b| (b, a)));
    let needs_proxy = pairs.any(|(b, a)| !mutual(a, b));
    for (rank, inbox) in reached.iter_mut().enumerate() {
        if !mutual(me, rank) {
            *inbox = None;
        }
    }
    Ok((own_device.map(|own_device| (own_device, reached)), needs_proxy))
}

/// For each rank, the ranks whose inboxes its kernels reach, as ones among zeros. A driver may say
/// that a device reaches the memory of another although what it writes there is lost, for example
/// where PCIe bridges redirect it (ACS) or behind an IOMMU. So each rank writes a word to each
/// inbox that it has opened, and the owners tell which words have arrived.
fn tried_inboxes(
    joined: &mut Joined,
    own_device: Option<&RankSetup>,
    reached: &[Option<PeerInbox>],
    deadline: Instant,
) -> Result<Vec<Vec<u8>>, Error> {
    let (me, nranks) = (joined.rank, joined.nranks);
    let key = u64::from_le_bytes(*joined.derive("trial").bytes().first_chunk().expect("32 bytes"));
    // A word of its own for each pair, and not one that an earlier communicator has left.
    let word = |from: u32, to: u32| {
        let pair = u64::from(from) * u64::from(nranks) + u64::from(to) + 1;
        key.wrapping_add(pair.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    };
    if let Some(device) = own_device {
        device.try_writes(me, reached, word)?;
    }
    let mine: Vec<u8> = reached.iter().map(|inbox| u8::from(inbox.is_some())).collect();
    let mut all = joined.control.all_gather(&mine, deadline)?;
    if all.iter().all(|reached| reached.iter().all(|one| *one == 0)) {
        return Ok(all);
    }
    let arrived = own_device.map(|device| device.arrived_writes(me, word)).transpose()?;
    let arrived: Vec<u8> = arrived.unwrap_or_default().into_iter().map(u8::from).collect();
    let arrived = joined.control.all_gather(&arrived, deadline)?;
    for (from, reached) in all.iter_mut().enumerate() {
        for (to, one) in reached.iter_mut().enumerate().filter(|(_, one)| **one == 1) {
            *one = u8::from(arrived[to].get(from) == Some(&1));
            if *one == 0 && from == me as usize {
                log::warn!(
                    "rank {me}: CUDA says that the device of this rank can access the memory of \
                     rank {to}'s device, but what it writes there does not arrive; its messages \
                     go through memory of the host. The PCIe settings (ACS) or the IOMMU of the \
                     host may be the cause"
                );
            }
        }
    }
    Ok(all)
}

/// The node of each rank: as the user says, or its host.
fn grouping(config: &Config, ranks: &[RankInfo]) -> Grouping {
    if let Some(NodeLabels { labels }) = &config.nodes {
        if labels.len() == ranks.len() {
            return Grouping::new(labels);
        }
        let (named, nranks) = (labels.len(), ranks.len());
        log::info!(
            target: "GRAPH",
            "MAYPOLE_NODES is for {named} ranks and this communicator has {nranks}: its nodes are \
             the hosts"
        );
    }
    Grouping::new(ranks.iter().map(RankInfo::node))
}

/// Opens this rank's end of all links, of the kinds that the settings allow.
fn open_endpoint(config: &Config, ends: EndpointConfig) -> Result<Endpoint, Error> {
    let tcp = |addresses| TcpConfig { addresses, streams: config.streams() };
    let alone = ends.nranks == 1;
    let media = EnabledLinks {
        // Without access to a peer's memory, ranks of one process use what processes use.
        local: !config.p2p_disable,
        shm: !config.shm_disable,
        verbs: if alone { None } else { verbs_config(config) },
        tcp: if alone { None } else { Some(tcp(bootstrap::addresses(config)?)) },
    };
    let endpoint = Endpoint::with_links(ends, &media)?;
    // The line that NCCL prints, for which tools look.
    let network = if endpoint.rdma_port().is_some() { "IB" } else { "Socket" };
    log::info!(target: "INIT", "Using network {network}");
    let wants_verbs = config.net.as_ref().is_some_and(|net| net.eq_ignore_ascii_case("IB"));
    if wants_verbs && !alone && endpoint.rdma_port().is_none() {
        log::warn!(
            "NCCL_NET asks for IB, but rank {} has no RDMA device that can be used; it uses \
             Socket. NCCL_DEBUG=INFO with NCCL_DEBUG_SUBSYS=NET says why",
            endpoint.rank()
        );
    }
    Ok(endpoint)
}

/// How RDMA is used; `None` if the settings forbid it.
fn verbs_config(config: &Config) -> Option<VerbsConfig> {
    let forbids = |net: &String| net.eq_ignore_ascii_case("Socket");
    if config.verbs.disabled || config.net.as_ref().is_some_and(forbids) {
        return None;
    }
    let verbs = &config.verbs;
    Some(VerbsConfig {
        library: verbs.library.clone(),
        adapters: verbs.adapters.clone(),
        gid: GidPreference {
            index: verbs.gid_index,
            roce_v1: verbs.roce_version == 1,
            ipv6: verbs.family == Some(AddressFamily::V6),
            range: verbs.address_range,
        },
        timeout: verbs.timeout,
        retries: verbs.retries,
        service_level: verbs.service_level,
        traffic_class: verbs.traffic_class,
        partition_index: verbs.partition,
        queue_pairs: verbs.queue_pairs,
        adaptive_routing: verbs.adaptive_routing,
        adaptive_from: verbs.adaptive_from,
        relaxed_ordering: verbs.relaxed_ordering != Some(false),
    })
}

/// The slots of each link. They are smaller the more peers there are. A plan uses them all only
/// where it sends to few ranks.
pub(super) fn layout(config: &Config, nranks: u32) -> InboxLayout {
    let (automatic, automatic_depth) = match nranks {
        0..=4 => (64 << 10, 16),
        5..=16 => (32 << 10, 16),
        _ => (16 << 10, 4),
    };
    let (slot_bytes, depth) = match config.slot_bytes {
        Some(bytes) => (bytes, config.depth()),
        None => (automatic, config.slot_depth.unwrap_or(automatic_depth)),
    };
    InboxLayout { nranks, channels: CHANNELS, slot_bytes, depth }
}

/// The settings that must be the same on all ranks, as text that people can compare.
fn settings(config: &Config, layout: InboxLayout) -> String {
    let algorithms = config.algorithms.as_deref().unwrap_or("");
    let nodes = config.nodes.as_ref().map_or(String::new(), |nodes| nodes.labels.join(","));
    format!(
        "NCCL_ALGO={algorithms} NCHANNELS={:?} MAYPOLE_NODES={nodes} MAYPOLE_BITS={:?} \
         MAYPOLE_PROTO={:?} NCCL_PROTO={:?} MAYPOLE_SLOT_BYTES={} MAYPOLE_SLOT_DEPTH={} \
         MAYPOLE_GPU_SLOT_BYTES={:?} MAYPOLE_GPU_SLOT_DEPTH={:?} MAYPOLE_FAULT={:?} version={}",
        config.copies(),
        config.bits,
        config.protocol,
        config.nccl_protocol,
        layout.slot_bytes,
        layout.depth,
        config.gpu_slot_bytes,
        config.gpu_slot_depth,
        config.fault,
        env!("CARGO_PKG_VERSION"),
    )
}

/// The settings if no variable is set.
fn default_settings(nranks: u32) -> String {
    let config = Config::default();
    settings(&config, layout(&config, nranks))
}

/// What stands for the default settings of this version.
const DEFAULT_SETTINGS: &str = concat!("default ", env!("CARGO_PKG_VERSION"));

/// Settings as they travel. The usual ones are short, because every rank gets those of all.
fn shortened(settings: String, nranks: u32) -> String {
    if settings == default_settings(nranks) { DEFAULT_SETTINGS.to_owned() } else { settings }
}

/// Tells all ranks what this one is, and learns the same of them.
fn exchange_rank_info(
    joined: &mut Joined,
    own: &RankInfo,
    deadline: Instant,
) -> Result<Vec<RankInfo>, Error> {
    let all = joined.control.all_gather(&own.to_bytes(), deadline)?;
    let mut ranks = Vec::with_capacity(all.len());
    for (rank, bytes) in all.iter().enumerate() {
        let theirs = RankInfo::from_bytes(bytes).ok_or_else(|| Error::Internal {
            what: format!("the rank info of rank {rank} is unreadable"),
        })?;
        if theirs.settings != own.settings {
            let whole = |settings: &str| match settings {
                DEFAULT_SETTINGS => default_settings(joined.nranks),
                other => other.to_owned(),
            };
            return Err(Error::InvalidUsage {
                what: format!(
                    "rank {} and rank {rank} differ in settings that must be the same on all \
                     ranks: here {}; there {}",
                    joined.rank,
                    whole(&own.settings),
                    whole(&theirs.settings)
                ),
            });
        }
        ranks.push(theirs);
    }
    Ok(ranks)
}

/// The instruction set that the setting asks for, if this processor has it, else the best.
pub(super) fn usable_isa(wanted: config::IsaSetting) -> Isa {
    let best = Isa::detect();
    let wanted = match wanted {
        config::IsaSetting::Auto => return best,
        config::IsaSetting::Scalar => Isa::Scalar,
        #[cfg(target_arch = "x86_64")]
        config::IsaSetting::Avx2 => Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        config::IsaSetting::Avx512 => Isa::Avx512,
        #[cfg(not(target_arch = "x86_64"))]
        _ => best,
    };
    if Isa::available().contains(&wanted) {
        return wanted;
    }
    log::warn!("MAYPOLE_ISA asks for {wanted:?}, which this processor lacks; {best:?} is used");
    best
}
