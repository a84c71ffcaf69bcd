//! What one rank does in an operation: the elements that it sends and receives, their place in the
//! buffer in place, and the expected result.

use std::sync::Arc;

use maypole_algorithms::{DType, RedOp};

use super::Operation;
use super::traffic::Traffic;
use crate::data::{PERIOD, TestData};

/// What a rank does in one row of the table.
#[derive(Clone, Debug)]
pub(crate) struct RankWork {
    /// The collective.
    pub(crate) operation: Operation,
    /// The element type.
    pub(crate) dtype: DType,
    /// The reduction; None for a collective that does not reduce.
    pub(crate) op: Option<RedOp>,
    /// The root; None for a collective without one.
    pub(crate) root: Option<u32>,
    /// Elements per block, as in the column of counts.
    pub(crate) count: usize,
    /// The rank.
    pub(crate) rank: u32,
    /// The number of ranks.
    pub(crate) nranks: u32,
    /// The elements that each rank sends to each, for alltoallv.
    pub(crate) traffic: Option<Arc<Traffic>>,
}

/// A run of expected elements: `len` elements of `source`, which is repeated, from element `start`
/// on.
#[derive(Clone, Debug)]
pub(crate) struct ExpectedElements {
    /// The elements of one period, or all if they are fewer.
    pub(crate) source: Vec<u8>,
    /// The index of the first element.
    pub(crate) start: usize,
    /// How many elements.
    pub(crate) len: usize,
}

impl RankWork {
    /// The elements of one block for each rank.
    fn all_blocks(&self) -> usize {
        self.count * self.nranks as usize
    }

    fn is_root(&self) -> bool {
        self.root == Some(self.rank)
    }

    /// The elements that this rank sends.
    pub(crate) fn send_elements(&self) -> usize {
        match (self.operation, &self.traffic) {
            (Operation::AllToAllV, Some(traffic)) => traffic.sent(self.rank),
            (Operation::Broadcast, _) if !self.is_root() => 0,
            (Operation::Scatter, _) if !self.is_root() => 0,
            (Operation::ReduceScatter | Operation::AllToAll | Operation::Scatter, _) => {
                self.all_blocks()
            }
            _ => self.count,
        }
    }

    /// The elements that this rank receives.
    pub(crate) fn recv_elements(&self) -> usize {
        match (self.operation, &self.traffic) {
            (Operation::AllToAllV, Some(traffic)) => traffic.received(self.rank),
            (Operation::Reduce | Operation::Gather, _) if !self.is_root() => 0,
            (Operation::AllGather | Operation::AllToAll, _) => self.all_blocks(),
            (Operation::Gather | Operation::Hypercube, _) => self.all_blocks(),
            _ => self.count,
        }
    }

    /// The size in the column of sizes, in elements.
    pub(crate) fn size_elements(&self) -> usize {
        match &self.traffic {
            Some(traffic) => traffic.largest(),
            None => self.operation.size_elements(self.count, self.nranks),
        }
    }

    /// The elements of the one buffer at which the send part and the receive part begin, in place.
    pub(crate) fn in_place(&self) -> (usize, usize) {
        let own = self.rank as usize * self.count;
        match self.operation {
            Operation::ReduceScatter | Operation::Scatter => (0, own),
            Operation::AllGather | Operation::Gather | Operation::Hypercube => (own, 0),
            _ => (0, 0),
        }
    }

    /// The elements of the one buffer, in place.
    pub(crate) fn in_place_elements(&self) -> usize {
        let (send, recv) = self.in_place();
        (send + self.send_elements()).max(recv + self.recv_elements())
    }

    /// What the receive buffer must hold after the call; empty if this rank receives nothing.
    pub(crate) fn expected(&self, data: &TestData) -> Vec<ExpectedElements> {
        let Self { count, rank, nranks, .. } = *self;
        let own = rank as usize * count;
        let reduced =
            |start| ExpectedElements { source: data.reduced(start + count), start, len: count };
        let from = |rank, start, len| ExpectedElements {
            source: data.contribution(rank, start + len),
            start,
            len,
        };
        match self.operation {
            Operation::Reduce | Operation::Gather if !self.is_root() => Vec::new(),
            Operation::AllReduce | Operation::Reduce => vec![reduced(0)],
            Operation::ReduceScatter => vec![reduced(own)],
            Operation::AllGather | Operation::Gather | Operation::Hypercube => {
                (0..nranks).map(|rank| from(rank, 0, count)).collect()
            }
            Operation::Broadcast => vec![from(self.root.unwrap_or(0), 0, count)],
            Operation::Scatter => vec![from(self.root.unwrap_or(0), own, count)],
            Operation::AllToAll => (0..nranks).map(|rank| from(rank, own, count)).collect(),
            Operation::SendRecv => vec![from((rank + nranks - 1) % nranks, 0, count)],
            Operation::AllToAllV => match &self.traffic {
                Some(traffic) => (0..nranks)
                    .map(|peer| from(peer, traffic.before(peer, rank), traffic.count(peer, rank)))
                    .collect(),
                None => Vec::new(),
            },
        }
    }
}

impl ExpectedElements {
    /// The expected bytes in pieces, in order.
    pub(crate) fn pieces(&self, element: usize) -> impl Iterator<Item = &[u8]> {
        let period = PERIOD * element;
        let mut at = self.start % PERIOD * element;
        let mut left = self.len * element;
        std::iter::from_fn(move || {
            let len = left.min(period - at);
            let piece = (len > 0).then(|| &self.source[at..at + len]);
            left -= len;
            at = 0;
            piece
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 2 * PERIOD + 32;

    fn work(operation: Operation, rank: u32, count: usize) -> RankWork {
        let traffic = Traffic::generated(3, 3 * count, 1.0, 1);
        RankWork {
            operation,
            dtype: DType::Uint8,
            op: operation.reduces().then_some(RedOp::Sum),
            root: operation.rooted().then_some(2),
            count,
            rank,
            nranks: 3,
            traffic: (operation == Operation::AllToAllV).then(|| Arc::new(traffic)),
        }
    }

    fn data(op: Option<RedOp>) -> TestData {
        TestData { dtype: DType::Uint8, op, nranks: 3, seed: 1 }
    }

    fn bytes(expected: &[ExpectedElements]) -> Vec<u8> {
        expected.iter().flat_map(|e| e.pieces(1)).flatten().copied().collect()
    }

    #[test]
    fn expected_blocks_cover_the_receive_buffer() {
        for operation in Operation::ALL {
            for rank in 0..3 {
                let work = work(operation, rank, COUNT);
                let expected = bytes(&work.expected(&data(work.op)));
                assert_eq!(expected.len(), work.recv_elements(), "{} {rank}", operation.name());
            }
        }
    }

    /// The expected data of collectives that only move data, built block by block from the
    /// contributions alone.
    #[test]
    fn data_goes_where_the_collective_sends_it() {
        let count = 160;
        let data = data(None);
        let sent = |rank: u32| data.contribution(rank, 3 * count);
        let block = |from: u32, which: usize| sent(from)[which * count..][..count].to_vec();
        for rank in 0..3 {
            let own = rank as usize;
            let expected = |operation| bytes(&work(operation, rank, count).expected(&data));
            let all = [block(0, 0), block(1, 0), block(2, 0)].concat();
            assert_eq!(expected(Operation::AllGather), all);
            assert_eq!(expected(Operation::Hypercube), all);
            assert_eq!(expected(Operation::Gather), if rank == 2 { all } else { Vec::new() });
            assert_eq!(expected(Operation::Broadcast), block(2, 0));
            assert_eq!(expected(Operation::Scatter), block(2, own));
            assert_eq!(expected(Operation::SendRecv), block((rank + 2) % 3, 0));
            let blocks = [block(0, own), block(1, own), block(2, own)].concat();
            assert_eq!(expected(Operation::AllToAll), blocks);
            // 480 elements by distance: 0 to the rank itself, 160 to the next, 320 to the one
            // after.
            let block = |from: usize, to: usize| 160 * ((to + 3 - from) % 3);
            let mut blocks = Vec::new();
            for from in 0..3 {
                let begin: usize = (0..own).map(|to| block(from, to)).sum();
                blocks.extend_from_slice(&sent(from as u32)[begin..][..block(from, own)]);
            }
            assert_eq!(expected(Operation::AllToAllV), blocks);
        }
    }

    #[test]
    fn in_place_parts_are_where_nccl_requires_them() {
        assert_eq!(work(Operation::AllGather, 2, 84).in_place(), (168, 0));
        assert_eq!(work(Operation::ReduceScatter, 2, 84).in_place(), (0, 168));
        assert_eq!(work(Operation::Gather, 2, 84).in_place(), (168, 0));
        assert_eq!(work(Operation::Scatter, 1, 84).in_place(), (0, 84));
        assert_eq!(work(Operation::Scatter, 1, 84).in_place_elements(), 168);
        assert_eq!(work(Operation::Gather, 1, 84).in_place_elements(), 168);
        assert_eq!(work(Operation::Gather, 2, 84).in_place_elements(), 252);
        assert_eq!(work(Operation::AllReduce, 2, 84).in_place(), (0, 0));
    }

    #[test]
    fn pieces_begin_in_the_middle_of_a_period() {
        let whole = data(Some(RedOp::Sum)).reduced(PERIOD);
        let work = work(Operation::ReduceScatter, 2, PERIOD / 2 - 3);
        let bytes = bytes(&work.expected(&data(Some(RedOp::Sum))));
        let continued: Vec<u8> = whole[PERIOD - 7..].iter().chain(&whole).copied().collect();
        assert_eq!(bytes[..], continued[..bytes.len()]);
    }
}
