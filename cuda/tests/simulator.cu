// Kernels that the tests of the simulated GPU launch.
#include "portable.cuh"

struct Probe {
  gptr<u64> from;
  gptr<u64> to;
  u64 value;
};

// Writes what `from` holds, plus `value`, to `to`.
KERNEL(add, Probe, p) {
  if (threadIdx.x == 0 && blockIdx.x == 0) store_release(p.to, load_acquire(p.from) + p.value);
}

// Waits until `from` holds `value`, then counts up `to`; each block does.
KERNEL(await, Probe, p) {
  if (threadIdx.x != 0) return;
  for (u32 turns = 0; load_acquire(p.from) < p.value; turns++) wait_hint(turns);
  fetch_add(p.to, 1);
}

// Every block says that it is here, and waits until as many as `value` are.
KERNEL(meet, Probe, p) {
  if (threadIdx.x != 0) return;
  fetch_add(p.to, 1);
  for (u32 turns = 0; load_acquire(p.to) < p.value; turns++) wait_hint(turns);
}

// Reads memory without gptr, as no kernel may.
KERNEL(bypass, Probe, p) {
#if defined(__CUDACC__)
  *p.to = *p.from;
#else
  *(volatile u64*)p.to.device = *(volatile u64*)p.from.device;
#endif
}
