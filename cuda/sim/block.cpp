// Runs a block: its threads are fibers of one OS thread, which run one after the other, each until
// the next barrier.
//
// makecontext enters a fiber; setjmp and longjmp switch between fibers, because they make no system
// call. A fiber that waits at a barrier is resumed only after the last fiber has reached the
// barrier, so a barrier costs two switches per thread.
#include <fenv.h>
#include <sched.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <vector>

#include "sim.hpp"

extern "C" {
thread_local SimDim sim_thread, sim_block, sim_block_dim, sim_grid_dim;
__thread uintptr_t sim_alias;
}

namespace {

constexpr size_t STACK = 64 << 10;

struct Block {
  const SimKernel* kernel;
  const void* argument;
  const int* broken;
  unsigned jitter_us;
  jmp_buf scheduler;
  std::vector<jmp_buf*> fibers;
  std::vector<bool> through;
  unsigned current = 0, waiting = 0, alive = 0, generation = 0;
  int count = 0, result = 0;  // for barriers with a predicate
};
thread_local Block* block;

void yield() {
  Block* b = block;
  if (_setjmp(*b->fibers[b->current]) == 0) _longjmp(b->scheduler, 1);
}

void open_barrier(Block* b) {
  b->waiting = 0;
  b->generation++;
  b->result = b->count;
  b->count = 0;
  jitter(b->jitter_us);
}

void fiber() {
  Block* b = block;
  yield();
  b->kernel->invoke(b->argument);
  b->through[b->current] = true;
  if (--b->alive && b->waiting == b->alive) open_barrier(b);
  _longjmp(b->scheduler, 1);
}

}  // namespace

extern "C" int sim_barrier_count(int predicate) {
  Block* b = block;
  b->count += predicate;
  if (++b->waiting == b->alive) {
    open_barrier(b);
    return b->result;
  }
  const unsigned generation = b->generation;
  while (b->generation == generation) yield();
  return b->result;
}

extern "C" void sim_barrier() { sim_barrier_count(0); }

// Between a store and the next one may pass any time.
extern "C" void sim_stored() {
  if (block && block->jitter_us) jitter(block->jitter_us);
}

// On a device that has failed, blocks stop where they wait.
extern "C" void sim_wait(unsigned turns) {
  Block* b = block;
  if (b && __atomic_load_n(b->broken, __ATOMIC_ACQUIRE)) {
    b->alive = 0;
    _longjmp(b->scheduler, 1);
  }
  if (turns < 8)
    sched_yield();
  else
    usleep(turns < 64 ? 20 : 200);
}

void run_block(Device& device, const SimKernel& kernel, const void* argument, SimDim grid,
               SimDim threads, SimDim index, unsigned jitter_us) {
  const unsigned n = threads.x;
  // A device knows nothing of the rounding mode of the thread that launched.
  fesetenv(FE_DFL_ENV);
  Block b;
  b.kernel = &kernel;
  b.argument = argument;
  b.broken = &device.broken;
  sim_alias = ALIAS + (uintptr_t)device.physical * DEVICE_SPAN;
  b.jitter_us = jitter_us;
  b.alive = n;
  b.through.assign(n, false);
  std::vector<char> buffers(n * sizeof(jmp_buf) + 64);
  jmp_buf* first = (jmp_buf*)(((uintptr_t)buffers.data() + 63) & ~(uintptr_t)63);
  for (unsigned i = 0; i < n; i++) b.fibers.push_back(first + i);
  char* stacks = (char*)mmap(nullptr, STACK * n, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) abort();
  block = &b;
  sim_block = index;
  sim_block_dim = threads;
  sim_grid_dim = grid;
  for (volatile unsigned i = 0; i < n; i = i + 1) {
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = stacks + STACK * i;
    start.uc_stack.ss_size = STACK;
    start.uc_link = nullptr;
    makecontext(&start, fiber, 0);
    b.current = i;
    if (_setjmp(b.scheduler) == 0) setcontext(&start);
  }
  while (b.alive) {
    for (volatile unsigned i = 0; i < n && b.alive; i = i + 1) {
      if (b.through[i]) continue;
      b.current = i;
      sim_thread = {i, 0, 0};
      if (_setjmp(b.scheduler) == 0) _longjmp(*b.fibers[i], 1);
    }
  }
  munmap(stacks, STACK * n);
}
