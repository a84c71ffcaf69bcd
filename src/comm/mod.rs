//! The communicator: a group of ranks that call collectives together.

mod builder;
mod by_schedule;
mod collectives;
mod finish;
mod on_device;
mod rank_info;
mod register;
mod run;
mod setup;
mod split;
mod stream_calls;
mod transfer;
mod vector;
mod window;

use std::sync::Arc;
use std::time::Duration;

use maypole_algorithms::{Class, Rank};
use maypole_transport::endpoint::Endpoint;
use maypole_transport::fault::{FaultInjector, FaultRecipe};
use maypole_transport::inbox::InboxLayout;

use crate::bootstrap::{
    self, AbortRegistration, AbortSignal, CommunicatorKeys, ControlTraffic, Joined, Options,
    RejoinListener, UniqueId,
};
use crate::call::{Call, Task};
use crate::config::{self, BitsSetting, Config};
use crate::control::{ControlPlane, ControlShared, PeerInfo, Report};
use crate::device::memory::inbox_layout::LL_BYTES;
use crate::device::queue::device_rank::DeviceRank;
use crate::engine::compiled::LlStaging;
use crate::engine::scratch::ScratchMemory;
use crate::error::Error;
use crate::links::Links;
use crate::plan::Plans;
use crate::proxy::{Proxy, Setup};
use crate::reduce::Isa;
use crate::spin_policy::SpinPolicy;
use crate::tune::{Choice, DeviceLimits, Protocol, Tuner};
use crate::window::Windows;
use rank_info::{Host, RankInfo};
use setup::{Introduced, introduce, isa, layout};

pub use builder::Builder;
pub use stream_calls::{DeviceCall, StreamCalls, launch_calls};

#[cfg(test)]
mod tests;

/// A group of ranks over which collectives are called. One thread at a time uses it; [`AbortHandle`] is for the others.
///
/// Every rank must make the same calls in the same order. A call returns when its result is in the receive buffer. After an
/// error of a call the communicator is broken on all ranks: drop it.
///
/// ```
/// use maypole::{Communicator, RedOp, UniqueId};
///
/// let id = UniqueId::create()?;
/// let ranks: Vec<_> = (0..4)
///     .map(|rank| {
///         std::thread::spawn(move || -> Result<f32, maypole::Error> {
///             let mut comm = Communicator::new(&id, rank, 4)?;
///             let mut sum = [0.0f32; 3];
///             comm.all_reduce(&[rank as f32; 3], &mut sum, RedOp::Sum)?;
///             Ok(sum[0])
///         })
///     })
///     .collect();
/// for rank in ranks {
///     assert_eq!(rank.join().expect("the rank ran")?, 0.0 + 1.0 + 2.0 + 3.0);
/// }
/// # Ok::<(), maypole::Error>(())
/// ```
pub struct Communicator {
    rank: Rank,
    nranks: u32,
    /// Of a communicator of a CUDA device. It waits for the device before anything else ends.
    device: Option<Box<DeviceRank>>,
    /// A rank on host memory, where others are on devices.
    host_rank: Option<Rank>,
    /// Before all that an abort needs.
    _enrolled: Option<AbortRegistration>,
    /// Their thread ends before all that it uses.
    windows: Windows,
    /// Before the endpoint, so that it leaves first.
    watch: ControlPlane,
    endpoint: Arc<Endpoint>,
    addresses: Vec<Vec<u8>>,
    links: Links,
    plans: Plans,
    tuner: Tuner,
    isa: Isa,
    spin_policy: SpinPolicy,
    scratch: ScratchMemory,
    staging: Box<LlStaging>,
    /// The first error of a call; all later ones fail with it.
    broken: Option<Error>,
    /// What it was made with, for its offspring.
    config: Config,
    options: Options,
    keys: CommunicatorKeys,
    meeting: RejoinListener,
    /// Of all ranks.
    meetings: Vec<Vec<u8>>,
    /// How often it was shrunk.
    shrunk: u64,
    init_traffic: ControlTraffic,
}

impl Communicator {
    /// Joins the communicator of `ids` as `rank` of `nranks`; returns when all ranks have joined.
    fn join(
        ids: &[UniqueId],
        rank: Rank,
        nranks: u32,
        config: &Config,
        options: &Options,
    ) -> Result<Self, Error> {
        crate::logger::install();
        // The bootstrap logs its errors itself.
        let joined = bootstrap::join_among(ids, rank, nranks, &[], options)?;
        Self::of_joined(joined, config, options)
            .inspect_err(|error| log::warn!("rank {rank} of {nranks}: {error}"))
    }

    fn of_joined(mut joined: Joined, config: &Config, options: &Options) -> Result<Self, Error> {
        let (rank, nranks) = (joined.rank, joined.nranks);
        let layout = layout(config, nranks);
        let introduced = introduce(&mut joined, config, layout, options);
        let introduced = introduced.inspect_err(|error| {
            // The others wait for this rank: they are told why it does not go on.
            joined.control.give_up(error.to_string());
        })?;
        let (tcp, grouping) = (introduced.tcp, introduced.grouping.clone());
        let here = introduced.cards[rank as usize].host.clone();
        let near = introduced.cards.iter().filter(|c| c.host.same_machine(&here)).count();
        let comm = Self::assemble(config, joined, introduced, layout, options)?;
        if options.abort.as_ref().is_some_and(AbortSignal::is_raised) {
            return Err(Error::Aborted { by: rank });
        }
        let memory = comm.device.as_ref().map_or(String::from("host memory"), |it| it.to_string());
        log::info!(
            target: "INIT",
            "comm {:p} rank {rank} nranks {nranks} {memory}, {near} ranks on this host, nodes {grouping}, {:.1} ranks per core, {} - Init COMPLETE",
            Arc::as_ptr(&comm.endpoint),
            comm.tuner.ranks_per_core,
            if tcp { "over TCP where memory is not shared" } else { "all memory shared" },
        );
        Ok(comm)
    }

    fn assemble(
        config: &Config,
        mut joined: Joined,
        introduced: Introduced,
        layout: InboxLayout,
        options: &Options,
    ) -> Result<Self, Error> {
        let Introduced { endpoint, meeting, cards, addresses, device, apart, .. } = introduced;
        let (rank, nranks) = (joined.rank, joined.nranks);
        let device = device.map(|(arrival, reached)| {
            let sharing = on_device::sharing(&cards, rank);
            DeviceRank::new(arrival, rank, reached, sharing).map(Box::new)
        });
        let mut device = device.transpose().inspect_err(|error| {
            joined.control.give_up(error.to_string());
        })?;
        let sharing = |host: &Host| {
            let ranks: Vec<_> =
                cards.iter().map(|c| &c.host).filter(|h| h.same_machine(host)).collect();
            (ranks.len(), Host::cores(ranks.into_iter()))
        };
        let (on_host, cores) = sharing(&cards[rank as usize].host);
        let mut hosts: Vec<&Host> = Vec::new();
        for RankInfo { host, .. } in &cards {
            if !hosts.iter().any(|known| known.same_machine(host)) {
                hosts.push(host);
            }
        }
        let crowding = hosts.into_iter().map(|host| {
            let (ranks, cores) = sharing(host);
            ranks as f64 / cores as f64
        });
        let ranks_per_core = crowding.fold(1.0, f64::max);
        let terms = on_device::terms(config, &cards, layout, !introduced.tcp, apart);
        let tuner = Tuner {
            grouping: introduced.grouping,
            slot_bytes: terms.slot_bytes,
            depth: terms.depth,
            ll: terms.lines,
            device: terms.channels.map(|channels| DeviceLimits { channels, ll_bytes: LL_BYTES }),
            tcp_within_nodes: introduced.tcp_within_nodes,
            ranks_per_core: if terms.channels.is_some() { 1.0 } else { ranks_per_core },
            class: match config.bits {
                BitsSetting::Fast => Class::Fast,
                BitsSetting::Default | BitsSetting::Canonical => Class::Canonical,
            },
            explicit_class: config.bits == BitsSetting::Canonical,
            algorithms: introduced.algorithms,
            copies: match (terms.channels, config.min_channels, config.max_channels) {
                // A lane is a block there, which does not keep a link busy alone.
                (Some(_), None, None) => vec![1, 4, 16],
                _ => config.copies(),
            },
            protocol: match config.protocol {
                // FaultInjector are on slots alone.
                _ if config.fault.is_some() => Some(Protocol::Slots),
                config::ProtocolSetting::Auto => None,
                config::ProtocolSetting::Line => Some(Protocol::Ll),
                config::ProtocolSetting::Slots => Some(Protocol::Slots),
            },
        };
        let here = &cards[rank as usize].host;
        let key = u64::from_le_bytes(*joined.derive("watch").first_chunk().expect("32 bytes"));
        let peer = |card: &RankInfo| PeerInfo {
            host: card.host.name.clone(),
            process: card.process,
            same_host: card.host.same_machine(here),
        };
        let ranks = cards.iter().map(peer).collect();
        let keys = joined.keys();
        let init_traffic = joined.control.traffic();
        let watch = ControlPlane::start(joined.control, &endpoint, key, ranks, config)?;
        if let Some(device) = &mut device {
            watch.attach_device(&device.signals);
            device.tile_bytes = terms.slot_bytes;
        }
        let enrolled = options.abort.as_ref().map(|signal| signal.register(watch.shared()));
        let abort = AbortHandle { shared: watch.shared(), _endpoint: Arc::clone(&endpoint) };
        let faults = config
            .fault
            .clone()
            .map(|recipe| FaultInjector::new(recipe, Arc::clone(&endpoint), move || abort.abort()));
        let spin_policy = SpinPolicy::new(on_host, cores, config.spin);
        if let Some(device) = device.as_mut().filter(|_| apart) {
            let meet = on_device::meet(endpoint.clone(), addresses.clone(), faults.clone());
            device.set_proxy(Proxy::new(Setup {
                endpoint: endpoint.clone(),
                layout,
                spin_policy,
                timeout: config.timeout.unwrap_or(Duration::MAX).min(options.timeout),
                meet,
                queued: on_device::queued(&device.signals),
                fail: on_device::fail(watch.shared()),
            }));
        }
        Ok(Self {
            rank,
            nranks,
            device,
            host_rank: on_device::host_rank(&cards),
            _enrolled: enrolled,
            windows: Windows::default(),
            watch,
            endpoint,
            addresses,
            links: Links::new(faults, config.lend_from),
            plans: Plans::default(),
            tuner,
            isa: isa(config.isa),
            spin_policy,
            scratch: ScratchMemory::default(),
            staging: Box::default(),
            broken: None,
            config: Config {
                fault: config.fault.as_ref().map(FaultRecipe::without_kill_and_abort),
                ..config.clone()
            },
            options: options.clone(),
            keys,
            meeting,
            meetings: cards.iter().map(|c| c.meeting.clone()).collect(),
            shrunk: 0,
            init_traffic,
        })
    }

    /// This process' number in the communicator.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks the communicator has.
    pub fn nranks(&self) -> u32 {
        self.nranks
    }

    /// Number of the CUDA device that the communicator is for; None: it is for host memory.
    pub fn device(&self) -> Option<i32> {
        self.device.as_ref().map(|rank| rank.gpu.device.ordinal())
    }

    /// What it took this rank to find all others.
    pub fn init_traffic(&self) -> ControlTraffic {
        self.init_traffic
    }

    /// What `run` would choose for `call`, and why.
    ///
    /// # Errors
    /// If no algorithm is allowed for it.
    pub fn explain(&self, call: &Call) -> Result<Choice, Error> {
        Ok(self.tuner.choose(&Task::from(call))?.1)
    }

    /// What this rank's part of the communicator holds.
    pub fn memory(&self) -> MemoryUse {
        MemoryUse {
            releasable: self.scratch.held(),
            lasting: self.endpoint.resident_bytes()
                + size_of::<LlStaging>()
                + self.device.as_ref().map_or(0, |rank| rank.pinned_bytes()),
            device: self.device.as_ref().map_or(0, |rank| rank.device_bytes()),
        }
    }

    /// Gives back the memory that later calls take again when they need it.
    pub fn release_memory(&mut self) {
        self.scratch = ScratchMemory::default();
    }

    /// A handle by which any thread can end this communicator's waits, on all ranks.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { shared: self.watch.shared(), _endpoint: Arc::clone(&self.endpoint) }
    }

    /// The error that broke the communicator, if one did, or a peer's abort.
    pub fn async_error(&self) -> Option<Error> {
        self.broken.clone().or_else(|| self.watch.final_error())
    }

    /// Whether a call has failed, and the communicator with it. The log says why.
    pub fn has_failed(&self) -> bool {
        self.broken.is_some()
    }

    /// What was found out about waits that took longer than `MAYPOLE_REPORT`, oldest first; the last 64. Each was logged as
    /// a warning too. A report is no error: the call goes on.
    pub fn reports(&self) -> Vec<Report> {
        self.watch.reports()
    }
}

/// Bytes that a communicator holds, of the host and of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// What [`Communicator::release_memory`] gives back.
    pub releasable: usize,
    /// The rank's end of its links, as far as it was used; of a rank on a CUDA device also its pinned memory.
    pub lasting: usize,
    /// Memory of the rank's CUDA device: its inbox, which is there from the beginning, programs and scratch.
    pub device: usize,
}

/// Ends a communicator's waits from any thread, on all ranks.
#[derive(Clone)]
pub struct AbortHandle {
    shared: Arc<ControlShared>,
    /// It must outlive the abort.
    _endpoint: Arc<Endpoint>,
}

impl AbortHandle {
    /// Makes every present and future wait of the communicator end with an error, here and on all other ranks.
    pub fn abort(&self) {
        self.shared.abort();
    }

    /// As [`Communicator::async_error`], from any thread and during a call; a failure that only this rank knows of is not there
    /// until it has been told to the others.
    pub fn async_error(&self) -> Option<Error> {
        self.shared.final_error()
    }
}
