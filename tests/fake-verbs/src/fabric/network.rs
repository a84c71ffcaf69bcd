//! Devices, their ports and addresses, and the paths between them.

use super::lock::Plain;
use crate::abi;

pub(crate) const MOST_DEVICES: usize = 16;
pub(crate) const MOST_PORTS: usize = 4;
pub(crate) const MOST_GIDS: usize = 32;

/// The type of an address in the table of a port.
pub(crate) const NO_GID: u32 = 0;
pub(crate) const INFINIBAND: u32 = 1;
pub(crate) const ROCE_1: u32 = 2;
pub(crate) const ROCE_2: u32 = 3;

/// An entry of the table of addresses of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Gid {
    pub(crate) kind: u32,
    pub(crate) raw: [u8; 16],
    /// The network interface.
    pub(crate) interface: u32,
}

impl Gid {
    /// Whether it is an address that routers do not forward.
    fn is_link_local(self) -> bool {
        self.raw[0] == 0xfe && self.raw[1] & 0xc0 == 0x80
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Port {
    /// An `ibv_port_state`.
    pub(crate) state: u32,
    /// IBV_LINK_LAYER_*.
    pub(crate) link_layer: u32,
    pub(crate) lid: u32,
    /// Gbit/s.
    pub(crate) speed: u32,
    /// An `ibv_mtu`.
    pub(crate) mtu: u32,
    /// Ports with the same number are connected by switches, others by routers only.
    pub(crate) segment: u32,
    /// Whether everything that the port sends or receives is lost, without a sign of it.
    pub(crate) drops: u32,
    /// Whether what the port sends waits, for as long as this is set.
    pub(crate) holds: u32,
    /// Of a million messages, so many are lost.
    pub(crate) loss: u32,
    pub(crate) gids: [Gid; MOST_GIDS],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Device {
    /// Whether it is there now. A device that was removed keeps its place.
    pub(crate) present: u32,
    pub(crate) name: [u8; 32],
    pub(crate) guid: u64,
    pub(crate) ports: [Port; MOST_PORTS],
    pub(crate) port_count: u32,
    pub(crate) limits: Limits,
}

/// What a device can do at most.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Limits {
    pub(crate) work_requests: u32,
    pub(crate) entries: u32,
    pub(crate) inline: u32,
    pub(crate) completions: u32,
    pub(crate) shared_receives: u32,
    pub(crate) reads: u32,
    pub(crate) message: u32,
    /// Whether memory of devices can be registered (`ibv_reg_dmabuf_mr`).
    pub(crate) dmabuf: u32,
    /// Whether there are extended queue pairs and completion queues.
    pub(crate) extended: u32,
}

/// All devices.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Network {
    pub(crate) count: u32,
    pub(crate) devices: [Device; MOST_DEVICES],
}

impl Plain for Network {}

impl Limits {
    pub(crate) const DEFAULT: Self = Self {
        work_requests: 16384,
        entries: 30,
        inline: 220,
        completions: 65536,
        shared_receives: 32767,
        reads: 16,
        message: 1 << 30,
        dmabuf: 1,
        extended: 1,
    };
}

impl Device {
    /// The name, up to the first zero.
    pub(crate) fn name(&self) -> &str {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        std::str::from_utf8(&self.name[..end]).unwrap_or("?")
    }

    /// A port by its number, which counts from 1.
    pub(crate) fn port(&self, number: u32) -> Option<&Port> {
        let index = number.checked_sub(1)?;
        self.ports[..self.port_count as usize].get(index as usize)
    }
}

impl Network {
    /// Adds a device with `ports` ports and the usual addresses. None if there are too many.
    pub(crate) fn add(&mut self, name: &str, ports: u32, infiniband: bool) -> Option<u32> {
        let place = self.count;
        let device = self.devices.get_mut(place as usize)?;
        device.name = [0; 32];
        for (to, from) in device.name.iter_mut().zip(name.bytes()).take(31) {
            *to = from;
        }
        device.guid = 0x0200_00ff_fe00_0100 + u64::from(place);
        device.limits = Limits::DEFAULT;
        device.port_count = ports;
        for number in 1..=ports {
            let port = &mut device.ports[number as usize - 1];
            port.state = abi::IBV_PORT_ACTIVE;
            port.link_layer = if infiniband {
                abi::IBV_LINK_LAYER_INFINIBAND
            } else {
                abi::IBV_LINK_LAYER_ETHERNET
            };
            port.lid = if infiniband { place * MOST_PORTS as u32 + number } else { 0 };
            port.speed = 100;
            port.mtu = abi::IBV_MTU_4096;
            (port.segment, port.drops, port.holds, port.loss) = (0, 0, 0, 0);
            port.gids = default_gids(place, number, infiniband);
        }
        device.present = 1;
        self.count = place + 1;
        Some(place)
    }

    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        (0..self.count).find(|i| self.devices[*i as usize].name() == name)
    }
}

/// As the Linux kernel fills the table of an interface with one IPv4 address: for each address an
/// entry of version 1 and one of version 2 of RoCE.
fn default_gids(device: u32, port: u32, infiniband: bool) -> [Gid; MOST_GIDS] {
    let mut gids = [Gid::default(); MOST_GIDS];
    let mut local = [0; 16];
    (local[0], local[1]) = (0xfe, 0x80);
    local[8..].copy_from_slice(&[2, 0, 0, 0xff, 0xfe, 0, device as u8, port as u8]);
    if infiniband {
        gids[0] = Gid { kind: INFINIBAND, raw: local, interface: 0 };
        return gids;
    }
    let mut global = [0; 16];
    (global[10], global[11]) = (0xff, 0xff);
    global[12..].copy_from_slice(&[10, 77, device as u8, port as u8]);
    let interface = 2 + device * MOST_PORTS as u32 + port;
    for (index, raw) in [local, global].into_iter().enumerate() {
        gids[2 * index] = Gid { kind: ROCE_1, raw, interface };
        gids[2 * index + 1] = Gid { kind: ROCE_2, raw, interface };
    }
    gids
}

/// Where a message comes from, and where it shall go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) device: u32,
    pub(crate) port: u32,
    /// The address of the sender, as it was when the connection was made, and its index.
    pub(crate) own: Gid,
    pub(crate) index: u32,
    /// The address or the local identifier of the receiver.
    pub(crate) global: Option<[u8; 16]>,
    pub(crate) lid: u32,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// It arrives at a port of a device; of a million, so many are lost.
    To { device: u32, port: u32, loss: u32 },
    /// It waits.
    Held,
    /// It is lost. The text says why, for the log.
    Lost(&'static str),
}

impl Network {
    pub(crate) fn path(&self, from: &Address) -> Path {
        let device = &self.devices[from.device as usize];
        let Some(port) = device.port(from.port) else { return Path::Lost("there is no such port") };
        if device.present == 0 {
            return Path::Lost("the device was removed");
        }
        if port.holds != 0 {
            return Path::Held;
        }
        if port.state != abi::IBV_PORT_ACTIVE {
            return Path::Lost("the port is not active");
        }
        if port.drops != 0 {
            return Path::Lost("the port drops everything");
        }
        let by_gid = from.global.is_some();
        if by_gid && port.gids[from.index as usize % MOST_GIDS] != from.own {
            return Path::Lost("the address at the source index is not the one of the connection");
        }
        for (place, other) in self.devices.iter().enumerate().take(self.count as usize) {
            for number in 1..=other.port_count {
                let to = &other.ports[number as usize - 1];
                let matches = match from.global {
                    Some(raw) => {
                        to.gids.iter().any(|gid| gid.kind == from.own.kind && gid.raw == raw)
                    }
                    None => to.lid == from.lid && to.lid != 0,
                };
                let near = to.segment == port.segment;
                let local = !by_gid || from.own.is_link_local();
                if !matches || to.link_layer != port.link_layer || local && !near {
                    continue;
                }
                if other.present == 0 || to.state != abi::IBV_PORT_ACTIVE {
                    return Path::Lost("the port of the receiver is not active");
                }
                if to.drops != 0 {
                    return Path::Lost("the port of the receiver drops everything");
                }
                let loss = port.loss.max(to.loss);
                return Path::To { device: place as u32, port: number, loss };
            }
        }
        Path::Lost("no port that can be reached has this address")
    }
}
