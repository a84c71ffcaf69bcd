// Whether the current step may run, checked by threads 0..23; and what other lanes and ranks are
// told after it has run.
#pragma once
#include "block.cuh"

// Computes all of operand `j` that does not change while the block waits. Each of the first threads
// calls this for its operand.
__device__ static void find_operand(Block& b, u32 j, u32 word) {
  const Work& work = b.work;
  Operands& f = b.operands;
  const u32 kind = kind_of(word), index = index_of(word);
  const u32 tile = b.prefix[HEADER_TILE];
  f.form[j] = 0;
  if (kind == KIND_LINK) {
    const bool in = j < MAX_FAN;
    const LinkEnd end = (in ? work.receiving : work.sending)[index];
    const u64 n = *end.position, place = place_of(n, end.depth);
    const bool has_ll = address_of(gcast<const u8>(end.ll)) != 0,
               is_ll = has_ll && work.protocol == PROTOCOL_LL;
    f.n[j] = n;
    f.depth[j] = end.depth;
    f.position[j] = end.position;
    f.counter[j] = in ? end.filled : end.drained;
    f.signal[j] = in ? end.drained : end.filled;
    f.head[j] = end.heads + place;
    f.at[j] = is_ll ? gcast<u8>(end.ll + place * end.ll_words) : end.slots + place * end.slot_bytes;
    f.capacity[j] = is_ll ? 4 * (end.ll_words - 2) : end.slot_bytes;
    const bool stale = has_ll && !in && n >= end.depth && (n & 0x7fff'ffff) < end.depth;
    f.form[j] = (is_ll ? FORM_LL : 0) | (stale ? FORM_STALE : 0);
  } else if (kind == KIND_SCRATCH) {
    f.at[j] = work.scratch + (u64)index * tile * work.element;
  } else {
    const u32 extent = b.prefix[kind == KIND_INPUT ? HEADER_INPUT_TABLE : HEADER_OUTPUT_TABLE] +
                       index * EXTENT_WORDS;
    const u64 start = b.cursor.tile * tile, size = word64(b, extent + 2);
    f.at[j] = (kind == KIND_INPUT ? work.input : work.output) +
              (word64(b, extent) + start) * work.element;
    f.elements[j] = size <= start ? 0 : size - start < tile ? (u32)(size - start) : tile;
  }
}

__device__ static void prepare(Block& b) {
  const u32 j = threadIdx.x;
  if (j >= CHECKERS) return;
  const u32 head = b.cursor.words[0], inputs = inputs_of(head), outputs = outputs_of(head);
  const bool in = j < inputs, out = j - MAX_FAN < outputs && j < OPERANDS;
  b.operands.ready[j] = !in && !out && j - OPERANDS >= after_of(head);
  if (in || out) find_operand(b, j, b.cursor.words[1 + (in ? j : inputs + j - MAX_FAN)]);
}

// Whether the `k`-th step of `after` has finished.
__device__ static bool is_done(const Block& b, u32 k) {
  const u32 head = b.cursor.words[0];
  const u32* after = b.cursor.words + 1 + inputs_of(head) + outputs_of(head) + 2 * k;
  const u32 segment = word(b, b.prefix[HEADER_LANE_TABLE] + after[0] * LANE_WORDS);
  const u32 steps = word(b, b.prefix[HEADER_SEGMENT_TABLE] + segment * SEGMENT_WORDS + 1);
  return load_acquire(done_word(b.work, after[0])) > b.cursor.tile * steps + after[1];
}

// Whether a message that has arrived is the one that the step expects; reports an error if not.
__device__ static bool check_message(Block& b, u32 j, u32 link, u32 found, u32 bytes) {
  if (found != b.cursor.tag) {
    report(b.work, ERROR_TAG, link, found);
    return false;
  }
  b.operands.elements[j] = bytes / b.work.element;
  if (bytes % b.work.element == 0 && b.operands.elements[j] <= b.prefix[HEADER_TILE] &&
      bytes <= b.operands.capacity[j])
    return true;
  report(b.work, ERROR_LENGTH, link, found);
  return false;
}

// Whether the operand or dependency of thread `j` is ready. Sets `bad` if its message is not the
// one that the step expects.
__device__ static bool is_ready(Block& b, u32 j, bool& bad) {
  Operands& f = b.operands;
  const u32 head = b.cursor.words[0], inputs = inputs_of(head);
  if (j >= OPERANDS) return is_done(b, j - OPERANDS);
  const bool in = j < MAX_FAN;
  const u32 word = b.cursor.words[1 + (in ? j : inputs + j - MAX_FAN)];
  if (kind_of(word) == KIND_LINK) {
    if (!in) return f.n[j] - load_acquire(f.counter[j]) < f.depth[j];
    if (f.form[j] & FORM_LL) {
      const u32 flag = (u32)f.n[j] + 1;
      const LlPair first = load_ll_pair(gcast<const u64>(f.at[j]));
      if ((u32)(first.a >> 32) != flag || (u32)(first.b >> 32) != flag) return false;
      bad = !check_message(b, j, index_of(word), (u32)first.a, (u32)first.b);
      return !bad;
    }
    const u64 count = load_acquire(f.counter[j]);
    if (count <= f.n[j]) return false;
    const u64 message = *f.head[j];
    bad = !check_message(b, j, index_of(word), (u32)message, (u32)(message >> 32));
    return !bad;
  }
  if (kind_of(word) == KIND_SCRATCH && in) {
    // The step that wrote the chunk also wrote its length. It may be a step of `after`, which
    // another thread checks at the same time, so wait for all of them here.
    for (u32 k = 0; k < after_of(head); k++)
      if (!is_done(b, k)) return false;
    f.elements[j] = b.work.scratch_lengths[index_of(word)];
  }
  return true;
}

// This thread's part of the question whether the step may run. What has been ready once remains
// ready.
__device__ static bool check_ready(Block& b, bool& bad) {
  const u32 j = threadIdx.x;
  if (j >= CHECKERS || b.operands.ready[j]) return true;
  if (!is_ready(b, j, bad)) return false;
  b.operands.ready[j] = 1;
  return true;
}

// The length of the step in elements: that of all inputs and local outputs, for which messages must
// have room. All threads compute the same.
__device__ static bool lengths_fit(const Block& b, u32& elements) {
  const u32 head = b.cursor.words[0], inputs = inputs_of(head), outputs = outputs_of(head);
  elements = b.operands.elements[0];
  bool fit = true;
  for (u32 k = 1; k < inputs; k++) fit &= b.operands.elements[k] == elements;
  for (u32 o = 0; o < outputs; o++) {
    const u32 kind = kind_of(b.cursor.words[1 + inputs + o]);
    if (kind <= KIND_OUTPUT) fit &= b.operands.elements[MAX_FAN + o] == elements;
    if (kind == KIND_LINK)
      fit &= (u64)elements * b.work.element <= b.operands.capacity[MAX_FAN + o];
  }
  return fit;
}

// This thread's part of telling others that the step has run.
__device__ static void publish(Block& b, u32 elements) {
  const u32 j = threadIdx.x;
  const u32 head = b.cursor.words[0], inputs = inputs_of(head), outputs = outputs_of(head);
  Operands& f = b.operands;
  const bool in = j < inputs, out = j - MAX_FAN < outputs && j < OPERANDS;
  if (in || out) {
    const u32 word = b.cursor.words[1 + (in ? j : inputs + j - MAX_FAN)];
    if (kind_of(word) == KIND_LINK) {
      const u64 next = f.n[j] + 1;
      *f.position[j] = next;
      if (!(f.form[j] & FORM_LL)) {
        if (out) *f.head[j] = (u64)(elements * b.work.element) << 32 | b.cursor.tag;
        store_release(f.signal[j], next);
      } else if (in) {
        // Relaxed is enough: all words of the message have been read, since their flags were
        // compared.
        store_relaxed(f.signal[j], next);
      }
    } else if (kind_of(word) == KIND_SCRATCH && out) {
      b.work.scratch_lengths[index_of(word)] = elements;
    }
  }
  if (head >> AWAITED_SHIFT & 1) {
    // The store below also releases the lengths of scratch chunks.
    first_warp_sync();
    if (j == OPERANDS)
      store_release(done_word(b.work, b.cursor.lane),
                    b.cursor.tile * b.cursor.steps + b.cursor.step + 1);
  }
}

// Whether the host or another block of the rank has aborted the work.
__device__ static bool aborted(const Work& work) {
  if (load_relaxed(departed_word(work, BROKEN)) != 0) return true;
  if (load_relaxed(work.abort) == 0) return false;
  store_relaxed(departed_word(work, BROKEN), 1);
  return true;
}
