//! Runs collective calls: finds or makes the plan of a call, and executes it.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Collective, DType, RedOp, Schedule};
use maypole_reduce::environment::DefaultEnvironment;
use maypole_reduce::{FoldKernel, Reduction};
use maypole_transport::ll::LL_CAPACITY;

use super::Communicator;
use super::backend::HostBackend;
use crate::call::{Call, Task, no_such_root};
use crate::call_signature::{CallSignature, signature_of};
use crate::channels;
use crate::engine::CallBuffers;
use crate::engine::compiled::CompiledExecution;
use crate::engine::interpreter::Interpreter;
use crate::engine::wait::WaitLoop;
use crate::error::Error;
use crate::plan::{Plan, PlanBody, PlanKey, Plans, proofs};
use crate::tune::{AlgorithmFilter, Choice};

impl Communicator {
    /// Runs a collective call; returns when its result is in the receive buffer. A call of no
    /// elements returns at once.
    ///
    /// # Errors
    /// Calls that differ between ranks, dead or aborted peers, settings that exclude all
    /// algorithms. The communicator is then broken on all ranks, except where the call was refused
    /// before anything was sent ([`Error::is_harmless`]).
    ///
    /// # Safety
    /// The send and receive buffers are valid for the extents that the call implies (see [`Call`]).
    /// During the call nobody else writes to them or reads the receive buffer. They are the same
    /// memory where `nccl.h` calls that in place, and do not overlap otherwise; those of an
    /// all-to-all may overlap, also partly.
    #[inline]
    pub unsafe fn run(&mut self, call: &Call) -> Result<(), Error> {
        self.host.control.check_fork()?;
        let key = PlanKey::new(call);
        let number = match self.plans.find(&key) {
            Some(number) if self.broken.is_none() => number,
            _ => match self.prepare_collective(key, call)? {
                Some(number) => number,
                None => return Ok(()),
            },
        };
        // SAFETY: the caller's promise.
        unsafe { self.run_plan(number, call) }
    }

    /// The plan for calls like `call`, whose key is `key`; None for a call of no elements.
    #[cold]
    pub(super) fn prepare_collective(
        &mut self,
        key: PlanKey,
        call: &Call,
    ) -> Result<Option<usize>, Error> {
        self.prepare(&Task::from(call), |plans, plan| plans.insert(key, plan))
    }

    /// The same as [`run`](Self::run), by one of the algorithms that `algorithms` allows, whatever
    /// `NCCL_ALGO` says. All ranks must allow the same ones.
    ///
    /// # Errors
    /// Those of [`run`](Self::run). [`Error::InvalidUsage`], harmless on all ranks, if no such
    /// algorithm can run the call.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    pub unsafe fn run_among(
        &mut self,
        call: &Call,
        algorithms: &AlgorithmFilter,
    ) -> Result<(), Error> {
        self.host.control.check_fork()?;
        match self.plan_among(call, algorithms)? {
            // SAFETY: the caller's promise.
            Some(number) => unsafe { self.run_plan(number, call) },
            None => Ok(()),
        }
    }

    /// The plan for calls like `call` by one of these algorithms; None for a call of no elements.
    pub(super) fn plan_among(
        &mut self,
        call: &Call,
        algorithms: &AlgorithmFilter,
    ) -> Result<Option<usize>, Error> {
        let key = PlanKey::new(call);
        match self.plans.find_selected(&key, algorithms) {
            Some(number) if self.broken.is_none() => Ok(Some(number)),
            _ => {
                let _environment = DefaultEnvironment::enter();
                let usual = std::mem::replace(&mut self.tuner.algorithms, algorithms.clone());
                let task = Task::from(call);
                // A call for which no algorithm can be chosen is refused before it counts as made,
                // on all ranks.
                let chosen = match task.extents.longest() {
                    0 => Ok(()),
                    _ => self.tuner.choose(&task).map(drop),
                };
                let prepared = chosen.and_then(|()| {
                    self.prepare(&task, |plans, plan| {
                        plans.insert_selected(key, algorithms.clone(), plan)
                    })
                });
                self.tuner.algorithms = usual;
                prepared
            }
        }
    }

    /// Whether a plan for calls like `call` is kept, found in the same way as [`run`](Self::run)
    /// finds it. For the benchmark of that search.
    #[doc(hidden)]
    #[inline]
    pub fn finds_plan(&mut self, call: &Call) -> bool {
        self.plans.find(&PlanKey::new(call)).is_some()
    }

    /// Returns when all ranks have called it. What a rank did before its barrier is then done.
    ///
    /// A barrier is an all-reduce of one byte. It is proved of every algorithm that the result
    /// holds the contribution of every rank, so no rank can have it before all have begun.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn barrier(&mut self) -> Result<(), Error> {
        self.host.control.check_fork()?;
        let Some(number) = self.plan_of_barrier()? else { return Ok(()) };
        let (send, mut recv) = ([0u8; 1], [0u8; 1]);
        let call = self.barrier_call(send.as_ptr(), recv.as_mut_ptr());
        // SAFETY: each array holds one element.
        unsafe { self.run_plan(number, &call) }
    }

    /// The plan for barriers.
    pub(super) fn plan_of_barrier(&mut self) -> Result<Option<usize>, Error> {
        match self.plans.barrier() {
            Some(number) if self.broken.is_none() => Ok(Some(number)),
            _ => self.prepare(&Task::barrier(), Plans::insert_barrier),
        }
    }

    /// The all-reduce that is a barrier: of one byte at these addresses, or of one in memory of the
    /// communicator's device.
    pub(super) fn barrier_call(&self, send: *const u8, recv: *mut u8) -> Call {
        let own = self.device.as_ref().map(|rank| rank.signals.barrier_addresses());
        let (send, recv) = own.map_or((send, recv), |(s, r)| (s as *const u8, r as *mut u8));
        Call {
            collective: Collective::AllReduce,
            send,
            recv,
            count: 1,
            dtype: DType::Uint8,
            reduction: RedOp::Max.into(),
        }
    }

    /// Runs plan `number` on the memory of `call`, and counts the call as made.
    ///
    /// # Safety
    /// As for [`run`](Self::run); the plan is for calls like this one.
    #[inline]
    pub(super) unsafe fn run_plan(&mut self, number: usize, call: &Call) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        let result = self.catch(|comm| unsafe { comm.execute(number, call) });
        let signature = self.plans.get(number).signature;
        match result {
            Ok(()) => {
                self.host.control.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// Ends a call that failed with `error`, and the communicator with it if that is not harmless.
    #[cold]
    pub(super) fn fail_call(&mut self, signature: CallSignature, error: Error) -> Error {
        if error.is_harmless() {
            return self.refuse(signature, error);
        }
        self.host.control.begin_call(signature);
        let error = self.fail(error);
        self.refuse(signature, error)
    }

    /// Ends a call with `error`. It counts as made if other ranks may have learnt of it.
    #[cold]
    fn refuse(&mut self, signature: CallSignature, error: Error) -> Error {
        if error.is_harmless() {
            self.host.control.cancel_call();
        } else {
            self.host.control.end_call(signature);
        }
        error
    }

    /// Executes plan `number` on the memory of `call`.
    ///
    /// # Safety
    /// As for [`run_plan`](Self::run_plan).
    unsafe fn execute(&mut self, number: usize, call: &Call) -> Result<(), Error> {
        let _environment = DefaultEnvironment::enter();
        let plan = self.plans.get(number);
        let history = self.host.control.history();
        // Ranks whose earlier calls differed have different tags from then on, whatever this call
        // is.
        let tag = plan.tag ^ history;
        let mut buffers = CallBuffers { send: call.send, recv: call.recv };
        let rescaled;
        let kernel = if plan.needs_check {
            if self.device.is_none()
                && let Some(bytes) = overwritten_bytes(call, self.nranks)
            {
                // SAFETY: the caller's promise: the send buffer holds so many bytes.
                buffers.send = unsafe { self.host.send_copy.of(iter::once((call.send, bytes)))? };
            }
            let reduction = Task::from(call).reduction();
            self.check_factor(&reduction)?;
            rescaled = FoldKernel::select(call.dtype, reduction, self.nranks, self.host.isa);
            &rescaled
        } else {
            &plan.kernel
        };
        match &plan.body {
            PlanBody::Compiled(line) => {
                let mut execution = CompiledExecution {
                    buffers,
                    kernel,
                    tag,
                    links: &mut self.host.links,
                    scratch: self.host.scratch.base(line.scratch, LL_CAPACITY)?,
                    staging: &mut self.host.staging,
                    endpoint: &self.host.endpoint,
                    spin_policy: self.host.spin_policy,
                    watch: &self.host.control,
                    signature: &plan.signature,
                };
                // SAFETY: the caller's promise; scratch has just been made large enough.
                unsafe { execution.run(line) }
            }
            PlanBody::Interpreted(program) => {
                self.host.control.begin_call(plan.signature);
                let size = call.dtype.size();
                self.host.scratch.prepare(program.scratch, program.tile * size)?;
                let mut interpreter = Interpreter {
                    program,
                    buffers,
                    kernel: *kernel,
                    size,
                    scaled: plan.scaled,
                    non_temporal: plan.non_temporal,
                    history,
                    links: &mut self.host.links,
                    scratch: &mut self.host.scratch,
                };
                // SAFETY: the caller's promise.
                unsafe {
                    interpreter.run(WaitLoop::new(
                        &self.host.endpoint,
                        self.host.spin_policy,
                        &self.host.control,
                    ))
                }
            }
            // SAFETY: the caller's promise.
            PlanBody::Device(_) => unsafe { self.run_device_plan(number, call) },
        }
    }

    /// Makes the plan for `task` and gives it to `keep`, which returns its number. A call of no
    /// elements needs no plan and is over.
    #[cold]
    pub(super) fn prepare(
        &mut self,
        task: &Task,
        keep: impl FnOnce(&mut Plans, Plan) -> usize,
    ) -> Result<Option<usize>, Error> {
        self.prepare_with(task, Self::plan_chosen, keep)
    }

    /// The same as [`prepare`](Self::prepare), with the plan that `make` makes.
    #[cold]
    pub(super) fn prepare_with(
        &mut self,
        task: &Task,
        make: impl FnOnce(&mut Self, &Task) -> Result<Plan, Error>,
        keep: impl FnOnce(&mut Plans, Plan) -> usize,
    ) -> Result<Option<usize>, Error> {
        let _environment = DefaultEnvironment::enter();
        let signature = signature_of(task);
        if task.extents.longest() == 0 {
            self.host.control.end_call(signature);
            return Ok(None);
        }
        self.host.control.begin_call(signature);
        match self.plan_for(task, make) {
            Ok(plan) => Ok(Some(keep(&mut self.plans, plan))),
            Err(error) => Err(self.refuse(signature, error)),
        }
    }

    /// Makes the plan for `task`, unless the communicator is broken or the root does not exist.
    fn plan_for(
        &mut self,
        task: &Task,
        make: impl FnOnce(&mut Self, &Task) -> Result<Plan, Error>,
    ) -> Result<Plan, Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if let Some(root) = task.collective.root().filter(|&r| r >= self.nranks) {
            return Err(no_such_root(root, self.nranks));
        }
        self.catch(|comm| make(comm, task))
    }

    /// Runs a part of a call. A panic in it ends the communicator on all ranks, with the text of
    /// the panic: what it has left half done must not be used.
    #[inline]
    pub(super) fn catch<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        catch_unwind(AssertUnwindSafe(|| part(self)))
            .unwrap_or_else(|payload| Err(self.fail(Error::panic(&*payload))))
    }

    /// Makes the plan that the tuner chooses.
    fn plan_chosen(&mut self, task: &Task) -> Result<Plan, Error> {
        if let Collective::Broadcast { root } = task.collective
            && self.tuner.grouping.nodes() == 1
        {
            // Without nodes, the ranks differ in nothing that the choice depends on. The choice and
            // the proof for one root are those for all of them.
            let first = Task { collective: Collective::Broadcast { root: 0 }, ..task.clone() };
            let make = || {
                let (schedule, choice) = self.tuner.choose(&first)?;
                Ok((proofs::proved(schedule)?, choice))
            };
            let (proved, choice) = self.plans.broadcast(&first, make)?;
            let proved = proved.with_root(root).ok_or_else(|| no_such_root(root, self.nranks))?;
            return self.plan_proved(&proved, &choice, task);
        }
        let (schedule, choice) = self.tuner.choose(task)?;
        self.plan(schedule, &choice, task)
    }

    /// Proves `schedule` and binds it for calls like `task`.
    pub(super) fn plan(
        &mut self,
        schedule: Schedule,
        choice: &Choice,
        task: &Task,
    ) -> Result<Plan, Error> {
        self.plan_proved(&proofs::proved(schedule)?, choice, task)
    }

    /// Binds a schedule for calls like `task`.
    pub(super) fn plan_proved(
        &mut self,
        proved: &Proved,
        choice: &Choice,
        task: &Task,
    ) -> Result<Plan, Error> {
        log::info!(target: "TUNING", "{}: {choice}", signature_of(task));
        if let Some(device) = &mut self.device {
            let plan = Plan::on_device(proved, choice, task, self.rank, self.host.isa, device);
            return plan.map_err(|error| self.fail(error));
        }
        let deadline = self.membership.link_deadline();
        let HostBackend { isa, endpoint, addresses, links, control, .. } = &mut self.host;
        let plan =
            Plan::new(proved, choice, task, self.rank, *isa, links, |links, peer, channel| {
                let channel = channels::FIRST_OF_SCHEDULES + channel;
                links.open(endpoint, addresses, peer, channel, deadline, control)
            });
        // A failure must reach the other ranks, which wait for the links of this one.
        plan.map_err(|error| self.fail(error))
    }

    /// Checks that the factor of a reduction is not in device memory if the communicator is not.
    fn check_factor(&self, reduction: &Reduction) -> Result<(), Error> {
        if reduction.resident && self.device.is_none() {
            return Err(Error::InvalidArgument {
                what: String::from("a factor in device memory, in a communicator for host memory"),
            });
        }
        Ok(())
    }

    /// Ends the communicator because a call failed: tells all ranks, logs the error and keeps it.
    /// If another rank failed first, the error is that rank's.
    #[cold]
    pub(crate) fn fail(&mut self, error: Error) -> Error {
        if let Some(first) = &self.broken {
            return first.clone();
        }
        let error = self.host.control.fail(error);
        log::warn!("rank {}: {error}", self.rank);
        self.host.control.abort_peers(&error);
        self.host.links.withdraw(&self.host.endpoint);
        self.broken.get_or_insert(error).clone()
    }
}

/// The length of the send buffer if a rank would overwrite what it has not sent yet: an all-to-all
/// whose buffers overlap, except that of a single rank in place, which moves nothing. It is then
/// sent from a copy.
pub(super) fn overwritten_bytes(call: &Call, nranks: u32) -> Option<usize> {
    if call.collective != Collective::AllToAll {
        return None;
    }
    let bytes = call.count * nranks as usize * call.dtype.size();
    let apart = call.send.addr().abs_diff(call.recv.addr());
    (apart < bytes && (apart > 0 || nranks > 1)).then_some(bytes)
}
