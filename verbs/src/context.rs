//! An opened device: its limits, ports and GIDs, its asynchronous events, and protection domains.

use std::fmt;
use std::mem;
use std::net::Ipv6Addr;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::VerbsError;
use crate::library::{Library, function};
use crate::sys;

/// An opened device. It may be used by several threads.
pub struct Context {
    raw: NonNull<sys::ibv_context>,
    name: String,
    library: Arc<Library>,
    /// The process that opened it.
    owner: u32,
}

// SAFETY: libibverbs locks what its functions share.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Number of ports, which are numbered from 1.
    pub ports: u8,
    /// Entries of a completion queue.
    pub completions: u32,
    /// Receives of a shared receive queue.
    pub shared_receives: u32,
    /// Work requests of a queue pair.
    pub work_requests: u32,
}

/// The link layer of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand, whose ports have LIDs.
    InfiniBand,
    /// Ethernet (RoCE), where all addresses are GIDs.
    Ethernet,
}

/// The state of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// It can carry traffic.
    pub active: bool,
    /// The link layer.
    pub link_layer: LinkLayer,
    /// The LID, on InfiniBand.
    pub lid: u16,
    /// The MTU in use, as verbs number it: 1 is 256 bytes, and each next one is twice as much.
    pub mtu: u32,
    /// Number of entries of the GID table.
    pub gids: u32,
    /// The speed in Mbit/s, from its width and speed.
    pub megabits: u32,
}

/// A global identifier: an IPv6 address, or an IPv4 address that is mapped to one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Gid(pub [u8; 16]);

/// The protocol of a GID's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE v1: an Ethernet frame of its own kind, which routers do not forward.
    RoceV1,
    /// RoCE v2: UDP.
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// The GID.
    pub gid: Gid,
    /// Its present index. It changes when the table is filled again.
    pub index: u32,
    /// The protocol.
    pub kind: GidKind,
    /// The index of the network interface; 0 on InfiniBand, or where it is not known.
    pub interface: u32,
}

/// Something that happened to a device, which no completion reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// A port became active.
    PortActive(u8),
    /// A port went down.
    PortDown(u8),
    /// The GID table of a port was filled again.
    GidChange(u8),
    /// The device failed, or is being removed.
    DeviceFatal,
    /// Something else, of this number.
    Other(u32),
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv6Addr::from(self.0), f)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Context {
    /// Owns a context that `ibv_open_device` has returned.
    pub(crate) fn new(
        raw: *mut sys::ibv_context,
        name: String,
        library: Arc<Library>,
    ) -> Result<Arc<Self>, VerbsError> {
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_open_device"))?;
        Ok(Arc::new(Self { raw, name, library, owner: std::process::id() }))
    }

    pub(crate) fn raw(&self) -> *mut sys::ibv_context {
        self.raw.as_ptr()
    }

    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    /// Whether this process opened it; false in a child made by fork.
    pub(crate) fn belongs_to_this_process(&self) -> bool {
        std::process::id() == self.owner
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the device can do.
    ///
    /// # Errors
    /// The device is being removed.
    pub fn limits(&self) -> Result<DeviceLimits, VerbsError> {
        let query = function!(self.library, ibv_query_device)?;
        let mut attributes = sys::ibv_device_attr::default();
        // SAFETY: the context is open, and the attributes are writable.
        let status = unsafe { query(self.raw(), &raw mut attributes) };
        VerbsError::check("ibv_query_device", status)?;
        Ok(DeviceLimits {
            ports: attributes.phys_port_cnt,
            completions: attributes.max_cqe.max(0) as u32,
            shared_receives: attributes.max_srq_wr.max(0) as u32,
            work_requests: attributes.max_qp_wr.max(0) as u32,
        })
    }

    /// The state of a port.
    ///
    /// # Errors
    /// There is no such port, or the device is being removed.
    pub fn port(&self, port: u8) -> Result<PortInfo, VerbsError> {
        let query = function!(self.library, ibv_query_port)?;
        let mut attributes = sys::ibv_port_attr::default();
        // SAFETY: the context is open. The exported function writes the part of the attributes that
        // its first version had.
        let status = unsafe { query(self.raw(), port, (&raw mut attributes).cast()) };
        VerbsError::check("ibv_query_port", status)?;
        let ethernet = u32::from(attributes.link_layer) == sys::IBV_LINK_LAYER_ETHERNET;
        Ok(PortInfo {
            active: attributes.state == sys::IBV_PORT_ACTIVE,
            link_layer: if ethernet { LinkLayer::Ethernet } else { LinkLayer::InfiniBand },
            lid: attributes.lid,
            mtu: attributes.active_mtu,
            gids: attributes.gid_tbl_len.max(0) as u32,
            megabits: lanes(attributes.active_width) * lane_megabits(attributes.active_speed),
        })
    }

    /// The entries of a port's GID table that are filled, in their order.
    ///
    /// # Errors
    /// There is no such port, or the device is being removed.
    pub fn gids(&self, port: u8) -> Result<Vec<GidEntry>, VerbsError> {
        match function!(self.library, _ibv_query_gid_table) {
            Ok(query) => match self.gids_by_table(query) {
                Ok(all) => {
                    let here = all.into_iter().filter(|(at, _)| *at == port);
                    Ok(here.map(|(_, entry)| entry).collect())
                }
                Err(VerbsError::Failed { errno: libc::EOPNOTSUPP, .. }) => {
                    self.gids_one_by_one(port)
                }
                Err(error) => Err(error),
            },
            Err(_) => self.gids_one_by_one(port),
        }
    }

    fn gids_by_table(
        &self,
        query: unsafe extern "C" fn(
            *mut sys::ibv_context,
            *mut sys::ibv_gid_entry,
            usize,
            u32,
            usize,
        ) -> isize,
    ) -> Result<Vec<(u8, GidEntry)>, VerbsError> {
        let ports = self.limits()?.ports;
        let mut entries = 0;
        for port in 1..=ports {
            entries += self.port(port)?.gids as usize;
        }
        let mut table = vec![sys::ibv_gid_entry::default(); entries.max(1)];
        let size = size_of::<sys::ibv_gid_entry>();
        // SAFETY: the table has room for so many entries of this size.
        let got = unsafe { query(self.raw(), table.as_mut_ptr(), table.len(), 0, size) };
        let Ok(got) = usize::try_from(got) else {
            let errno = i32::try_from(-got).unwrap_or(libc::EIO);
            return Err(VerbsError::Failed { call: "ibv_query_gid_table", errno });
        };
        table.truncate(got);
        let convert = |entry: sys::ibv_gid_entry| {
            let kind = match entry.gid_type {
                sys::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
                sys::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
                _ => GidKind::InfiniBand,
            };
            // SAFETY: every byte of the union belongs to `raw`.
            let gid = Gid(unsafe { entry.gid.raw });
            let (index, interface) = (entry.gid_index, entry.ndev_ifindex);
            (entry.port_num as u8, GidEntry { gid, index, kind, interface })
        };
        Ok(table.into_iter().map(convert).collect())
    }

    /// Reads the table entry by entry, where libibverbs cannot read it at once. An empty entry
    /// cannot be read, or is zero.
    fn gids_one_by_one(&self, port: u8) -> Result<Vec<GidEntry>, VerbsError> {
        let query = function!(self.library, ibv_query_gid)?;
        let info = self.port(port)?;
        let mut all = Vec::new();
        for index in 0..info.gids {
            let mut gid = sys::ibv_gid::default();
            // SAFETY: the context is open, and the GID is writable.
            let status = unsafe { query(self.raw(), port, index as i32, &raw mut gid) };
            // SAFETY: every byte of the union belongs to `raw`.
            let gid = Gid(unsafe { gid.raw });
            if status != 0 || gid == Gid::default() {
                continue;
            }
            let attributes =
                format!("/sys/class/infiniband/{}/ports/{port}/gid_attrs/types/{index}", self.name);
            let kind = match (info.link_layer, std::fs::read_to_string(attributes)) {
                (LinkLayer::InfiniBand, _) => GidKind::InfiniBand,
                (_, Ok(text)) if text.trim() == "RoCE v2" => GidKind::RoceV2,
                _ => GidKind::RoceV1,
            };
            all.push(GidEntry { gid, index, kind, interface: 0 });
        }
        Ok(all)
    }

    /// The index of a partition key of a port.
    ///
    /// # Errors
    /// The port has no such key.
    pub fn partition_index(&self, port: u8, key: u16) -> Result<u16, VerbsError> {
        let get = function!(self.library, ibv_get_pkey_index)?;
        // SAFETY: the context is open. The key is in network order.
        let index = unsafe { get(self.raw(), port, key.to_be()) };
        u16::try_from(index).map_err(|_| VerbsError::last("ibv_get_pkey_index"))
    }

    /// The descriptor that is readable when there is an asynchronous event.
    pub fn async_descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as `self`, and with it the descriptor.
        unsafe { BorrowedFd::borrow_raw(self.async_fd()) }
    }

    fn async_fd(&self) -> RawFd {
        // SAFETY: the context is open.
        unsafe { (*self.raw()).async_fd }
    }

    /// Takes the next asynchronous event. It blocks if there is none, unless the
    /// [descriptor](Self::async_descriptor) does not block.
    ///
    /// # Errors
    /// There is no event, or the device is being removed.
    pub fn take_async_event(&self) -> Result<AsyncEvent, VerbsError> {
        let get = function!(self.library, ibv_get_async_event)?;
        let acknowledge = function!(self.library, ibv_ack_async_event)?;
        // SAFETY: all zeros is a valid event, which the call overwrites.
        let mut event: sys::ibv_async_event = unsafe { mem::zeroed() };
        // SAFETY: the context is open, and the event is writable.
        let status = unsafe { get(self.raw(), &raw mut event) };
        if status != 0 {
            return Err(VerbsError::last("ibv_get_async_event"));
        }
        // SAFETY: events of ports have the number of the port; others are not asked for it.
        let port = || unsafe { event.element.port_num } as u8;
        let what = match event.event_type {
            sys::IBV_EVENT_PORT_ACTIVE => AsyncEvent::PortActive(port()),
            sys::IBV_EVENT_PORT_ERR => AsyncEvent::PortDown(port()),
            sys::IBV_EVENT_GID_CHANGE => AsyncEvent::GidChange(port()),
            sys::IBV_EVENT_DEVICE_FATAL => AsyncEvent::DeviceFatal,
            other => AsyncEvent::Other(other),
        };
        // SAFETY: the event was taken above and is acknowledged once.
        unsafe { acknowledge(&raw mut event) };
        Ok(what)
    }

    /// A new protection domain. Memory and queue pairs work together only within one domain.
    ///
    /// # Errors
    /// The device has no protection domains left.
    pub fn protection_domain(self: &Arc<Self>) -> Result<Arc<ProtectionDomain>, VerbsError> {
        let allocate = function!(self.library, ibv_alloc_pd)?;
        // SAFETY: the context is open.
        let raw = NonNull::new(unsafe { allocate(self.raw()) });
        let raw = raw.ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
        Ok(Arc::new(ProtectionDomain { raw, context: self.clone() }))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Ok(close) = function!(self.library, ibv_close_device)
            && self.belongs_to_this_process()
        {
            // SAFETY: all that was made of the context kept it alive and is gone.
            unsafe { close(self.raw()) };
        }
    }
}

/// A protection domain.
pub struct ProtectionDomain {
    raw: NonNull<sys::ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs locks what its functions share.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectionDomain").field("context", &self.context).finish_non_exhaustive()
    }
}

impl ProtectionDomain {
    pub(crate) fn raw(&self) -> *mut sys::ibv_pd {
        self.raw.as_ptr()
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        if let Ok(deallocate) = function!(self.context.library, ibv_dealloc_pd)
            && self.context.belongs_to_this_process()
        {
            // SAFETY: all that was made of the domain kept it alive and is gone.
            unsafe { deallocate(self.raw()) };
        }
    }
}

/// The number of lanes of a port's width.
fn lanes(width: u8) -> u32 {
    match width {
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 1,
    }
}

/// The speed of a lane, in Mbit/s.
fn lane_megabits(speed: u8) -> u32 {
    match speed {
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 2_500,
    }
}
