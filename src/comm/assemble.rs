//! Assembles a communicator from what the ranks know of each other after the bootstrap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maypole_algorithms::{Class, Rank};
use maypole_reduce::environment::DefaultEnvironment;
use maypole_transport::fault::{FaultInjector, FaultRecipe};
use maypole_transport::inbox::InboxLayout;

use super::backend::{DeviceBackend, HostBackend, Membership};
use super::on_device::{self, LinkTerms};
use super::rank_info::{RankHost, RankInfo};
use super::setup::{CommunicatorSetup, exchange_setup, layout, usable_isa};
use super::{AbortHandle, Communicator};
use crate::bootstrap::{self, AbortSignal, Joined, Options, UniqueId};
use crate::clock;
use crate::config::{BitsSetting, Config};
use crate::control::{ControlPlane, PeerInfo};
use crate::device::memory::inbox_layout::LL_BYTES;
use crate::device::queue::device_rank::DeviceRank;
use crate::engine::scratch::{ScratchMemory, SendCopy};
use crate::error::Error;
use crate::links::Links;
use crate::plan::Plans;
use crate::proxy::{Proxy, ProxyConfig};
use crate::spin_policy::SpinPolicy;
use crate::topology;
use crate::transfer::SpareTransfers;
use crate::tune::{DeviceLimits, Protocol, Tuner};
use crate::window::Windows;

impl Communicator {
    /// Joins the communicator of `ids` as `rank` of `nranks`; returns when all ranks have joined.
    pub(super) fn join(
        ids: &[UniqueId],
        rank: Rank,
        nranks: u32,
        config: &Config,
        options: &Options,
    ) -> Result<Self, Error> {
        crate::logger::install();
        // The bootstrap logs its errors itself.
        let joined = bootstrap::join_among(ids, rank, nranks, &[], options)?;
        Self::from_joined(joined, config, options)
            .inspect_err(|error| log::warn!("rank {rank} of {nranks}: {error}"))
    }

    fn from_joined(mut joined: Joined, config: &Config, options: &Options) -> Result<Self, Error> {
        let (rank, nranks) = (joined.rank, joined.nranks);
        let layout = layout(config, nranks);
        let setup = exchange_setup(&mut joined, config, layout, options);
        let setup = setup.inspect_err(|error| {
            // The other ranks wait for this one, so they must learn why it gives up.
            joined.control.give_up(error.to_string());
        })?;
        topology::follow_settings(config, rank);
        let (any_tcp, grouping) = (setup.any_tcp, setup.grouping.clone());
        let (on_host, _) = host_load(&setup.ranks, &setup.ranks[rank as usize].host);
        let comm = Self::assemble(config, joined, setup, layout, options)?;
        if options.abort.as_ref().is_some_and(AbortSignal::is_raised) {
            return Err(Error::Aborted { by: rank });
        }
        let memory = comm.device.as_ref().map_or(String::from("host memory"), |it| it.to_string());
        log::info!(
            target: "INIT",
            "comm {:p} rank {rank} nranks {nranks} {memory}, {on_host} ranks on this host, \
             nodes {grouping}, {:.1} ranks per core, {} - Init COMPLETE",
            Arc::as_ptr(&comm.host.endpoint),
            comm.tuner.ranks_per_core,
            if any_tcp { "over TCP where memory is not shared" } else { "all memory shared" },
        );
        Ok(comm)
    }

    fn assemble(
        config: &Config,
        mut joined: Joined,
        setup: CommunicatorSetup,
        layout: InboxLayout,
        options: &Options,
    ) -> Result<Self, Error> {
        let _environment = DefaultEnvironment::enter();
        let terms = on_device::link_terms(config, &setup, layout);
        let tuner = tuner(config, &setup, &terms);
        let CommunicatorSetup {
            endpoint,
            rejoin_listener,
            ranks,
            addresses,
            device,
            needs_proxy,
            ..
        } = setup;
        let (rank, nranks) = (joined.rank, joined.nranks);
        let device = device.map(|(own_device, reached)| {
            let sharing = on_device::ranks_on_device(&ranks, rank);
            DeviceRank::new(own_device, rank, reached, sharing).map(Box::new)
        });
        let mut device = device.transpose().inspect_err(|error| {
            joined.control.give_up(error.to_string());
        })?;
        let own_host = &ranks[rank as usize].host;
        let key =
            u64::from_le_bytes(*joined.derive("watch").bytes().first_chunk().expect("32 bytes"));
        let peer = |info: &RankInfo| PeerInfo {
            host: info.host.name.clone(),
            process: info.process,
            same_host: info.host.same_machine(own_host),
        };
        let peers = ranks.iter().map(peer).collect();
        let keys = joined.keys();
        let init_traffic = joined.control.traffic();
        let control = ControlPlane::start(joined.control, &endpoint, key, peers, config)?;
        if let Some(device) = &mut device {
            control.attach_device(&device.signals);
            device.tile_bytes = terms.slot_bytes;
        }
        let abort_registration =
            options.abort.as_ref().map(|signal| signal.register(control.shared()));
        let abort = AbortHandle { shared: control.shared(), _endpoint: Arc::clone(&endpoint) };
        let faults = config
            .fault
            .clone()
            .map(|recipe| FaultInjector::new(recipe, Arc::clone(&endpoint), move || abort.abort()));
        let (sharers, cores) = core_sharers(&ranks, rank);
        let spin_policy = SpinPolicy::new(sharers.len() + 1, cores, config.spin);
        endpoint.set_core_sharers(sharers.into_iter(), cores);
        let host = HostBackend {
            _abort_registration: abort_registration,
            windows: Windows::default(),
            control,
            endpoint,
            addresses,
            links: Links::new(faults.clone(), config.lend_from),
            isa: usable_isa(config.isa),
            spin_policy,
            scratch: ScratchMemory::default(),
            send_copy: SendCopy::default(),
            staging: Box::default(),
            pending_transfers: Vec::new(),
            spare_transfers: SpareTransfers::default(),
        };
        if let Some(device) = device.as_mut().filter(|_| needs_proxy) {
            let timeout = config.timeout.unwrap_or(Duration::MAX).min(options.timeout);
            start_proxy(device, &host, layout, timeout, faults);
        }
        if terms.device_channels.is_some() {
            // An allocation may wait for kernels of this and other devices, and those for a rank
            // that still allocates. So no rank makes a call before all ranks have allocated.
            let timeout = config.timeout.unwrap_or(Duration::MAX).min(options.timeout);
            host.control.all_gather(&[], clock::after(timeout))?;
        }
        let membership = Membership {
            config: Config {
                fault: config.fault.as_ref().map(FaultRecipe::without_ends),
                ..config.clone()
            },
            options: options.clone(),
            keys,
            rejoin_listener,
            rejoin_addresses: ranks.iter().map(|info| info.rejoin_address.clone()).collect(),
            split_count: 0,
            shrink_counts: BTreeMap::new(),
            host_rank: on_device::host_rank(&ranks),
            init_traffic,
        };
        let plans = Plans::default();
        Ok(Self { rank, nranks, device, host, plans, tuner, broken: None, membership })
    }
}

/// The number of ranks on `host`, and the number of cores that they have together.
fn host_load(ranks: &[RankInfo], host: &RankHost) -> (usize, usize) {
    let on_host = ranks.iter().map(|info| &info.host).filter(|other| other.may_share_cores(host));
    (on_host.clone().count(), RankHost::cores(on_host))
}

/// The other ranks that may run on the cores to which `rank` is bound, and the number of cores that
/// they all have together.
fn core_sharers(ranks: &[RankInfo], rank: Rank) -> (Vec<Rank>, usize) {
    let own = &ranks[rank as usize].host;
    let share = |other: &RankHost| other.may_share_cores(own) && other.overlaps(own);
    let all = || ranks.iter().zip(0..).filter(|(info, r)| *r == rank || share(&info.host));
    let cores = RankHost::cores(all().map(|(info, _)| &info.host));
    (all().map(|(_, other)| other).filter(|other| *other != rank).collect(), cores)
}

/// The ranks per core of the most crowded host; at least 1.
fn ranks_per_core(ranks: &[RankInfo]) -> f64 {
    let mut hosts: Vec<&RankHost> = Vec::new();
    for RankInfo { host, .. } in ranks {
        if !hosts.iter().any(|known| known.may_share_cores(host)) {
            hosts.push(host);
        }
    }
    let crowding = hosts.into_iter().map(|host| {
        let (ranks, cores) = host_load(ranks, host);
        ranks as f64 / cores as f64
    });
    crowding.fold(1.0, f64::max)
}

fn tuner(config: &Config, setup: &CommunicatorSetup, terms: &LinkTerms) -> Tuner {
    let ranks_per_core = ranks_per_core(&setup.ranks);
    Tuner {
        grouping: setup.grouping.clone(),
        slot_bytes: terms.slot_bytes,
        depth: terms.depth,
        ll: terms.ll,
        device: terms.device_channels.map(|channels| DeviceLimits { channels, ll_bytes: LL_BYTES }),
        tcp_within_nodes: setup.tcp_within_nodes,
        ranks_per_core: if terms.device_channels.is_some() { 1.0 } else { ranks_per_core },
        class: match config.bits {
            BitsSetting::Fast => Class::Fast,
            BitsSetting::Default | BitsSetting::Canonical => Class::Canonical,
        },
        explicit_class: config.bits == BitsSetting::Canonical,
        algorithms: setup.algorithms.clone(),
        copies: match (terms.device_channels, config.min_channels, config.max_channels) {
            // On a device a lane is a thread block, and one block does not keep a link busy.
            (Some(_), None, None) => vec![1, 4, 16],
            _ => config.copies(),
        },
        protocol: match config.protocol {
            // FaultInjector are injected into slots only.
            _ if config.fault.is_some() => Some(Protocol::Slots),
            set => Protocol::required_by(set),
        },
        protocols: config.nccl_protocol.clone(),
    }
}

/// Starts the thread that carries messages between the device and the links of the host.
fn start_proxy(
    device: &mut DeviceBackend,
    host: &HostBackend,
    layout: InboxLayout,
    timeout: Duration,
    faults: Option<FaultInjector>,
) {
    let connect = on_device::proxy_connector(host.endpoint.clone(), host.addresses.clone(), faults);
    device.set_proxy(Proxy::new(ProxyConfig {
        endpoint: host.endpoint.clone(),
        layout,
        spin_policy: host.spin_policy,
        timeout,
        connect,
        queued: on_device::work_is_queued(&device.signals),
        fail: on_device::proxy_failure(host.control.shared()),
    }));
}
