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
#include "lines.cuh"
#include "look.cuh"
#include "pass.cuh"
#include "turn.cuh"

// The step at hand, which is ready, done to memory. False if the work was aborted meanwhile.
__device__ static bool fire(const Block& b, u32 elements) {
  const u32 head = b.turn.words[0];
  Shape s = {inputs_of(head), outputs_of(head), b.arithmetic.scaled ? own_of(head) : 0, 0, 0};
  s.finish = b.arithmetic.divisor != 0 && head >> FINISH_SHIFT & 1;
  u32 stale = 0;
  for (u32 i = 0; i < s.inputs + s.outputs; i++) {
    const u32 j = i < s.inputs ? i : MAX_FAN + i - s.inputs;
    if (b.operands.form[j] & FORM_LINES) s.lines |= 1u << j;
    if (b.operands.form[j] & FORM_STALE) stale |= 1u << j;
  }
  if (stale != 0) freshen(b, stale);
  if (s.lines != 0) return !__syncthreads_or(!pass_lines(b, s, elements));
  pass(b, s, elements);
  __syncthreads();
  return true;
}

// Makes the block ready for its work; false if there is nothing to be done. All that it reads of global memory it reads at once.
__device__ static bool begin(Block& b) {
  bool good = true;
  if (threadIdx.x == 0) {
    b.turn.lane = NO_LANE;
    good = load_relaxed(departed_word(b.work, BROKEN)) == 0;
  }
  for (u32 i = threadIdx.x; i < PREFIX_WORDS; i += blockDim.x) b.prefix[i] = b.work.program[i];
  __syncthreads();
  if (threadIdx.x == 0 && good && !(b.prefix[HEADER_MAGIC] == MAGIC && arithmetic_of(b.work, b.arithmetic))) {
    b.prefix[HEADER_LANES] = 0;
    report(b.work, TROUBLE_PROGRAM, 0, 0);
    good = false;
  }
  return __syncthreads_and(good);
}

// Walks the lanes of this block to their end; leaves when the work is aborted.
__device__ static void run(Block& b) {
  const u32 me = blockIdx.x - b.work.first_block;
  const u32 lanes = b.prefix[HEADER_LANES];
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
      if (!fire(b, elements)) return;
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
__device__ static void depart(const Work& work, u32 lanes, bool more) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const u64 works = load_relaxed(departed_word(work, WORKS));
    if (fetch_add(departed_word(work, ARRIVED), 1) == work.blocks - 1) {
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
    if (threadIdx.x == 0) b.work = launch.work[w];
    __syncthreads();
    if (begin(b)) run(b);
    depart(b.work, b.prefix[HEADER_LANES], next < launch.works);
  }
}
