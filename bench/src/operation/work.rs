//! One operation as one rank does it: the elements that it gives and gets, where they lie in place, and what must come out.

use std::sync::Arc;

use maypole_algorithms::{DType, RedOp};

use super::Operation;
use super::traffic::Traffic;
use crate::data::{Data, PERIOD};

/// What a rank does in a line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// What.
    pub(crate) operation: Operation,
    /// Of what.
    pub(crate) dtype: DType,
    /// How contributions are combined; None where they are not.
    pub(crate) op: Option<RedOp>,
    /// The root; None where there is none.
    pub(crate) root: Option<u32>,
    /// Elements per block: the column of counts.
    pub(crate) count: usize,
    /// The rank.
    pub(crate) rank: u32,
    /// Of how many.
    pub(crate) nranks: u32,
    /// Elements from each rank to each rank, where blocks differ.
    pub(crate) traffic: Option<Arc<Traffic>>,
}

/// A run of expected elements: `len` elements of the period `source`, from element `start` of it on.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// A period of elements, or all there are if they are fewer.
    pub(crate) source: Vec<u8>,
    /// The index of the first element.
    pub(crate) start: usize,
    /// How many elements.
    pub(crate) len: usize,
}

impl Work {
    fn all(&self) -> usize {
        self.count * self.nranks as usize
    }

    fn is_root(&self) -> bool {
        self.root == Some(self.rank)
    }

    /// Elements that this rank gives.
    pub(crate) fn send_elements(&self) -> usize {
        match (self.operation, &self.traffic) {
            (Operation::AllToAllV, Some(traffic)) => traffic.sent(self.rank),
            (Operation::Broadcast, _) if !self.is_root() => 0,
            (Operation::Scatter, _) if !self.is_root() => 0,
            (Operation::ReduceScatter | Operation::AllToAll | Operation::Scatter, _) => self.all(),
            _ => self.count,
        }
    }

    /// Elements that this rank gets.
    pub(crate) fn recv_elements(&self) -> usize {
        match (self.operation, &self.traffic) {
            (Operation::AllToAllV, Some(traffic)) => traffic.received(self.rank),
            (Operation::Reduce | Operation::Gather, _) if !self.is_root() => 0,
            (Operation::AllGather | Operation::AllToAll, _) => self.all(),
            (Operation::Gather | Operation::Hypercube, _) => self.all(),
            _ => self.count,
        }
    }

    /// The column of sizes, in elements.
    pub(crate) fn size_elements(&self) -> usize {
        match &self.traffic {
            Some(traffic) => traffic.largest(),
            None => self.operation.size_elements(self.count, self.nranks),
        }
    }

    /// In place: the element of the one buffer at which the send buffer begins, and that at which the receive buffer does.
    pub(crate) fn in_place(&self) -> (usize, usize) {
        let own = self.rank as usize * self.count;
        match self.operation {
            Operation::ReduceScatter | Operation::Scatter => (0, own),
            Operation::AllGather | Operation::Gather | Operation::Hypercube => (own, 0),
            _ => (0, 0),
        }
    }

    /// In place: elements of the one buffer.
    pub(crate) fn in_place_elements(&self) -> usize {
        let (send, recv) = self.in_place();
        (send + self.send_elements()).max(recv + self.recv_elements())
    }

    /// What the receive buffer must hold afterwards; nothing where this rank gets nothing.
    pub(crate) fn expected(&self, data: &Data) -> Vec<Expected> {
        let Self { count, rank, nranks, .. } = *self;
        let own = rank as usize * count;
        let reduced = |start| Expected { source: data.reduced(start + count), start, len: count };
        let from = |rank, start, len| Expected {
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

impl Expected {
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

    fn work(operation: Operation, rank: u32, count: usize) -> Work {
        let traffic = Traffic::generated(3, 3 * count, 1.0, 1);
        Work {
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

    fn data(op: Option<RedOp>) -> Data {
        Data { dtype: DType::Uint8, op, nranks: 3, seed: 1 }
    }

    fn bytes(expected: &[Expected]) -> Vec<u8> {
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

    /// What is expected of collectives that move data, made from the contributions alone: block by block.
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
            let crossed = [block(0, own), block(1, own), block(2, own)].concat();
            assert_eq!(expected(Operation::AllToAll), crossed);
            // 480 elements by distance: none to itself, 160 to the next, 320 to the one after.
            let block = |from: usize, to: usize| 160 * ((to + 3 - from) % 3);
            let mut crossed = Vec::new();
            for from in 0..3 {
                let begin: usize = (0..own).map(|to| block(from, to)).sum();
                crossed.extend_from_slice(&sent(from as u32)[begin..][..block(from, own)]);
            }
            assert_eq!(expected(Operation::AllToAllV), crossed);
        }
    }

    #[test]
    fn in_place_the_own_block_is_where_nccl_wants_it() {
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
    fn pieces_continue_where_the_block_begins() {
        let whole = data(Some(RedOp::Sum)).reduced(PERIOD);
        let work = work(Operation::ReduceScatter, 2, PERIOD / 2 - 3);
        let bytes = bytes(&work.expected(&data(Some(RedOp::Sum))));
        let continued: Vec<u8> = whole[PERIOD - 7..].iter().chain(&whole).copied().collect();
        assert_eq!(bytes[..], continued[..bytes.len()]);
    }
}
