// What a block knows, in shared memory: its work, the lane that it is at, and the operands of the step at hand.
#pragma once
#include "operations.cuh"
#include "program.cuh"

constexpr u32 NO_LANE = ~0u;
constexpr u32 OPERANDS = 2 * MAX_FAN;
static_assert(STEP_WORDS == 1 + OPERANDS + 2 * MAX_FAN, "a head, operands, and as many dependencies");
// Threads that look: one for each operand and each dependency.
constexpr u32 LOOKERS = 3 * MAX_FAN;

// Where the lane at hand stands, and the words of its step. The state in global memory is stale as long as it is at hand.
struct Turn {
  u64 tile, tiles;
  u32 lane, over;
  u32 segment, segments;  // this one and the end of the lane's, in the segment table
  u32 first, steps, tag;  // of this segment
  u32 step, cursor;
  u32 words[STEP_WORDS];
};

// What an operand is besides memory.
constexpr u32 FORM_LINES = 1;  // a message in lines
constexpr u32 FORM_STALE = 2;  // a place of a ring whose words are to be overwritten first

// Operands as the threads that look found them: inputs at 0.., outputs at MAX_FAN...
struct Operands {
  gptr<u8> at[OPERANDS];         // memory, a slot, or the words of a message in lines
  gptr<u64> counter[OPERANDS];   // what tells whether a link is ready
  gptr<u64> signal[OPERANDS];    // what tells the other end
  gptr<u64> position[OPERANDS];  // of this end of the link
  gptr<u64> head[OPERANDS];      // of the message in a slot
  u64 n[OPERANDS];               // which message it is
  u64 depth[OPERANDS];
  u64 capacity[OPERANDS];  // bytes that the message may have
  u32 elements[OPERANDS];
  u32 form[OPERANDS];
  u32 ready[LOOKERS];
};

struct Block {
  Work work;
  Arithmetic arithmetic;
  u32 prefix[PREFIX_WORDS];  // of the program: all of it, if it is a short one
  Turn turn;
  Operands operands;
};

// Word `i` of the program.
__device__ static u32 word(const Block& b, u32 i) { return i < PREFIX_WORDS ? b.prefix[i] : b.work.program[i]; }
__device__ static u64 word64(const Block& b, u32 i) { return word(b, i) | (u64)word(b, i + 1) << 32; }

// `done` stands first in a lane's state.
__device__ static gptr<u64> done_word(const Work& work, u32 lane) { return gcast<u64>(work.lanes + lane); }

__device__ static gptr<u64> departed_word(const Work& work, u32 i) { return gcast<u64>(work.departed) + i; }
constexpr u32 ARRIVED = 0, WORKS = 1, BROKEN = 2;

// n % depth, without a long division as long as there were no 2^32 messages.
__device__ static u64 place_of(u64 n, u64 depth) { return n >> 32 ? n % depth : (u32)n % (u32)depth; }

__device__ static u32 inputs_of(u32 head) { return head & COUNT_MASK; }
__device__ static u32 outputs_of(u32 head) { return head >> OUTPUTS_SHIFT & COUNT_MASK; }
__device__ static u32 after_of(u32 head) { return head >> AFTER_SHIFT & COUNT_MASK; }
__device__ static u32 own_of(u32 head) { return head >> OWN_SHIFT & 0xff; }
__device__ static u32 kind_of(u32 operand) { return operand >> KIND_SHIFT; }
__device__ static u32 index_of(u32 operand) { return operand & ((1u << KIND_SHIFT) - 1); }

// Tells the host, and everybody who waits. Who comes second may overwrite the first, which is as true.
__device__ static void report(const Work& work, u32 kind, u32 link, u32 found) {
  if (load_relaxed(work.trouble) == 0)
    store_release(work.trouble, (u64)kind << 56 | (u64)(link & 0xff'ffff) << 32 | found);
  store_relaxed(departed_word(work, BROKEN), 1);
  store_release(work.abort, 1);
}
