// The state of a block in shared memory: its work, its current lane, and the operands of the
// current step.
#pragma once
#include "operations.cuh"
#include "program.cuh"

constexpr u32 NO_LANE = ~0u;
constexpr u32 OPERANDS = 2 * MAX_FAN;
static_assert(STEP_WORDS == 1 + OPERANDS + 2 * MAX_FAN,
              "a head, operands, and as many dependencies");
// The threads that check whether a step is ready: one for each operand and each dependency.
constexpr u32 CHECKERS = 3 * MAX_FAN;

// The position in the current lane, and the words of its current step. While a lane is current, its
// state in global memory is stale.
struct Cursor {
  u64 tile, tiles;
  u32 lane, over;
  u32 segment, segments;  // the current segment and the end of the lane, in the segment table
  u32 first, steps, tag;  // of the current segment
  u32 step, offset;
  u32 words[STEP_WORDS];
};

// Properties of an operand.
constexpr u32 FORM_LL = 1;     // an LL message
constexpr u32 FORM_STALE = 2;  // its LL line has to be overwritten first

// The operands of the current step: inputs from index 0 on, outputs from MAX_FAN on.
struct Operands {
  gptr<u8> at[OPERANDS];         // memory, a slot, or an LL line
  gptr<u64> counter[OPERANDS];   // the counter that says whether the link is ready
  gptr<u64> signal[OPERANDS];    // the counter that tells the other end
  gptr<u64> position[OPERANDS];  // of this end of the link
  gptr<u64> head[OPERANDS];      // of the message in a slot
  u64 n[OPERANDS];               // the number of the message
  u64 depth[OPERANDS];
  u64 capacity[OPERANDS];  // the most bytes of the message
  u32 elements[OPERANDS];
  u32 form[OPERANDS];
  u32 ready[CHECKERS];
};

struct Block {
  Work work;
  Arithmetic arithmetic;
  u32 prefix[PREFIX_WORDS];  // the first words of the program
  Cursor cursor;
  Operands operands;
};

// Word `i` of the program.
__device__ static u32 word(const Block& b, u32 i) {
  return i < PREFIX_WORDS ? b.prefix[i] : b.work.program[i];
}
__device__ static u64 word64(const Block& b, u32 i) {
  return word(b, i) | (u64)word(b, i + 1) << 32;
}

// `done` is the first word of the state of a lane.
__device__ static gptr<u64> done_word(const Work& work, u32 lane) {
  return gcast<u64>(work.lanes + lane);
}

__device__ static gptr<u64> departed_word(const Work& work, u32 i) {
  return gcast<u64>(work.departed) + i;
}
constexpr u32 ARRIVED = 0, WORKS = 1, BROKEN = 2, GATE = 3;

// n % depth, without a 64-bit division for the first 2^32 messages.
__device__ static u64 place_of(u64 n, u64 depth) {
  return n >> 32 ? n % depth : (u32)n % (u32)depth;
}

__device__ static u32 inputs_of(u32 head) { return head & COUNT_MASK; }
__device__ static u32 outputs_of(u32 head) { return head >> OUTPUTS_SHIFT & COUNT_MASK; }
__device__ static u32 after_of(u32 head) { return head >> AFTER_SHIFT & COUNT_MASK; }
__device__ static u32 own_of(u32 head) { return head >> OWN_SHIFT & 0xff; }
__device__ static u32 kind_of(u32 operand) { return operand >> KIND_SHIFT; }
__device__ static u32 index_of(u32 operand) { return operand & ((1u << KIND_SHIFT) - 1); }

// Reports an error to the host and aborts the work. A second error may overwrite the first; either
// is correct.
__device__ static void report(const Work& work, u32 kind, u32 link, u32 found) {
  if (load_relaxed(work.error) == 0)
    store_release(work.error, (u64)kind << 56 | (u64)(link & 0xff'ffff) << 32 | found);
  store_relaxed(departed_word(work, BROKEN), 1);
  store_release(work.abort, 1);
}
