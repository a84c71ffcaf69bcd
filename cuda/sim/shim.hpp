// The part of kernels/portable.cuh for g++: the CUDA features on top of fibers. A block is an OS
// thread, and its threads are fibers.
//
// Device memory is not readable at its device address. The bytes are mapped at a higher address, a
// different one for each device that may access them, and only gptr and the simulated driver add
// the difference. So host code that accesses device memory traps, and so does a kernel that
// bypasses gptr or accesses a device without peer access. Host memory has the same address
// everywhere.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

constexpr uintptr_t DEVICE_BASE = 0x200000000000, DEVICE_SPAN = 0x010000000000,
                    ALIAS = 0x020000000000;

struct SimDim {
  unsigned x, y, z;
};

// Defined by the simulated driver.
extern "C" {
extern thread_local SimDim sim_thread, sim_block, sim_block_dim, sim_grid_dim;
extern __thread uintptr_t sim_alias;  // of the device that runs this block
void sim_barrier();
int sim_barrier_count(int predicate);
void sim_wait(unsigned turns);
void sim_stored();
}

// A kernel in an image. The simulated driver finds it by the symbol "sim_kernel_" + name.
struct SimKernel {
  void (*invoke)(const void* argument);
  size_t argument_bytes;
};

#define __device__
#define __shared__ static thread_local
#define NOINLINE __attribute__((noinline))
#define INLINE inline
#define threadIdx sim_thread
#define blockIdx sim_block
#define blockDim sim_block_dim
#define gridDim sim_grid_dim
#define __syncthreads() sim_barrier()
#define __syncthreads_and(p) (sim_barrier_count(!(p)) == 0)
#define __syncthreads_or(p) (sim_barrier_count(!!(p)) != 0)
#define KERNEL(name, type, arg)                                                                 \
  static void name(type arg);                                                                   \
  extern "C" const SimKernel sim_kernel_##name = {[](const void* p) { name(*(const type*)p); }, \
                                                  sizeof(type)};                                \
  static void name(type arg)

template <class T>
struct gptr {
  T* device;
  gptr() = default;
  gptr(T* p) : device(p) {}
  operator gptr<const T>() const { return gptr<const T>(device); }
  T* host() const {
    const uintptr_t at = (uintptr_t)device;
    return (T*)(at - DEVICE_BASE < DEVICE_SPAN ? at + sim_alias : at);
  }
  T& operator*() const { return *host(); }
  T* operator->() const { return host(); }
  T& operator[](size_t i) const { return host()[i]; }
  gptr operator+(size_t i) const { return gptr(device + i); }
};

template <class T, class U>
static inline gptr<T> gcast(gptr<U> p) {
  return gptr<T>((T*)p.device);
}

static inline u64 load_acquire(gptr<const u64> p) {
  return __atomic_load_n(p.host(), __ATOMIC_ACQUIRE);
}
static inline void store_release(gptr<u64> p, u64 v) {
  __atomic_store_n(p.host(), v, __ATOMIC_RELEASE);
  sim_stored();
}
static inline u64 load_relaxed(gptr<const u64> p) {
  return __atomic_load_n(p.host(), __ATOMIC_RELAXED);
}
static inline void store_relaxed(gptr<u64> p, u64 v) {
  __atomic_store_n(p.host(), v, __ATOMIC_RELAXED);
}
static inline u64 fetch_add(gptr<u64> p, u64 v) {
  return __atomic_fetch_add(p.host(), v, __ATOMIC_ACQ_REL);
}

static inline LlPair load_ll_pair(gptr<const u64> p) {
  return {load_relaxed(p), load_relaxed(p + 1)};
}
static inline void store_ll_pair(gptr<u64> p, LlPair v) {
  store_relaxed(p, v.a);
  store_relaxed(p + 1, v.b);
}
static inline u64 address_of(gptr<const u8> p) { return (u64)p.device; }

// The build disables contraction (-ffp-contract=off).
static inline double add_rn(double a, double b) { return a + b; }
static inline double mul_rn(double a, double b) { return a * b; }
static inline u64 double_bits(double a) {
  u64 bits;
  memcpy(&bits, &a, sizeof bits);
  return bits;
}
static inline double bits_double(u64 a) {
  double value;
  memcpy(&value, &a, sizeof value);
  return value;
}
static inline float add_rn(float a, float b) { return a + b; }
static inline float mul_rn(float a, float b) { return a * b; }
static inline u32 float_bits(float a) {
  u32 bits;
  memcpy(&bits, &a, sizeof bits);
  return bits;
}
static inline float bits_float(u32 a) {
  float value;
  memcpy(&value, &a, sizeof value);
  return value;
}
static inline void first_warp_sync() { sim_barrier(); }
constexpr u32 ABORT_TURNS = 8;
static inline void wait_hint(u32 turns) { sim_wait(turns); }
