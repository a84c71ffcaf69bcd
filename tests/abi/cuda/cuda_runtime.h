/* A stand-in for CUDA's header with what nccl.h needs of it. */
#ifndef CUDA_RUNTIME_STAND_IN_H_
#define CUDA_RUNTIME_STAND_IN_H_
#define CUDART_VERSION 12080
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
typedef enum { cudaSuccess = 0 } cudaError_t;
#endif
