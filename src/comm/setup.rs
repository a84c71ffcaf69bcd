//! How the ranks of a communicator get to know each other: what must agree, who is where, and over what they meet.

use std::sync::Arc;
use std::time::Instant;

use maypole_algorithms::topology::Grouping;
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::tcp::TcpConfig;

use super::rank_info::{Host, RankInfo};
use crate::bootstrap::{self, Joined, Options, RejoinListener};
use crate::config::{self, Config, NodeLabels};
use crate::device::memory::inbox::PeerInbox;
use crate::device::setup::rank_setup::{PeerDevice, RankSetup};
use crate::error::Error;
use crate::process::ProcessIdentity;
use crate::reduce::Isa;
use crate::tune::AlgorithmFilter;
use crate::window;

/// Links between every ordered pair of ranks: those of schedules, one for sends and receives, and one for windows.
const CHANNELS: u16 = window::CHANNEL + 1;

/// What a rank of a device brought, and the inboxes that its kernels reach.
type Arrived = (RankSetup, Vec<Option<PeerInbox>>);

/// What the ranks know of each other before they make calls.
pub(super) struct Introduced {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) meeting: RejoinListener,
    /// What each rank says of itself.
    pub(super) cards: Vec<RankInfo>,
    /// Where each rank's endpoint is.
    pub(super) addresses: Vec<Vec<u8>>,
    /// Any two ranks meet over TCP.
    pub(super) tcp: bool,
    /// Any two ranks of one node do.
    pub(super) tcp_within_nodes: bool,
    pub(super) grouping: Grouping,
    pub(super) algorithms: AlgorithmFilter,
    /// Of a rank on a CUDA device: what it brought, and the inboxes that its kernels and those of their owners reach mutually.
    pub(super) device: Option<Arrived>,
    /// Any rank is on a CUDA device, and some two ranks do not reach each other's memory by kernels: those need the proxy.
    pub(super) apart: bool,
}

/// Makes what the other ranks must know of, and exchanges that with them.
pub(super) fn introduce(
    joined: &mut Joined,
    config: &Config,
    layout: InboxLayout,
    options: &Options,
) -> Result<Introduced, Error> {
    let algorithms = AlgorithmFilter::parse(config.algorithms.as_deref().unwrap_or(""))?;
    let (rank, nranks, secret) = (joined.rank, joined.nranks, joined.derive("links"));
    let endpoint = Arc::new(endpoint(config, EndpointConfig { rank, nranks, secret, layout })?);
    let meeting = RejoinListener::open()?;
    let arrival =
        options.device.map(|ordinal| RankSetup::new(config, ordinal, nranks)).transpose()?;
    let card = RankInfo {
        host: Host::here(),
        node: config.host_id.clone().unwrap_or_default(),
        process: ProcessIdentity::current(),
        address: endpoint.address(),
        meeting: meeting.address(),
        settings: settings(config, layout),
        device: arrival.as_ref().map(|arrival| arrival.info.clone()),
    };
    let deadline = Instant::now() + options.timeout;
    let cards = exchange_cards(joined, &card, deadline)?;
    let (device, apart) = reach(joined, config, &cards, arrival, deadline)?;
    let addresses: Vec<Vec<u8>> = cards.iter().map(|c| c.address.clone()).collect();
    let tcp = endpoint.survey(&addresses)?;
    let grouping = grouping(config, &cards);
    let mut tcp_within_nodes = false;
    for node in 0..grouping.nodes() {
        let members = grouping.ranks_of(node).iter();
        let members: Vec<&[u8]> = members.map(|r| &addresses[*r as usize][..]).collect();
        tcp_within_nodes |= Endpoint::any_pair_over_tcp(&members)?;
    }
    Ok(Introduced {
        endpoint,
        meeting,
        cards,
        addresses,
        tcp,
        tcp_within_nodes,
        grouping,
        algorithms,
        device,
        apart,
    })
}

/// Which ranks' inboxes the kernels of this rank reach, and whether there is any pair of ranks that do not reach each other. All ranks take
/// part where one is on a device, and all find the same: who is not reached mutually is not reached.
fn reach(
    joined: &mut Joined,
    config: &Config,
    cards: &[RankInfo],
    arrival: Option<RankSetup>,
    deadline: Instant,
) -> Result<(Option<Arrived>, bool), Error> {
    if cards.iter().all(|card| card.device.is_none()) {
        return Ok((None, false));
    }
    let me = joined.rank as usize;
    let other = |card: &'_ RankInfo| PeerDevice {
        info: None,
        same_process: card.process == cards[me].process,
        same_host: card.host.same_machine(&cards[me].host),
    };
    let others: Vec<PeerDevice<'_>> =
        cards.iter().map(|card| PeerDevice { info: card.device.as_ref(), ..other(card) }).collect();
    let between_devices = !config.p2p_disable;
    let mut reached = match &arrival {
        Some(arrival) => arrival.open_inboxes(joined.rank, &others, between_devices),
        None => cards.iter().map(|_| None).collect(),
    };
    let mine: Vec<u8> = reached.iter().map(|inbox| u8::from(inbox.is_some())).collect();
    let all = joined.control.all_gather(&mine, deadline)?;
    let direct = |a: usize, b: usize| all[a].get(b) == Some(&1) && all[b].get(a) == Some(&1);
    let mut pairs = (0..cards.len()).flat_map(|a| (0..a).map(move |b| (b, a)));
    let apart = pairs.any(|(b, a)| !direct(a, b));
    for (rank, inbox) in reached.iter_mut().enumerate() {
        if !direct(me, rank) {
            *inbox = None;
        }
    }
    Ok((arrival.map(|arrival| (arrival, reached)), apart))
}

/// Which rank is on which node: as the user says, or by the hosts.
fn grouping(config: &Config, cards: &[RankInfo]) -> Grouping {
    if let Some(NodeLabels { labels }) = &config.nodes {
        if labels.len() == cards.len() {
            return Grouping::new(labels);
        }
        let (named, nranks) = (labels.len(), cards.len());
        log::info!(
            target: "GRAPH",
            "MAYPOLE_NODES is for {named} ranks and this communicator has {nranks}: its nodes are the hosts"
        );
    }
    Grouping::new(cards.iter().map(RankInfo::node))
}

/// The rank's end of all links, of the kinds that the settings allow.
fn endpoint(config: &Config, ends: EndpointConfig) -> Result<Endpoint, Error> {
    let tcp = |addresses| TcpConfig { addresses, streams: config.streams() };
    let alone = ends.nranks == 1;
    let media = EnabledLinks {
        // Without direct access to a peer's memory, ranks of one process meet as those of several do.
        local: !config.p2p_disable,
        shm: !config.shm_disable,
        tcp: if alone { None } else { Some(tcp(bootstrap::addresses(config)?)) },
    };
    Ok(Endpoint::with_links(ends, &media)?)
}

/// Slots that keep what is under way in a second-level cache however many peers there are.
pub(super) fn layout(config: &Config, nranks: u32) -> InboxLayout {
    let automatic = match nranks {
        0..=4 => 64 << 10,
        5..=16 => 32 << 10,
        _ => 16 << 10,
    };
    let slot_bytes = config.slot_bytes.unwrap_or(automatic);
    InboxLayout { nranks, channels: CHANNELS, slot_bytes, depth: config.depth() }
}

/// The settings that must be the same on all ranks, as text that a person can compare.
fn settings(config: &Config, layout: InboxLayout) -> String {
    let algorithms = config.algorithms.as_deref().unwrap_or("");
    let nodes = config.nodes.as_ref().map_or(String::new(), |nodes| nodes.labels.join(","));
    format!(
        "NCCL_ALGO={algorithms} NCHANNELS={:?} MAYPOLE_NODES={nodes} MAYPOLE_BITS={:?} MAYPOLE_PROTO={:?} MAYPOLE_SLOT_BYTES={} MAYPOLE_SLOT_DEPTH={} MAYPOLE_GPU_SLOT_BYTES={:?} MAYPOLE_GPU_SLOT_DEPTH={:?} MAYPOLE_FAULT={:?} version={}",
        config.copies(),
        config.bits,
        config.protocol,
        layout.slot_bytes,
        layout.depth,
        config.gpu_slot_bytes,
        config.gpu_slot_depth,
        config.fault,
        env!("CARGO_PKG_VERSION"),
    )
}

fn exchange_cards(
    joined: &mut Joined,
    card: &RankInfo,
    deadline: Instant,
) -> Result<Vec<RankInfo>, Error> {
    let all = joined.control.all_gather(&card.to_bytes(), deadline)?;
    let mut cards = Vec::with_capacity(all.len());
    for (rank, bytes) in all.iter().enumerate() {
        let theirs = RankInfo::from_bytes(bytes).ok_or_else(|| Error::Internal {
            what: format!("the card of rank {rank} is unreadable"),
        })?;
        if theirs.settings != card.settings {
            return Err(Error::InvalidUsage {
                what: format!(
                    "rank {} and rank {rank} differ in settings that must be the same on all ranks: here {}; there {}",
                    joined.rank, card.settings, theirs.settings
                ),
            });
        }
        cards.push(theirs);
    }
    Ok(cards)
}

pub(super) fn isa(wanted: config::IsaSetting) -> Isa {
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
