// The interpreter: one launch runs the parts of one or more ranks in one or more calls.
//
// A lane is walked by one block, as `lane % work.blocks` says, so any number of blocks runs any schedule: a block
// with several lanes takes turns, and fires whichever step is ready. That cannot lock up, because a step takes nothing
// before it has everything (the host's lanes are state machines for the same reason). The blocks of a launch, and the launches of ranks that
// share a device, must be resident together.
//
// One turn: threads 0..7 look at the inputs, 8..15 at the outputs, 16..23 at `after`, side by side; the block meets; if all
// are ready it folds, in one pass with the inputs in registers; it meets again, and the same threads release the messages
// taken, publish those sent, and count the step as done, while the words of the next step are fetched. Blocks have at least 32 threads.
//
// Order of memory. Slots and counters are written by threads T of a block, then all meet at a barrier, then one thread stores a
// counter with release (of everything the barrier ordered before it); the reader loads it with acquire, then meets its block
// at a barrier. Pairs: `filled` (data and head of a slot), `drained` (the slot is free), `done` (chunks of other lanes), `works` (everything of
// a work, for the next one of the same blocks).
#include "block.cuh"
#include "look.cuh"
#include "operations.cuh"
#include "turn.cuh"

// Folds K inputs by the balanced tree over their positions and writes every output.
template <class Op, u32 K>
__device__ static void pass(const Op& op, const Block& b, u32 elements) {
  typedef typename Op::Element Element;
  const Operands& f = b.operands;
  const u32 head = b.turn.words[0];
  for (u32 i = threadIdx.x; i < elements; i += blockDim.x) {
    Element v[K];
#pragma unroll
    for (u32 k = 0; k < K; k++) {
      v[k] = gcast<Element>(f.at[k])[i];
      if (kind_of(b.turn.words[1 + k]) == KIND_INPUT) v[k] = op.contribute(v[k]);
    }
#pragma unroll
    for (u32 s = 1; s < K; s *= 2)
#pragma unroll
      for (u32 k = 0; k + s < K; k += 2 * s) v[k] = op.combine(v[k], v[k + s]);
    if (head >> FINISH_SHIFT & 1) v[0] = op.finish(v[0]);
    for (u32 o = 0; o < outputs_of(head); o++) gcast<Element>(f.at[MAX_FAN + o])[i] = v[0];
  }
}

template <class Op>
__device__ static void fold(const Block& b, u32 elements) {
  const Op op(b.work.parameter);
  switch (inputs_of(b.turn.words[0])) {
    case 1: return pass<Op, 1>(op, b, elements);
    case 2: return pass<Op, 2>(op, b, elements);
    case 3: return pass<Op, 3>(op, b, elements);
    case 4: return pass<Op, 4>(op, b, elements);
    case 5: return pass<Op, 5>(op, b, elements);
    case 6: return pass<Op, 6>(op, b, elements);
    case 7: return pass<Op, 7>(op, b, elements);
    case 8: return pass<Op, 8>(op, b, elements);
  }
}

__device__ static void fire(const Block& b, u32 elements) {
  switch (b.work.operation & ~OPERATION_ADDRESS) {
    case 2 * 8 + 0: return fold<SumI32>(b, elements);
    case 2 * 8 + 4: return fold<AvgI32>(b, elements);
    case 7 * 8 + 0: return fold<SumF32>(b, elements);
    case 7 * 8 + 5: return fold<PreMulSumF32>(b, elements);
    case 9 * 8 + 0: return fold<SumBf16>(b, elements);
    default: return fold<SumU8>(b, elements);
  }
}

// Walks the lanes of this block to their end; leaves when the work is aborted.
__device__ static void run(Block& b) {
  const u32 me = blockIdx.x - b.work.first_block;
  if (b.work.program[HEADER_MAGIC] != MAGIC) {
    if (threadIdx.x == 0) report(b.work, TROUBLE_PROGRAM, 0, 0);
    return;
  }
  const u32 lanes = b.work.program[HEADER_LANES];
  u32 vain = 0;
  for (;;) {
    bool through = true, fired = false, stuck = false, bad = false;
    for (u32 lane = me; lane < lanes; lane += b.work.blocks) {
      enter(b, lane);
      if (b.turn.over) continue;
      through = false;
      if (!__syncthreads_and(ready(b, bad))) {
        stuck = true;
        continue;
      }
      u32 elements;
      if (!lengths_fit(b, elements)) {
        if (threadIdx.x == 0) report(b.work, TROUBLE_PROGRAM, 0, 0);
        return;
      }
      fire(b, elements);
      __syncthreads();
      publish(b, elements);
      advance(b);
      fired = true;
    }
    if (through) return;
    if (stuck && __syncthreads_or(bad)) return;
    vain = fired ? 0 : vain + 1;
    if (fired) continue;
    if (vain % ABORT_TURNS == 0 && __syncthreads_or(threadIdx.x == 0 && aborted(b.work))) return;
    if (threadIdx.x == 0) wait_hint(vain);
  }
}

// The block is through with its work. The last one to say so clears what the next work finds: nobody looks at the lanes' counters any more.
// Links count on.
__device__ static void depart(const Work& work, bool more) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const u64 works = load_relaxed(departed_word(work, WORKS));
    if (fetch_add(departed_word(work, ARRIVED), 1) == work.blocks - 1) {
      const u32 lanes = work.program[HEADER_MAGIC] == MAGIC ? work.program[HEADER_LANES] : 0;
      for (u32 lane = 0; lane < lanes; lane++) work.lanes[lane] = LaneState{};
      *departed_word(work, ARRIVED) = 0;
      store_release(work.finished, works + 1);
      store_release(departed_word(work, WORKS), works + 1);
    } else if (more) {
      for (u32 turns = 0; load_acquire(departed_word(work, WORKS)) == works; turns++) wait_hint(turns);
    }
  }
  __syncthreads();
}

KERNEL(maypole_interpret, Launch, launch) {
  __shared__ Block b;
  u32 next = launch.works;
  for (u32 w = 0; w < launch.works; w = next) {
    for (next = w + 1; next < launch.works; next++)
      if (blockIdx.x - launch.work[next].first_block < launch.work[next].blocks) break;
    if (blockIdx.x - launch.work[w].first_block >= launch.work[w].blocks) continue;
    if (threadIdx.x == 0) {
      b.work = launch.work[w];
      b.turn.lane = NO_LANE;
    }
    __syncthreads();
    if (!__syncthreads_or(threadIdx.x == 0 && load_relaxed(departed_word(b.work, BROKEN)) != 0)) run(b);
    depart(b.work, next < launch.works);
  }
}
