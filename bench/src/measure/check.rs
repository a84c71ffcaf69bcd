//! Buffers filled with fresh data, and results compared with what must come out.

use std::sync::Arc;

use maypole::{DType, RedOp};

use super::rank::Bench;
use crate::buffers::Buffer;
use crate::data::Data;
use crate::operation::Operation;
use crate::operation::steps::Steps;
use crate::operation::traffic::Traffic;
use crate::operation::work::{Expected, Work};
use crate::status::Failure;

/// What a line of the table is about.
#[derive(Clone, Copy)]
pub(super) struct Case {
    /// The element type.
    pub(super) dtype: DType,
    /// The reduction; None where there is none.
    pub(super) op: Option<RedOp>,
    /// The root; None where there is none.
    pub(super) root: Option<u32>,
    /// The size asked for.
    pub(super) bytes: usize,
}

impl Bench<'_> {
    /// This rank's part of a case.
    pub(super) fn work(&self, case: Case) -> Result<Work, Failure> {
        let Case { dtype, op, root, bytes } = case;
        let (rank, nranks) = (self.group.rank, self.group.nranks);
        let (operation, element) = (self.options().operation, dtype.size());
        let mut count = operation.count(bytes, element, nranks);
        let mut traffic = None;
        if operation == Operation::AllToAllV {
            traffic = Some(Arc::new(match &self.team.matrix {
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
        Ok(Work { operation, dtype, op, root, count, rank, nranks, traffic })
    }

    /// Buffers that begin some elements behind the start of a page, if asked for.
    pub(super) fn shift(&mut self, dtype: DType) {
        let elements = self.options().unaligned;
        if elements > 0 {
            let shift = elements * dtype.size();
            self.send = Buffer::new(self.options().max_bytes, shift, self.options().buffers);
            self.recv = Buffer::new(self.options().max_bytes, shift, self.options().buffers);
        }
    }

    /// Prepares the buffers for the work, in place in the receive buffer alone.
    pub(super) fn set_up(&mut self, work: &Work, in_place: bool, data: &Data) -> Steps {
        let element = work.dtype.size();
        let sent = work.send_elements();
        let source = data.contribution(work.rank, sent);
        let scalar = if work.op == Some(RedOp::PreMulSum) { data.scalar(work.rank) } else { 0 };
        if in_place {
            let (send, recv) = work.in_place();
            self.recv.prepare(work.in_place_elements() * element);
            self.recv.fill(&source, send, sent, element);
            let base = self.recv.pointer();
            let [send, recv] = [send, recv].map(|at| base.wrapping_add(at * element));
            return Steps::new(work, send, recv, scalar);
        }
        self.send.prepare(sent * element);
        self.send.fill(&source, 0, sent, element);
        self.recv.prepare(work.recv_elements() * element);
        Steps::new(work, self.send.pointer(), self.recv.pointer(), scalar)
    }

    /// One call with fresh data; returns how much of the result is wrong on this rank.
    pub(super) fn check(&mut self, work: &Work, in_place: bool) -> Result<u64, Failure> {
        let element = work.dtype.size();
        let data = self.data(work);
        let steps = self.set_up(work, in_place, &data);
        // Nobody's call may see a peer that still prepares, or the data of the measurement would be as good.
        self.member.barrier()?;
        self.call(&steps)?;
        let at = if in_place { work.in_place().1 } else { 0 };
        let expected = work.expected(&data);
        if self.options().variables.corrupt {
            self.recv.corrupt((at + work.recv_elements()) * element);
        }
        let mut wrong = self.recv.wrong(&expected, at, element) + self.recv.damage();
        if !in_place {
            let len = work.send_elements();
            let source = data.contribution(work.rank, len);
            let sent = [Expected { source, start: 0, len }];
            wrong += self.send.wrong(&sent, 0, element) + self.send.damage();
        }
        Ok(wrong)
    }

    /// The next set of data; the same on all ranks.
    pub(super) fn data(&mut self, work: &Work) -> Data {
        self.seed += 1;
        Data { dtype: work.dtype, op: work.op, nranks: work.nranks, seed: self.seed }
    }
}
