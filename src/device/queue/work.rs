//! Binds a program and the operands of a call to a work that the kernel runs.

use maypole_cuda::driver::DriverError;
use maypole_cuda::launch::{self, DEPARTED_BYTES, KernelWork};

use super::device_rank::DeviceRank;
use super::program::{ALIGN, EncodedProgram, Program};
use super::work_order::StreamPosition;
use crate::error::Error;

/// What a program is run on.
#[derive(Clone, Copy)]
pub(crate) struct WorkOperands {
    /// The address of the send buffer.
    pub(crate) send: u64,
    /// The address of the receive buffer.
    pub(crate) recv: u64,
    /// What the operation needs to know ([`KernelWork::parameter`]), and whether it is an address.
    pub(crate) parameter: (u64, bool),
    /// A hash of all calls so far.
    pub(crate) history: u32,
}

impl DeviceRank {
    /// Prepares a program for its upload.
    ///
    /// # Errors
    /// There is no memory left.
    pub(crate) fn program(&self, encoded: EncodedProgram) -> Result<Program, Error> {
        Program::new(encoded, &self.program_memory, self.signals.finished())
    }

    /// The work that runs `program`, as number `number` of those that are launched. The launch sets
    /// its blocks. Queues the upload of the program, if it is not on the device.
    ///
    /// # Errors
    /// There is no memory left for scratch, or the upload fails.
    ///
    /// # Safety
    /// The stream of `at` exists.
    pub(crate) unsafe fn work(
        &mut self,
        program: &Program,
        operands: WorkOperands,
        at: StreamPosition,
        number: u64,
    ) -> Result<KernelWork, DriverError> {
        let captured = at.capture.is_some();
        let chunks = program.scratch_chunks as usize;
        let lengths = (chunks * size_of::<u32>()).next_multiple_of(ALIGN);
        let scratch = match chunks {
            0 => 0,
            _ => self.scratch.prepare(&self.gpu.pool, lengths + chunks * program.tile_bytes)?,
        };
        // SAFETY: the caller keeps the stream of `at` alive.
        unsafe { program.upload(&self.gpu, &self.stream, at)? };
        match &self.proxy {
            Some(proxy) if captured => proxy.captured(),
            Some(proxy) => proxy.expect(&program.expected),
            None => {}
        }
        if captured {
            program.captured.set(true);
        } else {
            program.last_work.set(number);
        }
        let (parameter, is_address) = operands.parameter;
        Ok(KernelWork {
            program: program.address(),
            sending: self.sending_table(),
            receiving: self.receiving_table(),
            input: operands.send,
            output: operands.recv,
            scratch: scratch + lengths as u64,
            scratch_lengths: scratch,
            lanes: program.address() + program.lanes_at as u64,
            departed: self.departed(captured),
            abort: self.signals.abort_address(),
            error: self.signals.kernel_error_address(),
            finished: self.signals.finished_address(captured),
            parameter,
            operation: program.operation | if is_address { launch::ADDRESS } else { 0 },
            tag: operands.history,
            first_block: 0,
            blocks: 0,
            protocol: program.protocol,
            element: program.element_bytes,
        })
    }
}

const _: () = assert!(DEPARTED_BYTES <= ALIGN);
