//! Communicators made from a communicator: its parts, or what is left of it.

use std::time::Instant;

use maypole_algorithms::Rank;

use super::Communicator;
use crate::bootstrap::{AbortRegistration, Options, UniqueId};
use crate::error::Error;

/// What a rank says in a split.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wish {
    color: Option<u32>,
    key: i32,
    rank: Rank,
}

impl Wish {
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
    /// Parts the communicator: ranks of equal `color` form a new one, ordered by `key`, then by their rank here. Every
    /// rank must call it; None as color means to be in none of the parts. The communicator stays usable.
    ///
    /// # Errors
    /// A rank that is gone, or does not come before `MAYPOLE_INIT_TIMEOUT`.
    pub fn split(&mut self, color: Option<u32>, key: i32) -> Result<Option<Self>, Error> {
        let options = self.options.clone();
        self.split_with(color, key, &options)
    }

    /// As [`split`](Self::split), with limits of the new communicator's own. Its abort, while the ranks gather, aborts this communicator
    /// too.
    ///
    /// # Errors
    /// As for [`split`](Self::split).
    pub fn split_with(
        &mut self,
        color: Option<u32>,
        key: i32,
        options: &Options,
    ) -> Result<Option<Self>, Error> {
        let part = self.part(color, key, options).map_err(|error| self.refused(error))?;
        let Some((id, nranks, rank)) = part else { return Ok(None) };
        self.join_child(&id, rank, nranks, options).map(Some)
    }

    /// The id of this rank's part, how many ranks it has, and which of them this one is.
    fn part(
        &mut self,
        color: Option<u32>,
        key: i32,
        options: &Options,
    ) -> Result<Option<(UniqueId, u32, Rank)>, Error> {
        self.whole()?;
        let deadline = Instant::now() + options.timeout;
        let gathering = self.abort_with(options);
        let mine = Wish { color, key, rank: self.rank };
        let wishes = self.watch.all_gather(&mine.to_bytes(), deadline)?;
        let mut part = Vec::new();
        for (rank, bytes) in wishes.iter().enumerate() {
            let wish = Wish::from_bytes(bytes, rank as Rank)
                .ok_or_else(|| Error::internal(format!("rank {rank} sent no wish")))?;
            if wish.color == color {
                part.push((wish.key, wish.rank));
            }
        }
        part.sort_unstable();
        let leads = color.is_some() && part.first() == Some(&(key, self.rank));
        let id = if leads { Some(UniqueId::create_with(options)?) } else { None };
        let bytes = id.map_or(Vec::new(), |id| id.to_bytes().to_vec());
        let ids = self.watch.all_gather(&bytes, deadline)?;
        drop(gathering);
        if color.is_none() {
            return Ok(None);
        }
        let leader = part[0].1;
        let bytes = ids[leader as usize].as_slice().try_into();
        let bytes = bytes.map_err(|_| Error::internal(format!("rank {leader} sent no id")))?;
        let id = UniqueId::from_bytes(bytes)?;
        let rank = part.iter().position(|p| p.1 == self.rank).unwrap_or_default();
        Ok(Some((id, part.len() as u32, rank as Rank)))
    }

    /// A communicator of all ranks of this one, in their order, and of new ones after them. Every rank here calls it, one
    /// or more of them with the id; the new ranks join that id by [`init`](Self::init), as the ranks from this one's `nranks` on.
    ///
    /// # Errors
    /// A number of ranks that is no growth; no id, or several that differ; ranks that do not come before
    /// `MAYPOLE_INIT_TIMEOUT`.
    pub fn grow_with(
        &mut self,
        id: Option<&UniqueId>,
        nranks: u32,
        options: &Options,
    ) -> Result<Self, Error> {
        let id = self.agreed(id, nranks, options).map_err(|error| self.refused(error))?;
        self.join_child(&id, self.rank, nranks, options)
    }

    /// The id for a growth, which some of the ranks have.
    fn agreed(
        &mut self,
        id: Option<&UniqueId>,
        nranks: u32,
        options: &Options,
    ) -> Result<UniqueId, Error> {
        self.whole()?;
        let bad = |what: String| Err(Error::InvalidArgument { what: format!("grow: {what}") });
        if nranks <= self.nranks {
            return bad(format!("{nranks} ranks are no more than the {} there are", self.nranks));
        }
        let deadline = Instant::now() + options.timeout;
        let mine = id.map_or(Vec::new(), |id| id.to_bytes().to_vec());
        let gathering = self.abort_with(options);
        let mut given = self.watch.all_gather(&mine, deadline)?;
        drop(gathering);
        given.retain(|bytes| !bytes.is_empty());
        given.sort_unstable();
        given.dedup();
        let [bytes] = &given[..] else {
            return bad(format!("the ranks gave {} different ids, not one", given.len()));
        };
        let bytes = bytes.as_slice().try_into();
        let bytes = bytes.map_err(|_| Error::internal("an id of another length"))?;
        Ok(UniqueId::from_bytes(bytes)?)
    }

    /// A communicator of all ranks but `excluded`, in their order. The survivors call it, all with the same list; the excluded
    /// ranks may be dead, and this communicator broken. It is of no further use afterwards but for another shrink.
    ///
    /// # Errors
    /// An empty or impossible list; survivors that do not come before `MAYPOLE_INIT_TIMEOUT`.
    pub fn shrink(&mut self, excluded: &[Rank]) -> Result<Self, Error> {
        let options = self.options.clone();
        self.shrink_with(excluded, &options)
    }

    /// As [`shrink`](Self::shrink), with limits of the new communicator's own.
    ///
    /// # Errors
    /// As for [`shrink`](Self::shrink).
    pub fn shrink_with(&mut self, excluded: &[Rank], options: &Options) -> Result<Self, Error> {
        let bad = |what: &str| {
            Err(self.refused(Error::InvalidArgument { what: format!("shrink: {what}") }))
        };
        if excluded.is_empty() {
            return bad("no rank is excluded");
        }
        if let Some(rank) = excluded.iter().find(|r| **r >= self.nranks) {
            return bad(&format!("rank {rank} in a communicator of {} ranks", self.nranks));
        }
        if excluded.contains(&self.rank) {
            return bad("this rank is among the excluded ones");
        }
        self.regroup(excluded, options)
    }

    /// A communicator of all ranks of this one, which may be broken as long as no rank is dead. All ranks call it; this
    /// communicator is of no further use afterwards but for a shrink or another renewal.
    ///
    /// # Errors
    /// Ranks that do not come before `MAYPOLE_INIT_TIMEOUT`.
    pub fn renew_with(&mut self, options: &Options) -> Result<Self, Error> {
        self.regroup(&[], options)
    }

    fn regroup(&mut self, excluded: &[Rank], options: &Options) -> Result<Self, Error> {
        self.watch.check_fork().map_err(|error| self.refused(error))?;
        let survivors: Vec<Rank> = (0..self.nranks).filter(|r| !excluded.contains(r)).collect();
        let host = survivors[0];
        self.shrunk += 1;
        // Survivors with another list have another secret and are turned away, instead of being mixed up.
        let secret = self.keys.derive(&format!("shrink {} {survivors:?}", self.shrunk));
        let id = if host == self.rank {
            self.meeting.start_root(secret, options).map_err(Error::from)
        } else {
            UniqueId::at_rejoin_listener(&self.meetings[host as usize], secret)
                .ok_or_else(|| Error::internal(format!("rank {host} has no meeting place")))
        };
        let id = id.map_err(|error| self.refused(error))?;
        let rank = survivors.iter().position(|r| *r == self.rank).unwrap_or_default();
        let nranks = survivors.len() as u32;
        self.join_child(&id, rank as Rank, nranks, options)
    }

    /// Joins a child of this communicator, which has its settings and its device.
    fn join_child(
        &self,
        id: &UniqueId,
        rank: Rank,
        nranks: u32,
        options: &Options,
    ) -> Result<Self, Error> {
        let options = Options { device: self.device(), ..options.clone() };
        Self::join(std::slice::from_ref(id), rank, nranks, &self.config, &options)
    }

    /// Until the result is dropped an abort of what is being made aborts this communicator: its ranks are gathering for that, and all
    /// wait for one that left.
    fn abort_with(&self, options: &Options) -> Option<AbortRegistration> {
        options.abort.as_ref().map(|signal| signal.register(self.watch.shared()))
    }

    /// There will be no offspring; logs why, if that is not what failed a call before.
    fn refused(&self, error: Error) -> Error {
        if self.broken.as_ref() != Some(&error) {
            log::warn!("rank {}: {error}", self.rank);
        }
        error
    }

    /// Refuses what needs all ranks where a call has failed.
    pub(super) fn whole(&self) -> Result<(), Error> {
        self.async_error().map_or(Ok(()), Err)
    }
}
