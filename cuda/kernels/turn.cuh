// Going from step to step and from lane to lane.
#pragma once
#include "block.cuh"

// Finds the segment that the lane is in: those without steps, or with no tile left, are passed over. One thread calls this.
__device__ static void settle(Block& b) {
  Turn& t = b.turn;
  for (; t.segment < t.segments; t.segment++, t.tile = 0) {
    const u32 entry = b.prefix[HEADER_SEGMENT_TABLE] + t.segment * SEGMENT_WORDS;
    t.first = word(b, entry);
    t.steps = word(b, entry + 1);
    t.tiles = word64(b, entry + 2);
    t.tag = word(b, entry + 4) ^ b.work.tag;
    if (t.steps != 0 && t.tile < t.tiles) break;
  }
  t.over = t.segment >= t.segments;
}

// Fetches the words of the step at hand and finds its operands; `prepare` is in look.cuh.
__device__ static void prepare(Block& b);

__device__ static void fetch(Block& b) {
  if (b.turn.over) return;
  // All at once; a program has so many words behind its last step.
  for (u32 i = threadIdx.x; i < STEP_WORDS && threadIdx.x < 32; i += 32) b.turn.words[i] = word(b, b.turn.cursor + i);
  first_warp_sync();
  prepare(b);
}

// Makes `lane` the one at hand.
__device__ static void enter(Block& b, u32 lane) {
  Turn& t = b.turn;
  if (t.lane == lane) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (t.lane != NO_LANE) {
      const gptr<LaneState> old = b.work.lanes + t.lane;
      old->tile = t.tile;
      old->segment = t.segment;
      old->step = t.step;
      old->cursor = t.cursor;
    }
    const u32 entry = b.prefix[HEADER_LANE_TABLE] + lane * LANE_WORDS, segment = word(b, entry);
    const gptr<const LaneState> state = b.work.lanes + lane;
    const bool fresh = state->cursor == 0;
    t.lane = lane;
    t.segment = fresh ? segment : state->segment;
    t.segments = segment + word(b, entry + 1);
    t.tile = state->tile;
    t.step = state->step;
    settle(b);
    t.cursor = fresh ? t.first : state->cursor;
  }
  __syncthreads();
  fetch(b);
}

// The lane's next step. Since the barrier after the pass only the first threads have looked at the present one.
__device__ static void advance(Block& b) {
  first_warp_sync();
  Turn& t = b.turn;
  if (threadIdx.x == 0) {
    const u32 head = t.words[0];
    t.cursor += 1 + inputs_of(head) + outputs_of(head) + 2 * after_of(head);
    if (++t.step == t.steps) {
      t.step = 0;
      t.tile++;
      if (t.tile == t.tiles) {
        t.tile = 0;
        t.segment++;
        settle(b);
      }
      t.cursor = t.first;
    }
  }
  __syncthreads();
  fetch(b);
}
