//! The programs of groups of sends and receives that a communicator keeps for later groups.

use maypole_algorithms::Rank;

use super::program::Program;
use crate::transfer::Transfer;

/// The most programs that are kept. The addresses of a group are part of its program.
const MOST: usize = 64;

/// The programs of a communicator's groups, the one used last first.
#[derive(Default)]
pub(super) struct GroupPrograms {
    kept: Vec<GroupProgram>,
}

/// A program, and the group it is for.
pub(crate) struct GroupProgram {
    key: GroupKey,
    pub(crate) program: Program,
}

/// What a program is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupKey {
    /// Whether the transfer is a send, its address, its bytes, and its peer.
    transfers: Vec<(bool, usize, usize, Rank)>,
    /// A hash of the call that the transfers are part of; 0 for sends and receives of the user.
    call: u32,
}

impl GroupKey {
    pub(super) fn new(transfers: &[Transfer], call: u32) -> Self {
        let entry = |transfer: &Transfer| match *transfer {
            Transfer::Send { data, bytes, peer } => (true, data as usize, bytes, peer),
            Transfer::Receive { data, bytes, peer } => (false, data as usize, bytes, peer),
        };
        Self { transfers: transfers.iter().map(entry).collect(), call }
    }
}

impl GroupPrograms {
    /// Takes the program for `key` out of the list, if it is there.
    pub(super) fn take(&mut self, key: &GroupKey) -> Option<GroupProgram> {
        let index = self.kept.iter().position(|kept| kept.key == *key)?;
        Some(self.kept.remove(index))
    }

    /// Puts a program into the list. The program whose last use is longest ago leaves a full list;
    /// its memory is used again after the works that use it have finished.
    pub(super) fn keep(&mut self, program: GroupProgram) {
        self.kept.truncate(MOST - 1);
        self.kept.insert(0, program);
    }
}

impl GroupProgram {
    pub(super) fn new(key: GroupKey, program: Program) -> Self {
        Self { key, program }
    }
}
