//! Groups of sends and receives on a device: a program for each list of transfers, kept while it is among the last that were used.

use std::collections::BTreeMap;

use maypole_algorithms::{DType, Rank, RedOp};
use maypole_cuda::encode::{self, Place};
use maypole_cuda::launch;

use super::program::{Encoded, Program};
use super::rank::DeviceRank;
use crate::channels;
use crate::error::Error;
use crate::transfer::{self, Transfer};

/// Programs that are kept: the addresses of a group are part of it.
const MOST: usize = 64;

/// The programs of a communicator's groups, the last used first.
#[derive(Default)]
pub(crate) struct Groups {
    kept: Vec<(Group, Program)>,
}

/// What a program is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    transfers: Vec<(bool, usize, usize, Rank)>,
    /// A hash of the call that the transfers are a part of, 0 for sends and receives of their own.
    call: u32,
}

impl Group {
    fn new(transfers: &[Transfer], call: u32) -> Self {
        let each = |transfer: &Transfer| match *transfer {
            Transfer::Send { data, bytes, peer } => (true, data as usize, bytes, peer),
            Transfer::Receive { data, bytes, peer } => (false, data as usize, bytes, peer),
        };
        Self { transfers: transfers.iter().map(each).collect(), call }
    }
}

/// The program for `transfers` with other ranks, out of the list of those that are kept, or a new one; to be put back by [`keep`].
pub(crate) fn take(
    rank: &mut DeviceRank,
    transfers: &[Transfer],
    call: u32,
) -> Result<Kept, Error> {
    let group = Group::new(transfers, call);
    let known = rank.groups.kept.iter().position(|(known, _)| *known == group);
    if let Some(at) = known {
        let (group, program) = rank.groups.kept.remove(at);
        return Ok(Kept { group, program });
    }
    for transfer in transfers {
        rank.open_link(transfer.peer(), channels::TRANSFERS)?;
    }
    let program = Program::new(encoded(rank, transfers, call), rank)?;
    Ok(Kept { group, program })
}

/// A program out of the list.
pub(crate) struct Kept {
    group: Group,
    pub(crate) program: Program,
}

/// Puts a program into the list, as the last that was used. The one that was not used for longest leaves it where there are many: its
/// memory is used again when the works that use it are over.
pub(crate) fn keep(rank: &mut DeviceRank, kept: Kept) {
    rank.groups.kept.truncate(MOST - 1);
    rank.groups.kept.insert(0, (kept.group, kept.program));
}

/// As on the host: each peer has one lane for what goes there and one for what comes from there, each transfer in its turn.
fn encoded(rank: &DeviceRank, transfers: &[Transfer], call: u32) -> Encoded {
    let mut lanes: BTreeMap<(Rank, bool), Vec<encode::Transfer>> = BTreeMap::new();
    for transfer in transfers {
        let (bytes, peer) = (transfer.bytes() as u64, transfer.peer());
        let link = Place::Link(rank.link(peer, channels::TRANSFERS));
        let (from, to, sends) = match *transfer {
            Transfer::Send { data, .. } => (Place::Memory(data as u64), link, true),
            Transfer::Receive { data, .. } => (link, Place::Memory(data as u64), false),
        };
        let tag = transfer::tag(transfer.bytes()) ^ call;
        let lane = lanes.entry((peer, sends)).or_default();
        lane.push(encode::Transfer { from, to, bytes, tag });
    }
    let lanes: Vec<_> = lanes.into_values().collect();
    let tile = rank.tile;
    let takes = transfers.iter().filter_map(|transfer| match transfer {
        Transfer::Receive { bytes, peer, .. } => {
            let number = rank.carried(*peer, channels::TRANSFERS)?;
            Some((number, bytes.div_ceil(tile).max(1) as u64))
        }
        Transfer::Send { .. } => None,
    });
    Encoded {
        words: encode::encode_transfers(&lanes, tile as u32),
        lanes: lanes.len() as u32,
        scratch: 0,
        takes: takes.collect(),
        tile_bytes: tile,
        operation: launch::operation(DType::Uint8, RedOp::Max),
        element: 1,
        // A rank does not know how long the other transfers of its peers are.
        protocol: launch::SLOTS,
    }
}
