//! Whether a network device may read and write the memory of a GPU directly (GPUDirect RDMA).

use super::path::PathKind;

/// Which way data moves between a GPU and a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The network device reads the memory of the GPU, to send.
    Send,
    /// The network device writes the memory of the GPU: it has received.
    Receive,
}

/// What the user wants: `NCCL_NET_GDR_LEVEL` and `NCCL_NET_GDR_READ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuDirectSettings {
    /// The longest path over which a device may access a GPU. Without it: PXB, or P2C for a GPU
    /// with a chip-to-chip link.
    pub level: Option<PathKind>,
    /// Whether devices may read, to send. Without it: on GPUs from compute capability 8.0 on, and
    /// on others that have NVLink, or that are alone.
    pub read: Option<bool>,
}

/// Whether data moves directly between a GPU and a network device, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuDirect {
    /// It does.
    Used,
    /// The network device cannot access GPUs, or it is not known to.
    NotByNetwork,
    /// The GPU cannot be accessed, or it is not known to be.
    NotByGpu,
    /// The path is longer than the level.
    TooFar {
        /// The path.
        kind: PathKind,
        /// The longest that is allowed.
        level: PathKind,
    },
    /// Reading is not wanted.
    ReadNotWanted,
}

/// What decides about a GPU and a network device.
#[derive(Clone, Copy, Debug)]
pub(super) struct GpuDirectPair {
    pub(super) kind: PathKind,
    pub(super) network_can: bool,
    pub(super) gpu_can: bool,
    pub(super) sm: u32,
    /// The GPU has NVLink to another one, or is the only GPU.
    pub(super) keeps_pci_free: bool,
}

impl GpuDirectSettings {
    pub(super) fn decide(self, pair: GpuDirectPair, direction: Direction) -> GpuDirect {
        if !pair.network_can {
            return GpuDirect::NotByNetwork;
        }
        if !pair.gpu_can {
            return GpuDirect::NotByGpu;
        }
        // Before compute capability 8.0, reads compete with other traffic of the PCI bus.
        let read = self.read.unwrap_or(pair.sm >= 80 || pair.keeps_pci_free);
        if direction == Direction::Send && !read {
            return GpuDirect::ReadNotWanted;
        }
        let level = self.level.unwrap_or(PathKind::P2c);
        if pair.kind > level {
            return GpuDirect::TooFar { kind: pair.kind, level };
        }
        GpuDirect::Used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_follows_levels_reads_and_abilities() {
        let pair = GpuDirectPair {
            kind: PathKind::Pxb,
            network_can: true,
            gpu_can: true,
            sm: 90,
            keeps_pci_free: false,
        };
        let set = GpuDirectSettings::default();
        let (send, receive) = (Direction::Send, Direction::Receive);
        assert_eq!(set.decide(pair, send), GpuDirect::Used);
        let far = GpuDirectPair { kind: PathKind::Phb, ..pair };
        let too_far = GpuDirect::TooFar { kind: PathKind::Phb, level: PathKind::P2c };
        assert_eq!(set.decide(far, receive), too_far);
        let sys = GpuDirectSettings { level: Some(PathKind::Sys), ..set };
        assert_eq!(sys.decide(far, receive), GpuDirect::Used);
        let near = GpuDirectSettings { level: Some(PathKind::Pix), ..set };
        assert!(matches!(near.decide(pair, receive), GpuDirect::TooFar { .. }));
        // Reads: by default not where older GPUs share the bus.
        let old = GpuDirectPair { sm: 70, ..pair };
        assert_eq!(set.decide(old, send), GpuDirect::ReadNotWanted);
        assert_eq!(set.decide(old, receive), GpuDirect::Used);
        assert_eq!(
            set.decide(GpuDirectPair { keeps_pci_free: true, ..old }, send),
            GpuDirect::Used
        );
        let read = |read| GpuDirectSettings { read: Some(read), ..set };
        assert_eq!(read(true).decide(old, send), GpuDirect::Used);
        assert_eq!(read(false).decide(pair, send), GpuDirect::ReadNotWanted);
        let (no_net, no_gpu) = (
            GpuDirectPair { network_can: false, ..pair },
            GpuDirectPair { gpu_can: false, ..pair },
        );
        assert_eq!(set.decide(no_net, send), GpuDirect::NotByNetwork);
        assert_eq!(set.decide(no_gpu, send), GpuDirect::NotByGpu);
    }
}
