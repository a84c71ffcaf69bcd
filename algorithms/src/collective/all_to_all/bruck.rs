//! Bruck's all-to-all: a block for the rank at distance `o` makes hops over the powers of two that
//! sum up to `o`, the smallest first, so every rank exchanges with `ceil(log2 n)` others instead of
//! `n-1`. For any number of ranks.
//!
//! Call *offset* `o` at a rank the block that is `o` ranks from its source to its destination. In
//! round `k` every rank sends the offsets that have bit `k` to the rank `2^k` above and receives as
//! many from the rank `2^k` below.
//!
//! * steps: `ceil(log2 n)` rounds of about `n/2` sends in one lane, as many receives and the copy
//!   of the rank's own block in another
//! * bytes sent per rank: about `(n/2) log2(n) m` for blocks of `m` bytes
//! * cost: `ceil(log2 n) a + (n/2) log2(n) m b`
//! * scratch: `n` chunks from 8 ranks on, none below
//! * class: canonical (nothing is reduced)
//! * wins: small blocks at many ranks: below about `2 a / (b log2 n)` bytes
//! * source: J. Bruck et al., "Efficient algorithms for all-to-all communications in multiport
//!   message-passing systems", IEEE TPDS 8 (1997). What the paper aggregates in one message is here
//!   sent as several messages of a round that follow each other on one link. With the skips of a
//!   circulant graph (J. L. Träff et al.) in place of powers of two there are as many rounds, and
//!   up to a tenth fewer hops just above a power of two, 1.3 % on average up to 3000 ranks; we know
//!   no closed form for the hops of a round, so there is no such variant.
//!
//! Where blocks are kept between hops: not in the memory where the next block of the same offset is
//! received in the round. Otherwise a rank whose memory is lent could receive only after its
//! neighbour has received, and so on around the circle. Before its last hop, offset `o` is kept in
//! the output of offset `o-1`. That offset has its own last hop in the same round (or `o` would
//! have one bit and no earlier hop), but after that of `o`, since offsets come in descending order.
//! Before earlier hops, offset `o` is kept in scratch, in two chunks in turn. The receive of each
//! hop waits until the message of the hop before is released. This also frees the scratch before
//! the tile ends; the output is other memory in every tile.

use crate::pattern::hops::{Hop, Hops};
use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-to-all over powers of two.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("bruck", Collective::AllToAll);
    }
    // Offset 7 is the first with three hops.
    let scratch = if nranks < 8 { 0 } else { nranks };
    let program = Bruck { hops: Hops { nranks } };
    Schedule::new("bruck", Collective::AllToAll, nranks, 1, program)
        .with_scratch(scratch)
        .canonical()
}

struct Bruck {
    hops: Hops,
}

/// The lane that sends; hop `i` of [`Hops`] is step `i` of either lane.
const SEND: u32 = 0;
/// The lane that receives.
const RECEIVE: u32 = 1;

impl Bruck {
    /// The operand that holds an offset that still has `left` hops to make.
    fn place(&self, rank: Rank, offset: u32, left: u32) -> Operand {
        let nranks = self.hops.nranks;
        match left {
            0 => output(before(rank, offset, nranks)),
            _ if left.is_multiple_of(2) => scratch(offset),
            _ => output(before(rank, offset - 1, nranks)),
        }
    }

    fn send(&self, rank: Rank, hop: Hop) -> Step {
        let nranks = self.hops.nranks;
        let to = peer(after(rank, 1 << hop.bit, nranks), 0);
        match hop.earlier() {
            None => Step::new([input(after(rank, hop.offset, nranks))], [to]),
            Some(earlier) => Step::new([self.place(rank, hop.offset, hop.left() + 1)], [to])
                .after(RECEIVE, self.hops.index(earlier)),
        }
    }

    fn receive(&self, rank: Rank, hop: Hop) -> Step {
        let from = peer(before(rank, 1 << hop.bit, self.hops.nranks), 0);
        let mut step = Step::new([from], [self.place(rank, hop.offset, hop.left())]);
        // The steps that sent from memory that other offsets use next.
        if let Some(earlier) = hop.earlier().filter(|e| e.earlier().is_some()) {
            step = step.after(SEND, self.hops.index(earlier));
        }
        // The offset that is kept where this offset's last hop ends.
        let guest = Hop { offset: hop.offset + 1, ..hop };
        if hop.left() == 0 && guest.offset < self.hops.nranks && guest.offset >> hop.bit == 1 {
            step = step.after(SEND, self.hops.index(guest));
        }
        step
    }
}

impl Program for Bruck {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        // The rank's own block is last, since peers wait for theirs.
        self.hops.count() + u32::from(lane == RECEIVE)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if lane == SEND {
            return self.send(rank, self.hops.hop(index));
        }
        if index == self.hops.count() {
            return Step::new([input(rank)], [output(rank)]);
        }
        self.receive(rank, self.hops.hop(index))
    }
}
