// Moves from step to step, and from lane to lane.
#pragma once
#include "block.cuh"

// Finds the current segment of the lane, skipping segments without steps or without remaining
// tiles. One thread calls this.
__device__ static void find_segment(Block& b) {
  Cursor& c = b.cursor;
  for (; c.segment < c.segments; c.segment++, c.tile = 0) {
    const u32 entry = b.prefix[HEADER_SEGMENT_TABLE] + c.segment * SEGMENT_WORDS;
    c.first = word(b, entry);
    c.steps = word(b, entry + 1);
    c.tiles = word64(b, entry + 2);
    c.tag = word(b, entry + 4) ^ b.work.tag;
    if (c.steps != 0 && c.tile < c.tiles) break;
  }
  c.over = c.segment >= c.segments;
}

// Loads the words of the current step and computes its operands; `prepare` is in ready.cuh.
__device__ static void prepare(Block& b);

__device__ static void load_step(Block& b) {
  if (b.cursor.over) return;
  // Always as many words as the longest step has; a program has padding after its last step.
  for (u32 i = threadIdx.x; i < STEP_WORDS && threadIdx.x < 32; i += 32)
    b.cursor.words[i] = word(b, b.cursor.offset + i);
  first_warp_sync();
  prepare(b);
}

// Makes `lane` the current lane.
__device__ static void switch_lane(Block& b, u32 lane) {
  Cursor& c = b.cursor;
  if (c.lane == lane) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (c.lane != NO_LANE) {
      const gptr<LaneState> old = b.work.lanes + c.lane;
      old->tile = c.tile;
      old->segment = c.segment;
      old->step = c.step;
      old->offset = c.offset;
    }
    const u32 entry = b.prefix[HEADER_LANE_TABLE] + lane * LANE_WORDS, segment = word(b, entry);
    const gptr<const LaneState> state = b.work.lanes + lane;
    const bool fresh = state->offset == 0;
    c.lane = lane;
    c.segment = fresh ? segment : state->segment;
    c.segments = segment + word(b, entry + 1);
    c.tile = state->tile;
    c.step = state->step;
    find_segment(b);
    c.offset = fresh ? c.first : state->offset;
  }
  __syncthreads();
  load_step(b);
}

// Moves to the next step of the lane. After the barrier that ends the step, only the first warp has
// used its words, so a sync of that warp is enough before they change.
__device__ static void advance(Block& b) {
  first_warp_sync();
  Cursor& c = b.cursor;
  if (threadIdx.x == 0) {
    const u32 head = c.words[0];
    c.offset += 1 + inputs_of(head) + outputs_of(head) + 2 * after_of(head);
    if (++c.step == c.steps) {
      c.step = 0;
      c.tile++;
      if (c.tile == c.tiles) {
        c.tile = 0;
        c.segment++;
        find_segment(b);
      }
      c.offset = c.first;
    }
  }
  __syncthreads();
  load_step(b);
}
