//! Makes children of a communicator: split, grow, shrink, renew.

use maypole_algorithms::Rank;
use maypole_transport::noise::{KEY_BYTES, Key};

use super::Communicator;
use crate::bootstrap::{AbortRegistration, Options, UniqueId};
use crate::clock;
use crate::error::Error;

/// What a rank passes to a split.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SplitRequest {
    color: Option<u32>,
    key: i32,
    rank: Rank,
}

impl SplitRequest {
    fn to_bytes(self) -> Vec<u8> {
        let color = self.color.map_or([0xff; 8], |c| u64::from(c).to_le_bytes());
        [&color[..], &self.key.to_le_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8], rank: Rank) -> Option<Self> {
        let (color, key) = bytes.split_first_chunk()?;
        let color = u32::try_from(u64::from_le_bytes(*color)).ok();
        Some(Self { color, key: i32::from_le_bytes(key.try_into().ok()?), rank })
    }
}

impl Communicator {
    /// Splits the communicator: ranks of equal `color` form a child, ordered by `key`, then by
    /// their rank here. All ranks must call it; a rank whose color is None is in no child and gets
    /// None. This communicator stays usable.
    ///
    /// # Errors
    /// A rank that is gone, or does not call it within `MAYPOLE_INIT_TIMEOUT`.
    pub fn split(&mut self, color: Option<u32>, key: i32) -> Result<Option<Self>, Error> {
        let options = self.membership.options.clone();
        self.split_with(color, key, &options)
    }

    /// The same as [`split`](Self::split), with other options for the child. While the ranks
    /// gather, an abort of the child aborts this communicator too.
    ///
    /// # Errors
    /// As for [`split`](Self::split).
    pub fn split_with(
        &mut self,
        color: Option<u32>,
        key: i32,
        options: &Options,
    ) -> Result<Option<Self>, Error> {
        let child =
            self.child_of_split(color, key, options).map_err(|error| self.log_refusal(error))?;
        let Some((id, nranks, rank)) = child else { return Ok(None) };
        self.join_child(&id, rank, nranks, options).map(Some)
    }

    /// The id of this rank's child, its number of ranks, and the rank of this one in it.
    fn child_of_split(
        &mut self,
        color: Option<u32>,
        key: i32,
        options: &Options,
    ) -> Result<Option<(UniqueId, u32, Rank)>, Error> {
        self.check_usable()?;
        let deadline = clock::after(options.timeout);
        let gathering = self.abort_with_child(options);
        let mine = SplitRequest { color, key, rank: self.rank };
        let requests = self.host.control.all_gather(&mine.to_bytes(), deadline)?;
        let mut part = Vec::new();
        for (rank, bytes) in requests.iter().enumerate() {
            let request = SplitRequest::from_bytes(bytes, rank as Rank)
                .ok_or_else(|| Error::internal(format!("rank {rank} sent no split request")))?;
            if request.color == color {
                part.push((request.key, request.rank));
            }
        }
        part.sort_unstable();
        self.membership.split_count += 1;
        let members: Vec<Rank> = part.iter().map(|(_, rank)| *rank).collect();
        let secret = |salt: &[u8]| {
            let (count, color) = (self.membership.split_count, color.map_or(u64::MAX, u64::from));
            let members: Vec<u8> = members.iter().flat_map(|rank| rank.to_le_bytes()).collect();
            let parts = [&count.to_le_bytes()[..], &color.to_le_bytes(), &members, salt];
            self.membership.keys.child(&parts)
        };
        let leads = color.is_some() && members.first() == Some(&self.rank);
        // Random bytes and the address of the root. The secret of the child does not travel.
        let mut invitation = Vec::new();
        if leads {
            let salt = Key::random().map_err(|error| Error::internal(error.to_string()))?;
            invitation.extend(salt.bytes());
            invitation.extend(UniqueId::start_child_root(&secret(salt.bytes()), options)?);
        }
        let invitations = self.host.control.all_gather(&invitation, deadline)?;
        drop(gathering);
        if color.is_none() {
            return Ok(None);
        }
        let leader = members[0];
        let id = invitations[leader as usize]
            .split_at_checked(KEY_BYTES)
            .and_then(|(salt, address)| UniqueId::of_child(address, &secret(salt)))
            .ok_or_else(|| Error::internal(format!("rank {leader} sent no address")))?;
        let rank = part.iter().position(|p| p.1 == self.rank).unwrap_or_default();
        Ok(Some((id, part.len() as u32, rank as Rank)))
    }

    /// Makes a communicator of all ranks of this one, in their order, and of new ranks after them.
    /// All ranks call it, and at least one of them passes the id. The new ranks join that id by
    /// [`new`](Self::new), with the numbers from this communicator's `nranks` on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a number of ranks that is no greater than now, for no id, and
    /// for different ids; ranks that do not join within the timeout.
    pub fn grow_with(
        &mut self,
        id: Option<&UniqueId>,
        nranks: u32,
        options: &Options,
    ) -> Result<Self, Error> {
        let id = self.agree_on_id(id, nranks, options).map_err(|error| self.log_refusal(error))?;
        self.join_child(&id, self.rank, nranks, options)
    }

    /// The one id that some of the ranks passed to a grow.
    fn agree_on_id(
        &mut self,
        id: Option<&UniqueId>,
        nranks: u32,
        options: &Options,
    ) -> Result<UniqueId, Error> {
        self.check_usable()?;
        let invalid = |what: String| Err(Error::InvalidArgument { what: format!("grow: {what}") });
        if nranks <= self.nranks {
            return invalid(format!(
                "{nranks} ranks are requested, which must be more than the present {}",
                self.nranks
            ));
        }
        let deadline = clock::after(options.timeout);
        let mine = id.map_or(Vec::new(), |id| id.to_bytes().to_vec());
        let gathering = self.abort_with_child(options);
        let mut given = self.host.control.all_gather(&mine, deadline)?;
        drop(gathering);
        given.retain(|bytes| !bytes.is_empty());
        given.sort_unstable();
        given.dedup();
        let [bytes] = &given[..] else {
            return invalid(format!("the ranks gave {} different ids, not one", given.len()));
        };
        let bytes = bytes.as_slice().try_into();
        let bytes =
            bytes.map_err(|_| Error::internal("the received unique id has the wrong length"))?;
        Ok(UniqueId::from_bytes(bytes)?)
    }

    /// Makes a communicator of all ranks but `excluded`, in their order. The survivors call it, all
    /// with the same list. The excluded ranks may be dead and this communicator broken; after the
    /// call it is of use only for another shrink.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty list, a rank that does not exist, and this rank in
    /// the list; survivors that do not call it within `MAYPOLE_INIT_TIMEOUT`.
    pub fn shrink(&mut self, excluded: &[Rank]) -> Result<Self, Error> {
        let options = self.membership.options.clone();
        self.shrink_with(excluded, &options)
    }

    /// The same as [`shrink`](Self::shrink), with other options for the child.
    ///
    /// # Errors
    /// As for [`shrink`](Self::shrink).
    pub fn shrink_with(&mut self, excluded: &[Rank], options: &Options) -> Result<Self, Error> {
        let invalid = |what: &str| {
            Err(self.log_refusal(Error::InvalidArgument { what: format!("shrink: {what}") }))
        };
        if excluded.is_empty() {
            return invalid("no rank is excluded");
        }
        if let Some(rank) = excluded.iter().find(|r| **r >= self.nranks) {
            return invalid(&format!("rank {rank} in a communicator of {} ranks", self.nranks));
        }
        if excluded.contains(&self.rank) {
            return invalid("this rank is among the excluded ones");
        }
        self.regroup(excluded, options)
    }

    /// Makes a communicator of all ranks of this one again, which may be broken as long as no rank
    /// is dead. All ranks call it; afterwards this communicator is of use only for a shrink or
    /// another renewal.
    ///
    /// # Errors
    /// Ranks that do not call it within the timeout.
    pub fn renew_with(&mut self, options: &Options) -> Result<Self, Error> {
        self.regroup(&[], options)
    }

    fn regroup(&mut self, excluded: &[Rank], options: &Options) -> Result<Self, Error> {
        self.host.control.check_fork().map_err(|error| self.log_refusal(error))?;
        let survivors: Vec<Rank> = (0..self.nranks).filter(|r| !excluded.contains(r)).collect();
        let host = survivors[0];
        // Survivors that pass another list have another secret, so they are refused and not mixed
        // up. Each list is counted by itself: a rank knows only of the shrinks that it survives.
        let count = self.membership.shrink_counts.entry(survivors.clone()).or_insert(0);
        *count += 1;
        let secret = self.membership.keys.derive(&format!("shrink {count} {survivors:?}"));
        let id = if host == self.rank {
            let address = |rank: &Rank| self.membership.rejoin_addresses[*rank as usize].clone();
            let addresses: Vec<Vec<u8>> = survivors.iter().map(address).collect();
            let listener = &mut self.membership.rejoin_listener;
            listener.start_root(&secret, &addresses, options).map_err(Error::from)
        } else {
            UniqueId::at_rejoin_listener(&self.membership.rejoin_addresses[host as usize], &secret)
                .ok_or_else(|| Error::internal(format!("rank {host} has no rejoin listener")))
        };
        let id = id.map_err(|error| self.log_refusal(error))?;
        let rank = survivors.iter().position(|r| *r == self.rank).unwrap_or_default();
        let nranks = survivors.len() as u32;
        self.join_child(&id, rank as Rank, nranks, options)
    }

    /// Joins a child of this communicator, which inherits its settings and its device.
    fn join_child(
        &self,
        id: &UniqueId,
        rank: Rank,
        nranks: u32,
        options: &Options,
    ) -> Result<Self, Error> {
        let options = Options { device: self.device(), ..options.clone() };
        Self::join(std::slice::from_ref(id), rank, nranks, &self.membership.config, &options)
    }

    /// While the result lives, the abort signal of a child aborts this communicator too: its ranks
    /// are gathering, and all would wait for one that left.
    fn abort_with_child(&self, options: &Options) -> Option<AbortRegistration> {
        options.abort.as_ref().map(|signal| signal.register(self.host.control.shared()))
    }

    /// Logs why no child is made, unless the same error failed a call before.
    fn log_refusal(&self, error: Error) -> Error {
        if self.broken.as_ref() != Some(&error) {
            log::warn!("rank {}: {error}", self.rank);
        }
        error
    }

    /// Refuses what needs all ranks, if the communicator has ended.
    pub(super) fn check_usable(&self) -> Result<(), Error> {
        self.async_error().map_or(Ok(()), Err)
    }
}
