//! Encodes a group of sends and receives as a program, or finds that of an earlier group.

use std::collections::BTreeMap;

use maypole_algorithms::{DType, Rank, RedOp};
use maypole_cuda::encode::{LinkTransfer, TransferEnd, encode_transfers};
use maypole_cuda::launch;

use super::device_rank::DeviceRank;
use super::group_programs::{GroupKey, GroupProgram};
use super::program::EncodedProgram;
use crate::channels;
use crate::error::Error;
use crate::transfer::{self, Transfer};

impl DeviceRank {
    /// The program for `transfers` with other ranks: a kept one, or a new one. The caller returns
    /// it with [`keep_group_program`](Self::keep_group_program). `call` is a hash of the call that
    /// the transfers are part of, 0 for sends and receives of the user.
    ///
    /// # Errors
    /// There is no memory left for a program or a link.
    pub(crate) fn take_group_program(
        &mut self,
        transfers: &[Transfer],
        call: u32,
    ) -> Result<GroupProgram, Error> {
        let key = GroupKey::new(transfers, call);
        if let Some(program) = self.groups.take(&key) {
            return Ok(program);
        }
        for transfer in transfers {
            self.open_link(transfer.peer(), channels::TRANSFERS)?;
        }
        Ok(GroupProgram::new(key, self.program(self.encode_group(transfers, call))?))
    }

    /// Keeps a program for later groups like its own.
    pub(crate) fn keep_group_program(&mut self, program: GroupProgram) {
        self.groups.keep(program);
    }

    /// Encodes a group. As on the host, each peer has one lane for what is sent to it and one for
    /// what is received from it, and the transfers of a lane run one after the other.
    fn encode_group(&self, transfers: &[Transfer], call: u32) -> EncodedProgram {
        let mut lanes: BTreeMap<(Rank, bool), Vec<LinkTransfer>> = BTreeMap::new();
        for transfer in transfers {
            let (bytes, peer) = (transfer.bytes() as u64, transfer.peer());
            let link = TransferEnd::Link(self.link_index(peer, channels::TRANSFERS));
            let (from, to, sends) = match *transfer {
                Transfer::Send { data, .. } => (TransferEnd::Memory(data as u64), link, true),
                Transfer::Receive { data, .. } => (link, TransferEnd::Memory(data as u64), false),
            };
            // All transfers of a link travel in their order, so they need no number.
            let tag = transfer::tag(transfer.bytes(), 0) ^ call;
            let lane = lanes.entry((peer, sends)).or_default();
            lane.push(LinkTransfer { from, to, bytes, tag });
        }
        let lanes: Vec<_> = lanes.into_values().collect();
        let tile = self.tile_bytes;
        let expected = transfers.iter().filter_map(|transfer| match transfer {
            Transfer::Receive { bytes, peer, .. } => {
                let number = self.proxied_link(*peer, channels::TRANSFERS)?;
                Some((number, bytes.div_ceil(tile).max(1) as u64))
            }
            Transfer::Send { .. } => None,
        });
        EncodedProgram {
            words: encode_transfers(&lanes, tile as u32),
            lanes: lanes.len() as u32,
            scratch_chunks: 0,
            expected: expected.collect(),
            tile_bytes: tile,
            operation: launch::operation(DType::Uint8, RedOp::Max),
            element_bytes: 1,
            // A rank does not know how long the other transfers of its peers are, so it cannot
            // choose LL messages.
            protocol: launch::SLOTS,
        }
    }
}
