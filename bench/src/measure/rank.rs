//! One rank of a benchmark: its communicator, its buffers, and the output of rank 0.

use std::io::Write;

use maypole::Communicator;

use super::ProcessRun;
use super::groups::RankGroup;
use crate::buffers::GuardedBuffer;
use crate::operation::calls::WorkCalls;
use crate::options::Options;
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
    comm: Communicator,
}

impl<'a> RankBench<'a> {
    pub(super) fn new(
        run: &'a ProcessRun,
        thread: &'a RankThread,
        comm: Communicator,
        group: RankGroup,
    ) -> Self {
        let Options { max_bytes, buffers, .. } = run.options;
        Self {
            run,
            thread,
            group,
            send: GuardedBuffer::new(max_bytes, 0, buffers),
            recv: GuardedBuffer::new(max_bytes, 0, buffers),
            seed: 0,
            prints: group.leader == 0 && group.rank == 0,
            comm,
        }
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
