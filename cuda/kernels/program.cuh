// The encoded program as the device reads it, and what a launch binds to it.
//
// The twin of src/encode/layout.rs and src/launch.rs, where every field is explained; a test compares the numbers.
#pragma once
#include "portable.cuh"

constexpr u32 MAGIC = 0x4d50'4731;
constexpr u32 HEADER_MAGIC = 0;
constexpr u32 HEADER_LANES = 1;
constexpr u32 HEADER_TILE = 2;
constexpr u32 HEADER_TILES = 3;
constexpr u32 HEADER_LANE_TABLE = 4;
constexpr u32 HEADER_INPUT_TABLE = 5;
constexpr u32 HEADER_OUTPUT_TABLE = 6;
constexpr u32 HEADER_WORDS = 7;
constexpr u32 LANE_WORDS = 2;
constexpr u32 EXTENT_WORDS = 4;
constexpr u32 KIND_SHIFT = 30;
constexpr u32 KIND_INPUT = 0;
constexpr u32 KIND_OUTPUT = 1;
constexpr u32 KIND_SCRATCH = 2;
constexpr u32 KIND_LINK = 3;
constexpr u32 OUTPUTS_SHIFT = 4;
constexpr u32 AFTER_SHIFT = 8;
constexpr u32 FINISH_SHIFT = 12;
constexpr u32 COUNT_MASK = 15;
constexpr u32 MAX_FAN = 8;

struct LinkEnd {
  gptr<u8> slots;
  gptr<u64> filled;
  gptr<u64> drained;
  gptr<u64> position;
  u64 slot_bytes;
  u64 depth;
};
static_assert(sizeof(LinkEnd) == 48, "LinkEnd is shared with the host");

struct LaneState {
  u64 done;
  u32 tile, step, cursor, padding;
};
static_assert(sizeof(LaneState) == 24, "LaneState is shared with the host");

struct Launch {
  gptr<const u32> program;
  gptr<const LinkEnd> sending;
  gptr<const LinkEnd> receiving;
  gptr<u8> input;
  gptr<u8> output;
  gptr<u8> scratch;
  gptr<LaneState> lanes;
  gptr<u64> departed;
  gptr<const u64> abort;
  u64 parameter;
};
static_assert(sizeof(Launch) == 80, "Launch is shared with the host");
