//! Runs a straight line: stores and polls of cache lines, no queue, no state, no allocation. The path of small messages.

use std::mem::MaybeUninit;

use maypole_transport::endpoint::Endpoint;
use maypole_transport::ll::{LL_CAPACITY, LL_LINE_PAYLOAD, LlPoll};
use maypole_transport::sync::full_fence;

use maypole_algorithms::schedule::MAX_FAN;

use crate::call_signature::CallSignature;
use crate::control::ControlPlane;
use crate::engine::wait::WaitLoop;
use crate::engine::{CallBuffers, mismatch};
use crate::error::Error;
use crate::links::Links;
use crate::plan::compiled::{CompiledOperand, CompiledPlan, CompiledStep};
use crate::reduce::{FoldKernel, FoldOperands};
use crate::spin_policy::SpinPolicy;

/// Memory for messages of more than one line and for results that are only sent.
#[repr(C, align(64))]
pub(crate) struct LlStaging([[u8; LL_CAPACITY]; MAX_FAN + 1]);

impl Default for LlStaging {
    fn default() -> Self {
        Self([[0; LL_CAPACITY]; MAX_FAN + 1])
    }
}

/// What a run needs besides its line.
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
    /// The call, to be made known before a wait.
    pub(crate) signature: &'a CallSignature,
}

impl CompiledExecution<'_> {
    /// Runs the line to its end. On an error the communicator is of no further use.
    ///
    /// # Safety
    /// The buffers are valid for the extents that the line was compiled for, `scratch` for its chunks, and nobody else writes
    /// them during the call.
    #[inline]
    pub(crate) unsafe fn run(&mut self, line: &CompiledPlan) -> Result<(), Error> {
        for op in &line.ops {
            // SAFETY: the caller's promise.
            unsafe { self.op(op)? };
        }
        Ok(())
    }

    #[inline]
    unsafe fn op(&mut self, op: &CompiledStep) -> Result<(), Error> {
        // Not cleared first: these few bytes are a part of what a small message costs.
        let mut sources = [const { MaybeUninit::<*const u8>::uninit() }; MAX_FAN];
        for (i, &at) in op.inputs.iter().enumerate() {
            sources[i].write(match at {
                CompiledOperand::Message(link) => self.message(link, i, op.bytes)?,
                // SAFETY: within the buffer, by the caller's promise.
                local => unsafe { self.address(local) },
            });
        }
        // SAFETY: the loop has written as many as there are inputs.
        let sources = unsafe { sources[..op.inputs.len()].assume_init_ref() };
        // SAFETY: as above; a line's message stays until its release below.
        let result = unsafe { self.compute(op, sources) };
        if !op.sends.is_empty() {
            for &link in &op.sends {
                // SAFETY: `result` holds the op's bytes.
                unsafe { self.send(link, result, op.bytes)? };
            }
            full_fence();
            for &link in &op.sends {
                if let Some(line) = &self.links.outgoing[link as usize].ll {
                    line.doorbell().ring_fenced();
                }
            }
        }
        for &at in &op.inputs {
            if let CompiledOperand::Message(link) = at
                && let Some(line) = &mut self.links.incoming[link as usize].ll
            {
                line.release();
            }
        }
        Ok(())
    }

    /// Writes the result to the local outputs; returns where it can be read.
    #[inline]
    unsafe fn compute(&mut self, op: &CompiledStep, sources: &[*const u8]) -> *const u8 {
        if op.copy {
            for &at in &op.outputs {
                // SAFETY: both hold the op's bytes; they may be the same memory.
                unsafe { std::ptr::copy(sources[0], self.address(at), op.bytes) };
            }
            return sources[0];
        }
        let mut targets = [const { MaybeUninit::<*mut u8>::uninit() }; MAX_FAN];
        targets[0].write(self.staging.0[MAX_FAN].as_mut_ptr());
        for (target, &at) in targets.iter_mut().zip(&op.outputs) {
            // SAFETY: within the buffer, by the caller's promise.
            target.write(unsafe { self.address(at) });
        }
        // SAFETY: the first is written above, each other one by the loop.
        let targets = unsafe { targets[..op.outputs.len().max(1)].assume_init_ref() };
        let pass = FoldOperands {
            inputs: sources,
            own: op.own,
            outputs: targets,
            non_temporal: 0,
            count: op.count,
            finish: op.finish,
        };
        // SAFETY: all operands hold `count` elements; outputs overlap inputs only where the schedule names the same
        // chunk, that is exactly.
        unsafe { self.kernel.run(&pass) };
        targets[0]
    }

    /// Waits for the next message of a link; returns where it can be read until its release.
    #[inline]
    fn message(&mut self, link: u32, staging: usize, bytes: usize) -> Result<*const u8, Error> {
        let Some(line) = &mut self.links.incoming[link as usize].ll else {
            return Err(Error::internal("a straight line over a link without lines"));
        };
        if line.poll(bytes, self.tag) != LlPoll::Ready {
            self.watch.begin_call(*self.signature);
            let mut wait = WaitLoop::new(self.endpoint, self.spin_policy, self.watch);
            let ends = &self.links.ends;
            loop {
                match line.poll(bytes, self.tag) {
                    LlPoll::Ready => break,
                    LlPoll::Pending => {
                        wait.idle(
                            || line.wait_error(bytes, self.tag),
                            || Some(ends[link as usize].0),
                        )?;
                    }
                    LlPoll::Mismatch { seen_tag } => {
                        return Err(mismatch(self.links.peer(link), self.tag, seen_tag));
                    }
                }
            }
        }
        if bytes <= LL_LINE_PAYLOAD {
            return Ok(line.first_line());
        }
        let copy = self.staging.0[staging].as_mut_ptr();
        // SAFETY: the message is there and a staging buffer holds the longest one.
        unsafe { line.read(copy, bytes) };
        Ok(copy)
    }

    #[inline]
    unsafe fn send(&mut self, link: u32, data: *const u8, bytes: usize) -> Result<(), Error> {
        let Some(line) = &mut self.links.outgoing[link as usize].ll else {
            return Err(Error::internal("a straight line over a link without lines"));
        };
        if !line.ready() {
            self.watch.begin_call(*self.signature);
            let mut wait = WaitLoop::new(self.endpoint, self.spin_policy, self.watch);
            let ends = &self.links.ends;
            while !line.ready() {
                wait.idle(|| line.wait_error(), || Some(ends[link as usize].0))?;
            }
        }
        // SAFETY: a slot is free; `data` holds `bytes`, at most the capacity (checked when the line was compiled).
        unsafe { line.write(data, bytes, self.tag) };
        Ok(())
    }

    #[inline]
    unsafe fn address(&self, at: CompiledOperand) -> *mut u8 {
        // SAFETY: offsets lie within the buffers, by the promise of `run`'s caller.
        unsafe {
            match at {
                CompiledOperand::Send(offset) => self.buffers.send.add(offset).cast_mut(),
                CompiledOperand::Recv(offset) => self.buffers.recv.add(offset),
                CompiledOperand::Scratch(offset) => self.scratch.add(offset),
                CompiledOperand::Message(_) => unreachable!("a message has no fixed address"),
            }
        }
    }
}
