//! Paths of messages in hops over powers of two: a message for the rank at distance `o` above makes
//! one hop over each `2^k` whose bit is set in `o`, the smallest first.
//!
//! Hops over the same distance form a round. Within a round the offsets come in descending order.

/// The hops that lead to the offsets `1..n`, for `n` ranks.
#[derive(Clone, Copy, Debug)]
pub struct Hops {
    /// The number of ranks, at least 2.
    pub nranks: u32,
}

/// A hop over `2^bit` of the message for `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The whole distance of the message.
    pub offset: u32,
    /// This hop's distance is `2^bit`.
    pub bit: u32,
}

impl Hop {
    /// The hop before this one.
    pub const fn earlier(self) -> Option<Self> {
        let below = self.offset & ((1 << self.bit) - 1);
        match below.checked_ilog2() {
            Some(bit) => Some(Self { bit, ..self }),
            None => None,
        }
    }

    /// The number of hops that the message makes after this one.
    pub const fn left(self) -> u32 {
        (self.offset >> self.bit).count_ones() - 1
    }
}

impl Hops {
    /// The number of rounds: `ceil(log2 n)`.
    pub const fn rounds(self) -> u32 {
        self.nranks.next_power_of_two().ilog2()
    }

    /// The number of offsets that have this bit.
    pub const fn in_round(self, bit: u32) -> u32 {
        let (whole, rest) = (self.nranks >> (bit + 1), self.nranks & ((2 << bit) - 1));
        (whole << bit) + rest.saturating_sub(1 << bit)
    }

    /// The number of hops.
    pub fn count(self) -> u32 {
        (0..self.rounds()).map(|bit| self.in_round(bit)).sum()
    }

    /// Hop number `index`. O(log n).
    pub fn hop(self, mut index: u32) -> Hop {
        let mut bit = 0;
        while index >= self.in_round(bit) {
            index -= self.in_round(bit);
            bit += 1;
        }
        let place = self.in_round(bit) - 1 - index;
        let offset = (place >> bit << (bit + 1)) | 1 << bit | (place & ((1 << bit) - 1));
        Hop { offset, bit }
    }

    /// The number of a hop. O(log n).
    pub fn index(self, Hop { offset, bit }: Hop) -> u32 {
        let before: u32 = (0..bit).map(|bit| self.in_round(bit)).sum();
        let place = (offset >> (bit + 1) << bit) | (offset & ((1 << bit) - 1));
        before + self.in_round(bit) - 1 - place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_is_reached_by_its_bits() {
        for nranks in 2..300 {
            let hops = Hops { nranks };
            let mut reached = vec![0; nranks as usize];
            for index in 0..hops.count() {
                let hop = hops.hop(index);
                assert_eq!(hops.index(hop), index);
                let reached = &mut reached[hop.offset as usize];
                let earlier = hop.earlier().map_or(0, |e| hop.offset & ((2 << e.bit) - 1));
                assert_eq!(*reached, earlier, "{hop:?}");
                *reached += 1 << hop.bit;
                assert_eq!(hop.left() == 0, *reached == hop.offset);
            }
            assert!(reached.into_iter().eq(0..nranks));
        }
    }
}
