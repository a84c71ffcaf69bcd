//! Fills the buffers with new test data, and compares the results with the expected elements.

use std::sync::Arc;

use maypole::{DType, RedOp};

use super::rank::RankBench;
use crate::data::TestData;
use crate::operation::Operation;
use crate::operation::calls::WorkCalls;
use crate::operation::traffic::Traffic;
use crate::operation::work::{ExpectedElements, RankWork};
use crate::status::Failure;

/// What one row of the table measures.
#[derive(Clone, Copy)]
pub(super) struct MeasuredCase {
    /// The element type.
    pub(super) dtype: DType,
    /// The reduction; None for a collective that does not reduce.
    pub(super) op: Option<RedOp>,
    /// The root; None for a collective without one.
    pub(super) root: Option<u32>,
    /// The size that the options ask for.
    pub(super) bytes: usize,
}

impl RankBench<'_> {
    /// What this rank does in a case.
    pub(super) fn work(&self, case: MeasuredCase) -> Result<RankWork, Failure> {
        let MeasuredCase { dtype, op, root, bytes } = case;
        let (rank, nranks) = (self.group.rank, self.group.nranks);
        let (operation, element) = (self.options().operation, dtype.size());
        let mut count = operation.count(bytes, element, nranks);
        let mut traffic = None;
        if operation == Operation::AllToAllV {
            traffic = Some(Arc::new(match &self.run.matrix {
                Some(matrix) => {
                    count = 0;
                    matrix.traffic(nranks, element, bytes)?
                }
                None => {
                    let total = count * nranks as usize * element;
                    Traffic::generated(nranks, total, self.options().variables.spread, element)
                }
            }));
        }
        Ok(RankWork { operation, dtype, op, root, count, rank, nranks, traffic })
    }

    /// Replaces the buffers by ones that begin some elements after the start of a page, if the
    /// options ask for that.
    pub(super) fn shift_buffers(&mut self, dtype: DType) -> Result<(), Failure> {
        match self.options().unaligned {
            0 => Ok(()),
            elements => self.allocate(elements * dtype.size()),
        }
    }

    /// Prepares the buffers for the work, and returns the calls that do it. In place, only the
    /// receive buffer is used.
    pub(super) fn set_up(&mut self, work: &RankWork, in_place: bool, data: &TestData) -> WorkCalls {
        let element = work.dtype.size();
        let sent = work.send_elements();
        let source = data.contribution(work.rank, sent);
        let scalar = if data.op == Some(RedOp::PreMulSum) { data.scalar(work.rank) } else { 0 };
        if in_place {
            let (send, recv) = work.in_place();
            self.recv.prepare(work.in_place_elements() * element);
            self.recv.fill(&source, send, sent, element);
            let base = self.recv.pointer();
            let [send, recv] = [send, recv].map(|at| base.wrapping_add(at * element));
            return WorkCalls::new(work, send, recv, scalar);
        }
        self.send.prepare(sent * element);
        self.send.fill(&source, 0, sent, element);
        self.recv.prepare(work.recv_elements() * element);
        WorkCalls::new(work, self.send.pointer(), self.recv.pointer(), scalar)
    }

    /// Makes one call with new data. Returns how many elements and guard bytes are wrong on this
    /// rank.
    pub(super) fn check(&mut self, work: &RankWork, in_place: bool) -> Result<u64, Failure> {
        let element = work.dtype.size();
        let data = self.next_data(work);
        let calls = self.set_up(work, in_place, &data);
        // No call may read a peer's buffer before the peer has filled it: the data of the
        // measurement before could make a wrong result look right.
        self.thread.barrier()?;
        self.call(&calls)?;
        let at = if in_place { work.in_place().1 } else { 0 };
        let expected = work.expected(&data);
        if self.options().variables.corrupt {
            self.recv.corrupt((at + work.recv_elements()) * element);
        }
        let mut wrong =
            self.recv.wrong_elements(&expected, at, element) + self.recv.damaged_guard_bytes();
        if !in_place {
            let len = work.send_elements();
            let source = data.contribution(work.rank, len);
            let sent = [ExpectedElements { source, start: 0, len }];
            wrong += self.send.wrong_elements(&sent, 0, element) + self.send.damaged_guard_bytes();
        }
        Ok(wrong)
    }

    /// The next set of test data; the same on all ranks.
    pub(super) fn next_data(&mut self, work: &RankWork) -> TestData {
        self.seed += 1;
        // The operation of a sendrecv is only a word in the table.
        let op = work.op.filter(|_| work.operation.reduces());
        TestData { dtype: work.dtype, op, nranks: work.nranks, seed: self.seed }
    }
}
