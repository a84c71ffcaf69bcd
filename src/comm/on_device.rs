//! Calls of a communicator for a CUDA device. They are queued on a stream of the caller, or on the
//! communicator's own stream, and then waited for.

use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::{CurrentContext, Driver, DriverError};
use maypole_cuda::memory;
use maypole_reduce::environment::DefaultEnvironment;
use maypole_transport::endpoint::Endpoint;
use maypole_transport::fault::FaultInjector;
use maypole_transport::inbox::InboxLayout;

use super::Communicator;
use super::rank_info::RankInfo;
use super::run::overwritten_bytes;
use super::setup::CommunicatorSetup;
use super::stream_calls::DeviceCall;
use super::stream_calls::batch::{BatchMember, LaunchBatch, launch_batches};
use super::vector::VectorRun;
use crate::call::{Call, Task, VectorCall};
use crate::call_signature::CallSignature;
use crate::channels::FIRST_OF_SCHEDULES;
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
use crate::proxy::Connect;
use crate::transfer::{self, Transfer};

/// The number of ranks on the device of rank `me`, including it. If there are several, the lowest
/// of them logs a warning.
pub(super) fn ranks_on_device(ranks: &[RankInfo], me: Rank) -> u32 {
    let own = &ranks[me as usize];
    let Some(device) = &own.device else { return 0 };
    let same = |info: &RankInfo| {
        let same_uuid = info.device.as_ref().is_some_and(|other| other.uuid == device.uuid);
        same_uuid && info.host.same_machine(&own.host)
    };
    let sharing: Vec<usize> = (0..ranks.len()).filter(|rank| same(&ranks[*rank])).collect();
    if sharing.len() > 1 && sharing[0] == me as usize {
        log::warn!(
            "ranks {sharing:?} share CUDA device {} of {}: their kernels take turns or have few \
             blocks each; give each rank a device of its own",
            device.ordinal,
            own.host.name
        );
    }
    sharing.len() as u32
}

/// What all links of a communicator have in common. All ranks compute the same from their
/// rank info.
pub(super) struct LinkTerms {
    /// The most bytes of a tile.
    pub(super) slot_bytes: usize,
    /// The slots of every link.
    pub(super) depth: u32,
    /// Every link can carry LL messages.
    pub(super) ll: bool,
    /// The channels that a schedule may use, if any rank is on a device.
    pub(super) device_channels: Option<Channel>,
}

/// The terms of a communicator whose links over the transport have `layout`.
pub(super) fn link_terms(
    config: &Config,
    setup: &CommunicatorSetup,
    layout: InboxLayout,
) -> LinkTerms {
    let InboxLayout { nranks, slot_bytes, depth, .. } = layout;
    if setup.ranks.iter().all(|info| info.device.is_none()) {
        return LinkTerms { slot_bytes, depth, ll: !setup.any_tcp, device_channels: None };
    }
    let shape = DeviceInboxLayout::new(config, nranks);
    let device_channels = Some(shape.channels - FIRST_OF_SCHEDULES);
    if setup.needs_proxy {
        let (slot_bytes, depth) = (slot_bytes.min(shape.slot_bytes), depth.min(shape.depth));
        return LinkTerms { slot_bytes, depth, ll: false, device_channels };
    }
    let (slot_bytes, depth) = (shape.slot_bytes, shape.depth);
    LinkTerms { slot_bytes, depth, ll: true, device_channels }
}

/// A rank on host memory, in a communicator some of whose ranks are on devices.
pub(super) fn host_rank(ranks: &[RankInfo]) -> Option<Rank> {
    let mixed = ranks.iter().any(|info| info.device.is_some());
    let on_host = ranks.iter().position(|info| info.device.is_none());
    on_host.filter(|_| mixed).map(|rank| rank as Rank)
}

/// The function by which the proxy connects to a rank.
pub(super) fn proxy_connector(
    endpoint: Arc<Endpoint>,
    addresses: Vec<Vec<u8>>,
    faults: Option<FaultInjector>,
) -> Connect {
    Box::new(move |peer, channel, until| {
        endpoint.connect(peer, &addresses[peer as usize], until)?;
        let ends = endpoint.open(peer, channel)?;
        Ok(match &faults {
            Some(faults) => faults.wrap(peer, channel, ends),
            None => ends,
        })
    })
}

/// The function by which the proxy learns whether work is queued on the device.
pub(super) fn work_is_queued(signals: &Arc<DeviceSignals>) -> Box<dyn Fn() -> bool + Send + Sync> {
    let signals = signals.clone();
    Box::new(move || !signals.is_idle())
}

/// What the proxy does with an error: it tells all ranks, which then end their work on devices.
pub(super) fn proxy_failure(shared: Arc<ControlShared>) -> Box<dyn FnOnce(Error) + Send> {
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

    /// The most thread blocks of a call.
    pub(crate) fn device_blocks(&self) -> u32 {
        self.device.as_ref().map_or(1, |rank| rank.most_blocks)
    }

    /// Records that `works` more works are about to be launched.
    pub(crate) fn launching(&self, works: u64) {
        let Some(rank) = &self.device else { return };
        if rank.signals.launch(works) {
            self.host.control.watch_device();
        }
        if let Some(proxy) = &rank.proxy {
            proxy.launched();
        }
    }

    /// Records that `works` works were not launched after all.
    pub(crate) fn not_launched(&self, works: u64) {
        if let Some(rank) = &self.device {
            rank.signals.not_launched(works);
        }
    }

    /// Whether works are not yet known to run on a stream of this handle.
    pub(crate) fn is_new_stream(&self, stream: usize) -> bool {
        self.device.as_ref().is_some_and(|rank| rank.order.last_stream() != Some(stream))
    }

    /// Makes everything that is queued at `at` from now on begin after all works so far.
    ///
    /// # Safety
    /// The stream of `at` is a live stream of the device. `current` is the device's context.
    pub(crate) unsafe fn follow(
        &mut self,
        current: &CurrentContext<'_>,
        gpu: &Gpu,
        at: StreamPosition,
    ) -> Result<(), DriverError> {
        match &mut self.device {
            // SAFETY: the caller's promise.
            Some(rank) => unsafe { rank.order.follow(current, gpu, &rank.signals, at) },
            None => Ok(()),
        }
    }

    /// Notes that works were launched at `at`.
    ///
    /// # Safety
    /// The stream of `at` is a live stream of the device.
    pub(crate) unsafe fn launched_at(
        &self,
        gpu: &Gpu,
        at: StreamPosition,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        self.device.as_ref().map_or(Ok(()), |rank| unsafe { rank.order.launched(gpu, at) })
    }

    /// Plans a call and adds it to `batch`. From then on it counts as made.
    ///
    /// # Safety
    /// As for [`launch_calls`](crate::launch_calls).
    pub(crate) unsafe fn queue(
        &mut self,
        queued: &DeviceCall<'_>,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        self.host.control.check_fork()?;
        self.running()?;
        // Factors are rounded here.
        let _environment = DefaultEnvironment::enter();
        if let Some(host) = self.membership.host_rank.filter(|_| batch.at.capture.is_some()) {
            return Err(Error::Unsupported {
                what: format!(
                    "capturing calls of a communicator with ranks on host memory, such as rank \
                     {host}: a graph is replayed on devices only, and those ranks would not \
                     take part"
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
                let number = self.plan_among(call, algorithms)?;
                // SAFETY: the caller's promise.
                unsafe { self.queue_planned(number, call, batch) }
            }
            DeviceCall::Vector(call) => match self.plan_vector(call)? {
                // SAFETY: the caller's promise.
                VectorRun::Planned(number, call) => unsafe {
                    self.queue_planned(Some(number), &call, batch)
                },
                // SAFETY: the caller's promise.
                VectorRun::Transfers => unsafe { self.queue_vector_transfers(call, batch) },
                VectorRun::Nothing => Ok(()),
            },
            DeviceCall::Transfers(transfers) => {
                self.check_transfers(transfers)?;
                for (from, to, bytes) in transfer::own_copies(transfers, self.rank)? {
                    batch.copy(to as u64, from as u64, bytes);
                }
                let with_peers = transfers.iter().filter(|transfer| transfer.peer() != self.rank);
                let transfers: Vec<_> = with_peers.copied().collect();
                // Transfers are not calls of all ranks, so they carry no hash of one.
                // SAFETY: the caller's promise.
                unsafe { self.queue_transfers(&transfers, 0, 0, batch) }.map_err(|e| self.fail(e))
            }
            DeviceCall::Barrier => {
                let number = self.plan_of_barrier()?;
                let call = self.barrier_call(std::ptr::null(), std::ptr::null_mut());
                // SAFETY: the caller's promise; the barrier uses memory of the communicator.
                unsafe { self.queue_planned(number, &call, batch) }
            }
        }
    }

    /// Adds a call by plan `number`; nothing if there is none, for a call of no elements.
    ///
    /// # Safety
    /// As for [`launch_calls`](crate::launch_calls).
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
                self.host.control.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// Adds a call by plan `number`, without counting it.
    ///
    /// # Safety
    /// As for [`launch_calls`](crate::launch_calls).
    unsafe fn add_planned(
        &mut self,
        number: usize,
        call: &Call,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let Self { plans, device: Some(rank), host, membership, nranks, .. } = self else {
            return Err(no_device());
        };
        let plan = plans.get(number);
        if membership.config.check_pointers {
            let pointers = [call.send, call.recv.cast_const()];
            check_pointers(rank.gpu.device.driver(), &pointers)?;
        }
        let (send, recv) = (call.send as u64, call.recv as u64);
        match &plan.body {
            PlanBody::Device(DevicePlan::Copy { from, to, bytes }) => {
                batch.copy(recv + *to as u64, send + *from as u64, *bytes);
            }
            PlanBody::Device(DevicePlan::Run(program)) => {
                let overwritten =
                    if plan.needs_check { overwritten_bytes(call, *nranks) } else { None };
                let send = match overwritten {
                    Some(bytes) => {
                        // All works of the communicator run one after the other, and a copy is
                        // queued behind those before it.
                        let copy = rank.send_copy(bytes)?;
                        batch.copy(copy, send, bytes);
                        copy
                    }
                    None => send,
                };
                let reduction = Task::from(call).reduction();
                let parameter = parameter(call.dtype, reduction, *nranks);
                let operands =
                    WorkOperands { send, recv, parameter, history: host.control.history() };
                let number = batch.number(rank.signals.launched());
                // SAFETY: the caller's promise.
                let work = unsafe { rank.work(program, operands, batch.at, number)? };
                batch.work(work, program.lanes);
            }
            PlanBody::Compiled(_) | PlanBody::Interpreted(_) => return Err(no_device()),
        }
        Ok(())
    }

    /// Adds an all-to-all, gather or scatter whose blocks differ in length.
    ///
    /// # Safety
    /// As for [`launch_calls`](crate::launch_calls).
    unsafe fn queue_vector_transfers(
        &mut self,
        call: &VectorCall<'_>,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let signature = CallSignature::of_unknown_lengths(call.collective, call.dtype);
        let (hash, history) = (signature.extend(0) as u32, self.host.control.history());
        let mut transfers = Vec::new();
        let own = self.vector_transfers(call, &mut transfers);
        if let Some((from, to, bytes)) = own {
            batch.copy(to as u64, from as u64, bytes);
        }
        // SAFETY: the caller's promise.
        match unsafe { self.queue_transfers(&transfers, hash, history, batch) } {
            Ok(()) => {
                self.host.control.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// Adds transfers with other ranks; see [`exchange_with_peers`](Self::exchange_with_peers).
    ///
    /// # Safety
    /// As for [`launch_calls`](crate::launch_calls).
    unsafe fn queue_transfers(
        &mut self,
        transfers: &[Transfer],
        call: u32,
        history: u32,
        batch: &mut LaunchBatch,
    ) -> Result<(), Error> {
        let check = self.membership.config.check_pointers;
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

    /// Runs `call` by plan `number`, and waits for it.
    ///
    /// # Safety
    /// As for [`run`](Self::run), with memory that the device reaches.
    pub(super) unsafe fn run_device_plan(
        &mut self,
        number: usize,
        call: &Call,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.wait_for(|comm, batch| comm.add_planned(number, call, batch)) }
    }

    /// Runs an all-to-all, gather or scatter whose blocks differ in length, and waits for it.
    ///
    /// # Safety
    /// As for [`run_vector`](Self::run_vector), with memory that the device reaches.
    pub(super) unsafe fn run_vector_on_device(
        &mut self,
        call: &VectorCall<'_>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.wait_for(|comm, batch| comm.queue_vector_transfers(call, batch)) }
    }

    /// Runs a group of transfers, and waits for it.
    ///
    /// # Safety
    /// As for [`exchange`](Self::exchange), with memory that the device reaches.
    pub(super) unsafe fn exchange_on_device(
        &mut self,
        transfers: &[Transfer],
    ) -> Result<(), Error> {
        let queued = DeviceCall::Transfers(transfers);
        // SAFETY: the caller's promise.
        unsafe { self.wait_for(|comm, batch| comm.queue(&queued, batch)) }
    }

    /// Queues calls on the communicator's own stream, behind what is on the default stream so far,
    /// and waits for them.
    ///
    /// # Safety
    /// The memory of the calls stays valid until this returns.
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
        unsafe { launch_batches(&current, &gpu, vec![BatchMember::new(self, batch)])? };
        self.on_rank(|rank| rank.stream.synchronize())?;
        self.running()
    }

    /// Makes a call of the driver. If it fails, all ranks are told: they may be waiting for it.
    fn on_rank(
        &mut self,
        call: impl FnOnce(&DeviceRank) -> Result<(), DriverError>,
    ) -> Result<(), Error> {
        let result = self.device.as_ref().map_or(Ok(()), |rank| call(rank));
        result.map_err(|error| self.fail(error.into()))
    }

    /// Checks that nothing has ended the communicator's work on its device.
    fn running(&mut self) -> Result<(), Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let Some(rank) = &self.device else { return Ok(()) };
        if let Some(trouble) = rank.signals.kernel_error() {
            return Err(self.fail(trouble));
        }
        if rank.signals.is_aborted() {
            let error = self.host.control.device_stop_error();
            return Err(self.fail(error));
        }
        Ok(())
    }
}

/// Checks that the device reaches the memory of all `pointers` but null ones, by one call of the
/// driver for each.
fn check_pointers(driver: &Driver, pointers: &[*const u8]) -> Result<(), Error> {
    for pointer in pointers.iter().filter(|pointer| !pointer.is_null()) {
        if !memory::is_known(driver, *pointer as u64)? {
            return Err(Error::InvalidArgument {
                what: format!(
                    "{pointer:p} is in pageable memory of the host, which the device does not \
                     reach: register it (cuMemHostRegister), or use pinned, managed or \
                     device memory"
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
