//! The parts of a communicator (host backend, device backend, membership) and their drop order.
//!
//! Rust drops the fields of a struct in the order of their declaration, and the order matters:
//!
//! 1. `Communicator::device`: it waits for the work on the device, which needs links and the
//!    control plane, and which an abort must still be able to end.
//! 2. `HostBackend::_abort_registration`: from then on no abort is under way.
//! 3. `HostBackend::windows`: joins the thread that applies puts, which uses all that follows.
//! 4. `HostBackend::control`: says to the other ranks that this one leaves.
//! 5. `HostBackend::endpoint`: closes the connections. After the fourth step no peer takes that for
//!    a failure.
//!
//! A test in this file checks this order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_reduce::Isa;
use maypole_transport::endpoint::Endpoint;

use crate::bootstrap::{
    AbortRegistration, CommunicatorKeys, ControlTraffic, Options, RejoinListener,
};
use crate::config::Config;
use crate::control::ControlPlane;
use crate::device::queue::device_rank::DeviceRank;
use crate::engine::compiled::LlStaging;
use crate::engine::ll_transfer::PendingTransfer;
use crate::engine::scratch::{ScratchMemory, SendCopy};
use crate::links::Links;
use crate::spin_policy::SpinPolicy;
use crate::transfer::SpareTransfers;
use crate::window::Windows;

/// The device part of a communicator for a CUDA device.
pub(super) type DeviceBackend = Box<DeviceRank>;

/// The links to all other ranks over host memory, and what runs calls over them. The order of the
/// fields is the order in which they are dropped; see the [module](self).
pub(super) struct HostBackend {
    /// Lets the abort signal of the setup options end this communicator.
    pub(super) _abort_registration: Option<AbortRegistration>,
    pub(super) windows: Windows,
    pub(super) control: ControlPlane,
    pub(super) endpoint: Arc<Endpoint>,
    /// The address of each rank's endpoint.
    pub(super) addresses: Vec<Vec<u8>>,
    pub(super) links: Links,
    pub(super) isa: Isa,
    pub(super) spin_policy: SpinPolicy,
    pub(super) scratch: ScratchMemory,
    pub(super) send_copy: SendCopy,
    pub(super) staging: Box<LlStaging>,
    /// The memory of `LlTransfers::pending`, kept between calls.
    pub(super) pending_transfers: Vec<PendingTransfer>,
    pub(super) spare_transfers: SpareTransfers,
}

/// What a communicator keeps of its setup: what its children inherit, and by which its ranks find
/// each other again.
pub(super) struct Membership {
    pub(super) config: Config,
    pub(super) options: Options,
    /// Makes the secrets of children.
    pub(super) keys: CommunicatorKeys,
    /// Where the survivors of a shrink connect to this rank, if it is the lowest of them.
    pub(super) rejoin_listener: RejoinListener,
    /// The address of each rank's rejoin listener.
    pub(super) rejoin_addresses: Vec<Vec<u8>>,
    /// How often the communicator was split.
    pub(super) split_count: u64,
    /// How often the communicator was shrunk to each list of survivors.
    pub(super) shrink_counts: BTreeMap<Vec<Rank>, u64>,
    /// A rank on host memory, in a communicator some of whose ranks are on devices.
    pub(super) host_rank: Option<Rank>,
    /// What the setup cost this rank.
    pub(super) init_traffic: ControlTraffic,
}

impl Membership {
    /// The time at which a link that is opened now must be open.
    pub(super) fn link_deadline(&self) -> Instant {
        let timeout = self.config.timeout.unwrap_or(Duration::MAX).min(self.options.timeout);
        crate::clock::after(timeout)
    }
}

#[cfg(test)]
mod tests {
    /// The fields of struct `name` in `source`, in the order of their declaration.
    fn fields<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
        let (_, body) = source.split_once(&format!("struct {name} {{\n")).expect("the struct");
        let (body, _) = body.split_once("\n}").expect("its end");
        let lines = body.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
        let names = lines.filter_map(|line| line.split_once(':')).map(|(name, _)| name);
        names.map(|name| name.rsplit(' ').next().unwrap_or(name)).collect()
    }

    /// Fields are dropped in the order of their declaration, so that order is what is checked.
    #[test]
    fn fields_are_declared_in_the_order_in_which_they_must_be_dropped() {
        let declared = fields(include_str!("backend.rs"), "HostBackend");
        assert_eq!(declared[..4], ["_abort_registration", "windows", "control", "endpoint"]);
        let declared = fields(include_str!("mod.rs"), "Communicator");
        let place = |field| declared.iter().position(|name| *name == field).expect("the field");
        assert!(place("device") < place("host"), "{declared:?}");
        assert!(place("host") < place("plans"), "{declared:?}");
    }
}
