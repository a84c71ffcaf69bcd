// The CUDA features that the kernels use. nvcc, NVRTC and clang compile them as plain CUDA; g++
// compiles them for the simulated device.
//
// Rules for all files that include this one: access global memory only through gptr, flags only
// through the functions below, and add and multiply floats only by add_rn and mul_rn, which no
// compiler may contract into a fused multiply-add (the bits of results are guaranteed).
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef int s32;
typedef long long s64;

// 16 bytes of elements.
struct alignas(16) Pack {
  u32 w[4];
};

// Two neighbouring words of an LL line.
struct LlPair {
  u64 a, b;
};

#if defined(__CUDACC__)

// A pointer to global memory.
template <class T>
using gptr = T*;

template <class T, class U>
static __device__ __forceinline__ gptr<T> gcast(U* p) {
  // Otherwise each access first has to find out which memory the address is in.
  __builtin_assume(__isGlobal(p));
  return reinterpret_cast<T*>(p);
}

// At most 512 threads in a block, and one block may use all registers.
#define KERNEL(name, type, arg) extern "C" __global__ void __launch_bounds__(512, 1) name(type arg)
#define NOINLINE __noinline__
#define INLINE __forceinline__

// System scope: the other end of a link may be on another device.
static __device__ __forceinline__ u64 load_acquire(gptr<const u64> p) {
  u64 v;
  asm volatile("ld.acquire.sys.global.u64 %0,[%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
static __device__ __forceinline__ void store_release(gptr<u64> p, u64 v) {
  asm volatile("st.release.sys.global.u64 [%0],%1;" ::"l"(p), "l"(v) : "memory");
}
// These give no order, but a word is neither torn nor kept in a cache.
static __device__ __forceinline__ u64 load_relaxed(gptr<const u64> p) {
  u64 v;
  asm volatile("ld.relaxed.sys.global.u64 %0,[%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
static __device__ __forceinline__ void store_relaxed(gptr<u64> p, u64 v) {
  asm volatile("st.relaxed.sys.global.u64 [%0],%1;" ::"l"(p), "l"(v) : "memory");
}
// Device scope: used among the blocks of one launch.
static __device__ __forceinline__ u64 fetch_add(gptr<u64> p, u64 v) {
  u64 old;
  asm volatile("atom.acq_rel.gpu.global.add.u64 %0,[%1],%2;"
               : "=l"(old)
               : "l"(p), "l"(v)
               : "memory");
  return old;
}

// Two neighbouring words, aligned to 16 bytes. Each word is never torn, and there is no order
// between the two.
static __device__ __forceinline__ LlPair load_ll_pair(gptr<const u64> p) {
  LlPair v;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0,%1},[%2];"
               : "=l"(v.a), "=l"(v.b)
               : "l"(p)
               : "memory");
  return v;
}
static __device__ __forceinline__ void store_ll_pair(gptr<u64> p, LlPair v) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0],{%1,%2};" ::"l"(p), "l"(v.a), "l"(v.b)
               : "memory");
}

static __device__ __forceinline__ u64 address_of(gptr<const u8> p) { return (u64)p; }

static __device__ __forceinline__ double add_rn(double a, double b) { return __dadd_rn(a, b); }
static __device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }
static __device__ __forceinline__ double bits_double(u64 a) { return __longlong_as_double((s64)a); }
static __device__ __forceinline__ u64 double_bits(double a) { return (u64)__double_as_longlong(a); }
static __device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }
static __device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
static __device__ __forceinline__ u32 float_bits(float a) { return __float_as_uint(a); }
static __device__ __forceinline__ float bits_float(u32 a) { return __uint_as_float(a); }

// All threads call this. What the first 32 threads wrote to shared memory is then visible to
// all 32.
static __device__ __forceinline__ void first_warp_sync() {
  if (threadIdx.x < 32) __syncwarp();
}

// Unsuccessful polls between two checks of the abort word, which is in host memory.
constexpr u32 ABORT_TURNS = 64;

// One thread of the block calls this after `turns` unsuccessful polls in a row.
static __device__ __forceinline__ void wait_hint(u32 turns) {
  if (turns > 64) __nanosleep(100);
}

#else
#include "../sim/shim.hpp"
#endif
