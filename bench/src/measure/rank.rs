//! One rank of a benchmark: its communicator, its buffers, and the output of rank 0.

use std::io::Write;

use maypole::Communicator;

use super::ProcessRun;
use super::groups::RankGroup;
use super::resources;
use crate::buffers::GuardedBuffer;
use crate::operation::calls::WorkCalls;
use crate::options::{BufferMemory, Options};
use crate::rank_threads::RankThread;
use crate::status::Failure;

/// One rank.
pub(super) struct RankBench<'a> {
    pub(super) run: &'a ProcessRun,
    pub(super) thread: &'a RankThread,
    pub(super) group: RankGroup,
    pub(super) send: GuardedBuffer,
    pub(super) recv: GuardedBuffer,
    /// The number of the last set of test data; the same on all ranks.
    pub(super) seed: u64,
    /// Whether this rank prints; one of all ranks does.
    pub(super) prints: bool,
    /// The memory of this process in bytes after the communicators were made; 0 if the options do
    /// not ask for it.
    pub(super) memory_at_start: u64,
    comm: Communicator,
}

impl<'a> RankBench<'a> {
    /// # Errors
    /// A peer cannot be connected to, for the registration of the buffers.
    pub(super) fn new(
        run: &'a ProcessRun,
        thread: &'a RankThread,
        comm: Communicator,
        group: RankGroup,
    ) -> Result<Self, Failure> {
        // Ranks of a process end their initialization together, so that its memory can be told
        // from that of the buffers.
        let mut memory_at_start = 0;
        if run.options.memory {
            thread.barrier()?;
            memory_at_start = resources::memory();
            thread.barrier()?;
        }
        let mut bench = Self {
            run,
            thread,
            group,
            send: GuardedBuffer::empty(),
            recv: GuardedBuffer::empty(),
            seed: 0,
            prints: group.leader == 0 && group.rank == 0,
            memory_at_start,
            comm,
        };
        bench.allocate(0)?;
        Ok(bench)
    }

    /// Replaces the buffers by ones that begin `shift` bytes after the start of a page, and
    /// registers them if the options say so.
    ///
    /// # Errors
    /// A peer cannot be connected to.
    pub(super) fn allocate(&mut self, shift: usize) -> Result<(), Failure> {
        let Options { max_bytes, buffers, ref gpu, .. } = self.run.options;
        // Only memory of the library can be read in place by other processes.
        let memory = if gpu.registers() { BufferMemory::Library } else { buffers };
        for buffer in [&mut self.send, &mut self.recv] {
            *buffer = GuardedBuffer::new(max_bytes, shift, memory);
            if gpu.registers() {
                let (start, bytes) = buffer.region();
                self.comm.register(start, bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn options(&self) -> &'a Options {
        &self.run.options
    }

    /// Makes the calls once.
    #[inline]
    pub(super) fn call(&mut self, calls: &WorkCalls) -> Result<(), Failure> {
        // SAFETY: `set_up` made the calls, for these buffers. It made both large enough for the
        // work, and placed the data as in-place calls require.
        let result = unsafe { calls.run(&mut self.comm) };
        self.run.watchdog.count_step(self.thread.index);
        Ok(result?)
    }

    /// Writes the buffers anew with their present content, so that this processor's caches hold
    /// them and no other processor's do.
    pub(super) fn rewrite(&mut self) {
        self.send.rewrite();
        self.recv.rewrite();
    }

    /// Prints, if this rank is the one that prints.
    pub(super) fn print(&self, text: &str) -> Result<(), Failure> {
        if self.prints {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
                Failure::system(format!("cannot write the table to standard output: {error}"))
            })?;
        }
        Ok(())
    }
}
