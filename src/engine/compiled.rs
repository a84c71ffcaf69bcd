//! The execution of compiled plans: a sequence of stores and polls of cache lines, without queues,
//! state or allocation. This is the path of small messages.

use std::mem::MaybeUninit;

use maypole_transport::endpoint::Endpoint;
use maypole_transport::ll::{LL_CAPACITY, LL_LINE_PAYLOAD, LlPoll};
use maypole_transport::sync::full_fence;

use maypole_algorithms::schedule::MAX_FAN;
use maypole_reduce::{FoldKernel, FoldOperands};

use crate::call_signature::CallSignature;
use crate::control::ControlPlane;
use crate::engine::wait::WaitLoop;
use crate::engine::{CallBuffers, tag_mismatch};
use crate::error::Error;
use crate::links::Links;
use crate::plan::compiled::{CompiledOperand, CompiledPlan, CompiledStep};
use crate::spin_policy::SpinPolicy;

/// Memory for messages that are longer than one cache line, and for results that are only sent.
#[repr(C, align(64))]
pub(crate) struct LlStaging([[u8; LL_CAPACITY]; MAX_FAN + 1]);

impl Default for LlStaging {
    fn default() -> Self {
        Self([[0; LL_CAPACITY]; MAX_FAN + 1])
    }
}

/// What an execution needs besides its plan.
pub(crate) struct CompiledExecution<'a> {
    pub(crate) buffers: CallBuffers,
    pub(crate) kernel: &'a FoldKernel,
    /// The hash that every message of this call carries.
    pub(crate) tag: u32,
    pub(crate) links: &'a mut Links,
    /// Scratch chunks of [`LL_CAPACITY`] bytes each.
    pub(crate) scratch: *mut u8,
    pub(crate) staging: &'a mut LlStaging,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) spin_policy: SpinPolicy,
    pub(crate) watch: &'a ControlPlane,
    /// The call, which is reported to the control plane before a wait.
    pub(crate) signature: &'a CallSignature,
}

impl CompiledExecution<'_> {
    /// Runs the plan. After an error the communicator is broken.
    ///
    /// # Safety
    /// The buffers are valid for the extents that the plan was compiled for, and `scratch` for its
    /// chunks. Nothing else writes them during the call.
    #[inline]
    pub(crate) unsafe fn run(&mut self, plan: &CompiledPlan) -> Result<(), Error> {
        for step in &plan.steps {
            // SAFETY: the caller's promise.
            unsafe { self.run_step(step)? };
        }
        Ok(())
    }

    /// # Safety
    /// As for [`run`](Self::run), of whose plan this is a step.
    #[inline]
    unsafe fn run_step(&mut self, step: &CompiledStep) -> Result<(), Error> {
        // Left uninitialized, because clearing it would be a noticeable part of the cost of a small
        // message.
        let mut sources = [const { MaybeUninit::<*const u8>::uninit() }; MAX_FAN];
        for (i, &at) in step.inputs.iter().enumerate() {
            sources[i].write(match at {
                CompiledOperand::Message(link) => self.receive(link, i, step.bytes)?,
                // SAFETY: the operand is within its buffer, by the caller's promise.
                local => unsafe { self.address(local) },
            });
        }
        // SAFETY: the loop has written one source per input.
        let sources = unsafe { sources[..step.inputs.len()].assume_init_ref() };
        // SAFETY: as above; a message stays in its slot until the release below.
        let result = unsafe { self.compute(step, sources) };
        if !step.sends.is_empty() {
            for &link in &step.sends {
                // SAFETY: `result` holds the bytes of the step.
                unsafe { self.send(link, result, step.bytes)? };
            }
            full_fence();
            for &link in &step.sends {
                if let Some(ll) = &self.links.outgoing[link as usize].ll {
                    ll.doorbell().ring_fenced();
                }
            }
        }
        for &at in &step.inputs {
            if let CompiledOperand::Message(link) = at
                && let Some(ll) = &mut self.links.incoming[link as usize].ll
            {
                ll.release();
            }
        }
        Ok(())
    }

    /// Writes the result to the local outputs; returns an address where it can be read.
    ///
    /// # Safety
    /// As for [`run`](Self::run); the sources hold the bytes of the step.
    #[inline]
    unsafe fn compute(&mut self, step: &CompiledStep, sources: &[*const u8]) -> *const u8 {
        if step.copy {
            for &at in &step.outputs {
                // SAFETY: both hold the bytes of the step; they may be the same memory.
                unsafe { std::ptr::copy(sources[0], self.address(at), step.bytes) };
            }
            return sources[0];
        }
        let mut targets = [const { MaybeUninit::<*mut u8>::uninit() }; MAX_FAN];
        targets[0].write(self.staging.0[MAX_FAN].as_mut_ptr());
        for (target, &at) in targets.iter_mut().zip(&step.outputs) {
            // SAFETY: the operand is within its buffer, by the caller's promise.
            target.write(unsafe { self.address(at) });
        }
        // SAFETY: the first target is written above, each other one by the loop.
        let targets = unsafe { targets[..step.outputs.len().max(1)].assume_init_ref() };
        let operands = FoldOperands {
            inputs: sources,
            own: step.own,
            outputs: targets,
            non_temporal: 0,
            count: step.count,
            finish: step.finish,
        };
        // SAFETY: all operands hold `count` elements. Outputs overlap inputs only where the
        // schedule names the same chunk, so that they are exactly the same memory.
        unsafe { self.kernel.run(&operands) };
        targets[0]
    }

    /// Waits for the next message of a link; returns an address where it can be read until its
    /// release.
    #[inline]
    fn receive(&mut self, link: u32, staging: usize, bytes: usize) -> Result<*const u8, Error> {
        let Some(ll) = &mut self.links.incoming[link as usize].ll else {
            return Err(Error::internal("a compiled plan uses a link without LL messages"));
        };
        if ll.poll(bytes, self.tag) != LlPoll::Ready {
            self.watch.begin_call(*self.signature);
            let mut wait = WaitLoop::new(self.endpoint, self.spin_policy, self.watch);
            let ends = &self.links.ends;
            loop {
                match ll.poll(bytes, self.tag) {
                    LlPoll::Ready => break,
                    LlPoll::Pending => {
                        wait.pause(
                            || ll.wait_error(bytes, self.tag),
                            || Some(ends[link as usize].0),
                        )?;
                    }
                    LlPoll::Mismatch { seen_tag } => {
                        return Err(tag_mismatch(self.links.peer(link), self.tag, seen_tag));
                    }
                }
            }
        }
        if bytes <= LL_LINE_PAYLOAD {
            return Ok(ll.first_line());
        }
        let copy = self.staging.0[staging].as_mut_ptr();
        // SAFETY: the message has arrived, and a staging buffer holds the longest message.
        unsafe { ll.read(copy, bytes) };
        Ok(copy)
    }

    /// Waits for a free slot of a link and sends a message.
    ///
    /// # Safety
    /// `data` is valid for reads of `bytes` bytes, at most [`LL_CAPACITY`].
    #[inline]
    unsafe fn send(&mut self, link: u32, data: *const u8, bytes: usize) -> Result<(), Error> {
        let Some(ll) = &mut self.links.outgoing[link as usize].ll else {
            return Err(Error::internal("a compiled plan uses a link without LL messages"));
        };
        if !ll.ready() {
            self.watch.begin_call(*self.signature);
            let mut wait = WaitLoop::new(self.endpoint, self.spin_policy, self.watch);
            let ends = &self.links.ends;
            while !ll.ready() {
                wait.pause(|| ll.wait_error(), || Some(ends[link as usize].0))?;
            }
        }
        // SAFETY: a slot is free; `data` holds `bytes`, which are at most the capacity (checked
        // when the protocol was chosen).
        unsafe { ll.write(data, bytes, self.tag) };
        Ok(())
    }

    /// The address of a local operand.
    ///
    /// # Safety
    /// As for [`run`](Self::run), of whose plan this is an operand.
    #[inline]
    unsafe fn address(&self, operand: CompiledOperand) -> *mut u8 {
        // SAFETY: offsets are within the buffers, by the promise of the caller of `run`.
        unsafe {
            match operand {
                CompiledOperand::Send(offset) => self.buffers.send.add(offset).cast_mut(),
                CompiledOperand::Recv(offset) => self.buffers.recv.add(offset),
                CompiledOperand::Scratch(offset) => self.scratch.add(offset),
                CompiledOperand::Message(_) => unreachable!("a message has no fixed address"),
            }
        }
    }
}
