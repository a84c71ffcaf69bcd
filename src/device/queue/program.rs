//! A program of a rank in device memory.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

use maypole_cuda::driver::DriverError;
use maypole_cuda::launch::LANE_STATE_BYTES;
use maypole_cuda::stream::{CudaStream, RelaxedCapture};

use super::work_order::StreamPosition;
use crate::device::memory::program_memory::{ProgramBlock, ProgramMemory};
use crate::device::setup::gpu::Gpu;
use crate::error::Error;

/// The alignment of the parts of a block and of scratch memory.
pub(super) const ALIGN: usize = 256;

/// The words of a program, and what else a work needs to know about it.
pub(crate) struct EncodedProgram {
    pub(crate) words: Vec<u32>,
    pub(crate) lanes: u32,
    /// The number of scratch chunks.
    pub(crate) scratch_chunks: u32,
    /// Bytes of a tile.
    pub(crate) tile_bytes: usize,
    /// See [`KernelWork::operation`](maypole_cuda::launch::KernelWork).
    pub(crate) operation: u32,
    /// Bytes of an element.
    pub(crate) element_bytes: u32,
    /// See [`KernelWork::protocol`](maypole_cuda::launch::KernelWork).
    pub(crate) protocol: u32,
    /// For each link through the proxy: its number, and how many messages the program receives
    /// from it.
    pub(crate) expected: Vec<(usize, u64)>,
}

/// A program in device memory, or on its way there.
pub(crate) struct Program {
    memory: Arc<ProgramMemory>,
    /// Present until the program is dropped.
    block: Option<ProgramBlock>,
    /// The offset of the states of the lanes, zeros at first, which follow the words.
    pub(super) lanes_at: usize,
    /// Bytes of the words and the states of the lanes.
    bytes: usize,
    pub(crate) lanes: u32,
    pub(super) scratch_chunks: u32,
    pub(super) tile_bytes: usize,
    pub(super) operation: u32,
    pub(super) element_bytes: u32,
    pub(super) protocol: u32,
    /// See [`EncodedProgram::expected`].
    pub(super) expected: Vec<(usize, u64)>,
    /// Whether the program is on the device, or its copy is queued before every use.
    uploaded: Cell<bool>,
    /// The number of the last work that uses the program.
    pub(super) last_work: Cell<u64>,
    /// Whether a graph uses the program.
    pub(super) captured: Cell<bool>,
}

impl Program {
    /// Prepares a program for its upload. `finished` is the number of the rank's finished works.
    ///
    /// # Errors
    /// There is no memory left.
    pub(super) fn new(
        encoded: EncodedProgram,
        memory: &Arc<ProgramMemory>,
        finished: u64,
    ) -> Result<Self, Error> {
        let words = &encoded.words[..];
        let lanes_at = size_of_val(words).next_multiple_of(ALIGN);
        let bytes = lanes_at + encoded.lanes as usize * LANE_STATE_BYTES;
        let _relaxed = RelaxedCapture::begin(memory.device().driver())?;
        let block = memory.take(bytes, finished)?;
        let host = block.staging.host().as_ptr();
        // SAFETY: the staging memory of the block has at least `bytes`, and only this program uses
        // it: an earlier upload from there has ended, since all works of its program have.
        unsafe {
            host.write_bytes(0, bytes);
            host.copy_from_nonoverlapping(words.as_ptr().cast(), size_of_val(words));
        }
        Ok(Self {
            memory: memory.clone(),
            block: Some(block),
            lanes_at,
            bytes,
            lanes: encoded.lanes,
            scratch_chunks: encoded.scratch_chunks,
            tile_bytes: encoded.tile_bytes,
            operation: encoded.operation,
            element_bytes: encoded.element_bytes,
            protocol: encoded.protocol,
            expected: encoded.expected,
            uploaded: Cell::new(false),
            last_work: Cell::new(0),
            captured: Cell::new(false),
        })
    }

    /// The device address of the program.
    pub(super) fn address(&self) -> u64 {
        self.block().memory.address()
    }

    fn block(&self) -> &ProgramBlock {
        self.block.as_ref().expect("the block is present until the program is dropped")
    }

    /// Copies the program to the device, unless that has been done: in the stream of `at` before
    /// what is queued there next, or at once through `own` if the stream of `at` is captured, since
    /// the copy must not become part of a graph.
    ///
    /// # Safety
    /// The stream of `at` exists.
    pub(super) unsafe fn upload(
        &self,
        gpu: &Gpu,
        own: &CudaStream,
        at: StreamPosition,
    ) -> Result<(), DriverError> {
        if self.uploaded.get() {
            return Ok(());
        }
        let block = self.block();
        let (to, from) = (block.memory.address(), block.staging.address());
        if at.capture.is_none() {
            // SAFETY: the caller keeps the stream of `at` alive.
            let stream = unsafe { CudaStream::foreign(&gpu.device, at.stream as *mut c_void) };
            // SAFETY: both are at least `bytes` long. The block is given to another program only
            // after the works that use this one have finished, and so after the copy.
            unsafe { stream.copy(to, from, self.bytes)? };
        } else {
            let _relaxed = RelaxedCapture::begin(gpu.device.driver())?;
            // SAFETY: both are at least `bytes` long, and the copy has ended when this returns.
            unsafe { own.copy(to, from, self.bytes)? };
            own.synchronize()?;
        }
        self.uploaded.set(true);
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            if self.captured.get() {
                self.memory.keep_captured(block);
            } else {
                self.memory.give_back(block, self.last_work.get());
            }
        }
    }
}
