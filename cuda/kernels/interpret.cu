// The interpreter: one launch runs one rank's part of a schedule.
//
// A lane is walked by one block, as `lane % gridDim.x == blockIdx.x` says, so any grid runs any schedule: a block
// with several lanes takes turns, and fires whichever step is ready. That cannot lock up, because a step takes nothing
// before it has everything (the host's lanes are state machines for the same reason). The blocks of a launch, and the launches of ranks that
// share a device, must be resident together.
//
// One turn: threads 0..7 look at the inputs, 8..15 at the outputs, 16..23 at `after`, side by side; the block meets; if all
// are ready it folds, in one pass with the inputs in registers; it meets again, and the same threads release the messages
// taken, publish those sent, and count the step as done. Blocks have at least 32 threads.
//
// Order of memory. Slots and counters are written by threads T of a block, then all meet at a barrier, then one thread stores a
// counter with release (of everything the barrier ordered before it); the reader loads it with acquire, then meets its block
// at a barrier. Pairs: `filled` (data of a slot), `drained` (the slot is free), `done` (chunks of other lanes).
#include "operations.cuh"
#include "program.cuh"

// The step at hand, as the threads that looked at its operands found it: inputs at 0.., outputs at MAX_FAN...
struct Firing {
  gptr<u8> at[2 * MAX_FAN];
  u32 elements[2 * MAX_FAN];
  u32 own[MAX_FAN];  // the input is the rank's contribution
};

// Words of a step, and where its lane stands.
struct Turn {
  u32 lane, steps, tile, step, cursor;
  u32 inputs, outputs, after, finish;
};

__device__ static u64 word64(gptr<const u32> low) { return low[0] | (u64)low[1] << 32; }

// `done` stands first in a lane's state.
__device__ static gptr<u64> done_word(const Launch& a, u32 lane) {
  return gcast<u64>(a.lanes + lane);
}

__device__ static Turn turn_of(const Launch& a, u32 lane) {
  const LaneState state = a.lanes[lane];
  const gptr<const u32> entry = a.program + a.program[HEADER_LANE_TABLE] + lane * LANE_WORDS;
  Turn t = {lane, entry[1], state.tile, state.step, state.cursor, 0, 0, 0, 0};
  if (t.steps == 0) t.tile = a.program[HEADER_TILES];
  if (t.tile == a.program[HEADER_TILES]) return t;
  if (t.step == 0) t.cursor = entry[0];
  const u32 head = a.program[t.cursor];
  t.inputs = head & COUNT_MASK;
  t.outputs = head >> OUTPUTS_SHIFT & COUNT_MASK;
  t.after = head >> AFTER_SHIFT & COUNT_MASK;
  t.finish = head >> FINISH_SHIFT & 1;
  return t;
}

// Finds operand `j`; false as long as it is a message that is not there or a link without a credit.
__device__ static bool look(const Launch& a, const Turn& t, u32 element, u32 word, u32 j, Firing& f) {
  const u32 kind = word >> KIND_SHIFT, index = word & ((1u << KIND_SHIFT) - 1);
  const u32 tile = a.program[HEADER_TILE];
  if (j < MAX_FAN) f.own[j] = kind == KIND_INPUT;
  f.elements[j] = tile;
  if (kind == KIND_LINK) {
    const bool in = j < MAX_FAN;
    const LinkEnd end = in ? a.receiving[index] : a.sending[index];
    const u64 n = *end.position;
    f.at[j] = end.slots + n % end.depth * end.slot_bytes;
    return in ? load_acquire(end.filled) > n : n - load_acquire(end.drained) < end.depth;
  }
  if (kind == KIND_SCRATCH) {
    f.at[j] = a.scratch + (u64)index * tile * element;
    return true;
  }
  const u32 table = a.program[kind == KIND_INPUT ? HEADER_INPUT_TABLE : HEADER_OUTPUT_TABLE];
  const gptr<const u32> extent = a.program + table + (u64)index * EXTENT_WORDS;
  const u64 start = (u64)t.tile * tile, size = word64(extent + 2);
  f.at[j] = (kind == KIND_INPUT ? a.input : a.output) + (word64(extent) + start) * element;
  f.elements[j] = size <= start ? 0 : size - start < tile ? (u32)(size - start) : tile;
  return true;
}

// This thread's share of "may the step fire?".
__device__ static bool ready(const Launch& a, const Turn& t, u32 element, Firing& f) {
  const u32 j = threadIdx.x;
  const gptr<const u32> words = a.program + t.cursor + 1;
  if (j < MAX_FAN) return j >= t.inputs || look(a, t, element, words[j], j, f);
  if (j < 2 * MAX_FAN) {
    const u32 k = j - MAX_FAN;
    return k >= t.outputs || look(a, t, element, words[t.inputs + k], j, f);
  }
  const u32 k = j - 2 * MAX_FAN;
  if (k >= t.after) return true;
  const gptr<const u32> other = words + t.inputs + t.outputs + 2 * k;
  const u32 steps = a.program[a.program[HEADER_LANE_TABLE] + other[0] * LANE_WORDS + 1];
  return load_acquire(done_word(a, other[0])) > (u64)t.tile * steps + other[1];
}

// Folds K inputs by the balanced tree over their positions and writes every output. What lies past the end of a chunk of the
// user's in its last tile is neither read nor written; messages of such a tile end in elements that nobody writes to memory of the user.
template <class Op, u32 K>
__device__ static void pass(const Op& op, const Turn& t, const Firing& f) {
  typedef typename Op::Element Element;
  u32 elements = ~0u;
  for (u32 k = 0; k < K; k++) elements = f.elements[k] < elements ? f.elements[k] : elements;
  for (u32 o = 0; o < t.outputs; o++)
    elements = f.elements[MAX_FAN + o] < elements ? f.elements[MAX_FAN + o] : elements;
  for (u32 i = threadIdx.x; i < elements; i += blockDim.x) {
    Element v[K];
#pragma unroll
    for (u32 k = 0; k < K; k++) {
      v[k] = gcast<Element>(f.at[k])[i];
      if (f.own[k]) v[k] = op.contribute(v[k]);
    }
#pragma unroll
    for (u32 s = 1; s < K; s *= 2)
#pragma unroll
      for (u32 k = 0; k + s < K; k += 2 * s) v[k] = op.combine(v[k], v[k + s]);
    if (t.finish) v[0] = op.finish(v[0]);
    for (u32 o = 0; o < t.outputs; o++) gcast<Element>(f.at[MAX_FAN + o])[i] = v[0];
  }
}

template <class Op>
__device__ static void fire(const Op& op, const Turn& t, const Firing& f) {
  switch (t.inputs) {
    case 1: return pass<Op, 1>(op, t, f);
    case 2: return pass<Op, 2>(op, t, f);
    case 3: return pass<Op, 3>(op, t, f);
    case 4: return pass<Op, 4>(op, t, f);
    case 5: return pass<Op, 5>(op, t, f);
    case 6: return pass<Op, 6>(op, t, f);
    case 7: return pass<Op, 7>(op, t, f);
    case 8: return pass<Op, 8>(op, t, f);
  }
}

// This thread's share of what the others may now know, and the lane's next place.
__device__ static void publish(const Launch& a, const Turn& t) {
  const u32 j = threadIdx.x;
  const bool in = j < MAX_FAN, out = !in && j < 2 * MAX_FAN;
  if ((in && j < t.inputs) || (out && j - MAX_FAN < t.outputs)) {
    const u32 word = a.program[t.cursor + 1 + (in ? j : t.inputs + j - MAX_FAN)];
    if (word >> KIND_SHIFT == KIND_LINK) {
      const u32 index = word & ((1u << KIND_SHIFT) - 1);
      const LinkEnd end = in ? a.receiving[index] : a.sending[index];
      const u64 n = *end.position + 1;
      *end.position = n;
      store_release(in ? end.drained : end.filled, n);
    }
  }
  if (j == 2 * MAX_FAN) {
    const gptr<LaneState> state = a.lanes + t.lane;
    const bool last = t.step + 1 == t.steps;
    state->tile = t.tile + last;
    state->step = last ? 0 : t.step + 1;
    state->cursor = t.cursor + 1 + t.inputs + t.outputs + 2 * t.after;
    store_release(done_word(a, t.lane), (u64)t.tile * t.steps + t.step + 1);
  }
}

template <class Op>
__device__ static void interpret(const Launch& a) {
  __shared__ Firing firing;
  if (a.program[HEADER_MAGIC] != MAGIC) return;
  const u32 lanes = a.program[HEADER_LANES], tiles = a.program[HEADER_TILES];
  const Op op(a.parameter);
  u32 vain = 0;
  for (;;) {
    bool through = true, fired = false;
    for (u32 lane = blockIdx.x; lane < lanes; lane += gridDim.x) {
      const Turn t = turn_of(a, lane);
      if (t.tile == tiles) continue;
      through = false;
      if (!__syncthreads_and(ready(a, t, sizeof(typename Op::Element), firing))) continue;
      fire(op, t, firing);
      __syncthreads();
      publish(a, t);
      __syncthreads();
      fired = true;
    }
    if (through) break;
    vain = fired ? 0 : vain + 1;
    if (fired) continue;
    if (__syncthreads_or(threadIdx.x == 0 && load_acquire(a.abort))) return;
    if (threadIdx.x == 0) wait_hint(vain);
  }
  // Nobody looks at the lanes' counters any more when the last block is through: it clears them for the next launch. Links count on.
  __syncthreads();
  if (threadIdx.x == 0 && fetch_add(a.departed, 1) == gridDim.x - 1) {
    for (u32 lane = 0; lane < lanes; lane++) a.lanes[lane] = LaneState{};
    *a.departed = 0;
  }
}

KERNEL(interpret_sum_f32, Launch, launch) { interpret<SumF32>(launch); }
KERNEL(interpret_premulsum_f32, Launch, launch) { interpret<PreMulSumF32>(launch); }
KERNEL(interpret_sum_bf16, Launch, launch) { interpret<SumBf16>(launch); }
KERNEL(interpret_avg_i32, Launch, launch) { interpret<AvgI32>(launch); }
