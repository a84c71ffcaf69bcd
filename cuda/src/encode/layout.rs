//! The layout of an encoded program. `kernels/program.cuh` has the same constants; a test compares
//! the two files.
//!
//! A program is a list of 32-bit words; offsets count words from its start:
//!
//! ```text
//! header         magic, lanes, tile (elements),
//!                offsets of the lane, segment, input and output tables
//! lane table     per lane: index of its first segment, number of segments
//! segment table  per segment: offset of its first step, number of steps,
//!                tiles (64 bits, low word first), tag
//! input table    per chunk: first element, number of elements (64 bits each)
//! output table   the same
//! steps          segment by segment, each as long as it needs to be:
//!                  head      inputs | outputs << 4 | after << 8 | finish << 12
//!                            | awaited << 13 | own << 16
//!                  inputs    operands, in the order of the fold
//!                  outputs   operands
//!                  after     lane, step (two words each)
//! padding        STEP_WORDS words, and more up to PREFIX_WORDS in all: the device reads as many
//!                at once
//! operand        kind << 30 | index: of a chunk, or of a link in the table that the launch binds
//! ```
//!
//! A lane runs its segments one after the other, and the steps of a segment once per tile. `after`
//! refers to the same tile of a lane that has one segment of as many tiles. Scratch chunk `i` is
//! the `i`-th tile of the scratch memory. The program of a schedule contains no addresses: it works
//! for any buffers, and for any communicator of the same shape. In a program of transfers the
//! extents are addresses.

use maypole_algorithms::schedule::MAX_FAN;

/// The first word of every program: "MPG2".
pub const MAGIC: u32 = 0x4d50_4732;
/// Word of the header: [`MAGIC`].
pub const HEADER_MAGIC: usize = 0;
/// Word of the header: number of lanes.
pub const HEADER_LANES: usize = 1;
/// Word of the header: elements per tile.
pub const HEADER_TILE: usize = 2;
/// Word of the header: offset of the lane table.
pub const HEADER_LANE_TABLE: usize = 3;
/// Word of the header: offset of the segment table.
pub const HEADER_SEGMENT_TABLE: usize = 4;
/// Word of the header: offset of the table of input chunks.
pub const HEADER_INPUT_TABLE: usize = 5;
/// Word of the header: offset of the table of output chunks.
pub const HEADER_OUTPUT_TABLE: usize = 6;
/// Words of the header.
pub const HEADER_WORDS: usize = 7;
/// Words of an entry of the lane table.
pub const LANE_WORDS: usize = 2;
/// Words of an entry of the segment table.
pub const SEGMENT_WORDS: usize = 5;
/// Words of an entry of a chunk table.
pub const EXTENT_WORDS: usize = 4;
/// The first bit of the kind of an operand.
pub const KIND_SHIFT: u32 = 30;
/// Kind of an operand: chunk of the send buffer.
pub const KIND_INPUT: u32 = 0;
/// Kind of an operand: chunk of the receive buffer.
pub const KIND_OUTPUT: u32 = 1;
/// Kind of an operand: scratch chunk.
pub const KIND_SCRATCH: u32 = 2;
/// Kind of an operand: a link of the table of its direction.
pub const KIND_LINK: u32 = 3;
/// The first bit of the number of outputs in the head of a step; the number of inputs is at bit 0.
pub const OUTPUTS_SHIFT: u32 = 4;
/// The first bit of the number of dependencies in the head of a step.
pub const AFTER_SHIFT: u32 = 8;
/// The bit of the finish flag in the head of a step.
pub const FINISH_SHIFT: u32 = 12;
/// The bit in the head of a step that says whether another step waits for it.
pub const AWAITED_SHIFT: u32 = 13;
/// The first of the bits in the head of a step that say, for each input, whether it is the rank's
/// own contribution.
pub const OWN_SHIFT: u32 = 16;
/// Words of the longest step: its head, its operands, and two words for each dependency.
pub const STEP_WORDS: usize = 1 + 4 * MAX_FAN;
/// Words of the shortest program. A block copies that many into its shared memory first.
pub const PREFIX_WORDS: usize = 512;
/// The mask of a count in the head of a step.
pub const COUNT_MASK: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch;

    #[test]
    fn the_device_reads_the_same_layout() {
        let source = include_str!("../../kernels/program.cuh").replace('\'', "");
        let device: Vec<(&str, u32)> = source
            .lines()
            .filter_map(|line| line.strip_prefix("constexpr u32 ")?.strip_suffix(';'))
            .filter_map(|line| line.split_once(" = "))
            .map(|(name, value)| {
                let value = match value.strip_prefix("0x") {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => value.parse(),
                };
                (name, value.expect("a number"))
            })
            .collect();
        let host = [
            ("MAGIC", MAGIC),
            ("HEADER_MAGIC", HEADER_MAGIC as u32),
            ("HEADER_LANES", HEADER_LANES as u32),
            ("HEADER_TILE", HEADER_TILE as u32),
            ("HEADER_LANE_TABLE", HEADER_LANE_TABLE as u32),
            ("HEADER_SEGMENT_TABLE", HEADER_SEGMENT_TABLE as u32),
            ("HEADER_INPUT_TABLE", HEADER_INPUT_TABLE as u32),
            ("HEADER_OUTPUT_TABLE", HEADER_OUTPUT_TABLE as u32),
            ("HEADER_WORDS", HEADER_WORDS as u32),
            ("LANE_WORDS", LANE_WORDS as u32),
            ("SEGMENT_WORDS", SEGMENT_WORDS as u32),
            ("EXTENT_WORDS", EXTENT_WORDS as u32),
            ("KIND_SHIFT", KIND_SHIFT),
            ("KIND_INPUT", KIND_INPUT),
            ("KIND_OUTPUT", KIND_OUTPUT),
            ("KIND_SCRATCH", KIND_SCRATCH),
            ("KIND_LINK", KIND_LINK),
            ("OUTPUTS_SHIFT", OUTPUTS_SHIFT),
            ("AFTER_SHIFT", AFTER_SHIFT),
            ("FINISH_SHIFT", FINISH_SHIFT),
            ("AWAITED_SHIFT", AWAITED_SHIFT),
            ("OWN_SHIFT", OWN_SHIFT),
            ("COUNT_MASK", COUNT_MASK),
            ("MAX_FAN", MAX_FAN as u32),
            ("STEP_WORDS", STEP_WORDS as u32),
            ("PREFIX_WORDS", PREFIX_WORDS as u32),
            ("MAX_WORKS", launch::MAX_WORKS as u32),
            ("OPERATION_ADDRESS", launch::ADDRESS),
            ("PROTOCOL_SLOTS", launch::SLOTS),
            ("PROTOCOL_LL", launch::LL),
            ("ERROR_TAG", 1),
            ("ERROR_LENGTH", 2),
            ("ERROR_PROGRAM", 3),
        ];
        assert_eq!(device, host);
    }
}
