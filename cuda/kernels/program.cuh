// The layout of an encoded program, and the structures of a launch.
//
// src/encode/layout.rs and src/launch.rs declare the same and explain every field; a test compares
// the numbers.
#pragma once
#include "portable.cuh"

constexpr u32 MAGIC = 0x4d50'4732;
constexpr u32 HEADER_MAGIC = 0;
constexpr u32 HEADER_LANES = 1;
constexpr u32 HEADER_TILE = 2;
constexpr u32 HEADER_LANE_TABLE = 3;
constexpr u32 HEADER_SEGMENT_TABLE = 4;
constexpr u32 HEADER_INPUT_TABLE = 5;
constexpr u32 HEADER_OUTPUT_TABLE = 6;
constexpr u32 HEADER_WORDS = 7;
constexpr u32 LANE_WORDS = 2;
constexpr u32 SEGMENT_WORDS = 5;
constexpr u32 EXTENT_WORDS = 4;
constexpr u32 KIND_SHIFT = 30;
constexpr u32 KIND_INPUT = 0;
constexpr u32 KIND_OUTPUT = 1;
constexpr u32 KIND_SCRATCH = 2;
constexpr u32 KIND_LINK = 3;
constexpr u32 OUTPUTS_SHIFT = 4;
constexpr u32 AFTER_SHIFT = 8;
constexpr u32 FINISH_SHIFT = 12;
constexpr u32 AWAITED_SHIFT = 13;
constexpr u32 OWN_SHIFT = 16;
constexpr u32 COUNT_MASK = 15;
constexpr u32 MAX_FAN = 8;
constexpr u32 STEP_WORDS = 33;
constexpr u32 PREFIX_WORDS = 512;

struct LinkEnd {
  gptr<u8> slots;
  gptr<u64> heads;
  gptr<u64> ll;
  gptr<u64> filled;
  gptr<u64> drained;
  gptr<u64> position;
  u64 slot_bytes;
  u64 depth;
  u64 ll_words;
};
static_assert(sizeof(LinkEnd) == 72, "LinkEnd is shared with the host");

struct LaneState {
  u64 done, tile;
  u32 segment, step, offset, padding;
};
static_assert(sizeof(LaneState) == 32, "LaneState is shared with the host");

struct Departed {
  u64 arrived, works, broken, padding;
};
static_assert(sizeof(Departed) == 32, "Departed is shared with the host");

struct Work {
  gptr<const u32> program;
  gptr<const LinkEnd> sending;
  gptr<const LinkEnd> receiving;
  gptr<u8> input;
  gptr<u8> output;
  gptr<u8> scratch;
  gptr<u32> scratch_lengths;
  gptr<LaneState> lanes;
  gptr<Departed> departed;
  gptr<u64> abort;
  gptr<u64> error;
  gptr<u64> finished;
  u64 parameter;
  u32 operation, tag, first_block, blocks, protocol, element;
};
static_assert(sizeof(Work) == 128, "Work is shared with the host");

constexpr u32 MAX_WORKS = 30;
constexpr u32 OPERATION_ADDRESS = 0x8000'0000;
constexpr u32 PROTOCOL_SLOTS = 0;
constexpr u32 PROTOCOL_LL = 1;
constexpr u32 ERROR_TAG = 1;
constexpr u32 ERROR_LENGTH = 2;
constexpr u32 ERROR_PROGRAM = 3;

struct Launch {
  u32 works, padding;
  Work work[MAX_WORKS];
};
static_assert(sizeof(Launch) == 3848, "Launch is shared with the host");

struct WordWrite {
  gptr<u64> to;
  u64 value;
};
static_assert(sizeof(WordWrite) == 16, "WordWrite is shared with the host");
