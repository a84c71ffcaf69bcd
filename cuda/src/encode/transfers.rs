//! Encodes a group of sends and receives as a program: each lane runs transfers one after the
//! other, between absolute addresses and links.

use std::convert::Infallible;

use super::layout::{KIND_INPUT, KIND_LINK, KIND_OUTPUT, KIND_SHIFT, OUTPUTS_SHIFT};
use super::{ChunkExtent, LaneSegment, ProgramTables, assemble};

/// The source or the destination of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferEnd {
    /// The address of memory that the device reaches.
    Memory(u64),
    /// The messages of a link, by its index in the table of its direction.
    Link(u32),
}

/// A transfer of bytes, in tiles. With memory at both ends it is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTransfer {
    /// The source.
    pub from: TransferEnd,
    /// The destination.
    pub to: TransferEnd,
    /// The number of bytes; a transfer of no bytes is one empty message.
    pub bytes: u64,
    /// The tag of the messages, combined by xor with the tag of the work. Both ends must use the
    /// same tag.
    pub tag: u32,
}

/// Encodes a program of `lanes`, each of which runs its transfers one after the other, in tiles of
/// `tile` bytes. Lanes do not wait for each other, and each link is used by one lane only. The
/// `input` and `output` of the work are 0, and its `element` is 1.
///
/// # Panics
/// `tile` is 0, or the index of a link does not fit into 30 bits.
pub fn encode_transfers(lanes: &[Vec<LinkTransfer>], tile: u32) -> Vec<u32> {
    assert!(tile > 0, "a tile has at least one byte");
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let operand = |place, kind, extents: &mut Vec<ChunkExtent>, elements| match place {
        TransferEnd::Link(link) => {
            assert!(link >> KIND_SHIFT == 0, "the index of a link fits into 30 bits");
            KIND_LINK << KIND_SHIFT | link
        }
        TransferEnd::Memory(offset) => {
            extents.push(ChunkExtent { offset, elements });
            kind << KIND_SHIFT | (extents.len() - 1) as u32
        }
    };
    let mut segment = |t: &LinkTransfer| {
        let from = operand(t.from, KIND_INPUT, &mut inputs, t.bytes);
        let to = operand(t.to, KIND_OUTPUT, &mut outputs, t.bytes);
        let steps = std::iter::once([1 | 1 << OUTPUTS_SHIFT, from, to]);
        LaneSegment { steps, tiles: t.bytes.div_ceil(tile.into()).max(1), tag: t.tag }
    };
    let lanes = lanes.iter().map(|lane| lane.iter().map(&mut segment).collect()).collect();
    let tables = ProgramTables { tile, inputs: &inputs, outputs: &outputs };
    let words = assemble(&tables, lanes, |step: [u32; 3], words: &mut Vec<u32>| {
        words.extend(step);
        Ok::<_, Infallible>(())
    });
    words.unwrap_or_else(|never| match never {})
}

#[cfg(test)]
mod tests {
    use super::super::layout::*;
    use super::*;

    #[test]
    fn each_transfer_is_a_segment_of_one_step() {
        let far = 7 << 40;
        let send = LinkTransfer {
            from: TransferEnd::Memory(far),
            to: TransferEnd::Link(2),
            bytes: 9,
            tag: 5,
        };
        let none = LinkTransfer { bytes: 0, tag: 6, ..send };
        let receive = LinkTransfer {
            from: TransferEnd::Link(1),
            to: TransferEnd::Memory(64),
            bytes: 8,
            tag: 7,
        };
        let words = encode_transfers(&[vec![send, none], vec![receive]], 4);
        assert_eq!(words[HEADER_LANES], 2);
        assert_eq!(words[HEADER_TILE], 4);
        let lanes = &words[words[HEADER_LANE_TABLE] as usize..];
        assert_eq!(lanes[..4], [0, 2, 2, 1]);
        let segments = &words[words[HEADER_SEGMENT_TABLE] as usize..];
        let [a, b, c] = [0, 1, 2].map(|i| &segments[i * SEGMENT_WORDS..][..SEGMENT_WORDS]);
        assert_eq!(
            (&a[1..], &b[1..], &c[1..]),
            (&[1, 3, 0, 5][..], &[1, 1, 0, 6][..], &[1, 2, 0, 7][..])
        );
        let step = |segment: &[u32]| words[segment[0] as usize..][..3].to_vec();
        assert_eq!(step(a), [0x11, 0, 0xc000_0002]);
        assert_eq!(step(b), [0x11, 1, 0xc000_0002]);
        assert_eq!(step(c), [0x11, 0xc000_0001, 0x4000_0000]);
        let inputs = &words[words[HEADER_INPUT_TABLE] as usize..];
        assert_eq!(inputs[..8], [0, 7 << 8, 9, 0, 0, 7 << 8, 0, 0]);
        assert_eq!(words[words[HEADER_OUTPUT_TABLE] as usize..][..4], [64, 0, 8, 0]);
    }
}
