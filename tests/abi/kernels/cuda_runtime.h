/* What nvcc and CUDA's headers give to kernels, for a compiler of the host: enough to check names
 * and types. */
#ifndef MAYPOLE_TEST_CUDA_RUNTIME_H_
#define MAYPOLE_TEST_CUDA_RUNTIME_H_

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;

#define __CUDACC__ 1
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline

struct maypoleTestIndex {
  unsigned int x, y, z;
};
static const maypoleTestIndex threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0};
static const maypoleTestIndex blockDim = {1, 1, 1}, gridDim = {1, 1, 1};

inline void __syncthreads() {}
inline void __syncwarp(unsigned int = ~0u) {}
inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }
inline void __trap() { __builtin_trap(); }

#endif
