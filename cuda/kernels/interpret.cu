// The interpreter kernel: one launch runs the works of one or more ranks in one or more calls.
//
// A lane is run by block `lane % work.blocks`, so any number of blocks can run any schedule: a
// block with several lanes visits them in turn and runs every step that is ready. This cannot
// deadlock, because a step consumes nothing before everything it needs is ready (the lanes of the
// host engine are state machines for the same reason). The blocks of a launch, and the launches of
// ranks that share a device, must be resident at the same time.
//
// One visit: threads 0..7 check the inputs, 8..15 the outputs and 16..23 the steps of `after`, in
// parallel, followed by a barrier. If all are ready, the block folds in one pass, with the inputs
// in registers, followed by a barrier. Then the same threads release the received messages, publish
// the sent ones and count the step as done, while the words of the next step are loaded. Blocks
// have at least 32 threads.
//
// Memory order. The threads of a block write slots and counters; after a barrier one thread stores
// a counter with release, which covers everything that the barrier ordered before it. The reader
// loads the counter with acquire, and its block passes a barrier. The pairs are `filled` (data and
// head of a slot), `drained` (the slot is free), `done` (chunks of other lanes), `finished`
// (everything of a work, for the host and for works that wait for that word in their streams) and
// `gate` (the same, for the other blocks of the launch).
#include "ll.cuh"
#include "ready.cuh"
#include "fold.cuh"
#include "cursor.cuh"

// Runs the current step, which is ready. False if the work was aborted meanwhile.
__device__ static bool run_step(const Block& b, u32 elements) {
  const u32 head = b.cursor.words[0];
  FoldShape s = {inputs_of(head), outputs_of(head), b.arithmetic.scaled ? own_of(head) : 0, 0, 0};
  s.finish = b.arithmetic.divisor != 0 && head >> FINISH_SHIFT & 1;
  u32 stale = 0;
  for (u32 i = 0; i < s.inputs + s.outputs; i++) {
    const u32 j = i < s.inputs ? i : MAX_FAN + i - s.inputs;
    if (b.operands.form[j] & FORM_LL) s.ll |= 1u << j;
    if (b.operands.form[j] & FORM_STALE) stale |= 1u << j;
  }
  if (stale != 0) overwrite_stale(b, stale);
  if (s.ll != 0) return !__syncthreads_or(!fold_step_ll(b, s, elements));
  fold_step(b, s, elements);
  __syncthreads();
  return true;
}

// Prepares the block for its work; false if the work must not run. Loads the beginning of the
// program to shared memory at once.
__device__ static bool begin(Block& b) {
  bool good = true;
  if (threadIdx.x == 0) {
    b.cursor.lane = NO_LANE;
    good = load_relaxed(departed_word(b.work, BROKEN)) == 0;
  }
  for (u32 i = threadIdx.x; i < PREFIX_WORDS; i += blockDim.x) b.prefix[i] = b.work.program[i];
  __syncthreads();
  if (threadIdx.x == 0 && good &&
      !(b.prefix[HEADER_MAGIC] == MAGIC && arithmetic_of(b.work, b.arithmetic))) {
    b.prefix[HEADER_LANES] = 0;
    report(b.work, ERROR_PROGRAM, 0, 0);
    good = false;
  }
  return __syncthreads_and(good);
}

// Runs the lanes of this block until they end or the work is aborted.
__device__ static void run(Block& b) {
  const u32 me = blockIdx.x - b.work.first_block;
  const u32 lanes = b.prefix[HEADER_LANES];
  u32 failed_polls = 0;
  for (;;) {
    bool finished_all = true, ran = false, waiting = false, bad = false;
    for (u32 lane = me; lane < lanes; lane += b.work.blocks) {
      switch_lane(b, lane);
      if (b.cursor.over) continue;
      finished_all = false;
      if (!__syncthreads_and(check_ready(b, bad))) {
        waiting = true;
        continue;
      }
      u32 elements;
      if (!lengths_fit(b, elements)) {
        if (threadIdx.x == 0) report(b.work, ERROR_PROGRAM, 0, 0);
        return;
      }
      if (!run_step(b, elements)) return;
      publish(b, elements);
      advance(b);
      ran = true;
    }
    if (finished_all) return;
    if (waiting && __syncthreads_or(bad)) return;
    failed_polls = ran ? 0 : failed_polls + 1;
    if (ran) continue;
    if (failed_polls % ABORT_TURNS == 0 && __syncthreads_or(threadIdx.x == 0 && aborted(b.work)))
      return;
    if (threadIdx.x == 0) wait_hint(failed_polls);
  }
}

// Counts the block as finished with its work. The last block clears the states of the lanes for the
// next work, since no block uses them any more; the counters of links go on. If `more` works follow
// in this launch, waits until all blocks have finished this one.
//
// The next work may begin as soon as `finished` or the gate is stored, and reads the counter of
// works. So the counter is stored first, and the gate last: a work of this launch that passes it
// cannot store a higher number in `finished` before this one has stored its own.
__device__ static void finish_work(const Work& work, u32 lanes, bool more) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const u64 works = load_relaxed(departed_word(work, WORKS));
    if (fetch_add(departed_word(work, ARRIVED), 1) == work.blocks - 1) {
      for (u32 lane = 0; lane < lanes; lane++) work.lanes[lane] = LaneState{};
      *departed_word(work, ARRIVED) = 0;
      store_release(departed_word(work, WORKS), works + 1);
      store_release(work.finished, works + 1);
      store_release(departed_word(work, GATE), works + 1);
    } else if (more) {
      for (u32 turns = 0; load_acquire(departed_word(work, GATE)) == works; turns++)
        wait_hint(turns);
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
    finish_work(b.work, b.prefix[HEADER_LANES], next < launch.works);
  }
}

// Writes one word, as works write to the memory of other ranks. The host checks that it arrives.
KERNEL(maypole_write_word, WordWrite, write) {
  if (blockIdx.x == 0 && threadIdx.x == 0) store_release(write.to, write.value);
}
