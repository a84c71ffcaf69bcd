//! The collectives that can be benchmarked: how many bytes they move by nccl-tests' counting, and what must come out.

use maypole::Collective;

use crate::data::{Data, PERIOD};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    /// The name on the command line.
    pub(crate) name: &'static str,
    /// Which of the two buffers holds a block per rank.
    layout: Layout,
    /// Contributions are combined: there is a type of reduction.
    pub(crate) reduces: bool,
    /// There is a root.
    pub(crate) rooted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Both buffers hold one block.
    Equal,
    /// The send buffer holds a block for each rank.
    WideSend,
    /// The receive buffer holds a block of each rank.
    WideRecv,
}

/// All that can be benchmarked.
pub(crate) const OPERATIONS: [Operation; 4] = [
    Operation { name: "all_reduce", layout: Layout::Equal, reduces: true, rooted: false },
    Operation { name: "all_gather", layout: Layout::WideRecv, reduces: false, rooted: false },
    Operation { name: "reduce_scatter", layout: Layout::WideSend, reduces: true, rooted: false },
    Operation { name: "broadcast", layout: Layout::Equal, reduces: false, rooted: true },
];

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

impl Operation {
    /// The operation of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        OPERATIONS.into_iter().find(|o| o.name == name)
    }

    /// The library's name of it.
    pub(crate) fn collective(self, root: u32) -> Collective {
        match self.name {
            "all_reduce" => Collective::AllReduce,
            "all_gather" => Collective::AllGather,
            "reduce_scatter" => Collective::ReduceScatter,
            _ => Collective::Broadcast { root },
        }
    }

    /// Elements per block for a size of `bytes`: rounded down to whole elements, for the collectives with a block per
    /// rank to blocks of whole 16 bytes.
    pub(crate) fn count(self, bytes: usize, element: usize, nranks: u32) -> usize {
        let elements = bytes / element;
        match self.layout {
            Layout::Equal => elements,
            _ => (elements / nranks as usize) & !(16 / element - 1),
        }
    }

    /// Elements of the send buffer.
    pub(crate) fn send_elements(self, count: usize, nranks: u32) -> usize {
        if self.layout == Layout::WideSend { count * nranks as usize } else { count }
    }

    /// Elements of the receive buffer.
    pub(crate) fn recv_elements(self, count: usize, nranks: u32) -> usize {
        if self.layout == Layout::WideRecv { count * nranks as usize } else { count }
    }

    /// In place: the element of the one buffer at which the send buffer begins, and that at which the receive buffer does.
    pub(crate) fn in_place(self, rank: u32, count: usize) -> (usize, usize) {
        let own = rank as usize * count;
        match self.layout {
            Layout::Equal => (0, 0),
            Layout::WideSend => (0, own),
            Layout::WideRecv => (own, 0),
        }
    }

    /// The elements counted as the size of an operation.
    pub(crate) fn size_elements(self, count: usize, nranks: u32) -> usize {
        self.send_elements(count, nranks).max(self.recv_elements(count, nranks))
    }

    /// Bus bandwidth over algorithm bandwidth: what a link carries, whatever the number of ranks.
    pub(crate) fn bus_factor(self, nranks: u32) -> f64 {
        let n = f64::from(nranks);
        match self.name {
            "all_reduce" => 2.0 * (n - 1.0) / n,
            "broadcast" => 1.0,
            _ => (n - 1.0) / n,
        }
    }

    /// What the receive buffer of `rank` must hold.
    pub(crate) fn expected(self, data: &Data, rank: u32, root: u32, count: usize) -> Vec<Expected> {
        let reduced = |start| Expected { source: data.reduced(start + count), start, len: count };
        let of = |rank| Expected { source: data.contribution(rank, count), start: 0, len: count };
        match self.name {
            "all_reduce" => vec![reduced(0)],
            "reduce_scatter" => vec![reduced(rank as usize * count)],
            "all_gather" => (0..data.nranks).map(of).collect(),
            _ => vec![of(root)],
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
    use maypole_algorithms::{DType, RedOp};

    use super::*;

    #[test]
    fn sizes_are_those_of_nccl_tests() {
        let [all_reduce, all_gather, reduce_scatter, broadcast] = OPERATIONS;
        assert_eq!(all_reduce.count(15, 4, 3), 3);
        assert_eq!(broadcast.count(7, 8, 3), 0);
        assert_eq!(all_gather.count(1024, 4, 3), 84);
        assert_eq!(all_gather.size_elements(84, 3), 252);
        assert_eq!(reduce_scatter.send_elements(84, 3), 252);
        assert_eq!(reduce_scatter.recv_elements(84, 3), 84);
        assert_eq!(reduce_scatter.in_place(2, 84), (0, 168));
        assert_eq!(all_gather.in_place(2, 84), (168, 0));
        assert_eq!(all_reduce.bus_factor(4), 1.5);
        assert_eq!(all_gather.bus_factor(4), 0.75);
        assert_eq!(broadcast.bus_factor(4), 1.0);
    }

    #[test]
    fn expected_blocks_cover_the_receive_buffer() {
        let data = Data { dtype: DType::Uint8, op: Some(RedOp::Sum), nranks: 3, seed: 1 };
        let count = 2 * PERIOD + 32;
        for operation in OPERATIONS {
            let expected = operation.expected(&data, 1, 2, count);
            let bytes: usize = expected.iter().flat_map(|e| e.pieces(1)).map(<[u8]>::len).sum();
            assert_eq!(bytes, operation.recv_elements(count, 3), "{}", operation.name);
        }
    }

    #[test]
    fn pieces_continue_where_the_block_begins() {
        let data = Data { dtype: DType::Uint8, op: Some(RedOp::Sum), nranks: 3, seed: 1 };
        let whole = data.reduced(PERIOD);
        let expected =
            Operation::named("reduce_scatter").unwrap().expected(&data, 2, 0, PERIOD / 2 - 3);
        let bytes: Vec<u8> = expected[0].pieces(1).flatten().copied().collect();
        assert_eq!(
            bytes[..],
            whole[PERIOD - 7..][..7].iter().chain(&whole).copied().collect::<Vec<_>>()
                [..bytes.len()]
        );
    }
}
