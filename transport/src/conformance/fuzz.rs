//! A small fuzzer for code that reads bytes from unproven connections and from peers. It is seeded,
//! so that a failure can be repeated, and it starts from valid messages, so that it gets past the
//! first check.
//!
//! `MAYPOLE_FUZZ_SECONDS` is the duration of a test (default 2) and `MAYPOLE_FUZZ_SEED` its first
//! seed (default 0). A test that fails prints the seed of its round.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::{HANG_TIMEOUT, Watchdog};

/// Calls `round` with new random choices until the time is over. Returns the number of calls.
pub fn rounds(round: impl FnMut(&mut FuzzRandom)) -> u64 {
    rounds_within(2, round)
}

/// The same with another default of the duration, in seconds.
pub fn rounds_within(seconds: u64, mut round: impl FnMut(&mut FuzzRandom)) -> u64 {
    let setting = |name| std::env::var(name).ok().map(|v| v.parse().expect("a number"));
    let time = Duration::from_secs(setting("MAYPOLE_FUZZ_SECONDS").unwrap_or(seconds));
    let _watchdog = Watchdog::over("fuzz", time + HANG_TIMEOUT);
    let until = Instant::now() + time;
    let first: u64 = setting("MAYPOLE_FUZZ_SEED").unwrap_or(0);
    let mut seed = first;
    // At least one round, so that no test passes by doing nothing.
    loop {
        let report = SeedReport { first, seed };
        round(&mut FuzzRandom(seed));
        drop(report);
        seed += 1;
        if Instant::now() >= until {
            return seed - first;
        }
    }
}

/// Prints the seed if its round fails.
struct SeedReport {
    first: u64,
    seed: u64,
}

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { first, seed } = self;
            eprintln!("failed with seed {seed}; MAYPOLE_FUZZ_SEED={first} begins as this run did");
        }
    }
}

/// The choices of one round.
pub struct FuzzRandom(u64);

/// The values that replace lengths and counts.
const EXTREMES: [u32; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];

impl FuzzRandom {
    fn next(&mut self) -> u64 {
        // The step of splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Bytes of any value.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// `valid` with one to four faults. Parts of `other` may be spliced in. The result may be equal
    /// to `valid`.
    pub fn damaged(&mut self, valid: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = valid.to_vec();
        for _ in 0..1 + self.below(4) {
            self.damage(&mut bytes, other);
        }
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let range = self.range(bytes.len());
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.next() as u8,
            2 => {
                // A field of two, four or one bytes.
                let field = EXTREMES[self.below(EXTREMES.len())].to_le_bytes();
                let field = &field[..[2, 4, 1][self.below(3)]];
                bytes.iter_mut().skip(at).zip(field).for_each(|(byte, new)| *byte = *new);
            }
            3 => bytes.truncate(at),
            4 => {
                let more = self.below(200);
                bytes.extend(self.bytes(more));
            }
            5 => drop(bytes.drain(range)),
            6 => {
                let copy = bytes[range].to_vec();
                bytes.splice(at..at, copy);
            }
            7 => {
                let part = self.range(other.len());
                bytes.splice(at..at, other[part].iter().copied());
            }
            _ => {
                let part = self.range(other.len());
                bytes.splice(range, other[part].iter().copied());
            }
        }
    }

    fn range(&mut self, len: usize) -> Range<usize> {
        let (a, b) = (self.below(len + 1), self.below(len + 1));
        a.min(b)..a.max(b)
    }

    /// `bytes` in pieces of random sizes, as a socket may deliver them.
    pub fn fragments<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let most = [1, 7, 100, 100_000][self.below(4)];
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at((1 + self.below(most)).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}
