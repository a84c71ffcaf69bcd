//! From a call to its plan, and from the plan to its result.

use std::time::{Duration, Instant};

use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Collective, DType, RedOp, Schedule};
use maypole_transport::ll::LL_CAPACITY;

use super::Communicator;
use crate::call::{Call, Task, no_such_root};
use crate::call_signature::CallSignature;
use crate::channels;
use crate::engine::CallBuffers;
use crate::engine::compiled::CompiledExecution;
use crate::engine::interpreter::Interpreter;
use crate::engine::wait::WaitLoop;
use crate::error::Error;
use crate::plan::{Plan, PlanBody, PlanKey, Plans, proofs};
use crate::reduce::{FoldKernel, Reduction};
use crate::tune::{AlgorithmFilter, Choice};

impl Communicator {
    /// Runs a collective call; returns when its result is there. A call of no elements does nothing, not even wait.
    ///
    /// # Errors
    /// Mismatched calls, dead or aborted peers, an algorithm that the settings exclude. The communicator is then broken, on all
    /// ranks, except where the call was refused before anything was sent ([`Error::is_harmless`]).
    ///
    /// # Safety
    /// Send and receive buffers are valid for the extents that the call implies (see [`Call`]), and nobody else writes
    /// them, or reads the receive buffer, during the call. They are the same memory where `nccl.h` calls that in place,
    /// and do not overlap otherwise.
    #[inline]
    pub unsafe fn run(&mut self, call: &Call) -> Result<(), Error> {
        self.watch.check_fork()?;
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

    /// The plan for calls like `call`, whose key it is; None for a call of no elements.
    #[cold]
    pub(super) fn prepare_collective(
        &mut self,
        key: PlanKey,
        call: &Call,
    ) -> Result<Option<usize>, Error> {
        self.prepare(&Task::from(call), |plans, plan| plans.insert(key, plan))
    }

    /// As [`run`](Self::run), by one of the algorithms that `algorithms` allows for it, whatever `NCCL_ALGO` says. All ranks must allow the
    /// same ones.
    ///
    /// # Errors
    /// What [`run`](Self::run) returns; [`Error::InvalidUsage`] if no such algorithm can run the call, which then had no effect
    /// on any rank.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    pub unsafe fn run_among(
        &mut self,
        call: &Call,
        algorithms: &AlgorithmFilter,
    ) -> Result<(), Error> {
        self.watch.check_fork()?;
        match self.number_among(call, algorithms)? {
            // SAFETY: the caller's promise.
            Some(number) => unsafe { self.run_plan(number, call) },
            None => Ok(()),
        }
    }

    /// The plan for calls like `call` by one of these algorithms; None for a call of no elements.
    pub(super) fn number_among(
        &mut self,
        call: &Call,
        algorithms: &AlgorithmFilter,
    ) -> Result<Option<usize>, Error> {
        let key = PlanKey::new(call);
        match self.plans.find_selected(&key, algorithms) {
            Some(number) if self.broken.is_none() => Ok(Some(number)),
            _ => {
                let usual = std::mem::replace(&mut self.tuner.algorithms, algorithms.clone());
                let task = Task::from(call);
                // What cannot be chosen is refused before it counts as a call, on this rank or any other.
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

    /// Whether a plan for calls like `call` is kept, found as [`run`](Self::run) finds it. There is no use for it but to measure that.
    #[cfg(feature = "bench")]
    #[inline]
    pub fn finds_plan(&mut self, call: &Call) -> bool {
        self.plans.find(&PlanKey::new(call)).is_some()
    }

    /// Returns when all ranks have called it: then whatever a rank did before its barrier is done.
    ///
    /// It is an all-reduce of one byte: that its result holds the contribution of every rank is proved of every algorithm, so no rank
    /// can have it before all have begun.
    ///
    /// # Errors
    /// What [`run`](Self::run) returns.
    pub fn barrier(&mut self) -> Result<(), Error> {
        self.watch.check_fork()?;
        let Some(number) = self.number_of_barrier()? else { return Ok(()) };
        let (send, mut recv) = ([0u8; 1], [0u8; 1]);
        let call = self.barrier_call(send.as_ptr(), recv.as_mut_ptr());
        // SAFETY: both arrays hold the one element.
        unsafe { self.run_plan(number, &call) }
    }

    /// The plan for barriers.
    pub(super) fn number_of_barrier(&mut self) -> Result<Option<usize>, Error> {
        let number = match self.plans.barrier {
            Some(number) if self.broken.is_none() => Some(number),
            _ => self.prepare(&Task::barrier(), |plans, plan| plans.add(plan))?,
        };
        self.plans.barrier = number;
        Ok(number)
    }

    /// A barrier as a call, of one byte at these places, or of one on the device that the communicator is for.
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

    /// Runs plan `number` on the memory of `call`, which the plan is for.
    #[inline]
    pub(super) unsafe fn run_plan(&mut self, number: usize, call: &Call) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        let result = unsafe { self.execute(number, call) };
        let signature = self.plans.get(number).signature;
        match result {
            Ok(()) => {
                self.watch.end_call(signature);
                Ok(())
            }
            Err(error) => Err(self.fail_call(signature, error)),
        }
    }

    /// The call fails with `error`.
    #[cold]
    pub(super) fn fail_call(&mut self, signature: CallSignature, error: Error) -> Error {
        if error.is_harmless() {
            return self.refuse(signature, error);
        }
        self.watch.begin_call(signature);
        let error = self.fail(error);
        self.refuse(signature, error)
    }

    /// The call ends with `error`, which counts as a call if others may have heard of it.
    #[cold]
    fn refuse(&mut self, signature: CallSignature, error: Error) -> Error {
        if error.is_harmless() {
            self.watch.cancel_call();
        } else {
            self.watch.end_call(signature);
        }
        error
    }

    unsafe fn execute(&mut self, number: usize, call: &Call) -> Result<(), Error> {
        let plan = self.plans.get(number);
        let history = self.watch.history();
        // Ranks whose calls ever differed meet with different tags, whatever the calls of today.
        let tag = plan.tag ^ history;
        let buffers = CallBuffers { send: call.send, recv: call.recv };
        let rescaled;
        let kernel = if plan.needs_check {
            check_in_place(call, self.nranks)?;
            let reduction = Task::from(call).reduction();
            self.check_factor(&reduction)?;
            rescaled = FoldKernel::select(call.dtype, reduction, self.nranks, self.isa);
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
                    links: &mut self.links,
                    scratch: self.scratch.base(line.scratch, LL_CAPACITY),
                    staging: &mut self.staging,
                    endpoint: &self.endpoint,
                    spin_policy: self.spin_policy,
                    watch: &self.watch,
                    signature: &plan.signature,
                };
                // SAFETY: the caller's promise; scratch was just made large enough.
                unsafe { execution.run(line) }
            }
            PlanBody::Interpreted(program) => {
                self.watch.begin_call(plan.signature);
                let size = call.dtype.size();
                self.scratch.prepare(program.scratch, program.tile * size);
                let mut interpreter = Interpreter {
                    program,
                    buffers,
                    kernel: *kernel,
                    size,
                    scaled: plan.scaled,
                    non_temporal: plan.non_temporal,
                    history,
                    links: &mut self.links,
                    scratch: &mut self.scratch,
                };
                // SAFETY: the caller's promise.
                unsafe {
                    interpreter.run(WaitLoop::new(&self.endpoint, self.spin_policy, &self.watch))
                }
            }
            // SAFETY: the caller's promise.
            PlanBody::Device(_) => unsafe { self.run_on_device(number, call) },
        }
    }

    /// Makes the plan for `task`, which `keep` keeps, or says why there can be none. A call of no elements needs none, and is over.
    #[cold]
    pub(super) fn prepare(
        &mut self,
        task: &Task,
        keep: impl FnOnce(&mut Plans, Plan) -> usize,
    ) -> Result<Option<usize>, Error> {
        self.prepare_with(task, Self::chosen, keep)
    }

    /// The same, with the plan that `make` makes.
    #[cold]
    pub(super) fn prepare_with(
        &mut self,
        task: &Task,
        make: impl FnOnce(&mut Self, &Task) -> Result<Plan, Error>,
        keep: impl FnOnce(&mut Plans, Plan) -> usize,
    ) -> Result<Option<usize>, Error> {
        let signature = CallSignature::of(task);
        if task.extents.longest() == 0 {
            self.watch.end_call(signature);
            return Ok(None);
        }
        self.watch.begin_call(signature);
        match self.plan_for(task, make) {
            Ok(plan) => Ok(Some(keep(&mut self.plans, plan))),
            Err(error) => Err(self.refuse(signature, error)),
        }
    }

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
        make(self, task)
    }

    /// The plan that the tuner wants.
    fn chosen(&mut self, task: &Task) -> Result<Plan, Error> {
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
        log::info!(target: "TUNING", "{}: {choice}", CallSignature::of(task));
        if let Some(device) = &mut self.device {
            let plan = Plan::on_device(proved, choice, task, self.rank, self.isa, device);
            return plan.map_err(|error| self.fail(error));
        }
        let deadline = self.link_deadline();
        let Self { rank, isa, endpoint, addresses, links, watch, .. } = self;
        let plan = Plan::new(proved, choice, task, *rank, *isa, links, |links, peer, channel| {
            let channel = channels::FIRST_OF_SCHEDULES + channel;
            links.open(endpoint, addresses, peer, channel, deadline, watch)
        });
        // The other ranks wait for this one's links.
        plan.map_err(|error| self.fail(error))
    }

    /// Until when a link must be open.
    pub(super) fn link_deadline(&self) -> Instant {
        let timeout = self.config.timeout.unwrap_or(Duration::MAX).min(self.options.timeout);
        Instant::now() + timeout
    }

    /// That the factor of a reduction is where this communicator reads it.
    fn check_factor(&self, reduction: &Reduction) -> Result<(), Error> {
        if reduction.resident && self.device.is_none() {
            return Err(Error::InvalidArgument {
                what: String::from(
                    "a factor in memory of a device, in a communicator of host memory",
                ),
            });
        }
        Ok(())
    }

    /// A call failed: tell all ranks, log it, remember it. What others saw first is the error here too.
    #[cold]
    pub(crate) fn fail(&mut self, error: Error) -> Error {
        if let Some(first) = &self.broken {
            return first.clone();
        }
        let error = self.watch.fail(error);
        log::warn!("rank {}: {error}", self.rank);
        self.watch.abort_peers(&error);
        self.links.withdraw(&self.endpoint);
        self.broken.get_or_insert(error).clone()
    }
}

/// All-to-all has no form in place: a rank would write over what it has not sent yet.
pub(super) fn check_in_place(call: &Call, nranks: u32) -> Result<(), Error> {
    let same = call.send == call.recv.cast_const();
    if call.collective == Collective::AllToAll && same && nranks > 1 {
        return Err(Error::InvalidArgument {
            what: String::from(
                "alltoall with the same send and receive buffer; it has no form in place, so give it two buffers",
            ),
        });
    }
    Ok(())
}
