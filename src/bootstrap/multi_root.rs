//! Several unique ids, and so several bootstrap roots, for one communicator.

use maypole_control::root_share::RootShare;
use maypole_transport::noise::{Key, sha256};
use zeroize::Zeroize;

use super::error::BootstrapError;
use super::id::{UniqueId, UniqueIdContents};

/// The unique ids of one communicator, each with its root.
pub(super) struct RootIds {
    /// The contents of each id.
    pub(super) roots: Vec<UniqueIdContents>,
    /// The secret of the communicator.
    pub(super) secret: Key,
    /// A hash of all ids in their order; 0 if there is one.
    fingerprint: u64,
}

impl RootIds {
    /// A single id.
    pub(super) fn one(contents: UniqueIdContents) -> Self {
        Self { secret: contents.secret.clone(), roots: vec![contents], fingerprint: 0 }
    }

    /// Checks that these ids can be used together for `nranks` ranks.
    ///
    /// # Errors
    /// [`BootstrapError::Ids`] if there are none, more than ranks, or two that are the same.
    pub(super) fn new(ids: &[UniqueId], nranks: u32) -> Result<Self, BootstrapError> {
        let error = |what: String| Err(BootstrapError::Ids { what });
        if ids.is_empty() || ids.len() > nranks as usize {
            return error(format!("{} of them for {nranks} ranks", ids.len()));
        }
        let mut roots = ids.iter().map(UniqueId::contents).collect::<Result<Vec<_>, _>>()?;
        // Ids that are made from one NCCL_COMM_ID are all the same.
        let fixed = roots[0].fixed && ids.iter().all(|id| *id == ids[0]);
        if fixed || ids.len() == 1 {
            return Ok(Self::one(roots.swap_remove(0)));
        }
        for (at, id) in ids.iter().enumerate() {
            if let Some(before) = ids[..at].iter().position(|other| other == id) {
                return error(format!("number {before} and number {at} are the same"));
            }
        }
        let mut bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_bytes()).collect();
        let secret = Key::new(sha256(&[&bytes])).derive("ids", &[]);
        bytes.zeroize();
        let fingerprint = secret.derive("fingerprint", &[]);
        let fingerprint = u64::from_le_bytes(std::array::from_fn(|at| fingerprint.bytes()[at]));
        Ok(Self { roots, secret, fingerprint })
    }

    /// The share of root number `index`.
    pub(super) fn share(&self, index: usize) -> RootShare {
        let Self { roots, fingerprint, .. } = self;
        RootShare { index: index as u32, count: roots.len() as u32, fingerprint: *fingerprint }
    }

    /// The number of the root that the rank asks.
    pub(super) fn home_root(&self, rank: u32, nranks: u32) -> usize {
        (0..self.roots.len()).position(|at| self.share(at).serves(rank, nranks)).unwrap_or(0)
    }

    /// The numbers of the roots at which the rank registers, first the one that it asks.
    pub(super) fn visited_roots(&self, rank: u32, nranks: u32) -> Vec<usize> {
        let home = self.home_root(rank, nranks);
        let others = (0..self.roots.len()).filter(|at| *at != home);
        let others = others.filter(|at| self.share(*at).expects(rank, nranks));
        [home].into_iter().chain(others).collect()
    }
}
