//! Several unique ids for one communicator: which root serves which ranks. The ranks are divided as NCCL divides them, in blocks that follow
//! each other and differ in size by one at most, so that ids that were made on every so manieth host have their roots near their ranks.
//!
//! Each rank asks the root of its block where its parent is. So a root hears of the ranks of its block, and of their parents, which are
//! half as many. Rank 0 stays with all roots until all ranks are there: what one root or one rank knows of a failure so reaches
//! the ranks that wait at another one.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::error::BootstrapError;
use super::id::{Contents, UniqueId};
use super::secret::Secret;

/// A root's part in the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Which root it is.
    pub(super) index: u32,
    /// Of how many.
    pub(super) of: u32,
    /// Of all ids, in their order.
    pub(super) fingerprint: u64,
}

impl Share {
    /// The ranks that ask this root.
    pub(super) fn ranks(self, nranks: u32) -> Range<u32> {
        let (n, of) = (u64::from(nranks), u64::from(self.of));
        // The first `n % of` blocks have one more.
        let start = |index: u64| (index * (n / of) + index.min(n % of)) as u32;
        start(self.index.into())..start(u64::from(self.index) + 1)
    }

    /// Whether the rank asks this root.
    pub(super) fn serves(self, rank: u32, nranks: u32) -> bool {
        self.ranks(nranks).contains(&rank)
    }

    /// The ranks that come to this root, to ask or to be asked for: in order, some of the ranges empty.
    pub(super) fn visitors(self, nranks: u32) -> [Range<u32>; 3] {
        let own = self.ranks(nranks);
        // Those of ranks that follow each other do so as well.
        let first = own.start.max(1);
        let parents = if first < own.end { (first - 1) / 2..(own.end - 2) / 2 + 1 } else { 0..0 };
        let range = |start: u32, end: u32| start..end.max(start);
        let parents = range(parents.start.max(1), parents.end.min(own.start));
        [0..1, parents, range(first, own.end)]
    }

    /// How many these are.
    pub(super) fn expected(self, nranks: u32) -> usize {
        self.visitors(nranks).iter().map(ExactSizeIterator::len).sum()
    }

    fn expects(self, rank: u32, nranks: u32) -> bool {
        self.visitors(nranks).iter().any(|range| range.contains(&rank))
    }
}

/// The ids of one communicator.
pub(super) struct Ids {
    /// What each says.
    pub(super) roots: Vec<Contents>,
    /// Of the communicator.
    pub(super) secret: Secret,
    fingerprint: u64,
}

impl Ids {
    pub(super) fn one(contents: Contents) -> Self {
        Self { secret: contents.secret.clone(), roots: vec![contents], fingerprint: 0 }
    }

    pub(super) fn new(ids: &[UniqueId], nranks: u32) -> Result<Self, BootstrapError> {
        let wrong = |what: String| Err(BootstrapError::Ids { what });
        if ids.is_empty() || ids.len() > nranks as usize {
            return wrong(format!("{} of them for {nranks} ranks", ids.len()));
        }
        let mut roots = ids.iter().map(UniqueId::contents).collect::<Result<Vec<_>, _>>()?;
        // All that are made of one NCCL_COMM_ID are the same.
        let fixed = roots[0].fixed && ids.iter().all(|id| *id == ids[0]);
        if fixed || ids.len() == 1 {
            return Ok(Self::one(roots.swap_remove(0)));
        }
        for (at, id) in ids.iter().enumerate() {
            if let Some(before) = ids[..at].iter().position(|other| other == id) {
                return wrong(format!("number {before} and number {at} are the same"));
            }
        }
        let mut hasher = Sha256::new();
        ids.iter().for_each(|id| hasher.update(id.to_bytes()));
        let secret = Secret::new(hasher.finalize().into()).prove("ids", &[]);
        let secret = Secret::new(secret);
        let fingerprint = secret.prove("fingerprint", &[]);
        let fingerprint = u64::from_le_bytes(std::array::from_fn(|at| fingerprint[at]));
        Ok(Self { roots, secret, fingerprint })
    }

    pub(super) fn share(&self, index: usize) -> Share {
        let Self { roots, fingerprint, .. } = self;
        Share { index: index as u32, of: roots.len() as u32, fingerprint: *fingerprint }
    }

    /// Number of the root that the rank asks.
    pub(super) fn home(&self, rank: u32, nranks: u32) -> usize {
        (0..self.roots.len()).position(|at| self.share(at).serves(rank, nranks)).unwrap_or(0)
    }

    /// Numbers of the roots that the rank comes to, the one that it asks first.
    pub(super) fn visited(&self, rank: u32, nranks: u32) -> Vec<usize> {
        let home = self.home(rank, nranks);
        let others = (0..self.roots.len()).filter(|at| *at != home);
        let others = others.filter(|at| self.share(*at).expects(rank, nranks));
        [home].into_iter().chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::children;
    use super::*;

    #[test]
    fn ranks_are_divided_evenly_and_in_order() {
        for nranks in 1..60 {
            for of in 1..=nranks {
                let shares = (0..of).map(|index| Share { index, of, fingerprint: 0 });
                let mut next = 0;
                for share in shares {
                    let ranks = share.ranks(nranks);
                    assert_eq!(ranks.start, next);
                    assert!([nranks / of, nranks.div_ceil(of)].contains(&(ranks.len() as u32)));
                    next = ranks.end;
                    let served = |rank| share.serves(rank, nranks);
                    let come =
                        |rank| rank == 0 || served(rank) || children(rank, nranks).any(served);
                    let visitors: Vec<u32> = share.visitors(nranks).into_iter().flatten().collect();
                    assert_eq!(visitors, (0..nranks).filter(|r| come(*r)).collect::<Vec<_>>());
                    assert_eq!(visitors.len(), share.expected(nranks));
                    // Half as many parents, cut at both ends, and rank 0.
                    let bound = nranks.div_ceil(of) as usize * 3 / 2 + 3;
                    assert!(visitors.len() <= bound, "{nranks} {of}");
                }
                assert_eq!(next, nranks);
            }
        }
        let of = |index| Share { index, of: 3, fingerprint: 0 }.ranks(8);
        assert_eq!([of(0), of(1), of(2)], [0..3, 3..6, 6..8]);
    }
}
