//! Calls of a communicator of a CUDA device: queued on a stream of the caller's, or on one of its own and waited for.

use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::{Driver, DriverError};
use maypole_cuda::memory;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::fault::FaultInjector;
use maypole_transport::inbox::InboxLayout;

use super::Communicator;
use super::rank_info::RankInfo;
use super::run::check_in_place;
use super::stream_calls::DeviceCall;
use super::stream_calls::batch::{BatchMember, LaunchBatch, launch_batches};
use super::vector::VectorRun;
use crate::call::{Call, Task, VectorCall};
use crate::call_signature::CallSignature;
use crate::config::Config;
use crate::control::ControlShared;
use crate::device::memory::inbox_layout::DeviceInboxLayout;
use crate::device::memory::signals::DeviceSignals;
use crate::device::queue::device_rank::DeviceRank;
use crate::device::queue::work::WorkOperands;
use crate::device::queue::work_order::StreamPosition;
use crate::device::setup::gpu::Gpu;
use crate::error::Error;
use crate::plan::device::{DevicePlan, parameter};
use crate::plan::{PlanBody, PlanKey};
use crate::proxy::Meet;
use crate::{channels::FIRST_OF_SCHEDULES, transfer::Transfer};

/// How many ranks are on the device of rank `me`, itself among them. Where it is more than one, the first of them says so.
pub(super) fn sharing(cards: &[RankInfo], me: Rank) -> u32 {
    let here = &cards[me as usize];
    let Some(device) = &here.device else { return 0 };
    let same = |card: &RankInfo| {
        let on = card.device.as_ref().is_some_and(|other| other.uuid == device.uuid);
        on && card.host.same_machine(&here.host)
    };
    let ranks: Vec<usize> = (0..cards.len()).filter(|rank| same(&cards[*rank])).collect();
    if ranks.len() > 1 && ranks[0] == me as usize {
        log::warn!(
            "ranks {ranks:?} share CUDA device {} of {}: their kernels take turns or have few blocks each; give each rank a device of its own",
            device.ordinal,
            here.host.name
        );
    }
    ranks.len() as u32
}

/// What ranks of which some are on devices agree on: all find the same in the cards and the settings.
pub(super) struct Terms {
    /// Bytes of a tile at most.
    pub(super) slot_bytes: usize,
    /// Slots of every link.
    pub(super) depth: u32,
    /// Every link has lines.
    pub(super) lines: bool,
    /// Channels that a schedule may use, if any rank is on a device.
    pub(super) channels: Option<Channel>,
}

/// The terms of a communicator. `layout` is of its links over the transport, which have lines if `lines`; `apart`: some ranks with devices
/// among them meet over those.
pub(super) fn terms(
    config: &Config,
    cards: &[RankInfo],
    layout: InboxLayout,
    lines: bool,
    apart: bool,
) -> Terms {
    let InboxLayout { nranks, slot_bytes, depth, .. } = layout;
    if cards.iter().all(|card| card.device.is_none()) {
        return Terms { slot_bytes, depth, lines, channels: None };
    }
    let shape = DeviceInboxLayout::new(config, nranks);
    let channels = Some(shape.channels - FIRST_OF_SCHEDULES);
    if apart {
        let (slot_bytes, depth) = (slot_bytes.min(shape.slot_bytes), depth.min(shape.depth));
        return Terms { slot_bytes, depth, lines: false, channels };
    }
    Terms { slot_bytes: shape.slot_bytes, depth: shape.depth, lines: true, channels }
}

/// A rank on host memory, where others are on devices.
pub(super) fn host_rank(cards: &[RankInfo]) -> Option<Rank> {
    let mixed = cards.iter().any(|card| card.device.is_some());
    let on_host = cards.iter().position(|card| card.device.is_none());
    on_host.filter(|_| mixed).map(|rank| rank as Rank)
}

/// How the proxy meets a rank.
pub(super) fn meet(
    endpoint: Arc<Endpoint>,
    addresses: Vec<Vec<u8>>,
    faults: Option<FaultInjector>,
) -> Meet {
    Box::new(move |peer, channel, until| {
        endpoint.connect(peer, &addresses[peer as usize], until)?;
        let ends = endpoint.open(peer, channel)?;
        Ok(match &faults {
            Some(faults) => faults.wrap(peer, channel, ends),
            None => ends,
        })
    })
}

/// How the proxy learns whether works are queued.
pub(super) fn queued(signals: &Arc<DeviceSignals>) -> Box<dyn Fn() -> bool + Send + Sync> {
    let signals = signals.clone();
    Box::new(move || !signals.is_idle())
}

/// What the proxy does with an error: all ranks hear of it, then what is on the device ends.
pub(super) fn fail(shared: Arc<ControlShared>) -> Box<dyn FnOnce(Error) + Send> {
    Box::new(move |error| {
        let error = shared.fail(error);
        log::warn!("rank {}: {error}", shared.rank);
        shared.abort_peers(&error);
    })
}

impl Communicator {
    /// The device that the communicator is for.
    pub(crate) fn gpu(&self) -> Option<Arc<Gpu>> {
        self.device.as_ref().map(|rank| rank.gpu.clone())
    }

    /// Blocks that a call may have.
    pub(crate) fn device_blocks(&self) -> u32 {
        self.device.as_ref().map_or(1, |rank| rank.most_blocks)
    }

    /// Whether all blocks of a launch must be resident together.
    pub(crate) fn launches_cooperatively(&self) -> bool {
        self.device.as_ref().is_some_and(|rank| rank.cooperative)
    }

    /// So many works more were launched.
    pub(crate) fn launched(&self, works: u64) {
        let Some(rank) = &self.device else { return };
        if rank.signals.launch(works) {
            self.watch.watch_device();
        }
        if let Some(proxy) = &rank.proxy {
            proxy.launched();
        }
    }

    /// What is queued at `at` from here on begins after all works so far.
    pub(crate) unsafe fn follow(
        &mut self,
        gpu: &Gpu,
        at: StreamPosition,
    ) -> Result<(), DriverError> {
        match &mut self.device {
            // SAFETY: the caller's promise.
            Some(rank) => unsafe { rank.order.follow(gpu, &rank.signals, at) },
            None => Ok(()),
        }
    }

    /// Adds a call to `batch`: what it takes is planned, and it counts as made.
    ///
    /// # Safety
    /// As for [`launch_calls`](crate::launch_calls).
    pub(crate) unsafe fn queue(
        &mut self,
        queued: &DeviceCall<'_>,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        self.watch.check_fork()?;
        self.running()?;
        if let Some(host) = self.host_rank.filter(|_| batch.at.capture.is_some()) {
            return Err(Error::Unsupported {
                what: format!(
                    "capturing calls of a communicator with ranks of host memory, as rank {host}: a graph is replayed on devices alone, and those ranks would not take part"
                ),
            });
        }
        match queued {
            DeviceCall::Collective(call) => {
                let key = PlanKey::new(call);
                let number = match self.plans.find(&key) {
                    Some(number) => Some(number),
                    None => self.prepare_collective(key, call)?,
                };
                // SAFETY: the caller's promise.
                unsafe { self.queue_planned(number, call, batch) }
            }
            DeviceCall::Among(call, algorithms) => {
                let number = self.number_among(call, algorithms)?;
                // SAFETY: the caller's promise.
                unsafe { self.queue_planned(number, call, batch) }
            }
            DeviceCall::Vector(call) => match self.plan_vector(call)? {
                // SAFETY: the caller's promise.
                VectorRun::Planned(number, call) => unsafe {
                    self.queue_planned(Some(number), &call, batch)
                },
                // SAFETY: the caller's promise.
                VectorRun::Pairs => unsafe { self.queue_pairs(call, batch) },
                VectorRun::Nothing => Ok(()),
            },
            DeviceCall::Transfers(transfers) => {
                let (transfers, own) = self.sorted(transfers)?;
                for (from, to, bytes) in own {
                    batch.copy(to as u64, from as u64, bytes);
                }
                // SAFETY: the caller's promise. Transfers are no calls of all ranks.
                unsafe { self.queue_transfers(&transfers, 0, 0, batch) }.map_err(|e| self.fail(e))
            }
            DeviceCall::Barrier => {
                let number = self.number_of_barrier()?;
                let call = self.barrier_call(std::ptr::null(), std::ptr::null_mut());
                // SAFETY: the caller's promise; the barrier has memory of its own.
                unsafe { self.queue_planned(number, &call, batch) }
            }
        }
    }

    /// Adds a call by plan `number`; by none if it is of no elements.
    unsafe fn queue_planned(
        &mut self,
        number: Option<usize>,
        call: &Call,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let Some(number) = number else { return Ok(()) };
        let signature = self.plans.get(number).signature;
        // SAFETY: the caller's promise.
        match unsafe { self.add_planned(number, call, batch) } {
            Ok(()) => {
                self.watch.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    unsafe fn add_planned(
        &mut self,
        number: usize,
        call: &Call,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let Self { plans, device: Some(rank), watch, config, nranks, .. } = self else {
            return Err(no_device());
        };
        let plan = plans.get(number);
        if plan.needs_check {
            check_in_place(call, *nranks)?;
        }
        if config.check_pointers {
            let pointers = [call.send, call.recv.cast_const()];
            check_pointers(rank.gpu.device.driver(), &pointers)?;
        }
        let (send, recv) = (call.send as u64, call.recv as u64);
        match &plan.body {
            PlanBody::Device(DevicePlan::Copy { from, to, bytes }) => {
                batch.copy(recv + *to as u64, send + *from as u64, *bytes);
            }
            PlanBody::Device(DevicePlan::Run(program)) => {
                let reduction = Task::from(call).reduction();
                let parameter = parameter(call.dtype, reduction, *nranks);
                let operands = WorkOperands { send, recv, parameter, history: watch.history() };
                let number = batch.number(rank.signals.launched());
                // SAFETY: the caller's promise.
                let work = unsafe { rank.work(program, operands, batch.at, number)? };
                batch.work(work, program.lanes);
            }
            PlanBody::Compiled(_) | PlanBody::Interpreted(_) => return Err(no_device()),
        }
        Ok(())
    }

    /// Adds an all-to-all, gather or scatter of uneven blocks.
    unsafe fn queue_pairs(
        &mut self,
        call: &VectorCall<'_>,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let signature = CallSignature::of_unknown_lengths(call.collective, call.dtype);
        let (hash, history) = (signature.extend(0) as u32, self.watch.history());
        let (transfers, own) = self.pairs(call);
        if let Some((from, to, bytes)) = own {
            batch.copy(to as u64, from as u64, bytes);
        }
        // SAFETY: the caller's promise.
        match unsafe { self.queue_transfers(&transfers, hash, history, batch) } {
            Ok(()) => {
                self.watch.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// Adds transfers with other ranks; see [`exchange_with_peers`](Self::exchange_with_peers).
    unsafe fn queue_transfers(
        &mut self,
        transfers: &[Transfer],
        call: u32,
        history: u32,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let check = self.config.check_pointers;
        let Some(rank) = &mut self.device else { return Err(no_device()) };
        if check {
            let pointer = |transfer: &Transfer| match *transfer {
                Transfer::Send { data, .. } => data,
                Transfer::Receive { data, .. } => data.cast_const(),
            };
            let some = transfers.iter().filter(|transfer| transfer.bytes() > 0);
            let pointers: Vec<_> = some.map(pointer).collect();
            check_pointers(rank.gpu.device.driver(), &pointers)?;
        }
        if transfers.is_empty() {
            return Ok(());
        }
        let kept = rank.take_group_program(transfers, call)?;
        let operands = WorkOperands { send: 0, recv: 0, parameter: (0, false), history };
        let number = batch.number(rank.signals.launched());
        // SAFETY: the caller's promise.
        let work = unsafe { rank.work(&kept.program, operands, batch.at, number) };
        let lanes = kept.program.lanes;
        rank.keep_group_program(kept);
        batch.work(work?, lanes);
        Ok(())
    }

    /// Runs plan `number`, and waits for it.
    pub(super) unsafe fn run_on_device(&mut self, number: usize, call: &Call) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.wait_for(|comm, batch| comm.add_planned(number, call, batch)) }
    }

    /// Runs an all-to-all, gather or scatter of uneven blocks, and waits for it.
    pub(super) unsafe fn run_pairs_on_device(
        &mut self,
        call: &VectorCall<'_>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.wait_for(|comm, batch| comm.queue_pairs(call, batch)) }
    }

    /// Runs a group of transfers, and waits for it.
    pub(super) unsafe fn exchange_on_device(
        &mut self,
        transfers: &[Transfer],
    ) -> Result<(), Error> {
        let queued = DeviceCall::Transfers(transfers);
        // SAFETY: the caller's promise.
        unsafe { self.wait_for(|comm, batch| comm.queue(&queued, batch)) }
    }

    /// Queues on the communicator's own stream, behind what is on the default stream so far, and waits.
    unsafe fn wait_for(
        &mut self,
        queue: impl FnOnce(&mut Self, &mut LaunchBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.running()?;
        let Some(gpu) = self.gpu() else { return Err(no_device()) };
        let current = gpu.device.current().map_err(|error| self.fail(error.into()))?;
        let stream = self.device.as_ref().map_or(0, |rank| rank.stream.handle() as usize);
        let at = StreamPosition { stream, capture: None };
        let mut batch = LaunchBatch::new(at);
        queue(self, &mut batch)?;
        let follow = |rank: &DeviceRank| rank.follow_default_stream();
        self.on_rank(follow)?;
        // SAFETY: the caller's promise; the stream lives as long as the communicator.
        unsafe { launch_batches(&current, &gpu, at, &mut [BatchMember::new(self, batch)])? };
        self.on_rank(|rank| rank.stream.synchronize())?;
        self.running()
    }

    /// A call of the driver for which the other ranks may be waiting.
    fn on_rank(
        &mut self,
        call: impl FnOnce(&DeviceRank) -> Result<(), DriverError>,
    ) -> Result<(), Error> {
        let result = self.device.as_ref().map_or(Ok(()), |rank| call(rank));
        result.map_err(|error| self.fail(error.into()))
    }

    /// That nothing has ended the communicator's work on its device.
    fn running(&mut self) -> Result<(), Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let Some(rank) = &self.device else { return Ok(()) };
        if let Some(trouble) = rank.signals.kernel_error() {
            return Err(self.fail(trouble));
        }
        if rank.signals.is_aborted() {
            let error = self.watch.device_stop_error();
            return Err(self.fail(error));
        }
        Ok(())
    }
}

/// That the device reaches what these point to. One call of the driver for each; null is not asked for.
fn check_pointers(driver: &Driver, pointers: &[*const u8]) -> Result<(), Error> {
    for pointer in pointers.iter().filter(|pointer| !pointer.is_null()) {
        if !memory::is_known(driver, *pointer as u64)? {
            return Err(Error::InvalidArgument {
                what: format!(
                    "{pointer:p} is in pageable memory of the host, which the device does not reach: register it (cuMemHostRegister), or use pinned, managed or device memory"
                ),
            });
        }
    }
    Ok(())
}

#[cold]
fn no_device() -> Error {
    Error::internal("a call for a device in a communicator of host memory")
}
