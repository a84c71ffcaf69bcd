//! A device and a port that a rank uses, and what all its connections over it share.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use maypole_verbs::{
    CompletionChannel, Context, DeviceLimits, GidEntry, Library, LinkLayer, LocalMemory,
    MemoryAccess, MemoryRegion, PortInfo, ProtectionDomain, RemoteMemory,
};

use super::gid::choose_gid;
use super::settings::VerbsConfig;
use super::work::MOST_NUMBERED;
use crate::Rank;
use crate::inbox::InboxLayout;
use crate::memory::{Mapping, page_size};
use crate::process::PerProcess;

/// Paths between two ranks, and ports that a rank uses, at most.
pub(super) const MOST_PATHS: usize = 4;
/// Most messages of a link that may be under way: a control message names those that have arrived.
const MOST_DEPTH: u32 = 1024;
/// Work requests of a queue pair that may be under way.
pub(super) const SENDS: u32 = 128;
/// Bytes that a small message may take inline, with its header.
pub(super) const INLINE_BYTES: u32 = 192;
/// The longest message of a queue pair that every device takes, in bytes.
const MOST_MESSAGE_BYTES: usize = 1 << 30;

/// An opened port.
#[derive(Debug)]
pub(crate) struct VerbsDomain {
    pub(super) config: VerbsConfig,
    pub(super) layout: InboxLayout,
    pub(super) context: Arc<Context>,
    pub(super) port: u8,
    pub(super) info: PortInfo,
    pub(super) limits: DeviceLimits,
    pub(super) memory: Arc<ProtectionDomain>,
    pub(super) channel: Arc<CompletionChannel>,
    // Dropped before its memory.
    scratch_region: MemoryRegion,
    scratch: Mapping,
}

/// The libraries that were loaded, by their paths.
type Libraries = HashMap<Option<PathBuf>, Arc<Library>>;

static LIBRARIES: PerProcess<Mutex<Libraries>> = PerProcess::new();

fn library(path: &Option<PathBuf>) -> Result<Arc<Library>, String> {
    let mut libraries = LIBRARIES.get().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = libraries.get(path) {
        return Ok(library.clone());
    }
    let library = Library::load(path.as_deref()).map_err(|error| error.to_string())?;
    libraries.insert(path.clone(), library.clone());
    Ok(library)
}

/// Whether the kernel has an RDMA device. It costs far less than to load libibverbs.
fn kernel_has_devices() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut names| names.next().is_some())
}

impl VerbsDomain {
    /// Opens the ports that the settings allow and that are active, at most
    /// [`MOST_PATHS`]. Devices that cannot be opened and ports that are down are skipped. Unless
    /// the settings list the devices, only the fastest ports are used. All are of one kind of
    /// network.
    ///
    /// # Errors
    /// Why RDMA cannot be used, in words.
    pub(crate) fn open_all(
        config: &VerbsConfig,
        layout: &InboxLayout,
    ) -> Result<Vec<Self>, String> {
        if config.library.is_none() && !kernel_has_devices() {
            return Err("this host has no RDMA device".to_owned());
        }
        let fits = u32::from(layout.channels) <= MOST_NUMBERED
            && layout.depth <= MOST_DEPTH
            && (64..MOST_MESSAGE_BYTES).contains(&layout.slot_bytes);
        if !fits {
            return Err("the links have a shape that RDMA cannot have".to_owned());
        }
        let devices = library(&config.library)?.devices().map_err(|error| error.to_string())?;
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for device in devices {
            let context = match device.open() {
                Ok(context) => context,
                Err(error) => {
                    skipped.push(format!("{}: {error}", device.name()));
                    continue;
                }
            };
            let ports = context.limits().map_or(0, |limits| limits.ports);
            for port in (1..=ports).filter(|port| config.adapters.allows(device.name(), *port)) {
                match usable(&context, port, config) {
                    Ok(info) => found.push((context.clone(), port, info)),
                    Err(why) => skipped.push(format!("{}:{port}: {why}", device.name())),
                }
            }
        }
        if let Some((.., best)) = found.iter().rev().max_by_key(|(.., info)| info.megabits) {
            let (layer, megabits) = (best.link_layer, best.megabits);
            let is_listed = config.adapters.names_devices();
            found.retain(|(.., info)| {
                info.link_layer == layer && (is_listed || info.megabits == megabits)
            });
        }
        let mut domains = Vec::new();
        for (context, port, info) in found.into_iter().take(MOST_PATHS) {
            let name = context.name().to_owned();
            match Self::new(config, layout, context, port, info) {
                Ok(domain) => domains.push(domain),
                Err(why) => skipped.push(format!("{name}:{port}: {why}")),
            }
        }
        if domains.is_empty() {
            let why = if skipped.is_empty() { String::new() } else { skipped.join("; ") + "; " };
            return Err(format!("{why}no RDMA device that may be used has an active port"));
        }
        if !skipped.is_empty() {
            log::info!(target: "NET", "RDMA devices that are not used: {}", skipped.join("; "));
        }
        Ok(domains)
    }

    fn new(
        config: &VerbsConfig,
        layout: &InboxLayout,
        context: Arc<Context>,
        port: u8,
        info: PortInfo,
    ) -> Result<Self, String> {
        let text = |error: maypole_verbs::VerbsError| error.to_string();
        let limits = context.limits().map_err(text)?;
        let memory = context.protection_domain().map_err(text)?;
        let channel = CompletionChannel::new(&context).map_err(text)?;
        for descriptor in [channel.descriptor(), context.async_descriptor()] {
            let flags = rustix::fs::fcntl_getfl(descriptor).map_err(|errno| errno.to_string())?;
            rustix::fs::fcntl_setfl(descriptor, flags | rustix::fs::OFlags::NONBLOCK)
                .map_err(|errno| errno.to_string())?;
        }
        let scratch = Mapping::private(page_size()).map_err(|error| error.to_string())?;
        let access = MemoryAccess::RemoteWrite;
        // SAFETY: the page is mapped as long as `self`, in which the region is dropped first, and
        // nobody reads what is written there.
        let scratch_region =
            unsafe { MemoryRegion::register(&memory, scratch.start(), page_size(), access, false) };
        let scratch_region = scratch_region.map_err(|error| {
            format!("memory cannot be registered: {error}; check the limit (ulimit -l)")
        })?;
        let (config, layout) = (config.clone(), *layout);
        let domain = Self {
            config,
            layout,
            context,
            port,
            info,
            limits,
            memory,
            channel,
            scratch_region,
            scratch,
        };
        let (receives, completions) = domain.needs_per_peer();
        if receives > limits.shared_receives || completions > limits.completions {
            return Err(format!(
                "the queues of {} are too short for {} channels of {} messages",
                domain.device(),
                layout.channels,
                layout.depth
            ));
        }
        Ok(domain)
    }

    /// Receives and completions that one peer needs. Each channel has at most `depth` messages and
    /// `depth` releases under way to this rank. A queue pair that fails completes all its work.
    pub(super) fn needs_per_peer(&self) -> (u32, u32) {
        let receives = 2 * self.layout.depth * u32::from(self.layout.channels);
        // All paths may be over this port. Each has one more queue pair for the trial.
        let paths = MOST_PATHS as u32;
        (receives, receives + paths * (self.config.queue_pairs + 1) * self.sends())
    }

    /// The capacity of each queue pair.
    pub(super) fn sends(&self) -> u32 {
        SENDS.min(self.limits.work_requests)
    }

    /// From which length on the payload of a message has a write of its own.
    pub(super) fn out_of_order_from(&self) -> Option<usize> {
        let automatic = self.info.link_layer == LinkLayer::InfiniBand;
        let adaptive = self.config.adaptive_routing.unwrap_or(automatic);
        adaptive.then_some(self.config.adaptive_from)
    }

    /// The device and the port, as `mlx5_0:1`.
    pub(crate) fn device(&self) -> String {
        format!("{}:{}", self.context.name(), self.port)
    }

    pub(crate) fn link_layer(&self) -> LinkLayer {
        self.info.link_layer
    }

    /// One line about the port, for the log.
    pub(crate) fn describe(&self) -> String {
        let gigabits = self.info.megabits / 1000;
        let gid = self.gid().map_or_else(String::new, |entry| {
            format!(", GID {} at index {} ({:?})", entry.gid, entry.index, entry.kind)
        });
        let forced = self.forced_traffic_class().map_or_else(String::new, |class| {
            format!(", traffic class forced by the kernel: {class}")
        });
        let class = self.config.traffic_class;
        format!("{} at {gigabits} Gbit/s{gid}, traffic class {class}{forced}", self.device())
    }

    /// What the kernel sets for all queue pairs of the port, if anything.
    fn forced_traffic_class(&self) -> Option<String> {
        let (name, port) = (self.context.name(), self.port);
        let path = format!("/sys/class/infiniband/{name}/tc/{port}/traffic_class");
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The GID that is used at present. The table is read each time, because it changes.
    pub(super) fn gid(&self) -> Option<GidEntry> {
        choose_gid(&self.context.gids(self.port).ok()?, &self.config.gid)
    }

    /// Where peer `peer` may write anything, and what this rank writes there.
    pub(super) fn scratch(&self, peer: Rank) -> (RemoteMemory, LocalMemory) {
        let half = page_size() / 2;
        let at = 64 * (peer as usize % (half / 64));
        let start = self.scratch.start();
        let to = RemoteMemory {
            address: start.wrapping_add(at).addr() as u64,
            key: self.scratch_region.remote_key(),
        };
        let from = start.wrapping_add(half + at).cast_const();
        (to, LocalMemory { start: from, len: 8, key: self.scratch_region.local_key() })
    }
    /// The port as it is now.
    ///
    /// # Errors
    /// It cannot be used at present, in words.
    pub(super) fn present(&self) -> Result<(PortInfo, Option<GidEntry>), String> {
        let info = usable(&self.context, self.port, &self.config)?;
        Ok((info, self.gid()))
    }
}

fn usable(context: &Context, port: u8, config: &VerbsConfig) -> Result<PortInfo, String> {
    let info = context.port(port).map_err(|error| error.to_string())?;
    if !info.active {
        return Err("the port is not active".to_owned());
    }
    let table = context.gids(port).map_err(|error| error.to_string())?;
    match choose_gid(&table, &config.gid) {
        None if info.link_layer == LinkLayer::Ethernet => {
            let all: Vec<String> = table
                .iter()
                .map(|entry| format!("{} {} {:?}", entry.index, entry.gid, entry.kind))
                .collect();
            Err(format!("none of its GIDs may be used ({})", all.join(", ")))
        }
        _ => Ok(info),
    }
}
