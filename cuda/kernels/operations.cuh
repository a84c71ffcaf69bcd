// What a reduction does to elements: the device's algebras, see `Algebra` in maypole-algorithms.
//
// An operation has the type of its elements in memory, contribute (what is read of the rank's own input), combine (one
// binary node, rounded to the element type) and finish (of a finishing step). `parameter` is Launch's.
#pragma once
#include "portable.cuh"

struct SumF32 {
  typedef float Element;
  __device__ explicit SumF32(u64) {}
  __device__ float contribute(float x) const { return x; }
  __device__ float combine(float low, float high) const { return add_rn(low, high); }
  __device__ float finish(float x) const { return x; }
};

// Every contribution is first multiplied by the rank's factor: the bits of a float.
struct PreMulSumF32 {
  typedef float Element;
  float factor;
  __device__ explicit PreMulSumF32(u64 parameter) : factor(bits_float((u32)parameter)) {}
  __device__ float contribute(float x) const { return mul_rn(x, factor); }
  __device__ float combine(float low, float high) const { return add_rn(low, high); }
  __device__ float finish(float x) const { return x; }
};

// In float and back, to nearest even: the sum of two bfloat16 rounded once more is the sum rounded once, since a float
// has more than twice as many bits (24 >= 2 * 8 + 2).
struct SumBf16 {
  typedef u16 Element;
  __device__ explicit SumBf16(u64) {}
  __device__ u16 contribute(u16 x) const { return x; }
  __device__ u16 combine(u16 low, u16 high) const {
    const u32 bits = float_bits(add_rn(bits_float((u32)low << 16), bits_float((u32)high << 16)));
    if ((bits & 0x7fffffff) > 0x7f800000) return (u16)(bits >> 16 | 0x40);  // quiet NaN
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  __device__ u16 finish(u16 x) const { return x; }
};

// The wrapped sum, at last divided by the number of ranks, toward zero.
struct AvgI32 {
  typedef int Element;
  int nranks;
  __device__ explicit AvgI32(u64 parameter) : nranks((int)parameter) {}
  __device__ int contribute(int x) const { return x; }
  __device__ int combine(int low, int high) const { return (int)((u32)low + (u32)high); }
  __device__ int finish(int x) const { return x / nranks; }
};

struct SumI32 {
  typedef u32 Element;
  __device__ explicit SumI32(u64) {}
  __device__ u32 contribute(u32 x) const { return x; }
  __device__ u32 combine(u32 low, u32 high) const { return low + high; }
  __device__ u32 finish(u32 x) const { return x; }
};

struct SumU8 {
  typedef u8 Element;
  __device__ explicit SumU8(u64) {}
  __device__ u8 contribute(u8 x) const { return x; }
  __device__ u8 combine(u8 low, u8 high) const { return (u8)(low + high); }
  __device__ u8 finish(u8 x) const { return x; }
};
